"""passt: a network card's other end without any rights, by a process that turns frames into the host's own sockets.

passt(1), https://passt.top.  It is given its end of the socket as an open descriptor: nothing of it is in the file
system, and it ends when our end is closed, in whatever way this process ends.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import subprocess
import time

from pyvmm.devices.virtio.stream import Stream
from pyvmm.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "passt"
#: Seconds that passt gets to answer, and to end.
PATIENCE = 2.0
#: What passt says without being asked, and what is not about the user's error.
_NOISE = ("Failed to send", "Don't run as root", "Couldn't get any nameserver")


class Forward:
    """A port of the host that leads to one of the guest: ``tcp:HOST:GUEST``, ``udp:BOTH``, ``tcp:ADDRESS:HOST:GUEST``.

    ``address``, of the host, is empty for all of them; an IPv6 address stands in brackets.

    :raises UsageError: it is none of these
    """

    __slots__ = ("address", "guest", "host", "protocol", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.protocol, _, rest = text.partition(":")
        self.address, bracket, ports = rest.rpartition("]:")
        if bracket:
            self.address = self.address.removeprefix("[")
        elif rest.count(":") == 2:
            self.address, _, ports = rest.partition(":")
        host, colon, guest = ports.partition(":")
        self.host, self.guest = _port(host), _port(guest if colon else host)
        if self.protocol not in ("tcp", "udp") or not self.host or not self.guest:
            raise UsageError(
                f"forward={text}: not a port to forward",
                "write tcp:HOST:GUEST or udp:HOST:GUEST, as in tcp:8080:80",
            )
        try:
            if self.address:
                socket.inet_pton(self._family, self.address)
        except OSError:
            raise UsageError(
                f"forward={text}: {self.address} is not an address of the host",
                "give it in numbers, as in tcp:127.0.0.1:8080:80 or tcp:[::1]:8080:80",
            ) from None

    @property
    def _family(self) -> int:
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    def options(self) -> list[str]:
        """The options of passt for it."""
        where = f"{self.address}/" if self.address else ""
        return [
            "--tcp-ports" if self.protocol == "tcp" else "--udp-ports",
            f"{where}{self.host}:{self.guest}",
        ]

    def why_not(self) -> int:
        """0 if the port of the host is free, else the errno that says why it is not."""
        tcp = self.protocol == "tcp"
        both = not self.address and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else self._family
        with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as probe:
            if both:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if tcp:  # the last connections of a listener that has gone do not matter
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.address, self.host))
            except OSError as error:
                return error.errno or errno.EINVAL
        return 0

    def check(self) -> None:
        """HostError unless the port of the host is free."""
        number = self.why_not()
        if number == errno.EADDRINUSE:
            raise HostError(
                f"forward={self.text}: {self.protocol} port {self.host} of this host is in use",
                "choose another port",
            )
        if number == errno.EACCES:
            raise HostError(
                f"forward={self.text}: port {self.host} of this host is for root only",
                "choose one from 1024 on",
            )
        if number:
            raise HostError(f"forward={self.text}: {os.strerror(number)}", "choose another address or port")


def _port(text: str) -> int:
    """The number of a port, 0 if ``text`` is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 and int(text) < 65536 else 0


def find() -> str:
    """The path of passt.  :raises HostError: it is not installed"""
    path = shutil.which(PROGRAM)
    if path is None:
        raise HostError(
            f"--net user needs {PROGRAM}, which is not in PATH",
            f"install the package {PROGRAM}, or use --net tap=NAME",
        )
    return path


class Passt(Stream):
    """A running passt for the guest with the address ``mac``; returns when it forwards frames.

    ``mtu`` is what it tells the guest (None: the largest that passt can).

    :raises HostError: passt is missing or did not start, with what it said
    """

    label = "passt"

    def __init__(self, mac: bytes, forwards: Sequence[Forward] = (), mtu: int | None = None) -> None:
        program = find()
        options = ["--foreground", "--stderr", "--quiet"]
        if mtu is not None:
            options += ["--mtu", str(mtu)]
        for forward in forwards:
            forward.check()
            options += forward.options()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        super().__init__(ours)
        # What it says goes into a pipe that never makes it wait.
        self._words = b""
        self._said, say = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._process = subprocess.Popen(
                [program, *options, "--fd", str(theirs.fileno())], stdin=subprocess.DEVNULL, stdout=say, stderr=say,
                pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            super().close()
            os.close(self._said)
            raise HostError(
                f"{program} cannot be run: {os.strerror(error.errno or 0)}", "reinstall passt"
            ) from None
        finally:
            theirs.close()
            os.close(say)
        try:
            self._wait_until_ready(mac)
            self.last_words()
            self._words = b""  # warnings, then
            for forward in forwards:  # not every passt says so
                if not forward.why_not():
                    raise HostError(
                        f"forward={forward.text}: passt could not listen on port {forward.host} of this host",
                        "choose a port from 1024 on",
                    )
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self, mac: bytes) -> None:
        """Ask for a neighbour's address: passt answers for everybody, as soon as it is ready."""
        self.send(
            [[memoryview(bytes(12) + question)] for question in (_arp_request(mac), _solicitation(mac))]
        )
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        deadline = time.monotonic() + PATIENCE
        answer = memoryview(bytearray(2048))
        try:
            while (left := deadline - time.monotonic()) > 0:
                if poll.poll(left * 1000) and self.receive([answer]):
                    return
        except OSError:
            raise self._failure() from None
        if self._process.poll() is not None:
            raise self._failure()

    def _why_closed(self) -> str:
        return self.last_words() or "it has ended"

    def _failure(self) -> HostError:
        """Why passt has ended."""
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        hint = "try it: passt --foreground --stderr"
        said = self.last_words()
        if "interface" in said:
            hint = "passt needs a host with a default route: see `ip route`"
        return HostError(f"passt did not start: {said or f'exit status {self._process.returncode}'}", hint)

    def last_words(self) -> str:
        """The last line that passt wrote, empty if it wrote none."""
        try:
            self._words += os.read(self._said, 65536)
        except OSError:
            pass  # nothing new, or closed
        lines = [line.strip() for line in self._words.decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line and not line.startswith(_NOISE)), "")

    def close(self) -> None:
        """Close the connection, which ends passt, and see to it that it has.  May be called again."""
        super().close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._said >= 0:
            os.close(self._said)
            self._said = -1


def _arp_request(mac: bytes) -> bytes:
    """A frame that asks who has 169.254.1.1, from nobody's address: RFC 5227, an ARP probe."""
    head = b"\xff" * 6 + mac + b"\x08\x06" + bytes.fromhex("0001080006040001")
    return head + mac + bytes(4) + bytes(6) + bytes((169, 254, 1, 1))


def _solicitation(mac: bytes) -> bytes:
    """A frame that asks who has fe80::1, for hosts without IPv4: RFC 4861, a neighbour solicitation."""
    interface = bytes((mac[0] ^ 2, mac[1], mac[2], 0xFF, 0xFE, mac[3], mac[4], mac[5]))
    source, target = b"\xfe\x80" + bytes(6) + interface, b"\xfe\x80" + bytes(13) + b"\x01"
    group = b"\xff\x02" + bytes(9) + b"\x01\xff\x00\x00\x01"
    message = bytes((135, 0, 0, 0, 0, 0, 0, 0)) + target + b"\x01\x01" + mac
    checked = source + group + len(message).to_bytes(4, "big") + bytes((0, 0, 0, 58)) + message
    total = sum(int.from_bytes(checked[at : at + 2], "big") for at in range(0, len(checked), 2))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    message = message[:2] + checksum.to_bytes(2, "big") + message[4:]
    header = bytes((0x60, 0, 0, 0)) + len(message).to_bytes(2, "big") + b"\x3a\xff" + source + group
    return b"\x33\x33\xff\x00\x00\x01" + mac + b"\x86\xdd" + header + message
