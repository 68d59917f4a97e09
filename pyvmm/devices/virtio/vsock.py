"""virtio-vsock: sockets between the host and one guest, which the host's kernel serves (vhost-vsock).

virtio 1.2, section 5.10; vsock(7); Linux ``drivers/vhost/vsock.c``.  The host talks to the guest with AF_VSOCK
sockets to its context id (CID); programs that know only Unix sockets use ``vsock_bridge``.
"""

from __future__ import annotations

from ctypes import c_int, c_uint64
from errno import EADDRINUSE

from pyvmm.devices.virtio import features, vhost_uapi
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.vhost import Vhost, VhostError
from pyvmm.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.device import Link

PATH = "/dev/vhost-vsock"
RX, TX, EVENT = 0, 1, 2
FIRST_CID, LAST_CID = 3, 0xFFFF_FFFE  # 0: the hypervisor, 1: local, 2: the host, 2**32 - 1: any (vsock(7))


def check_cid(cid: int) -> None:
    """UsageError unless a guest can have this context id."""
    if not FIRST_CID <= cid <= LAST_CID:
        reserved = "0, 1 and 2 stand for the hypervisor, the machine itself and the host"
        raise UsageError(
            f"vsock CID {cid} cannot be a guest's", f"choose one from 3 to {LAST_CID:#x}: {reserved}"
        )


class Vsock(VirtioDevice):
    """The socket device of the guest with context id ``cid``, which it has as soon as this exists.

    Raises HostError, with a hint, where the host has no vhost-vsock or the CID is another guest's.
    The event queue stays ours: it would tell of a migration, and there is none.
    """

    DEVICE_ID = features.VSOCK
    own_ring_features = True

    def __init__(self, name: str, cid: int, *, path: str = PATH) -> None:
        check_cid(cid)
        self.cid = cid
        self.vhost = Vhost(path, "vhost_vsock")
        try:
            offered = self.vhost.features()
            self._claim()
        except BaseException:
            self.vhost.close()
            raise
        super().__init__(
            name, features=offered, queue_sizes=(128, 128, 32), config=cid.to_bytes(8, "little")
        )  # the config is le64 guest_cid
        self._running = False

    def _claim(self) -> None:
        try:
            self.vhost.ioctl(vhost_uapi.VHOST_VSOCK_SET_GUEST_CID, c_uint64(self.cid))
        except VhostError as error:
            if error.errno != EADDRINUSE:
                raise
            raise HostError(
                f"vsock CID {self.cid} is in use by another guest", "choose another CID"
            ) from None

    def activate(self, link: Link) -> None:
        """Let the kernel serve the queues rx and tx."""
        self.vhost.activate(link, link.features, (RX, TX))
        self.vhost.ioctl(vhost_uapi.VHOST_VSOCK_SET_RUNNING, c_int(1))
        self._running = True

    def reset(self) -> None:
        """Stop: connections of the guest are reset by the kernel when it comes back."""
        try:
            if self._running:
                self._running = False
                self.vhost.ioctl(vhost_uapi.VHOST_VSOCK_SET_RUNNING, c_int(0))
        finally:
            self.vhost.stop()

    def close(self) -> None:
        """Give the CID back."""
        self.vhost.close()
