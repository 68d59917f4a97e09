"""A walk of the guest's translation tables: Arm ARM (DDI 0487), section D8.2 and D8.3, stage 1 of EL1 and EL0.

Bit 55 of an address chooses TTBR0 or TTBR1.  Granules of 4, 16 and 64 KiB; 52-bit output addresses (TCR_EL1.DS and LPA)
are not looked at.
"""

from __future__ import annotations

from pyvmm.arch.aarch64.registers import TCR_EL1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Ram(Protocol):
        """Guest memory to read the tables from."""

        def read(self, address: int, size: int, /) -> bytes: ...
        def contains(self, address: int, size: int, /) -> bool: ...


_SHIFTS_0 = {0: 12, 1: 16, 2: 14}  # TCR_EL1.TG0: bits of an offset in a page
_SHIFTS_1 = {2: 12, 3: 16, 1: 14}
_OUTPUT = (1 << 48) - 1
_LAST_LEVEL = 3


class Walk:
    """``lines``, one for each table entry read, and ``physical``, where it ends; None if the address is not mapped."""

    __slots__ = ("lines", "physical")

    def __init__(self, lines: list[str], physical: int | None) -> None:
        self.lines = lines
        self.physical = physical


def walk(memory: Ram, address: int, *, tcr: int, ttbr0: int, ttbr1: int) -> Walk:
    """Translate ``address`` by the tables in ``memory``; the MMU is on."""
    control = TCR_EL1(tcr)
    if address >> 55 & 1:
        name, table, size, shift = "TTBR1_EL1", ttbr1, control.T1SZ, _SHIFTS_1.get(control.TG1, 12)
        disabled = control.EPD1
    else:
        name, table, size, shift = "TTBR0_EL1", ttbr0, control.T0SZ, _SHIFTS_0.get(control.TG0, 12)
        disabled = control.EPD0
    bits = 64 - size
    upper = address >> bits & (1 << 55 - bits) - 1 if bits < 55 else 0
    expected = (1 << 55 - bits) - 1 if address >> 55 & 1 and bits < 55 else 0
    if disabled or upper != expected:
        why = "walks are disabled (TCR_EL1.EPD)" if disabled else f"it is none of {bits} bits"
        return Walk([f"{address:#x} is translated by {name}: {why}"], None)
    stride = shift - 3
    level = _LAST_LEVEL - (bits - shift - 1) // stride
    table &= _OUTPUT & ~1
    lines: list[str] = []
    while True:
        low = shift + stride * (_LAST_LEVEL - level)
        width = min(stride, bits - low)
        index = address >> low & (1 << width) - 1
        at = (table & ~((8 << width) - 1) if not lines else table) + 8 * index
        if not memory.contains(at, 8):
            return Walk([*lines, f"level {level} entry {index} at {at:#x}: not in RAM"], None)
        entry = int.from_bytes(memory.read(at, 8), "little")
        kind, output = _decode(entry, level, shift, low)
        lines.append(f"level {level} entry {index} at {at:#x} = {entry:#018x}: {kind}")
        if output is None:
            return Walk(lines, None)
        if kind != "table":
            return Walk(lines, output | address & (1 << low) - 1)
        table, level = output, level + 1


def _decode(entry: int, level: int, shift: int, low: int) -> tuple[str, int | None]:
    """What an entry is, and where it leads: a table's address, or that of a block or page."""
    if not entry & 1:
        return "invalid", None
    if entry & 2:
        output = entry & _OUTPUT & -(1 << shift)
        return ("table" if level < _LAST_LEVEL else f"page, {_attributes(entry)}"), output
    if level == _LAST_LEVEL:
        return "reserved", None
    return f"block, {_attributes(entry)}", entry & _OUTPUT & -(1 << low)


def _attributes(entry: int) -> str:
    """Access permissions, and what keeps code from running."""
    words = ["read-only" if entry >> 7 & 1 else "read-write"]
    if entry >> 6 & 1:
        words.append("EL0")
    if not entry >> 10 & 1:
        words.append("no access flag")
    if entry >> 53 & 1:
        words.append("PXN")
    if entry >> 54 & 1:
        words.append("UXN")
    words.append(f"memory attribute {entry >> 2 & 7}")
    return ", ".join(words)
