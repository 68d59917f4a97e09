"""One connection to a machine: what came and is not handled yet, what is to be sent, and what it waits for."""

from __future__ import annotations

import base64
import codecs
import socket

from pyvmm.control import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.control.protocol import Id

#: Bytes of answers a client may leave lying before it is read no further, and before it is dropped.
OUTPUT_PAUSES = 256 * 1024
OUTPUT_MOST = 4 * 1024 * 1024
_READ = 64 * 1024


class Follower:
    """A request to be told what the console prints: as text, its characters whole, or as base64, exactly."""

    __slots__ = ("_decoder", "id")

    def __init__(self, id: Id, *, exact: bool = False) -> None:
        self.id = id
        self._decoder = None if exact else codecs.getincrementaldecoder("utf-8")("replace")

    def event(self, data: bytes) -> bytes:
        """The line for ``data``; empty if there is nothing to say yet."""
        text = base64.b64encode(data).decode() if self._decoder is None else self._decoder.decode(data)
        return protocol.event(self.id, "console", data=text) if text else b""


class Connection:
    """A client's connection, non-blocking.

    ``owner``: the machine belongs to it, ends with it, and waits for it where it is slow; others are dropped
    when what they asked to be sent as it comes piles up.
    """

    __slots__ = ("ended", "followed", "input", "output", "owner", "pausing", "socket", "waiting")

    def __init__(self, connection: socket.socket, *, owner: bool = False) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.owner = owner
        self.input = bytearray()
        self.output = bytearray()
        self.ended = False  # it sends no more, or has sent something after which it is not listened to
        self.followed: list[Follower] = []
        self.pausing: list[Id] = []
        self.waiting: list[Id] = []

    @property
    def open(self) -> bool:
        """Whether there is still somebody there."""
        return self.socket.fileno() >= 0

    @property
    def reading(self) -> bool:
        """Whether more of it is read: not while it has lines waiting, as it has if it leaves its answers lying."""
        return not self.ended and not self.ready_lines

    @property
    def ready_lines(self) -> bool:
        """Whether there is something to handle."""
        has_line = b"\n" in self.input or len(self.input) > protocol.MOST_LINE
        return has_line or (self.ended and bool(self.input))

    @property
    def takes_lines(self) -> bool:
        """Whether its next line may be handled now.

        An owner's always: it may be sending, and take nothing before that is done.
        """
        return self.open and self.ready_lines and (self.owner or len(self.output) < OUTPUT_PAUSES)

    @property
    def pending(self) -> int:
        """Requests that wait for something."""
        return len(self.pausing) + len(self.waiting) + len(self.followed)

    @property
    def done(self) -> bool:
        """Whether nothing is to be expected, on either side; an owner is told how the machine ended in any case."""
        return self.ended and not (self.input or self.output or self.pending or self.owner)

    def close(self) -> None:
        """Hang up.  Idempotent."""
        self.socket.close()
        self.output.clear()

    def receive(self) -> None:
        """Read some of what has come."""
        try:
            data = self.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            self._break_off()
            return
        self.input += data
        self.ended = not data

    def next_line(self) -> bytes:
        """Take the next line, without its end; RequestError if it is too long, after which nothing is heard."""
        end = self.input.find(b"\n")
        line = bytes(self.input if end < 0 else self.input[:end])
        if len(line) > protocol.MOST_LINE:
            self.input.clear()
            self.ended = True
            raise protocol.RequestError(
                f"a line of more than {protocol.MOST_LINE} bytes", "send shorter ones"
            )
        del self.input[: len(line) + 1]
        return line

    def queue(self, line: bytes) -> None:
        """Send ``line`` as far as it goes, keep the rest; a client that left too much lying is dropped."""
        if not self.open or not line:
            return
        self.output += line
        if len(self.output) == len(line) or len(self.output) > OUTPUT_MOST:
            self.send()
        if len(self.output) > OUTPUT_MOST and not self.owner:
            self.close()

    def send(self) -> None:
        """Send what is waiting, as far as it goes."""
        try:
            sent = self.socket.send(self.output)
        except BlockingIOError:
            return
        except OSError:
            self._break_off()
            return
        del self.output[:sent]

    def _break_off(self) -> None:
        """The other side is gone without a word."""
        self.close()
        self.ended = True
