"""virtio-fs: a directory of the host as a file system of the guest, served by virtiofsd.

virtio 1.2, section 5.11; Linux ``fs/fuse/virtio_fs.c`` is the driver: ``mount -t virtiofs TAG /mnt``.
How the program is found and started is in ``virtiofsd``.
"""

from __future__ import annotations

from pyvmm.devices.virtio import features
from pyvmm.devices.virtio.vhost_user import VhostUserDevice
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.daemon import Daemon

TAG_SIZE = 36  # bytes of UTF-8
_REQUEST_QUEUES = 1  # all that QEMU's virtiofsd serves


def check_tag(tag: str) -> None:
    """UsageError unless a file system can have this name."""
    size = len(tag.encode())
    if not 0 < size <= TAG_SIZE or "\0" in tag:
        raise UsageError(f"the tag {tag!r} has {size} bytes, not 1 to {TAG_SIZE}", "choose another: DIR:TAG")


class Fs(VhostUserDevice):
    """The file system ``tag``, served by the virtiofsd that ``daemon`` runs."""

    def __init__(self, name: str, tag: str, daemon: Daemon) -> None:
        check_tag(tag)
        super().__init__(
            name,
            features.FS,
            daemon,
            # the queue for forgetting inodes, then those for requests
            queue_sizes=(128,) * (1 + _REQUEST_QUEUES),
            config=tag.encode().ljust(TAG_SIZE, b"\0") + _REQUEST_QUEUES.to_bytes(4, "little"),
            device_features=0,
        )
