"""The host's side of the agent's protocol: greet, put files, get files; :mod:`.command` runs commands."""

from __future__ import annotations

import collections
import json
import os
import secrets
import select
import time

from pyvmm.errors import UsageError
from pyvmm.lab import protocol
from pyvmm.lab.protocol import COUNT, Decoder, Kind, frame, message
from pyvmm.lab.qemu import LabError, Qemu
from pyvmm.lab.transfer import READ_SIZE, Incoming, Outgoing, send_contents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Client:
    """A conversation with the agent of one lab."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self._decoder = Decoder()
        self.socket = qemu.channel
        self.received: collections.deque[tuple[int, bytes]] = collections.deque()
        self.python: list[int] = []  # the version of the lab's Python, once greeted

    def greet(self, timeout: float) -> None:
        """Exchange greetings: the agent takes over our clock and some entropy.

        :raises LabError: no answer within ``timeout`` seconds, or QEMU ended
        """
        hello = {"version": protocol.VERSION, "time_ns": time.time_ns(), "entropy": secrets.token_hex(64)}
        self.send(message(Kind.HELLO, hello))
        ready = json.loads(self._expect(Kind.READY, time.monotonic() + timeout))
        self.python = ready["python"]

    def put(self, transfer: Outgoing) -> None:
        """Carry files in; returns when they are all there.

        :raises LabError: the agent could not store them, or the lab ended
        """
        self.send(message(Kind.PUT, transfer.entries))
        send_contents(transfer, self._qemu.mailbox, self._announce)
        self._expect(Kind.STORED)

    def _announce(self, count: int) -> None:
        self.send(frame(Kind.CONTENT, COUNT.pack(count)))
        self._expect(Kind.TAKEN)

    def get(self, paths: Sequence[str], allowed: Callable[[str], bool]) -> list[str]:
        """Carry ``paths`` out, each file written atomically; returns those that do not exist there.

        :raises LabError: the lab ended, or sent what ``allowed`` does not allow
        :raises UsageError: a file cannot be written here
        """
        self.send(message(Kind.GET, {"paths": list(paths)}))
        entries = json.loads(self._expect(Kind.FILES))
        incoming = None
        try:
            incoming = Incoming(entries, allowed, atomic=True)
            while not incoming.done:
                self._take(incoming, COUNT.unpack(self._expect(Kind.CONTENT))[0])
        except OSError as error:
            raise UsageError(
                f"cannot write {error.filename} carried out of the lab: {error.strerror}",
                "choose a place that can be written",
            ) from None
        except protocol.ProtocolError as error:
            raise LabError(f"the lab sent what it was not asked for: {error}") from None
        finally:
            if incoming is not None:
                incoming.abandon()
        there = {path for _, path, _, _ in entries}
        return [path for path in paths if path not in there]

    def _take(self, incoming: Incoming, count: int) -> None:
        for position in range(0, count, READ_SIZE):
            wanted = min(READ_SIZE, count - position)
            incoming.feed(os.pread(self._qemu.mailbox, wanted, position))
        self.send(frame(Kind.TAKEN))

    def send(self, data: bytes) -> None:
        """Send a frame.

        :raises LabError: the lab ended
        """
        try:
            self.socket.sendall(data)
        except OSError:
            raise self._ended() from None

    def _ended(self) -> LabError:
        return self._qemu.failure("the lab ended unexpectedly", "pyvmm lab --verbose shows its console")

    def receive(self) -> None:
        """Take in what has arrived, waiting for something; complete frames go to ``received``.

        :raises LabError: the lab ended
        """
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data:
            raise self._ended()
        try:
            self.received.extend(self._decoder.feed(data))
        except protocol.ProtocolError as error:
            raise LabError(f"the lab's agent sent nonsense: {error}") from None

    def _expect(self, wanted: int, deadline: float | None = None) -> bytes:
        """The payload of the next frame of kind ``wanted``, passing over what a command left behind."""
        while True:
            while self.received:
                kind, payload = self.received.popleft()
                if kind == wanted:
                    return payload
                if kind == Kind.FAILED:
                    raise LabError(f"the lab's agent failed: {json.loads(payload)['message']}")
            if deadline is not None:
                ready, _, _ = select.select([self.socket], [], [], max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise self._qemu.failure("the lab does not answer")
            self.receive()
