"""virtio's numbers that belong to no single device: feature bits (as masks), status bits, device ids.

virtio 1.2, sections 2.1 (status), 2.2 and 6 (features), 5 (device ids).
"""

from __future__ import annotations

# -- features of rings and transports (section 6) -------------------------------------------------------

INDIRECT_DESC = 1 << 28  # a descriptor may point to a table of descriptors
EVENT_IDX = 1 << 29  # both sides say at which index they want to be woken
VERSION_1 = 1 << 32
ACCESS_PLATFORM = 1 << 33
RING_PACKED = 1 << 34
IN_ORDER = 1 << 35
ORDER_PLATFORM = 1 << 36
NOTIFICATION_DATA = 1 << 38
RING_RESET = 1 << 40

#: What the transport adds to a device's own bits, unless the device has its own idea of rings (vhost).
RING_FEATURES = INDIRECT_DESC | EVENT_IDX

# -- device status (section 2.1) ------------------------------------------------------------------------

ACKNOWLEDGE = 1
DRIVER = 2
DRIVER_OK = 4
FEATURES_OK = 8
NEEDS_RESET = 64
FAILED = 128

# -- interrupt status (section 4.2.2) -------------------------------------------------------------------

USED_BUFFER = 1
CONFIG_CHANGE = 2

# -- device ids (section 5) -----------------------------------------------------------------------------

NET = 1
BLOCK = 2
CONSOLE = 3
ENTROPY = 4
BALLOON = 5
SCSI = 8
VSOCK = 19
FS = 26
