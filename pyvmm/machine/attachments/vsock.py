"""--vsock CID[,socket=PATH[,port=N...]]: a socket between host and guest."""

from __future__ import annotations

from pyvmm.errors import UsageError
from pyvmm.machine.attachments.base import Attachment, Key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.machine.attachments.base import Host


class Vsock(Attachment):
    """A vsock device through the host's vhost-vsock; programs of the host reach the guest at its CID.

    ``socket`` is a Unix socket for programs that speak no AF_VSOCK: see ``pyvmm.devices.virtio.vsock_bridge``.
    """

    KIND = "vsock"
    POSITIONAL = "cid"
    KEYS: ClassVar[dict[str, Key]] = {
        "cid": Key(
            int,
            required=True,
            help="the guest's context id, 3 or more; only one guest of the host can have it",
        ),
        "socket": Key(
            str, path=True, help="a Unix socket: CONNECT PORT and a newline lead to the guest's port"
        ),
        "port": Key(
            int,
            many=True,
            help="a port of the host: what the guest connects to it reaches the Unix socket SOCKET_PORT",
        ),
    }

    cid: int
    socket: str | None
    port: tuple[int, ...]

    def check(self) -> None:
        """The numbers make sense."""
        from pyvmm.devices.virtio.vsock import check_cid

        check_cid(self.cid)
        if self.port and self.socket is None:
            raise UsageError("vsock: port without socket", "say where the connections are to go: socket=PATH")
        for port in self.port:
            if not 0 <= port < 0xFFFFFFFF:
                raise UsageError(f"vsock: port={port} is not a port", "ports are numbers below 2**32 - 1")
        if self.socket is not None and not 0 < len(self.socket.encode()) <= 107:  # sun_path, unix(7)
            raise UsageError(
                f"vsock: socket={self.socket}: a Unix socket's path has 1 to 107 bytes", "shorten it"
            )

    def create(self, host: Host) -> VirtioDevice:
        """The device, with its CID claimed, and the bridge."""
        from pyvmm.devices.virtio.vsock import Vsock as Device

        device = Device(host.name, self.cid)
        if self.socket is not None:
            from pyvmm.devices.virtio.vsock_bridge import Bridge

            try:
                host.closers.append(Bridge(self.socket, self.cid, self.port))
            except BaseException:
                device.close()
                raise
        return device


ATTACHMENT = Vsock
