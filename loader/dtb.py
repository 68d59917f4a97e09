"""Device tree blobs: checked, and put into memory.

Devicetree Specification chapter 5 ("Flattened Devicetree (DTB) Format"); Linux Documentation/arch/arm64/
booting.rst, "Setup the device tree": 8-byte aligned, at most 2 MiB.
"""

from __future__ import annotations

from loader import errors
from loader.enums import DTB_ALIGNMENT, DTB_SIZE_MAX, FDT_HEADER_SIZE, FDT_MAGIC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile
    from loader.memory import Memory


def check(head: bytes, size: int, addr: int, name: str = "the device tree") -> None:
    """Check a blob of ``size`` bytes that starts with ``head`` and is to go to ``addr``.

    Raises DtbTooBig, InvalidDtbMagic, InvalidDtbSize, MisalignedDtb.  (The crate checks its size alone.)
    """
    if size > DTB_SIZE_MAX:
        raise errors.DtbTooBig(f"{name}: has {size:#x} bytes, and a kernel maps {DTB_SIZE_MAX:#x}")
    if head[:4] != FDT_MAGIC:
        raise errors.InvalidDtbMagic(
            f"{name}: starts with {head[:4].hex(' ') or 'nothing'}, not d0 0d fe ed",
            "give a compiled device tree (dtc -O dtb)",
        )
    total = int.from_bytes(head[4:8], "big")
    if not FDT_HEADER_SIZE <= total <= size:
        raise errors.InvalidDtbSize(
            f"{name}: its totalsize is {total:#x} (at 0x4), and it has {size:#x} bytes",
            "was it copied completely?",
        )
    if addr % DTB_ALIGNMENT:
        raise errors.MisalignedDtb(
            f"{name}: would be placed at {addr:#x}, off an 8-byte boundary", "use a multiple of 8"
        )


def load_dtb(memory: Memory, addr: int, source: ImageFile | bytes) -> int:
    """Put a device tree blob at ``addr``, a file by reads straight into guest memory; returns its end.

    Raises what :func:`check` raises, DtbOutsideRam, and ReadDtbImage.
    """
    if isinstance(source, bytes):
        name, size, head = "the device tree", len(source), source[:8]
    else:
        name, size = source.path, source.size
        try:
            head = source.read(0, 8)
        except errors.FileUnreadable as error:
            raise errors.ReadDtbImage(error.message, error.hint) from None
    check(head, size, addr, name)
    if not memory.contains(addr, size):
        raise errors.DtbOutsideRam(f"{name}: {size:#x} bytes at {addr:#x} do not lie in RAM")
    if isinstance(source, bytes):
        memory.write(addr, source)
        return addr + size
    try:
        source.read_into(memory.slice(addr, size), 0)
    except (errors.FileChanged, errors.FileUnreadable) as error:
        raise errors.ReadDtbImage(error.message, error.hint) from None
    return addr + size
