"""``--net``: a network card, on a TAP interface of the host or, without any rights, on passt."""

from __future__ import annotations

import os
import re
import zlib

from pyvmm.errors import HostError, UsageError
from pyvmm.machine.attachments.base import Attachment, Key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.devices.virtio.tap import Tap
    from pyvmm.devices.virtio.vhost import Vhost
    from pyvmm.machine.attachments.base import Host

VHOST = "/dev/vhost-net"
#: The MTUs that IPv4 (RFC 791) and the largest frame allow.
_SMALLEST_MTU, _LARGEST_MTU = 68, 65520
#: The first three bytes of addresses made up here: administered locally, and those that QEMU uses too.
_PREFIX = bytes((0x52, 0x54, 0x00))


class Net(Attachment):
    """A network card: ``user`` (through passt), or ``tap``, the name of an interface.

    ``mac`` is its address; left out, it is one that stays the same.  ``mtu`` is what the guest is told to use.
    ``vhost`` says whether the kernel moves the frames of a TAP interface; ``auto``: if it can.  ``forward`` has
    ports of the host that lead to the guest, with ``user``.
    """

    KIND = "net"
    POSITIONAL = "mode"
    KEYS = {
        "mode": Key(str, choices=("user",), help="user: through passt, which needs no rights"),
        "tap": Key(str, help="the name of a TAP interface"),
        "mac": Key(str, help="the card's address, as in 52:54:00:12:34:56"),
        "mtu": Key(int, help="the largest packet in bytes"),
        "vhost": Key(
            str, choices=("auto", "on", "off"), default="auto", help="whether the kernel moves the frames"
        ),
        "forward": Key(str, many=True, help="a port that leads to the guest: tcp:HOST:GUEST, udp:HOST:GUEST"),
    }

    mode: str | None
    tap: str | None
    mac: str | None
    mtu: int | None
    vhost: str
    forward: tuple[str, ...]

    def __init__(self, **values: object) -> None:
        super().__init__(**values)
        if bool(self.mode) == bool(self.tap):
            raise UsageError(
                "net with both user and tap" if self.mode else "net with neither user nor tap",
                "write --net user or --net tap=NAME",
            )
        if self.tap is not None:
            _check_name(self.tap)
            if self.forward:
                raise UsageError(
                    f"forward={self.forward[0]}: only --net user forwards ports",
                    "with tap, the guest has an address of its own",
                )
        elif self.vhost == "on":
            raise UsageError("vhost=on: only with tap can the kernel move the frames", "leave vhost out")
        if self.mac is not None:
            _mac(self.mac)
        if self.mtu is not None and not _SMALLEST_MTU <= self.mtu <= _LARGEST_MTU:
            raise UsageError(
                f"mtu={self.mtu}: not the size of a packet",
                f"choose {_SMALLEST_MTU} to {_LARGEST_MTU}; 1500 is usual",
            )
        if self.forward:
            from pyvmm.devices.virtio.passt import Forward

            forwards = [Forward(text) for text in self.forward]
            taken: set[tuple[str, str, int]] = set()
            for each in forwards:
                if (port := (each.protocol, each.address, each.host)) in taken:
                    raise UsageError(
                        f"forward={each.text}: port {each.host} is forwarded already", "choose another"
                    )
                taken.add(port)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The card that an option's ``text`` describes.  UsageError."""
        word = text.partition(",")[0]
        if word and "=" not in word and word != "user":
            raise UsageError(f"mode={word}: unknown", "write --net user or --net tap=NAME")
        return super().parse(text)

    def check(self) -> None:
        """Whether passt is installed and its ports are free; whether there can be TAP interfaces."""
        if self.tap is None:
            from pyvmm.devices.virtio.passt import Forward, find

            find()
            for text in self.forward:
                Forward(text).check()
        else:
            from pyvmm.devices.virtio.tap import open_device

            os.close(open_device())

    def create(self, host: Host) -> VirtioDevice:
        """Make the device; passt is running and ready, or the interface attached to, when this returns."""
        from pyvmm.devices.virtio.net import NetDevice

        mac = self._address(host.name)
        if self.tap is None:
            from pyvmm.devices.virtio.passt import Forward, Passt

            passt = Passt(mac, [Forward(text) for text in self.forward], self.mtu)
            return NetDevice(host.name, passt, mac, mtu=self.mtu, say=host.say)
        from pyvmm.devices.virtio.tap import Tap

        tap = Tap(self.tap)
        vhost = None
        try:
            self._prepare(tap, host)
            vhost = self._vhost(host)
            return NetDevice(host.name, tap, mac, mtu=self.mtu, vhost=vhost, say=host.say)
        except BaseException:
            tap.close()
            if vhost is not None:
                vhost.close()
            raise

    def _prepare(self, tap: Tap, host: Host) -> None:
        if tap.made:
            host.say(
                f"note: {host.name}: there was no interface {tap.name}: made for as long as the machine runs"
            )
        if not tap.up:
            host.say(f"note: {host.name}: the interface is down, as root: ip link set {tap.name} up")
        if self.mtu is not None and not tap.set_mtu(self.mtu):
            host.say(
                f"note: {host.name}: the interface has another MTU, as root: ip link set {tap.name} mtu {self.mtu}"
            )

    def _vhost(self, host: Host) -> Vhost | None:
        """The kernel's vhost-net, if it is to be used."""
        if self.vhost == "off":
            return None
        from pyvmm.devices.virtio.vhost import Vhost

        try:
            return Vhost(VHOST)
        except HostError as error:
            if self.vhost == "on":
                raise
            host.say(
                f"note: {host.name}: without vhost-net, pyvmm moves the frames: {error.message}; {error.hint}"
            )
            return None

    def _address(self, name: str) -> bytes:
        """The card's address.  One made up is the same the next time, and no other interface's on this network."""
        if self.mac is not None:
            return _mac(self.mac)
        number = int(name.lstrip("net") or 0) if self.tap is None else 0
        unique = f"{os.uname().nodename}/{self.tap}" if self.tap is not None else "user"
        return _PREFIX + ((zlib.crc32(unique.encode()) + number) & 0xFFFFFF).to_bytes(3, "big")


def _check_name(name: str) -> None:
    """UsageError unless an interface can have this ``name`` (dev_valid_name of Linux net/core/dev.c)."""
    from pyvmm.devices.virtio.tap import LONGEST_NAME

    if not 0 < len(name.encode()) <= LONGEST_NAME or name in (".", "..") or re.search(r"[/:%\s\0]", name):
        raise UsageError(
            f"tap={name}: not the name of an interface",
            f"1 to {LONGEST_NAME} bytes, without spaces, '/', ':' and '%'",
        )


def _mac(text: str) -> bytes:
    """The six bytes of an address that a card can have."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        raise UsageError(f"mac={text}: not an address", "write six bytes, as in 52:54:00:12:34:56")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise UsageError(
            f"mac={text}: a card cannot have a multicast address, nor none",
            "choose one that begins with 52:54:00",
        )
    return mac


ATTACHMENT = Net
