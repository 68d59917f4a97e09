"""The agent: process 1 of the lab, which carries files in and out and runs commands on request.

It talks :mod:`pyvmm.lab.protocol` over a virtio-serial port (the mailbox is a virtio disk), is single
threaded, and does one thing at a time.  When a command has ended, whatever it left running is killed before
its exit status is sent.  When the host closes the port, the lab ends.

These modules run inside the lab, with nothing but the standard library, :mod:`pyvmm.lab.protocol` and
:mod:`pyvmm.lab.transfer` beside them.
"""
