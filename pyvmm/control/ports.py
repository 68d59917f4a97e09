"""The guest's ports that are joined to the owner's connection: their bytes become events, requests become their input.

A port's output comes in its device's thread; it is kept, and the port held when there is much of it, until the event
loop has passed it on.
"""

from __future__ import annotations

import base64
import os
import threading
from collections import deque

from pyvmm.control import protocol
from pyvmm.errors import UsageError
from pyvmm.machine.attachments.console import ControlChannel
from pyvmm.text import perhaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.machine.machine import Machine

#: Bytes of a port's output that may wait for the event loop.
MOST_WAITING = 256 * 1024
#: Bytes of input that may wait for the guest: it may say that it has room, and read nothing.
MOST_PENDING = 64 << 20


class _Joined:
    """One port's output on its way: pieces of it, and between them that the guest opened or closed the port."""

    def __init__(self, name: str, channel: ControlChannel, wake_fd: int) -> None:
        self.name = name
        self.channel = channel
        self._wake_fd = wake_fd
        self._pieces: deque[bytes | bool] = deque()
        self._waiting = 0
        self._lock = threading.Lock()
        channel.join(self._on_output, self._on_open)

    def _on_output(self, data: bytes) -> None:
        with self._lock:
            self._pieces.append(data)
            self._waiting += len(data)
            if self._waiting >= MOST_WAITING:
                self.channel.hold()
        os.eventfd_write(self._wake_fd, 1)

    def _on_open(self, is_open: bool) -> None:
        with self._lock:
            pieces = self._pieces
            if len(pieces) > 1 and isinstance(pieces[-1], bool) and isinstance(pieces[-2], bool):
                # A guest may open and close it without end: the last two say enough.
                pieces[-2], pieces[-1] = pieces[-1], is_open
            else:
                pieces.append(is_open)
        os.eventfd_write(self._wake_fd, 1)

    def take(self) -> list[bytes | bool]:
        """What has come; the port may go on."""
        if not self._pieces:
            return []
        with self._lock:
            pieces = list(self._pieces)
            self._pieces.clear()
            held, self._waiting = self._waiting >= MOST_WAITING, 0
        if held:
            self.channel.release()
        return pieces


class Ports:
    """All ports of ``machine`` that are joined to its owner."""

    def __init__(self, machine: Machine) -> None:
        self._joined: dict[str, _Joined] = {}
        for transport in machine.transports:
            for port in getattr(transport.device, "ports", ()):
                if isinstance(port.endpoint, ControlChannel):
                    self._joined[port.name] = _Joined(port.name, port.endpoint, machine.console.wake_fd)

    def send(self, name: str, data: bytes) -> dict[str, object]:
        """Give ``data`` to a port; how many bytes the guest has not taken yet.

        UsageError for an unknown name, and for more than :data:`MOST_PENDING`.
        """
        joined = self._joined.get(name)
        if joined is None:
            known = ", ".join(self._joined) or "none"
            raise UsageError(
                f"there is no port '{name}' here{perhaps(name, self._joined)}",
                f"joined to this connection: {known}",
            )
        if joined.channel.pending + len(data) > MOST_PENDING:
            raise UsageError(
                f"the guest does not read port '{name}': {joined.channel.pending} bytes are waiting",
                "send more when it has taken some",
            )
        joined.channel.send(data)
        return {"pending": joined.channel.pending}

    def events(self) -> list[bytes]:
        """The lines for what has come from the guest.  Event loop only."""
        lines = []
        for joined in self._joined.values():
            for piece in joined.take():
                if isinstance(piece, bool):
                    lines.append(protocol.event(None, "port", port=joined.name, open=piece))
                else:
                    data = base64.b64encode(piece).decode()
                    lines.append(protocol.event(None, "port", port=joined.name, data=data))
        return lines
