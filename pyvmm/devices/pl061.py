"""The power button of Arm machines: an ARM PrimeCell GPIO controller, PL061 (ARM DDI 0190), one of its inputs in use.

The guest's driver for keys on GPIO lines (Linux: gpio-keys) is interrupted by an edge, waits for the contacts to
settle, and then reads the line.  So a press holds the line high until it has been read so, and then lets it go.
Outputs are remembered, and drive nothing.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.devices.primecell import identification

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.pl011 import LevelLine

PERIPHERAL_ID = 0x0004_1061  # part 0x061 by ARM (0x41), revision 0
POWER_BUTTON = 3  # its input

DATA_END = 0x400  # up to here the offset's bits 9 to 2 say which lines are read or written
DIR, IS, IBE, IEV, IE, RIS, MIS, IC, AFSEL = 0x400, 0x404, 0x408, 0x40C, 0x410, 0x414, 0x418, 0x41C, 0x420
_BUTTON = 1 << POWER_BUTTON


class Pl061:
    """The controller with the button: ``line`` is its interrupt, ``read`` and ``write`` are the handlers for a bus.

    ``presses`` counts the presses.
    """

    def __init__(self, line: LevelLine) -> None:
        self.presses = 0
        self._line = line
        self._lock = Lock()
        self._inputs = self._outputs = self._edges = 0
        self._level = False
        self._registers = dict.fromkeys((DIR, IS, IBE, IEV, IE, AFSEL), 0)

    def press_power_button(self) -> None:
        """Press the power button; it is let go once the guest has seen it.  Any thread.

        What comes of it is the guest's affair: nothing, if it has no driver for the button.
        """
        with self._lock:
            self.presses += 1
            self._set_inputs(_BUTTON)

    def read(self, offset: int, size: int) -> int:
        """The register at ``offset``; zero where there is none."""
        with self._lock:
            if offset < DATA_END:
                return self._read_data(offset >> 2)
            if offset in self._registers:
                return self._registers[offset]
            if offset == RIS:
                return self._raw()
            if offset == MIS:
                return self._raw() & self._registers[IE]
        return identification(PERIPHERAL_ID, offset)

    def write(self, offset: int, value: int, size: int) -> None:
        """The register at ``offset``; lost where there is none."""
        with self._lock:
            if offset < DATA_END:
                mask = offset >> 2 & self._registers[DIR]
                self._outputs = self._outputs & ~mask | value & mask
                return
            if offset == IC:
                self._edges &= ~value
            elif offset in self._registers:
                self._registers[offset] = value & 0xFF
            self._update()

    def _read_data(self, mask: int) -> int:
        direction = self._registers[DIR]
        value = (self._outputs & direction | self._inputs & ~direction) & mask
        if value & self._inputs & _BUTTON:
            self._set_inputs(0)
        return value

    def _set_inputs(self, value: int) -> None:
        """Lines go up or down; the edges that the guest asked for are kept until it clears them."""
        registers = self._registers
        changed = value ^ self._inputs
        wanted = registers[IBE] | ~(value ^ registers[IEV])
        self._edges |= changed & wanted & ~registers[IS]
        self._inputs = value
        self._update()

    def _raw(self) -> int:
        """The interrupts by edges, and those by levels."""
        registers = self._registers
        return self._edges & ~registers[IS] | ~(self._inputs ^ registers[IEV]) & registers[IS] & 0xFF

    def _update(self) -> None:
        level = bool(self._raw() & self._registers[IE])
        if level != self._level:
            self._level = level
            self._line.set(level)
