"""The real-time clock: an ARM PrimeCell PL031 (ARM DDI 0224), without its alarm.

It counts seconds since 1970, here by the host's clock.  The guest can set it, which only it notices; the match
register is remembered, and raises no interrupt: the device tree names none.
"""

from __future__ import annotations

import time

from pyvmm.devices.primecell import identification

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PERIPHERAL_ID = 0x0004_1031  # part 0x031 by ARM (0x41), revision 0

DR, MR, LR, CR, IMSC, RIS, MIS, ICR = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C


class Pl031:
    """The clock.  ``now`` gives seconds since 1970; ``read`` and ``write`` are the handlers for a bus."""

    __slots__ = ("_load", "_mask", "_match", "_now", "_offset")

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._offset = 0
        self._load = self._match = self._mask = 0

    def read(self, offset: int, size: int) -> int:
        """The register at ``offset``; zero where there is none."""
        if offset == DR:
            return self._seconds()
        if offset == MR:
            return self._match
        if offset == LR:
            return self._load
        if offset == CR:
            return 1  # running, as from reset on a clock that is never stopped
        if offset == IMSC:
            return self._mask
        return identification(PERIPHERAL_ID, offset)

    def write(self, offset: int, value: int, size: int) -> None:
        """Set the clock (LR), or remember what has no effect."""
        if offset == LR:
            self._load = value
            self._offset = value - int(self._now())
        elif offset == MR:
            self._match = value
        elif offset == IMSC:
            self._mask = value & 1

    def _seconds(self) -> int:
        return int(self._now()) + self._offset & 0xFFFF_FFFF
