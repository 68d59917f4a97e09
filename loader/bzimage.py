"""bzImage: loading the x86 kernel that unpacks itself.

Linux Documentation/arch/x86/boot.rst: "Loading The Rest of The Kernel", "32-bit Boot Protocol", "64-bit Boot
Protocol".  The file is a boot sector and real-mode setup code, which no VMM runs, then the protected-mode
code: a small program with the compressed kernel inside, entered at its first byte in 32-bit mode or at
0x200 in 64-bit mode.  The header stands in :mod:`loader.bzimage_header`.
"""

from __future__ import annotations

from loader import errors
from loader.bzimage_header import BzImageHeader, align_up, read_header
from loader.descriptions import mebibytes
from loader.enums import ENTRY_64_OFFSET, U32_MAX, U64_MAX, XLoadFlags
from loader.result import KernelLoaderResult
from loader.structs import setup_header

__all__ = ["BzImageHeader", "load", "place", "read_header"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile
    from loader.memory import Memory


def place(memory: Memory, header: BzImageHeader) -> int:
    """Where to load so that the kernel has the room it needs to start.

    The preferred address, where the kernel will run, if the image may be loaded there and the RAM allows:
    then image and run-time room are one range.  Otherwise its code32_start (1 MiB), from where the kernel
    moves itself.  Raises KernelDoesNotFit, which says how much memory it takes.
    """
    candidates = [header.setup_header.code32_start]
    if header.relocatable and header.pref_address:
        candidates.insert(0, align_up(header.pref_address, header.kernel_alignment))
    for load in candidates:
        if all(memory.contains(start, size) for start, size in header.reserved(load)):
            return load
    needed = min(max(start + size for start, size in header.reserved(load)) for load in candidates)
    have = max((start + size for start, size in memory.ranges), default=0)
    raise errors.KernelDoesNotFit(
        f"the kernel needs RAM up to {needed:#x} to start (init_size {header.init_size:#x} from"
        f" {header.runtime_start(candidates[0]):#x} on), and RAM ends at {have:#x}",
        f"give the machine at least {mebibytes(needed)} of memory",
    )


def load(
    memory: Memory,
    file: ImageFile,
    kernel_offset: int | None = None,
    highmem_start: int | None = None,
    *,
    header: BzImageHeader | None = None,
) -> KernelLoaderResult:
    """Load the protected-mode code of a bzImage to ``kernel_offset`` (absolute), else its code32_start.

    Everything after the setup code is loaded, a signature included: mapped, or read
    straight into guest memory.
    ``highmem_start`` is the lowest address allowed.  ``header`` spares reading it again.  Where to load so
    that the kernel also finds the room to unpack itself says :func:`place`.

    The crate compares the file's own code32_start with ``highmem_start``, wherever it loads, and truncates
    code32_start to 32 bits; here the address of the load counts, and one above 4 GiB is refused for a
    kernel that cannot be loaded there.  Raises the errors of :func:`read_header`,
    InvalidKernelStartAddress, MemoryOverflow, and ReadBzImageCompressedKernel.
    """
    header = header or read_header(file)
    load = header.setup_header.code32_start if kernel_offset is None else kernel_offset
    _check_load_address(memory, file, header, load, highmem_start or 0)
    try:
        file.load_into(memory, load, header.setup_size, header.code_size)
    except (errors.FileChanged, errors.FileUnreadable) as error:
        raise errors.ReadBzImageCompressedKernel(error.message, error.hint) from None
    fields = setup_header.from_buffer_copy(header.setup_header)
    fields.code32_start = load & U32_MAX
    return KernelLoaderResult(
        load,
        load + header.code_size,
        fields,
        load_base=load,
        entry_64=load + ENTRY_64_OFFSET if header.xloadflags & XLoadFlags.KERNEL_64 else None,
        entry_32=load if load <= U32_MAX else None,
        reserved=header.reserved(load),
        initrd_addr_max=header.initrd_addr_max,
        cmdline_size=header.cmdline_size,
        is_linux=True,
    )


def _check_load_address(
    memory: Memory, file: ImageFile, header: BzImageHeader, load: int, lowest: int
) -> None:
    if load < lowest:
        raise errors.InvalidKernelStartAddress(
            f"{file.path}: would be loaded at {load:#x}, below the start of high memory at {lowest:#x}",
            "load it higher, or let high memory start lower",
        )
    end = load + header.code_size
    if end > U64_MAX or not memory.contains(load, header.code_size):
        raise errors.MemoryOverflow(
            f"{file.path}: {header.code_size:#x} bytes at {load:#x} do not lie in RAM",
            f"give the machine at least {mebibytes(end)} of memory",
        )
    if end > U32_MAX + 1 and not header.xloadflags & XLoadFlags.CAN_BE_LOADED_ABOVE_4G:
        raise errors.MemoryOverflow(
            f"{file.path}: would end at {end:#x}, and this kernel must be loaded below 4 GiB"
            f" (xloadflags {header.xloadflags:#x} at 0x236)",
            "load it lower",
        )
