"""Relocation of an x86-64 Linux kernel: virtual KASLR, done by the loader for a vmlinux.

A kernel is linked for one virtual address.  A bzImage carries, after the vmlinux that it unpacks, the list
of all places that hold such an address; its own code moves the kernel by a random offset (Linux
arch/x86/boot/compressed/misc.c, handle_relocations, and kaslr.c, find_random_virt_addr; the list is written
by arch/x86/tools/relocs.c).  Entered at the vmlinux, that code never runs, and this does its work.

The physical address needs none of it: loaded at another multiple of 2 MiB (``kernel_offset`` of
:func:`loader.elf.load`), the kernel finds out where it is from its 64-bit entry.  A kernel moved virtually
cannot be entered by PVH, whose page tables are prebuilt.

The table follows the section headers: little-endian u32 words, each list behind a zero word: the places of
64-bit numbers, of inverse 32-bit ones (from which the offset is subtracted; gone in newer kernels), and of
32-bit ones.  A word is the low half of the virtual address the place was linked for.
"""

from __future__ import annotations

import os
import sys
from array import array
from ctypes import addressof, c_char
from struct import Struct

from loader import machine_code
from loader.enums import KERNEL_ALIGNMENT
from loader.relocation_errors import (
    InvalidRelocationOffset,
    InvalidRelocationTable,
    NoRelocations,
    RelocationOutsideImage,
)
from loader.result import PVH_ENTRY_IGNORED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from loader.elf_headers import ElfImage
    from loader.files import ImageFile
    from loader.memory import Memory
    from loader.result import KernelLoaderResult

#: The addresses that an image moved by KASLR may occupy, from the start of the kernel's mapping.
KERNEL_IMAGE_SIZE = 1 << 30
_LINK_LOW = 0x8000_0000  # the low half of __START_KERNEL_map, where physical address 0 is linked to
_NUMBERS = {32: Struct("<I"), 64: Struct("<Q")}
_TABLE_MAX = 64 << 20  # bytes; Debian's kernels have less than one MiB


class RelocationTable:
    """The places to change: ``words``, the table itself, and ``lists``, a (bits, sign, start, count) for each
    list of it: numbers of 32 or 64 bits, the offset added (1) or subtracted (-1), indices into ``words``."""

    __slots__ = ("lists", "words")

    def __init__(self, words: array[int], lists: list[tuple[int, int, int, int]]) -> None:
        self.words = words
        self.lists = lists

    @property
    def count(self) -> int:
        """How many places there are."""
        return sum(count for *_, count in self.lists)

    def sites(self, bits: int, sign: int = 1) -> array[int]:
        """The words of one list, empty if there is none of the kind."""
        for kind, direction, start, count in self.lists:
            if (kind, direction) == (bits, sign):
                return self.words[start : start + count]
        return self.words[:0]


def read_table(file: ImageFile, image: ElfImage) -> RelocationTable | None:
    """The relocation table after the end of an ELF file; None if there is none.

    Anything that does not start with a zero word (a signature, for one) is no table.  Raises
    InvalidRelocationTable, FileChanged and FileUnreadable.
    """
    size = file.size - image.end
    if image.machine != "x86_64" or image.end < 64 or size < 4 or file.read(image.end, 4) != bytes(4):
        return None
    where = f"{file.path}: the relocation table of {size:#x} bytes at {image.end:#x}"
    if size % 4 or size > _TABLE_MAX:
        raise InvalidRelocationTable(
            f"{where} must be whole words of 4 bytes, at most {_TABLE_MAX:#x} of them"
        )
    words = array("I", bytes(size))
    file.read_into(memoryview(words).cast("B"), image.end)
    if sys.byteorder == "big":
        words.byteswap()
    zeroes = _zeroes(words)
    if len(zeroes) not in (2, 3):
        raise InvalidRelocationTable(f"{where} has {len(zeroes)} zero words, not 2 or 3 before as many lists")
    kinds = ((64, 1), (32, -1), (32, 1)) if len(zeroes) == 3 else ((64, 1), (32, 1))
    ends = (*zeroes[1:], len(words))
    return RelocationTable(
        words,
        [
            (bits, sign, zero + 1, end - zero - 1)
            for (bits, sign), zero, end in zip(kinds, zeroes, ends, strict=True)
        ],
    )


def _zeroes(words: array[int]) -> list[int]:
    """The indices of the first four zero words; a search of bytes is much quicker than one of numbers."""
    data = words.tobytes()
    found: list[int] = []
    position = data.find(bytes(4))
    while position >= 0 and len(found) < 4:
        if position % 4 == 0:
            found.append(position // 4)
            position += 4
        else:
            position += 1
        position = data.find(bytes(4), position)
    return found


def apply(
    memory: Memory, table: RelocationTable, image: ElfImage, result: KernelLoaderResult, offset: int
) -> None:
    """Move the loaded image by ``offset`` bytes of virtual address; where it lies in memory stays.

    Every place is checked before any is changed.  Raises RelocationOutsideImage.
    """
    size = result.kernel_end - result.load_base
    if not memory.contains(result.load_base, size):
        raise RelocationOutsideImage(
            f"the image at {result.load_base:#x}..{result.kernel_end:#x} is not one piece of RAM"
        )
    low = (_LINK_LOW + image.base) & 0xFFFF_FFFF
    if low + size > 1 << 32:  # a word would stand for two places, and the sums below pass 32 bits
        raise RelocationOutsideImage(
            f"the image at {result.load_base:#x}..{result.kernel_end:#x}, linked for {image.base:#x}, passes the end"
            " of the kernel's mapping",
            "was the file changed after it was built?",
        )
    view = memory.slice(result.load_base, size)
    loops = machine_code.routines()
    run = _run_natively if loops is not None else _run
    run(loops, view, table, low, offset)  # type: ignore[arg-type]


def _run_natively(
    loops: machine_code.Routines, view: memoryview, table: RelocationTable, low: int, offset: int
) -> None:
    words = (c_char * (4 * len(table.words))).from_buffer(table.words)
    target = (c_char * len(view)).from_buffer(view)
    first = addressof(words)
    for bits, _, start, count in table.lists:
        span = len(view) - bits // 8
        bad = loops.first_outside(first + 4 * start, count, low, span) if span >= 0 else 0
        if bad < count:
            raise _outside(table.words[start + bad], bits)
    base = addressof(target) - low
    for bits, sign, start, count in table.lists:
        loop = loops.add64 if bits == 64 else loops.add32
        loop(first + 4 * start, count, base % (1 << 64), sign * offset % (1 << 64))


def _run(_: None, view: memoryview, table: RelocationTable, low: int, offset: int) -> None:
    for bits, _sign, start, count in table.lists:
        span = len(view) - bits // 8
        for word in table.words[start : start + count]:
            if (word - low) & 0xFFFF_FFFF > span:
                raise _outside(word, bits)
    for bits, sign, start, count in table.lists:
        number, mask, delta = _NUMBERS[bits], (1 << bits) - 1, sign * offset
        for word in table.words[start : start + count]:
            at = (word - low) & 0xFFFF_FFFF
            number.pack_into(view, at, (number.unpack_from(view, at)[0] + delta) & mask)


def _outside(word: int, bits: int) -> RelocationOutsideImage:
    return RelocationOutsideImage(
        f"the relocation table names {bits // 8} bytes at virtual address {word:#x} (low half),"
        " outside the loaded image",
        "was the file changed after it was built?",
    )


def slots(image: ElfImage, size: int, alignment: int = KERNEL_ALIGNMENT) -> int:
    """How many virtual addresses an image that needs ``size`` bytes from its base can be given."""
    return max((KERNEL_IMAGE_SIZE - image.base - size) // alignment + 1, 0)


def wanted(command_line: str) -> bool:
    """Whether the command line leaves KASLR on: no parameter of it is ``nokaslr``, which the kernel finds even
    behind the ``--`` that ends its own."""
    return "nokaslr" not in command_line.split()


def kaslr(
    memory: Memory,
    file: ImageFile,
    image: ElfImage,
    result: KernelLoaderResult,
    *,
    alignment: int = KERNEL_ALIGNMENT,
    room: int | None = None,
    offset: int | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> int:
    """Move a loaded vmlinux to a random virtual address; returns by how many bytes (the "Kernel Offset").

    ``alignment`` is CONFIG_PHYSICAL_ALIGN (kernel_alignment of the bzImage); ``room``, the bytes the kernel
    needs from its base (init_size), by default what was loaded; ``offset`` replaces the random choice;
    ``random`` gives that many random bytes.  After it, enter ``result.entry_64`` only (the PVH capability is
    taken back), and set LoadFlags.KASLR_FLAG in the zero page, so that the kernel randomises its memory
    regions and says its offset when it panics.

    Raises NoRelocations, InvalidRelocationTable, RelocationOutsideImage, InvalidRelocationOffset, FileChanged
    and FileUnreadable; in all these cases nothing was changed, and the kernel can be booted where it is.
    """
    table = read_table(file, image)
    if table is None:
        raise NoRelocations(
            f"{file.path}: no relocation table follows the ELF file at {image.end:#x}",
            "give a bzImage, or the vmlinux from one, of a kernel with CONFIG_RANDOMIZE_BASE",
        )
    choices = slots(image, max(room or 0, result.kernel_end - result.load_base), alignment)
    if offset is None:
        if not choices:
            raise InvalidRelocationOffset(f"{file.path}: too large to be moved within {KERNEL_IMAGE_SIZE:#x}")
        offset = int.from_bytes(random(8), "little") % choices * alignment
    elif offset % alignment or not 0 <= offset // alignment < choices:
        raise InvalidRelocationOffset(
            f"{file.path}: cannot be moved by {offset:#x}: multiples of {alignment:#x} below"
            f" {choices * alignment:#x} are possible"
        )
    if offset:
        apply(memory, table, image, result, offset)
    result.pvh_boot_cap = PVH_ENTRY_IGNORED
    return offset
