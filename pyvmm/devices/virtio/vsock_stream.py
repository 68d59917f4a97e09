"""A connection of the vsock bridge: two sockets joined, after one of them has said where it wants to go.

Each direction has one buffer and is read only while that is empty, so whoever reads slowly slows its peer only; an
end of stream is passed on once the buffer is, and the other direction stays open.
"""

from __future__ import annotations

import select
import socket
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.vsock_bridge import Bridge

_CHUNK = 1 << 16
_LINE = 32  # the longest CONNECT line, and a little more


class Stream:
    """Two joined sockets: ``a``, which was accepted, and ``b``, which is being connected to.

    With no ``b`` yet, ``a`` first says where it wants to go.
    """

    def __init__(self, bridge: Bridge, a: socket.socket, b: socket.socket | None = None) -> None:
        self.bridge = bridge
        self.a = a
        self.b = b
        self._line = b""
        self._greet = b is None
        self._joined = False
        self._to: dict[socket.socket, bytearray] = {}  # what is to be written to each
        self._ended: set[socket.socket] = set()  # nothing more comes from these
        self._shut: set[socket.socket] = set()  # nothing more goes to these
        if b is None:
            bridge.watch(a.fileno(), select.POLLIN, self._handshake)
        else:
            bridge.watch(b.fileno(), select.POLLOUT, self._connected)

    def _handshake(self, _: int) -> None:
        try:
            data = self.a.recv(_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._line += data
        line, newline, rest = self._line.partition(b"\n")
        if newline:
            word, _space, number = line.strip().partition(b" ")
            port = int(number) if number.isdigit() else -1
            if word == b"CONNECT" and 0 <= port < 1 << 32:
                self._line = rest
                self._begin(port)
                return
        elif data and len(self._line) < _LINE:
            return
        self.close()

    def _begin(self, port: int) -> None:
        self.bridge.unwatch(self.a.fileno())
        try:
            self.b = self.bridge.dial(port)
        except OSError:
            self.close()
            return
        self.bridge.watch(self.b.fileno(), select.POLLOUT, self._connected)

    def _connected(self, _: int) -> None:
        b = self.b
        assert b is not None
        if b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close()
            return
        greeting = b""
        if self._greet:
            name = b.getsockname()
            port = name[1] if isinstance(name, tuple) else 0
            greeting = b"OK %d\n" % port
        self._to = {self.a: bytearray(greeting), b: bytearray(self._line)}
        self._joined = True
        for end in (self.a, b):
            self.bridge.watch(end.fileno(), 0, partial(self._ready, end))
        self._update()

    def _other(self, end: socket.socket) -> socket.socket:
        assert self.b is not None
        return self.b if end is self.a else self.a

    def _ready(self, end: socket.socket, events: int) -> None:
        try:
            if events & select.POLLIN or (
                events & (select.POLLHUP | select.POLLERR) and not self._to[self._other(end)]
            ):
                data = end.recv(_CHUNK)
                if data:
                    self._to[self._other(end)] += data
                else:
                    self._ended.add(end)
            if events & select.POLLOUT:
                waiting = self._to[end]
                del waiting[: end.send(waiting)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        self._update()

    def _update(self) -> None:
        """Say what is worth waiting for; pass an end of stream on; close when both directions have ended."""
        assert self.b is not None
        for end in (self.a, self.b):
            other = self._other(end)
            if other in self._ended and not self._to[end] and end not in self._shut:
                self._shut.add(end)
                try:
                    end.shutdown(socket.SHUT_WR)
                except OSError:
                    self.close()
                    return
        if len(self._shut) == 2:
            self.close()
            return
        for end in (self.a, self.b):
            reading = end not in self._ended and not self._to[self._other(end)]
            events = (select.POLLIN if reading else 0) | (select.POLLOUT if self._to[end] else 0)
            if events:
                self.bridge.watch(end.fileno(), events, partial(self._ready, end))
            else:
                self.bridge.unwatch(end.fileno())  # or a hang-up would wake the thread for ever

    def close(self) -> None:
        """Hang up on both."""
        for end in (self.a, self.b):
            if end is not None and end.fileno() >= 0:
                self.bridge.unwatch(end.fileno())
                end.close()
        self.bridge.forget(self)
