"""Page tables: the identity map that a 64-bit entry starts with, and a walk that explains a translation.

Intel SDM volume 3, chapter 4: 4.3 (32-bit), 4.4 (PAE), 4.5 (4 and 5 levels).  Linux needs its image, the
zero page and the command line mapped one to one (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
"""

from __future__ import annotations

from array import array

from pyvmm.arch.x86_64 import layout
from pyvmm.arch.x86_64.registers import CR0, CR4, EFER, PageTableEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class WritableMemory(Protocol):
        """What writing tables needs of guest memory."""

        def write(self, address: int, data: bytes, /) -> None: ...

    class ReadableMemory(Protocol):
        """What a walk needs of guest memory."""

        def read(self, address: int, size: int, /) -> bytes: ...
        def contains(self, address: int, size: int, /) -> bool: ...


IDENTITY_MAP_SIZE = 0x6000  # PML4, PDPT and four page directories

_ALL_ONES = (1 << 64) - 1
_ADDRESS = 0x000F_FFFF_FFFF_F000  # bits 51 to 12 of an entry


def write_identity_map(memory: WritableMemory) -> int:
    """Map the first 4 GiB one to one by 2 MiB pages, writable; returns the address for CR3.

    One write of six pages from ``layout.PML4``, zeroes included, so that nothing depends on what RAM held.
    """
    link = PageTableEntry.P | PageTableEntry.RW
    leaf = link | PageTableEntry.PS
    pml4 = array("Q", bytes(layout.PAGE_SIZE))
    pdpt = array("Q", bytes(layout.PAGE_SIZE))
    pml4[0] = layout.PDPT | link
    for gib in range(4):
        pdpt[gib] = layout.PAGE_DIRECTORIES + gib * layout.PAGE_SIZE | link
    directories = array("Q", range(leaf, 4 * layout.GIB, 2 * layout.MIB))
    memory.write(layout.PML4, b"".join((pml4, pdpt, directories)))
    return layout.PML4


class Step:
    """One table consulted in a walk.

    ``level`` is the entry's name in the manual, ``address`` where the entry stands, and ``value`` what it
    holds, or None if there is no RAM there.
    """

    __slots__ = ("address", "index", "level", "value")

    def __init__(self, level: str, index: int, address: int, value: int | None) -> None:
        self.level = level
        self.index = index
        self.address = address
        self.value = value

    def __str__(self) -> str:
        entry = f"{self.level}[{self.index:#x}] at {self.address:#x}"
        if self.value is None:
            return f"{entry}: no RAM there"
        return f"{entry} = {self.value:#x} [{PageTableEntry(self.value).decode()}]"


class Walk:
    """The outcome of a walk.

    ``physical`` is the address reached, or None; then ``problem`` says in words why not.  ``page_size`` is
    in bytes (0 without paging); ``writable``, ``user`` and ``executable`` combine all levels.
    """

    __slots__ = ("executable", "linear", "page_size", "physical", "problem", "steps", "user", "writable")

    def __init__(self, linear: int) -> None:
        self.linear = linear
        self.steps: list[Step] = []
        self.physical: int | None = None
        self.problem = ""
        self.page_size = 0
        self.writable = self.user = self.executable = True

    def __str__(self) -> str:
        if self.physical is None:
            return f"{self.linear:#x} is not mapped: {self.problem}"
        if not self.page_size:
            return f"{self.linear:#x} is physical {self.physical:#x} (paging is off)"
        rights = ", ".join(
            (
                "writable" if self.writable else "read-only",
                "user" if self.user else "supervisor",
                "executable" if self.executable else "no-execute",
            )
        )
        size = {1 << 12: "4 KiB", 1 << 21: "2 MiB", 1 << 22: "4 MiB", 1 << 30: "1 GiB"}[self.page_size]
        return f"{self.linear:#x} is physical {self.physical:#x} ({size} page, {rights})"


# A level: name, the lowest bit of its index, bits of index, and whether PS makes an entry of it a page.
_Level = tuple[str, int, int, bool]


def walk(memory: ReadableMemory, linear: int, *, cr0: int, cr3: int, cr4: int, efer: int) -> Walk:
    """Translate ``linear`` as the processor would, recording each step; bad tables end it, never raise."""
    result = Walk(linear)
    if not cr0 & CR0.PG:
        result.physical = linear & 0xFFFF_FFFF
        return result
    entry_size, table = 8, cr3 & _ADDRESS
    levels: list[_Level]
    if efer & EFER.LMA:
        width = 57 if cr4 & CR4.LA57 else 48
        if (linear >> (width - 1)) not in (0, (1 << (65 - width)) - 1):
            result.problem = f"not canonical (bits {width} to 63 differ from bit {width - 1})"
            return result
        levels = [
            ("PML4E", 39, 9, False),
            ("PDPTE", 30, 9, True),
            ("PDE", 21, 9, True),
            ("PTE", 12, 9, False),
        ]
        if cr4 & CR4.LA57:
            levels.insert(0, ("PML5E", 48, 9, False))
    elif cr4 & CR4.PAE:
        table = cr3 & 0xFFFF_FFE0
        levels = [("PDPTE", 30, 2, False), ("PDE", 21, 9, True), ("PTE", 12, 9, False)]
    else:
        entry_size, table = 4, cr3 & 0xFFFF_F000
        levels = [("PDE", 22, 10, bool(cr4 & CR4.PSE)), ("PTE", 12, 10, False)]
    for level, shift, bits, may_be_page in levels:
        index = linear >> shift & ((1 << bits) - 1)
        address = table + index * entry_size
        if not memory.contains(address, entry_size):
            result.steps.append(Step(level, index, address, None))
            result.problem = f"the {level}'s table is at {table:#x}, where there is no RAM"
            return result
        entry = int.from_bytes(memory.read(address, entry_size), "little")
        result.steps.append(Step(level, index, address, entry))
        result.problem = _entry_problem(level, entry, shift, may_be_page, entry_size, efer)
        if result.problem:
            return result
        if entry_size == 8 and level == "PDPTE" and not efer & EFER.LMA:
            pass  # the four PDPTEs of PAE paging hold no rights
        else:
            result.writable &= bool(entry & PageTableEntry.RW)
            result.user &= bool(entry & PageTableEntry.US)
            result.executable &= entry_size == 4 or not entry & PageTableEntry.NX
        is_page = may_be_page and entry & PageTableEntry.PS
        base = entry & (_ADDRESS if entry_size == 8 else 0xFFFF_F000)
        if is_page or shift == 12:
            offset = (1 << shift) - 1
            if is_page and entry_size == 4:  # PSE-36: bits 20 to 13 are bits 39 to 32 of the address
                base = entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
            result.page_size = 1 << shift
            result.physical = base & ~offset | linear & offset
            return result
        table = base
    raise AssertionError("a walk ends at a page")


def _entry_problem(level: str, entry: int, shift: int, may_be_page: bool, entry_size: int, efer: int) -> str:
    """Why ``entry`` cannot be used, in words, or nothing."""
    if not entry & PageTableEntry.P:
        return f"the {level} is not present"
    if entry_size == 4:
        return ""
    if entry & PageTableEntry.NX and not efer & EFER.NXE:
        return f"the {level} has the no-execute bit, which is reserved while EFER.NXE is off"
    if entry & PageTableEntry.PS and not may_be_page and shift != 12:
        return f"the {level} has the page size bit, which is reserved there"
    if entry & PageTableEntry.PS and may_be_page and entry & ((1 << shift) - 1) >> 13 << 13:
        return f"the {level} maps a page at an address that is not a multiple of its size"
    return ""


def read_linear(
    memory: ReadableMemory, linear: int, size: int, *, cr0: int, cr3: int, cr4: int, efer: int
) -> bytes:
    """Up to ``size`` bytes at a linear address, ending early where nothing is mapped or there is no RAM."""
    found = b""
    while len(found) < size:
        place = walk(memory, linear + len(found) & _ALL_ONES, cr0=cr0, cr3=cr3, cr4=cr4, efer=efer).physical
        if place is None:
            break
        length = min(size - len(found), 0x1000 - (place & 0xFFF))
        if not memory.contains(place, length):
            break
        found += memory.read(place, length)
    return found
