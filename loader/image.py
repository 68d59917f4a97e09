"""Image: loading the uncompressed kernels of arm64 and riscv64.

Linux Documentation/arch/arm64/booting.rst ("Call the kernel image") and arch/riscv/boot-image-header.rst: a
header of 64 bytes, then the kernel, entered at the first byte of the file.  It goes ``text_offset`` bytes
above a base on a 2 MiB boundary, and uses ``image_size`` bytes from there: its BSS lies beyond the file.
"""

from __future__ import annotations

from loader import errors
from loader.descriptions import mebibytes
from loader.enums import (
    ARM64_IMAGE_MAGIC,
    ARM64_INITRD_WINDOW,
    ARM64_TEXT_OFFSET_OLD,
    CMDLINE_SIZE_ARM64,
    CMDLINE_SIZE_RISCV64,
    IMAGE_BASE_ALIGNMENT,
    RISCV64_IMAGE_MAGIC2,
    U64_MAX,
)
from loader.result import KernelLoaderResult
from loader.structs import arm64_image_header, riscv64_image_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile
    from loader.memory import Memory

_HEADER_SIZE = 64
_MAGIC_OFFSET = 0x38
_MACHINES = {ARM64_IMAGE_MAGIC: "aarch64", RISCV64_IMAGE_MAGIC2: "riscv64"}
_GIB = 1 << 30


class ImageHeader:
    """The header of an Image.  Sizes in bytes.

    ``fields``: an arm64_image_header or riscv64_image_header, as in the file; ``machine``, "aarch64" or
    "riscv64"; ``text_offset``; ``memory_size``, what the kernel occupies (image_size, never less than the
    file); ``big_endian``, whether it runs so.
    """

    __slots__ = ("big_endian", "fields", "machine", "memory_size", "text_offset")

    def __init__(self, data: bytes, machine: str, file_size: int) -> None:
        kind = arm64_image_header if machine == "aarch64" else riscv64_image_header
        self.fields: arm64_image_header | riscv64_image_header = kind.from_buffer_copy(data)
        self.machine = machine
        old = machine == "aarch64" and not self.fields.image_size
        self.text_offset = ARM64_TEXT_OFFSET_OLD if old else self.fields.text_offset
        self.memory_size = max(self.fields.image_size, file_size)
        self.big_endian = bool(self.fields.flags & 1)


def read_header(file: ImageFile, machine: str | None = None) -> ImageHeader:
    """Read and check the header of an Image, for ``machine`` if that is given.

    As in the crate, a riscv64 Image is told by ``magic2``: ``magic`` is deprecated.
    Raises ReadImageHeader and InvalidImageMagicNumber.
    """
    try:
        data = file.read(0, _HEADER_SIZE)
    except errors.FileUnreadable as error:
        raise errors.ReadImageHeader(error.message, error.hint) from None
    if len(data) < _HEADER_SIZE:
        raise errors.ReadImageHeader(
            f"{file.path}: ends at {file.size:#x}, inside the Image header of {_HEADER_SIZE} bytes",
            "was it copied completely?",
        )
    magic = int.from_bytes(data[_MAGIC_OFFSET : _MAGIC_OFFSET + 4], "little")
    found = _MACHINES.get(magic)
    if found is None or machine not in (None, found):
        wanted = machine or "aarch64 or riscv64"
        raise errors.InvalidImageMagicNumber(
            f"{file.path}: magic number {magic:#010x} at {_MAGIC_OFFSET:#x}, and not that of an Image for"
            f" {wanted}",
            f"give an Image built for {wanted}",
        )
    return ImageHeader(data, found, file.size)


def place(memory: Memory, header: ImageHeader) -> int:
    """The lowest base (2 MiB boundary) with room for the kernel in RAM.  Raises KernelDoesNotFit.

    The lowest, because arm64 kernels before Linux 4.6 cannot use the RAM below them.
    """
    for start, _ in memory.ranges:
        base = (start + IMAGE_BASE_ALIGNMENT - 1) & -IMAGE_BASE_ALIGNMENT
        if memory.contains(base + header.text_offset, header.memory_size):
            return base
    raise errors.KernelDoesNotFit(
        f"the kernel needs {header.memory_size:#x} bytes of RAM in one piece, {header.text_offset:#x} above a"
        f" {IMAGE_BASE_ALIGNMENT:#x} boundary (image_size {header.fields.image_size:#x} at 0x10)",
        f"give the machine at least {mebibytes(header.text_offset + header.memory_size)} of memory",
    )


def load(
    memory: Memory,
    file: ImageFile,
    kernel_offset: int | None = None,
    highmem_start: int | None = None,
    *,
    machine: str | None = None,
    header: ImageHeader | None = None,
) -> KernelLoaderResult:
    """Load an Image ``text_offset`` bytes above the base ``kernel_offset``, else above that of :func:`place`.

    ``highmem_start`` is the lowest address allowed.  The file is read straight into guest memory; the BSS is
    the kernel's own to zero, so ``kernel_end`` is the end of the file's bytes, and ``reserved`` has the rest.

    Other than in the crate: no base means the start of RAM, not address 0; ``highmem_start`` counts; what
    image_size reserves must be RAM.  Raises the errors of :func:`read_header` and :func:`place`,
    InvalidBaseAddrAlignment, InvalidImage, InvalidKernelStartAddress, MemoryOverflow, ImageOutsideRam and
    PeReadKernelImage.
    """
    header = header or read_header(file, machine)
    base = place(memory, header) if kernel_offset is None else kernel_offset
    start = _check_placement(memory, file, header, base, highmem_start or 0)
    try:
        file.read_into(memory.slice(start, file.size), 0)
    except (errors.FileChanged, errors.FileUnreadable) as error:
        raise errors.PeReadKernelImage(error.message, error.hint) from None
    arm = header.machine == "aarch64"
    return KernelLoaderResult(
        start,
        start + file.size,
        load_base=start,
        entry_64=start,
        reserved=((start, header.memory_size),),
        # On arm64 kernel and initrd share a window of 32 GiB from a 1 GiB boundary on.
        initrd_addr_max=(start & -_GIB) + ARM64_INITRD_WINDOW - 1 if arm else U64_MAX,
        cmdline_size=CMDLINE_SIZE_ARM64 if arm else CMDLINE_SIZE_RISCV64,
        is_linux=True,
    )


def _check_placement(memory: Memory, file: ImageFile, header: ImageHeader, base: int, lowest: int) -> int:
    """Where the image goes, once it may go there."""
    if base % IMAGE_BASE_ALIGNMENT:
        raise errors.InvalidBaseAddrAlignment(
            f"{file.path}: base address {base:#x} is off a {IMAGE_BASE_ALIGNMENT:#x} boundary",
            f"use a multiple of {IMAGE_BASE_ALIGNMENT:#x}",
        )
    start = base + header.text_offset
    if not 0 <= base <= start <= U64_MAX:
        raise errors.InvalidImage(
            f"{file.path}: base address {base:#x} plus text_offset {header.text_offset:#x} (at 0x8) is no"
            " address of 64 bits"
        )
    if start < lowest:
        raise errors.InvalidKernelStartAddress(
            f"{file.path}: would be loaded at {start:#x}, below the start of high memory at {lowest:#x}",
            "load it higher, or let high memory start lower",
        )
    end = start + header.memory_size
    if end - 1 > U64_MAX:
        raise errors.MemoryOverflow(
            f"{file.path}: {header.memory_size:#x} bytes at {start:#x} (image_size"
            f" {header.fields.image_size:#x} at 0x10) end past 64 bits"
        )
    if not memory.contains(start, header.memory_size):
        raise errors.ImageOutsideRam(
            f"{file.path}: needs {start:#x}..{end:#x} (image_size {header.fields.image_size:#x} at 0x10), and"
            " that is not all RAM",
            "give the machine more memory, or load it elsewhere",
        )
    return start
