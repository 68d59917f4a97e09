"""The interrupting half of the UART: causes, their priorities, and when the line rises.

The line is an edge (an ISA interrupt): :meth:`Interrupts.update` triggers it when a cause becomes pending,
when an access of the guest has ended one cause and another is left, and when the caller says that a cause
has come up again (a byte was read and more are there, a byte was written and THR is empty again).  So
neither a handler that asks IIR until nothing is pending (Linux) nor one that serves a single cause or byte
for each interrupt is ever left waiting.  Priorities: TI SLLS191C, table 5.
"""

from __future__ import annotations

from pyvmm.devices.uart_registers import (
    IIR_DATA,
    IIR_LINE_STATUS,
    IIR_MODEM,
    IIR_NONE,
    IIR_THRE,
    IIR_TIMEOUT,
    InterruptEnable,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class InterruptLine(Protocol):
        """An edge-triggered interrupt line."""

        def trigger(self) -> None:
            """Raise the interrupt once.  Called in any thread; must not call back."""


#: Late drains in a row, with the THRE interrupt enabled, that show a guest waiting for that interrupt.
LATE_DRAINS = 32

# Causes, from the highest priority.
LINE, DATA, TIMEOUT, THRE, MODEM = 1, 2, 4, 8, 16

_ETBEI = InterruptEnable.ETBEI
_ENABLED_BY = (
    (InterruptEnable.ERBFI, DATA | TIMEOUT),
    (InterruptEnable.ETBEI, THRE),
    (InterruptEnable.ELSI, LINE),
    (InterruptEnable.EDSSI, MODEM),
)


class Interrupts:
    """The causes that are pending and enabled, and the line.  The caller holds the UART's lock.

    ``ier`` is the register, ``pending`` the causes that IIR can report.  ``coalescing`` says that writes to
    THR come late and in batches: then an edge that they cause is held back until :meth:`settle`, because the
    access that ended the batch most often makes it pointless (Linux reads IIR or clears IER).
    ``want_coalescing`` becomes false for a guest that waits for THRE without making an exit.
    """

    __slots__ = (
        "_enabled",
        "_late",
        "_line",
        "_other",
        "_owed",
        "_thre",
        "_unseen",
        "coalescing",
        "ier",
        "pending",
        "want_coalescing",
    )

    def __init__(self, line: InterruptLine) -> None:
        self.ier = 0
        self.pending = 0
        self.coalescing = False
        self.want_coalescing = True
        self._line = line
        self._enabled = 0
        self._other = 0  # the causes but THRE, enabled or not
        self._thre = False  # latched when THR is empty again, cleared when IIR reports it
        self._owed = False  # an edge that is held back
        self._unseen = False  # THR was written, and neither IIR nor IER has been accessed since
        self._late = 0

    def enable(self, ier: int) -> None:
        """IER is written.  Enabling THRE always latches it, since THR is always empty."""
        self._follow_up()
        if ier & ~self.ier & _ETBEI:
            self._thre = True
        self.ier = ier
        self._enabled = 0
        for bit, causes in _ENABLED_BY:
            if ier & bit:
                self._enabled |= causes

    def sent(self) -> None:
        """THR was written and is empty again."""
        if self.ier & _ETBEI:
            self._thre = self._unseen = True

    def update(self, other: int, again: int = 0, hold_back: bool = False) -> None:
        """The causes other than THRE are now ``other``; raise the line if it would rise.

        ``again``: causes that raise it though they were pending before.  ``hold_back``: not before
        :meth:`settle`, or before the next update, whichever is first.
        """
        self._other = other
        pending = (other | THRE if self._thre else other) & self._enabled
        edge = pending and (self._owed or pending != self.pending or pending & again)
        self.pending = pending
        self._owed = bool(edge and hold_back)
        if edge and not hold_back:
            self._line.trigger()

    def identify(self) -> int:
        """IIR bits 3-0: the pending cause of the highest priority.  THRE is cleared by being reported."""
        self._follow_up()
        pending = self.pending
        if not pending:
            return IIR_NONE
        if pending & LINE:
            return IIR_LINE_STATUS
        if pending & DATA:
            return IIR_DATA
        if pending & TIMEOUT:
            return IIR_TIMEOUT
        if pending & THRE:
            self._thre = False
            self.update(self._other)
            return IIR_THRE
        return IIR_MODEM

    @property
    def held_back(self) -> bool:
        """Whether an edge waits for :meth:`settle`."""
        return self._owed

    def settle(self) -> None:
        """Raise the line if an edge was held back and its cause is still there."""
        self.update(self._other)

    def late_drain(self) -> None:
        """A timer, not an access of the guest, brought the writes to THR since the last access."""
        if self._unseen:
            self._unseen = False
            self._late += 1
            if self._late >= LATE_DRAINS:
                self.want_coalescing = False
        self.settle()

    def _follow_up(self) -> None:
        """IIR or IER is accessed: a guest that does so by itself after writing THR needs no timer."""
        if self._unseen:
            self._unseen = False
            self._late = 0
