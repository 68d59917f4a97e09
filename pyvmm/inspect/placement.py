"""Where a kernel would stand in a machine of a given memory size: computed, nothing is loaded.

By the same functions that boot uses, and the map of :mod:`pyvmm.arch.x86_64.layout`.  For architectures
without a machine here, addresses count from the start of RAM.
"""

from __future__ import annotations

from loader import bzimage, initrd
from loader.enums import INITRD_ADDR_MAX_64, PVH_ADDRESS_MAX
from loader.errors import LoaderError
from pyvmm.inspect.report import Placement, Range, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from loader.bzimage import BzImageHeader

_PAGE = 4096
_ARM64_WINDOW = 32 << 30  # kernel and initrd lie in a window of that size (booting.rst)
#: Segments that get a range of their own; a file may claim 65535.
_RANGES_MAX = 64


class _Ram:
    """Guest memory that has addresses and nothing else: all that placing needs."""

    __slots__ = ("ranges",)

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.ranges = ranges

    def contains(self, addr: int, size: int) -> bool:
        return any(start <= addr and addr + size <= start + length for start, length in self.ranges)

    def _none(self, *arguments: object) -> NoReturn:
        raise NotImplementedError("there is no memory behind this")

    read = write = slice = _none


def of_bzimage(header: BzImageHeader, memory: int) -> Placement:
    """The placement of a bzImage: where it is loaded, and where it unpacks itself and runs."""
    placement, ram = _pc(memory)
    try:
        load = bzimage.place(ram, header)
    except LoaderError as error:
        return _refused(placement, error.message, error.hint)
    placement.ranges.append(Range(load, load + header.code_size, "kernel", "kernel, as loaded"))
    if header.init_size:
        start = header.runtime_start(load)
        name = "room to unpack and run"
        placement.ranges.append(Range(start, start + header.init_size, "runtime", name))
    _add_initrd_room(placement, ram, header.initrd_addr_max)
    return placement


def of_x86_segments(segments: Sequence[tuple[int, int, int]], memory: int, *, pvh: bool) -> Placement:
    """The placement of an ELF image: ``segments`` are (physical address, bytes in the file, in memory)."""
    placement, ram = _pc(memory)
    _add_segments(placement, segments, 0)
    for start, _, size in segments:
        if not ram.contains(start, size):
            end = max(start + size for start, _, size in segments)
            return _refused(
                placement,
                f"the segment at {start:#x}..{start + size:#x} does not lie in RAM",
                f"give the machine at least {size_text(-(-end >> 20) << 20)} of memory",
            )
    _add_initrd_room(placement, ram, PVH_ADDRESS_MAX if pvh else INITRD_ADDR_MAX_64)
    return placement


def of_segments(machine: str, segments: Sequence[tuple[int, int, int]], memory: int) -> Placement:
    """The same for another architecture: the lowest segment stands at the start of RAM."""
    base = min(start for start, _, _ in segments)
    placement = Placement(machine, memory, True, [(0, memory)])
    _add_segments(placement, segments, base)
    return _finish_relative(placement, max(start + size for start, _, size in segments) - base)


def of_image(machine: str, text_offset: int, file_size: int, image_size: int, memory: int) -> Placement:
    """The placement of an arm64 or riscv64 Image: ``text_offset`` from a 2 MiB boundary, the start of RAM."""
    placement = Placement(machine, memory, True, [(0, memory)])
    end = text_offset + file_size
    placement.ranges.append(Range(text_offset, end, "kernel", "kernel, as loaded"))
    if image_size > file_size:
        end = text_offset + image_size
        placement.ranges.append(Range(text_offset, end, "runtime", "room it runs in (image_size)"))
    return _finish_relative(placement, end)


def _finish_relative(placement: Placement, end: int) -> Placement:
    if end > placement.memory:
        needed = size_text(-(-end >> 20) << 20)
        return _refused(
            placement,
            f"the kernel needs {end:#x} bytes from the start of RAM, and there are {placement.memory:#x}",
            f"give the machine at least {needed} of memory",
        )
    _add_initrd_room(placement, _Ram([(0, placement.memory)]), _ARM64_WINDOW - 1)
    return placement


def _pc(memory: int) -> tuple[Placement, _Ram]:
    """pyvmm's x86_64 machine, with what it puts where.  UsageError for a size it cannot have."""
    from pyvmm.arch.x86_64 import layout

    ranges = layout.ram_ranges(memory)
    placement = Placement("x86_64", memory, False, [(start, start + size) for start, size in ranges])
    for start, size, name in layout.MEMORY_MAP:
        if start < layout.HIMEM:
            kind = "hole" if start == layout.VGA_HOLE else "boot"
        elif layout.HOLE <= start < layout.HIGH_RAM:
            kind = "device"
        else:
            continue  # RAM, which the kernel takes its places in
        placement.ranges.append(Range(start, start + size, kind, name))
    return placement, _Ram(ranges)


def _refused(placement: Placement, problem: str, hint: str) -> Placement:
    placement.fits = False
    placement.problem = problem
    placement.hint = hint
    return placement


def _add_segments(placement: Placement, segments: Sequence[tuple[int, int, int]], base: int) -> None:
    listed = sorted(segments)[:_RANGES_MAX]
    for number, (start, in_file, size) in enumerate(listed):
        first = start - base
        if in_file:
            placement.ranges.append(Range(first, first + in_file, "kernel", f"segment {number}"))
        if size > in_file:
            rest = Range(first + in_file, first + size, "runtime", f"segment {number}, zeroed")
            placement.ranges.append(rest)


def _add_initrd_room(placement: Placement, ram: _Ram, limit: int) -> None:
    """The free range that an initrd is put at the top of."""
    taken = [
        (found.start, found.end - found.start)
        for found in placement.ranges
        if found.kind in ("kernel", "runtime")
    ]
    floor = 0 if placement.relative else initrd.LOWEST_ADDRESS
    try:
        last = initrd.place(ram.ranges, _PAGE, taken, limit, floor=floor)
    except LoaderError as error:
        _refused(placement, error.message, error.hint)
        return
    below = [start + size for start, size in taken if start + size <= last]
    ram_start = next(start for start, size in ram.ranges if start <= last < start + size)
    first = -(-max(below + [ram_start, floor]) // _PAGE) * _PAGE
    placement.ranges.append(Range(first, last + _PAGE, "initrd", "room for an initrd (put at its top)"))
