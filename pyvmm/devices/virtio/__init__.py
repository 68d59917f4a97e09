"""virtio 1.2 devices: the transport (``mmio``), the ring (``queue``), the base class (``device``) and the devices.

https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html
"""
