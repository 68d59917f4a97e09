"""The CMOS clock and its memory (Motorola MC146818; Linux include/linux/mc146818rtc.h).

The FADT tells Linux that there is none, and with kvm-clock it needs none.  A kernel that looks all the same,
because ACPI or kvm-clock is off, finds the time and date of the host in UTC.  The clock cannot be set, has
no alarm and no interrupts, and is never in the middle of an update: with all ones in its place, Linux waits a
second for the update to end.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 128

# Registers.  All of the time and date are BCD; the hours go from 0 to 23, Sunday is day 1.
SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR = 0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09
STATUS_A, STATUS_B, STATUS_C, STATUS_D = 0x0A, 0x0B, 0x0C, 0x0D
CENTURY = 0x32

STATUS_A_RATE = 0x26  # 32,768 Hz, 1,024 Hz; bit 7, update in progress, is clear
STATUS_B_24_HOURS = 0x02
STATUS_D_VALID = 0x80

_FIXED = {
    STATUS_A: STATUS_A_RATE,
    STATUS_B: STATUS_B_24_HOURS,
    STATUS_C: 0,
    STATUS_D: STATUS_D_VALID,
}


def bcd(value: int) -> int:
    """0-99 as two decimal digits."""
    return value // 10 << 4 | value % 10


class Cmos:
    """The index register and the data register; ``now()`` is the time in seconds since 1970.

    ``reads`` and ``writes`` are the handlers for :meth:`pyvmm.devices.bus.Bus.add_pio_bytes`, from the
    index register's port.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._index = 0
        self._memory = bytearray(SIZE)
        self.reads = (self.read_index, self.read_data)
        self.writes = (self.write_index, self.write_data)

    def read_index(self) -> int:
        """The index register is write-only and floats."""
        return 0xFF

    def write_index(self, value: int) -> None:
        """Choose the register; bit 7 masks the NMI on a PC and has no effect."""
        self._index = value & (SIZE - 1)

    def read_data(self) -> int:
        """The chosen register."""
        index = self._index
        if index in _FIXED:
            return _FIXED[index]
        date = time.gmtime(self._now())
        if index == SECONDS:
            return bcd(min(date.tm_sec, 59))
        if index == MINUTES:
            return bcd(date.tm_min)
        if index == HOURS:
            return bcd(date.tm_hour)
        if index == WEEKDAY:
            return (date.tm_wday + 1) % 7 + 1
        if index == DAY:
            return bcd(date.tm_mday)
        if index == MONTH:
            return bcd(date.tm_mon)
        if index == YEAR:
            return bcd(date.tm_year % 100)
        if index == CENTURY:
            return bcd(date.tm_year // 100)
        return self._memory[index]

    def write_data(self, value: int) -> None:
        """Store a byte; what belongs to the clock is kept from being seen."""
        self._memory[self._index] = value
