"""The guest's console on the host: collected from its devices, handed to the terminal, the log and the watchers.

Threads meet here.  Those of the guest's devices call :meth:`Console.put` for every byte the guest transmits, or
:meth:`Console.put_bytes`; that only appends to a buffer and, when the other side is not awake already, wakes it.
The event loop calls :meth:`Console.collect`, which looks for the texts being waited for and queues the bytes for the
outputs, and :meth:`Console.flush`, which never blocks.

A guest that prints faster than the host's reader takes it is made to wait (:attr:`Console.full`), as a
UART with flow control would: no byte is dropped.
"""

from __future__ import annotations

import os
import time

from pyvmm.errors import HostError
from pyvmm.terminal import OutputClosed, write_some

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    class Input(Protocol):
        """Where the guest's input can go instead of the UART: a console of its own choice.

        ``is_open``: the guest has it open; ``pending``: bytes it has not taken yet.
        """

        @property
        def is_open(self) -> bool: ...
        @property
        def pending(self) -> int: ...
        def receive(self, data: bytes) -> None: ...


#: Bytes kept for the result file and for error messages.
TAIL_BYTES = 16 * 1024
#: Characters of one line of the guest's that are quoted in a message of ours.
LINE_CHARACTERS = 200
#: Bytes waiting for the host's reader beyond which the guest has to wait.
FULL_BYTES = 1024 * 1024

#: The line every Linux panic prints first, and the one it prints when it is done (kernel/panic.c).
PANIC_START = b"Kernel panic - not syncing"
PANIC_END = b"---[ end Kernel panic"


class Watch:
    """A text to look for in the console's stream, however the stream is cut into pieces."""

    __slots__ = ("name", "seen", "text")

    def __init__(self, name: str, text: bytes) -> None:
        if not text:
            raise ValueError("a text to wait for cannot be empty")
        self.name = name
        self.text = text
        self.seen = False


class Output:
    """One place the console goes to: a file descriptor and what it has not taken yet.

    One whose reader went away, or whose disk is full, is ``dead``: it gets nothing more, and ``lost`` counts the bytes.
    """

    __slots__ = ("dead", "fd", "lost", "name", "pending")

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.pending = bytearray()
        self.dead = False
        self.lost = 0


class Console:
    """Collects what the guest prints.

    ``outputs`` are (file descriptor, name) pairs; ``watches`` the texts looked for.  ``wake_fd`` is an eventfd that
    becomes readable when there is something to collect.  ``input``: where the guest's input goes, if not to its UART.
    """

    def __init__(self, outputs: Sequence[tuple[int, str]] = (), watches: Sequence[Watch] = ()) -> None:
        self.outputs = [Output(fd, name) for fd, name in outputs]
        self.watches = list(watches)
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.total = 0
        self.full = False
        self.held = False  # somebody who is given what is collected wants the guest to wait
        self.last_output = 0.0
        self.input: Input | None = None
        self.taps: list[Callable[[bytes], None]] = []  # are given what is collected; must not block
        self._waiting: list[Callable[[], None]] = []  # for room
        self._tail = bytearray()
        self._overlap = max((len(watch.text) for watch in self.watches), default=1) - 1
        self._recent = b""
        self._fresh = bytearray()
        self._awake = False

    def put(self, byte: int) -> None:
        """Take one byte (0-255) the guest transmitted.  Any thread; never blocks, never calls back."""
        fresh = self._fresh
        fresh.append(byte)
        if not self._awake:
            self._awake = True
            os.eventfd_write(self.wake_fd, 1)
        if len(fresh) > FULL_BYTES:
            self.full = True

    def put_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Take what the guest transmitted at once.  Any thread; never blocks, never calls back."""
        fresh = self._fresh
        fresh += data
        if not self._awake:
            self._awake = True
            os.eventfd_write(self.wake_fd, 1)
        if len(fresh) > FULL_BYTES:
            self.full = True

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, in the event loop, when the console is not full (any more).  Any thread."""
        self._waiting.append(callback)
        if not self.full:  # it may have been emptied before we were in the list
            os.eventfd_write(self.wake_fd, 1)

    def wait_for_room(self, stopping: Sequence[object]) -> None:
        """Hold the vCPU thread until the reader has caught up, or ``stopping`` is no longer empty."""
        while self.full and not stopping:
            time.sleep(0.005)

    def collect(self) -> list[Watch]:
        """Take what has arrived; returns the watches seen for the first time, in the order of the list.

        Event loop only.
        """
        self._awake = False
        count = len(self._fresh)
        if not count:
            return []
        # Both steps are atomic under the interpreter lock: a byte appended in between stays in the buffer.
        data = bytes(self._fresh[:count])
        del self._fresh[:count]
        self.total += count
        self.last_output = time.monotonic()
        for output in self.outputs:
            if output.dead:
                output.lost += count
            else:
                output.pending += data
        for tap in self.taps:
            tap(data)
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        return self._look(data)

    def _look(self, data: bytes) -> list[Watch]:
        found = []
        text = self._recent + data
        for watch in self.watches:
            if watch.seen:
                continue
            at = text.find(watch.text)
            if at < 0:
                continue
            watch.seen = True
            found.append(watch)
        self._recent = text[-self._overlap :] if self._overlap else b""
        return found

    def line_with(self, watch: Watch) -> str:
        """The line on which the text was last seen, as far as it has been printed and is still in the tail."""
        at = self._tail.rfind(watch.text)
        if at < 0:
            return watch.text.decode("utf-8", "replace")
        start = self._tail.rfind(b"\n", 0, at) + 1
        end = self._tail.find(b"\n", at)
        line = self._tail[start:] if end < 0 else self._tail[start:end]
        return line.decode("utf-8", "replace").strip()[:LINE_CHARACTERS]

    def flush(self) -> None:
        """Write as much of what is queued as the outputs take without blocking.

        Raises :class:`pyvmm.terminal.OutputClosed` when a reader went away, HostError when a disk is full, each
        once, and after the other outputs have been served.
        """
        failure: HostError | None = None
        for output in self.outputs:
            if not output.pending:
                continue
            try:
                output.pending = bytearray(write_some(output.fd, output.pending))
            except OutputClosed as error:
                failure = error
            except OSError as error:
                failure = HostError(
                    f"cannot write the console to {output.name}: {error.strerror}",
                    "free some space, or choose another place",
                )
            else:
                continue
            output.dead = True
            output.lost += len(output.pending)
            output.pending.clear()
        behind = any(len(output.pending) > FULL_BYTES for output in self.outputs)
        self.full = self.held or behind or len(self._fresh) > FULL_BYTES
        while self._waiting and not self.full:
            self._waiting.pop()()
        if failure is not None:
            raise failure

    def blocked(self) -> list[int]:
        """The file descriptors of the outputs that still have bytes to take."""
        return [output.fd for output in self.outputs if output.pending]

    def lost(self) -> dict[str, int]:
        """How many bytes each output did not take, after the end; empty if all took everything."""
        return {o.name: o.lost + len(o.pending) for o in self.outputs if o.lost or o.pending}

    def in_a_line(self) -> bool:
        """Whether the last thing printed was not a whole line."""
        return bool(self._tail) and self._tail[-1:] not in b"\r\n"

    def panic(self) -> str:
        """What the kernel said it panicked of: the first line with :data:`PANIC_START` that is in the tail."""
        at = self._tail.find(PANIC_START)
        if at < 0:
            return ""
        line = self._tail[at : at + LINE_CHARACTERS].split(b"\n")[0]
        return line.decode("utf-8", "replace").strip()

    def tail(self, count: int = TAIL_BYTES) -> str:
        """The last ``count`` bytes of the console (:data:`TAIL_BYTES` at most) as text, undecodable bytes replaced."""
        count = min(count, TAIL_BYTES)
        return self._tail[-count:].decode("utf-8", "replace") if count else ""

    def close(self) -> None:
        """Close the wake-up descriptor; the outputs belong to whoever opened them."""
        if self.wake_fd >= 0:
            os.close(self.wake_fd)
            self.wake_fd = -1
