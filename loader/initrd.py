"""The initrd: where it may stand, and putting it there.

Linux Documentation/arch/x86/boot.rst (initrd_addr_max: the last byte it may occupy).  It goes as high as
that and the RAM allow, because a kernel uses its memory from below: away from the image, and from the
room where the image unpacks itself (see ``reserved`` of the loaders' result).
"""

from __future__ import annotations

from loader import errors
from loader.descriptions import mebibytes
from loader.enums import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loader.files import ImageFile
    from loader.memory import Memory

#: Below this stand firmware tables and boot structures, on every PC.
LOWEST_ADDRESS = 0x10_0000


def place(
    ranges: Sequence[tuple[int, int]],
    size: int,
    reserved: Iterable[tuple[int, int]] = (),
    limit: int = 0x7FFF_FFFF,
    *,
    floor: int = LOWEST_ADDRESS,
) -> int:
    """The highest page-aligned address for ``size`` bytes in the RAM ``ranges``.

    ``ranges`` and ``reserved`` are (start, size); ``limit`` is the last byte allowed (initrd_addr_max of a
    bzImage; 0xffffffff for PVH), ``floor`` the first.  Whole pages are kept clear of what is reserved.
    Raises InitrdDoesNotFit, which says how much memory it takes, if memory can help.
    """
    taken = sorted(((start, start + length) for start, length in reserved if length), reverse=True)
    pages = _align_up(size)
    for start, length in sorted(ranges, reverse=True):
        address = _highest(max(start, floor), min(start + length, limit + 1), pages, taken)
        if address is not None:
            return address
    kernel_end = max((_align_up(end) for start, end in taken if start <= limit), default=floor)
    needed = max(kernel_end, floor) + pages
    message = (
        f"an initrd of {mebibytes(size)} ({size} bytes) finds no room up to {limit:#x} beside the kernel"
    )
    if needed > limit + 1:
        raise errors.InitrdDoesNotFit(
            message, "this kernel cannot take so large an initrd: use a smaller one"
        )
    raise errors.InitrdDoesNotFit(message, f"give the machine at least {mebibytes(needed)} of memory")


def _highest(start: int, end: int, size: int, taken: list[tuple[int, int]]) -> int | None:
    """The highest page for ``size`` bytes within start..end, clear of ``taken`` (descending), if any."""
    address = (end - size) & -PAGE_SIZE
    for low, high in taken:
        if low < address + size and high > address:
            address = (low - size) & -PAGE_SIZE
    return address if address >= start else None


def load(memory: Memory, source: ImageFile | bytes, address: int) -> int:
    """Put an initrd at ``address``: a file, mapped or read straight into guest memory, or bytes; returns its end.

    Raises InitrdOutsideRam, FileChanged and FileUnreadable.
    """
    size = len(source) if isinstance(source, bytes) else source.size
    if not memory.contains(address, size):
        name = "the initrd" if isinstance(source, bytes) else source.path
        raise errors.InitrdOutsideRam(f"{name}: {size:#x} bytes at {address:#x} do not lie in RAM")
    if isinstance(source, bytes):
        memory.write(address, source)
    else:
        source.load_into(memory, address, 0, size)
    return address + size


def _align_up(value: int) -> int:
    return (value + PAGE_SIZE - 1) & -PAGE_SIZE
