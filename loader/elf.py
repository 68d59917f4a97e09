"""ELF: loading an uncompressed kernel (vmlinux), or any other 64-bit image with physical addresses.

gABI chapter 5 ("Program Loading"); for Linux, Documentation/arch/x86/boot.rst ("64-bit Boot Protocol") and
the PVH entry point of arch/x86/platform/pvh/head.S.  Segments go to their physical addresses.  Everything
is checked before the first byte is written; the checks of the headers stand in :mod:`loader.elf_headers`.
"""

from __future__ import annotations

from loader import errors
from loader.descriptions import mebibytes
from loader.elf_headers import ElfImage, Segment, read_image
from loader.enums import CMDLINE_SIZE_X86, INITRD_ADDR_MAX_64, KERNEL_ALIGNMENT, U64_MAX
from loader.result import (
    PVH_ENTRY_IGNORED,
    PVH_ENTRY_NOT_PRESENT,
    KernelLoaderResult,
    PvhBootCapability,
    pvh_entry_present,
)

__all__ = ["ElfImage", "Segment", "load", "read_image"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile
    from loader.memory import Memory

_ZEROES = bytes(1 << 16)

#: The characters of a command line that a kernel keeps, NUL excluded (COMMAND_LINE_SIZE of each architecture).
CMDLINE_SIZES = {"x86_64": CMDLINE_SIZE_X86, "aarch64": 2047, "riscv64": 1023}

#: The boundary a Linux kernel must start at, or it hangs.  arm64 before 5.8 starts 0x80000 after one of 2 MiB.
_LINUX_ALIGNMENT = {"x86_64": KERNEL_ALIGNMENT, "aarch64": 1 << 16, "riscv64": KERNEL_ALIGNMENT}


def load(
    memory: Memory,
    file: ImageFile,
    kernel_offset: int | None = None,
    highmem_start: int | None = None,
    *,
    machine: str = "x86_64",
    image: ElfImage | None = None,
    memory_is_zero: bool = False,
) -> KernelLoaderResult:
    """Load the segments to their physical addresses plus ``kernel_offset``, and zero what follows each.

    ``kernel_offset`` is added here, where a bzImage's is absolute; with one, PVH is "ignored", since its
    note holds the address the kernel was linked for, unless the PHYS32_RELOC note says that the kernel can be
    entered where it then stands.  ``highmem_start`` is the lowest address allowed, for
    the entry point and for every segment, offset included.  ``image`` spares reading the headers again;
    ``memory_is_zero`` says that nothing needs to be zeroed.

    Other than the crate: memory is zeroed; class, machine, type, sizes and overlap are checked, and that
    all segments lie in RAM before one is written; segments without bytes in the file count for kernel_end;
    a Linux kernel off its 2 MiB boundary, which would hang, is refused.

    Raises the errors of :func:`read_image`, ElfOverflow, InvalidEntryAddress, InvalidProgramHeaderAddress,
    MemoryOverflow, SegmentOutsideRam, MisalignedKernel, ElfReadKernelImage.
    """
    image = image or read_image(file, machine)
    offset = kernel_offset or 0
    _check_placement(memory, file, image, offset, highmem_start or 0)
    for segment in image.segments:
        _load_segment(memory, file, segment, offset, memory_is_zero)
    entry = image.entry + offset
    base = image.base + offset
    end = image.segments[-1].end + offset
    inside = any(segment.paddr <= image.entry < segment.end for segment in image.segments)
    x86 = image.machine == "x86_64"
    return KernelLoaderResult(
        entry,
        end,
        pvh_boot_cap=_pvh(image, kernel_offset) if x86 else PVH_ENTRY_IGNORED,
        load_base=base,
        entry_64=entry if inside else None,
        reserved=((base, end - base),),
        initrd_addr_max=INITRD_ADDR_MAX_64 if x86 else U64_MAX,
        cmdline_size=CMDLINE_SIZES.get(image.machine, CMDLINE_SIZE_X86),
        is_linux=image.is_linux,
    )


def _check_placement(memory: Memory, file: ImageFile, image: ElfImage, offset: int, lowest: int) -> None:
    """All that depends on where the image goes, for every segment, before anything is written."""
    entry = image.entry + offset
    if entry > U64_MAX:
        raise errors.ElfOverflow(
            f"{file.path}: entry point {image.entry:#x} plus offset {offset:#x} passes 64 bits"
        )
    if entry < lowest:
        raise errors.InvalidEntryAddress(
            f"{file.path}: entry point {entry:#x} lies below the start of high memory at {lowest:#x}"
        )
    for segment in image.segments:
        where = f"{file.path}: the segment at {segment.offset:#x}, for {segment.paddr:#x}"
        start, end = segment.paddr + offset, segment.end + offset
        if start > U64_MAX:
            raise errors.InvalidProgramHeaderAddress(f"{where} plus offset {offset:#x}, passes 64 bits")
        if end - 1 > U64_MAX:
            raise errors.MemoryOverflow(
                f"{where} plus offset {offset:#x}, ends past 64 bits with its {segment.memory_size:#x} bytes"
            )
        if start < lowest:
            raise errors.InvalidProgramHeaderAddress(
                f"{where}, goes to {start:#x}, below the start of high memory at {lowest:#x}"
            )
        if not memory.contains(start, segment.memory_size):
            raise errors.SegmentOutsideRam(
                f"{where}, needs {start:#x}..{end:#x}, and that is not all RAM",
                f"give the machine at least {mebibytes(image.segments[-1].end + offset)} of memory",
            )
    base = image.base + offset
    alignment = _LINUX_ALIGNMENT.get(image.machine, 1)
    if image.is_linux and base % alignment:
        raise errors.MisalignedKernel(
            f"{file.path}: would start at {base:#x}, and off a {alignment:#x} boundary Linux hangs",
            f"use an offset that is a multiple of {alignment:#x}",
        )


def _load_segment(
    memory: Memory, file: ImageFile, segment: Segment, offset: int, memory_is_zero: bool
) -> None:
    start = segment.paddr + offset
    if segment.file_size:
        try:
            file.load_into(memory, start, segment.offset, segment.file_size)
        except (errors.FileChanged, errors.FileUnreadable) as error:
            raise errors.ElfReadKernelImage(error.message, error.hint) from None
    if not memory_is_zero:
        _zero(memory, start + segment.file_size, segment.memory_size - segment.file_size)


def _zero(memory: Memory, addr: int, size: int) -> None:
    while size:
        count = min(size, len(_ZEROES))
        memory.slice(addr, count)[:] = _ZEROES[:count]
        addr += count
        size -= count


def _pvh(image: ElfImage, kernel_offset: int | None) -> PvhBootCapability:
    if not image.has_notes or (kernel_offset is not None and not _may_move(image, kernel_offset)):
        return PVH_ENTRY_IGNORED
    if image.notes.pvh_entry is None:
        return PVH_ENTRY_NOT_PRESENT
    return pvh_entry_present(image.notes.pvh_entry + (kernel_offset or 0))


def _may_move(image: ElfImage, offset: int) -> bool:
    """Whether the image, moved by ``offset``, still has its PVH entry: what its PHYS32_RELOC note says."""
    limits = image.notes.pvh_reloc
    if limits is None:
        return False
    alignment, lowest, highest = limits
    start, last = image.base + offset, image.segments[-1].end + offset - 1
    return start % alignment == 0 and lowest <= start and last <= highest
