"""A TAP interface of the host: Ethernet frames, each behind a virtio-net header, through a character device.

Linux ``Documentation/networking/tuntap.rst`` and ``<linux/if_tun.h>``.  With IFF_VNET_HDR the kernel reads and writes
the header of virtio 1.2, section 5.1.6, itself: checksums and segmentation stay with whoever does them best, and a
frame goes between guest RAM and the kernel in one system call.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from fcntl import ioctl

from pyvmm.devices.virtio import net_features as feature
from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEVICE = "/dev/net/tun"
#: The longest name of an interface (IFNAMSIZ of <linux/if.h>, without its zero byte).
LONGEST_NAME = 15

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN, _TUN_F_UFO = 0x01, 0x02, 0x04, 0x08, 0x10
_TUN_F_USO4, _TUN_F_USO6 = 0x20, 0x40
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCGIFMTU, _SIOCSIFMTU = 0x8913, 0x8914, 0x8921, 0x8922  # <linux/sockios.h>
_IFF_UP = 1
_IFREQ = 40  # bytes of struct ifreq

#: What the guest takes (a negotiated feature), and what to tell the interface of it.
_OFFLOADS = (
    (feature.GUEST_CSUM, _TUN_F_CSUM),
    (feature.GUEST_TSO4, _TUN_F_TSO4),
    (feature.GUEST_TSO6, _TUN_F_TSO6),
    (feature.GUEST_ECN, _TUN_F_TSO_ECN),
    (feature.GUEST_UFO, _TUN_F_UFO),
    (feature.GUEST_USO4, _TUN_F_USO4),
    (feature.GUEST_USO6, _TUN_F_USO6),
)
_BASIC = (
    feature.CSUM | feature.HOST_TSO4 | feature.HOST_TSO6 | feature.HOST_ECN | feature.HOST_UFO
    | feature.GUEST_CSUM | feature.GUEST_TSO4 | feature.GUEST_TSO6 | feature.GUEST_ECN | feature.GUEST_UFO
)  # fmt: skip
_USO = feature.HOST_USO | feature.GUEST_USO4 | feature.GUEST_USO6
#: Frames at most that wait in an interface (its txqueuelen is 1000 unless somebody changed it), and some room.
_STALE = 4096


class Tap:
    """The TAP interface ``name``, attached to, or made if there is none and this process may.

    ``fd`` is its descriptor, which never blocks; ``features`` the offloads of virtio-net it can do; ``made`` whether
    it was made here, and goes away with this object; ``up`` whether frames can pass.  What is made here is brought
    up; what was there is brought up if this process may.

    :raises HostError: there is no such interface and it cannot be made, it is in use, it is none of this kind
    """

    label = "tap"

    def __init__(self, name: str) -> None:
        self.name = name
        self.backlog = False
        self.made = not _exists(name)
        self.fd = _attach(name)
        try:
            ioctl(self.fd, _TUNSETVNETHDRSZ, struct.pack("i", feature.HEADER_SIZE))
            self.features = _BASIC | (_USO if self._offload(_BASIC | _USO) else 0)
            self._offload(0)
            self.up = _bring_up(name)
            self._counted = self._counters()  # before our time
        except OSError as error:
            self.close()
            raise HostError(
                f"the TAP interface {name} cannot be set up: {os.strerror(error.errno or 0)}",
                "this host's kernel is too old",
            ) from None

    def _offload(self, features: int) -> bool:
        """Let the interface deliver what a guest with these ``features`` takes; False if it does not know one."""
        flags = 0
        for bit, flag in _OFFLOADS:
            if features & bit:
                flags |= flag
        try:
            ioctl(self.fd, _TUNSETOFFLOAD, flags)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def start(self, features: int) -> None:
        """A driver with these negotiated ``features`` is there; what came before it is thrown away."""
        scratch = bytearray(feature.HEADER_SIZE)  # the kernel drops the rest of the frame
        for _ in range(_STALE):
            try:
                os.readv(self.fd, [scratch])
            except OSError:
                break
        self.backlog = False
        self._offload(features)

    def stop(self) -> None:
        """The driver has gone: nothing is to be delivered that only it could take."""
        try:
            self._offload(0)
        except OSError:
            pass  # the interface was deleted

    def receive(self, views: Sequence[memoryview]) -> int:
        """The next frame with its header into ``views``; its size, 0 if there is none.

        What does not fit is lost.  :raises OSError: the interface is gone
        """
        try:
            return os.readv(self.fd, views)
        except BlockingIOError:
            return 0

    def send(self, frames: Sequence[Sequence[memoryview]]) -> tuple[int, int]:
        """Send frames that start with their headers: how many were taken, and how many of those were dropped.

        If it did not take all, ``backlog`` is true until ``fd`` is writable.
        """
        self.backlog = False
        dropped = 0
        for index, frame in enumerate(frames):
            try:
                os.writev(self.fd, frame)
            except BlockingIOError:
                self.backlog = True
                return index, dropped
            except (
                OSError
            ):  # the interface is down (EIO), the header wrong or the frame too short (EINVAL) ...
                dropped += 1
        return len(frames), dropped

    def statistics(self) -> dict[str, int]:
        """What the kernel has counted since this was made; the interface sends what the guest receives."""
        return {name: count - self._counted.get(name, 0) for name, count in self._counters().items()}

    def _counters(self) -> dict[str, int]:
        found = {}
        for ours, theirs in (("rx", "tx"), ("tx", "rx")):
            for what in ("packets", "bytes", "dropped"):
                try:
                    with open(f"/sys/class/net/{self.name}/statistics/{theirs}_{what}", "rb") as file:
                        found[f"{ours}_{what}"] = int(file.read())
                except OSError:  # it was deleted
                    continue
        return found

    def close(self) -> None:
        """Detach; an interface that was made here goes away.  May be called again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def set_mtu(self, mtu: int) -> bool:
        """Have the interface carry packets of ``mtu`` bytes; False if this process may not."""
        if _request(self.name, _SIOCGIFMTU) == mtu:
            return True
        try:
            _request(self.name, _SIOCSIFMTU, mtu)
        except OSError:
            return False
        return True


def open_device() -> int:
    """A new descriptor of :data:`DEVICE`, not attached yet.  :raises HostError: it cannot be opened"""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        hint = "load the module: modprobe tun; a container has to be given the device"
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = "become a member of its group, or use --net user, which needs no rights"
        raise HostError(f"{DEVICE} cannot be opened: {os.strerror(error.errno or 0)}", hint) from None


def _attach(name: str) -> int:
    """A descriptor of the TAP interface ``name``."""
    fd = open_device()
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    try:
        try:
            _set_interface(fd, name, flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _set_interface(fd, name, flags | _IFF_MULTI_QUEUE)  # one that was made for several queues
    except OSError as error:
        os.close(fd)
        raise _refused(name, error.errno or 0) from None
    return fd


def _set_interface(fd: int, name: str, flags: int) -> None:
    ioctl(fd, _TUNSETIFF, struct.pack(f"16sH{_IFREQ - 18}x", name.encode(), flags))


def _refused(name: str, number: int) -> HostError:
    """Why the interface ``name`` could not be had."""
    make = f"ip tuntap add dev {name} mode tap user {os.geteuid()} && ip link set {name} up"
    if number == errno.EBUSY:
        return HostError(
            f"the TAP interface {name} is in use: another process is attached to it",
            "give each machine its own",
        )
    if number in (errno.EPERM, errno.EACCES):
        if _exists(name):
            return HostError(
                f"the TAP interface {name} belongs to somebody else",
                f"make one as root: ip link del {name}; {make}",
            )
        return HostError(
            f"there is no TAP interface {name}, and this user may not make one",
            f"make it as root: {make}; or use --net user",
        )
    if number == errno.EINVAL and _exists(name):
        return HostError(
            f"the interface {name} is no TAP interface", f"choose another name, and make it: {make}"
        )
    return HostError(
        f"the TAP interface {name} cannot be used: {os.strerror(number)}", f"make it as root: {make}"
    )


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _request(name: str, number: int, value: int | None = None) -> int:
    """Ask for, or set, a number of the interface ``name`` (struct ifreq).  :raises OSError: refused"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = ioctl(control, number, struct.pack(f"16si{_IFREQ - 20}x", name.encode(), value or 0))
    result: int = struct.unpack_from("i", answer, 16)[0]
    return result


def _bring_up(name: str) -> bool:
    """Whether the interface is up, if need be now."""
    flags = _request(name, _SIOCGIFFLAGS) & 0xFFFF
    if not flags & _IFF_UP:
        try:
            _request(name, _SIOCSIFFLAGS, flags | _IFF_UP)
        except OSError:
            return False
    return True
