"""The ioctls and structures of vhost, virtio devices whose queues the host's kernel serves.

Linux ``include/uapi/linux/vhost.h`` and ``vhost_types.h``.  Request numbers are computed from the structures'
sizes, as the C macros do; a test compares all of them with the compiler's view of the header.
"""

from __future__ import annotations

from ctypes import Structure, c_int, c_uint32, c_uint64, sizeof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import _SimpleCData

VHOST_VIRTIO = 0xAF
VHOST_PAGE_SIZE = 0x1000  # guest memory regions start and end on it
VHOST_F_LOG_ALL = 26
VHOST_NET_F_VIRTIO_NET_HDR = 27


class vhost_vring_state(Structure):
    _fields_ = [("index", c_uint32), ("num", c_uint32)]


class vhost_vring_file(Structure):
    _fields_ = [("index", c_uint32), ("fd", c_int)]


class vhost_vring_addr(Structure):
    _fields_ = [
        ("index", c_uint32),
        ("flags", c_uint32),
        ("desc_user_addr", c_uint64),
        ("used_user_addr", c_uint64),
        ("avail_user_addr", c_uint64),
        ("log_guest_addr", c_uint64),
    ]


class vhost_memory_region(Structure):
    _fields_ = [
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
        ("flags_padding", c_uint64),
    ]


class vhost_memory(Structure):
    """The header; ``nregions`` regions follow it."""

    _fields_ = [("nregions", c_uint32), ("padding", c_uint32)]


class VhostIoctl(int):
    """A request number that knows its name."""

    name = "?"


_IO, _IOW, _IOR = 0, 1, 2


def _ioc(direction: int, number: int, struct: type[Structure] | type[_SimpleCData[int]] | None) -> VhostIoctl:
    return VhostIoctl(direction << 30 | (sizeof(struct) if struct else 0) << 16 | VHOST_VIRTIO << 8 | number)


VHOST_GET_FEATURES = _ioc(_IOR, 0x00, c_uint64)
VHOST_SET_FEATURES = _ioc(_IOW, 0x00, c_uint64)
VHOST_SET_OWNER = _ioc(_IO, 0x01, None)
VHOST_SET_MEM_TABLE = _ioc(_IOW, 0x03, vhost_memory)
VHOST_SET_VRING_NUM = _ioc(_IOW, 0x10, vhost_vring_state)
VHOST_SET_VRING_ADDR = _ioc(_IOW, 0x11, vhost_vring_addr)
VHOST_SET_VRING_BASE = _ioc(_IOW, 0x12, vhost_vring_state)
VHOST_GET_VRING_BASE = _ioc(_IOR | _IOW, 0x12, vhost_vring_state)
VHOST_SET_VRING_KICK = _ioc(_IOW, 0x20, vhost_vring_file)
VHOST_SET_VRING_CALL = _ioc(_IOW, 0x21, vhost_vring_file)
VHOST_SET_VRING_ERR = _ioc(_IOW, 0x22, vhost_vring_file)
VHOST_NET_SET_BACKEND = _ioc(_IOW, 0x30, vhost_vring_file)
VHOST_VSOCK_SET_GUEST_CID = _ioc(_IOW, 0x60, c_uint64)
VHOST_VSOCK_SET_RUNNING = _ioc(_IOW, 0x61, c_int)

for _name, _request in list(globals().items()):
    if isinstance(_request, VhostIoctl):
        _request.name = _name
del _name, _request
