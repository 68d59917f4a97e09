"""The devices of a machine, and the bus they stand on.

A device sees a bus, an interrupt line (anything with ``trigger()``) and, where it needs it, guest memory.
It never sees KVM, and it learns its addresses from whoever builds the machine.
"""
