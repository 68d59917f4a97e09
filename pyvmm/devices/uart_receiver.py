"""The receiving half of the UART: input that waits, and the FIFO the guest reads.

A real line drops what nobody takes.  Here the host's input waits in a queue of its own until the guest has
shown that it listens, and a FIFO reset gives the host's bytes back to that queue: to the guest it looks as
if they had arrived a moment later.  What the guest sent to itself by loopback is treated as on the chip.
"""

from __future__ import annotations

from collections import deque

from pyvmm.devices.uart_registers import LineStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of input that may wait before the host should stop for a while.
RECEIVE_LIMIT = 4096

# An entry is a byte, and these.
LOOPED = 0x100  # the guest's own, by loopback
BREAK = 0x200  # a break; the byte is zero

_DR, _OE, _BI, _FIFO_ERROR = LineStatus.DR, LineStatus.OE, LineStatus.BI, LineStatus.FIFO_ERROR


class Receiver:
    """``waiting`` is the host's input, ``fifo`` what the guest can read, at most ``size`` entries of it.

    ``on_room`` is called when half of :data:`RECEIVE_LIMIT` is free again after all of it was taken.  The
    caller holds the UART's lock.
    """

    __slots__ = ("_breaks", "_full", "_overrun", "fifo", "on_room", "size", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self.fifo: deque[int] = deque()
        self.size = 1
        self.on_room: Callable[[], None] | None = None
        self._full = False
        self._overrun = 0
        self._breaks = 0  # entries of the FIFO marked BREAK

    def wait(self, data: bytes) -> None:
        """Add input to the queue."""
        self.waiting.extend(data)
        if len(self.waiting) >= RECEIVE_LIMIT:
            self._full = True

    def wait_break(self) -> None:
        """Add a break to the queue."""
        self.waiting.append(BREAK)

    def fill(self) -> None:
        """Let in as much of the waiting input as the FIFO holds."""
        while self.waiting and len(self.fifo) < self.size:
            self.take()

    def take(self) -> None:
        """Let in one byte of the waiting input."""
        self._append(self.waiting.popleft())
        if self._full and len(self.waiting) <= RECEIVE_LIMIT // 2:
            self._full = False
            if self.on_room is not None:
                self.on_room()

    def loop(self, entry: int) -> None:
        """A byte, or BREAK, that the guest sent to itself.

        With no room it is an overrun: the FIFO keeps what it has, a single RBR gets the new byte.
        """
        if len(self.fifo) >= self.size:
            self._overrun = _OE
            if self.size > 1:
                return
            self.reset()
        self._append(entry | LOOPED)

    def _append(self, entry: int) -> None:
        self.fifo.append(entry)
        if entry & BREAK:
            self._breaks += 1

    def pop(self) -> int:
        """The oldest byte, which must be there."""
        entry = self.fifo.popleft()
        if entry & BREAK:
            self._breaks -= 1
        return entry & 0xFF

    def reset(self) -> None:
        """Empty the FIFO; what came from the host goes back to the head of the queue."""
        for entry in reversed(self.fifo):
            if not entry & LOOPED:
                self.waiting.appendleft(entry)
        self.fifo.clear()
        self._breaks = 0

    def status(self) -> int:
        """The bits of LSR that are the receiver's."""
        lsr = self._overrun
        if self.fifo:
            lsr |= _DR
            if self._breaks:
                if self.fifo[0] & BREAK:
                    lsr |= _BI
                if self.size > 1:
                    lsr |= _FIFO_ERROR
        return lsr

    def clear_errors(self) -> None:
        """LSR was read: its error bits go, the break only for the byte at the head."""
        self._overrun = 0
        if self._breaks and self.fifo[0] & BREAK:
            self.fifo[0] &= ~BREAK
            self._breaks -= 1
