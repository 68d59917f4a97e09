"""EFI zboot: the EFI program that unpacks the kernel Image it carries.

Linux drivers/firmware/efi/libstub/zboot-header.S and Makefile.zboot.  Only the header is read here; the EFI program
itself is never run.
"""

from __future__ import annotations

from loader.detect import Format
from loader.payload_errors import InvalidZboot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile

HEADER_SIZE = 64
MAGIC = b"zimg"  # at 4, after "MZ"

#: The names that stand in the header, by what the kernel's build calls its compressions.
COMPRESSIONS = {
    "gzip": Format.GZIP,
    "bzip2": Format.BZIP2,
    "lz4": Format.LZ4,
    "lzma": Format.LZMA,
    "lzo": Format.LZO,
    "xz": Format.XZ,
    "xzkern": Format.XZ,
    "zstd": Format.ZSTD,
    "zstd22": Format.ZSTD,
}


class ZbootHeader:
    """``offset`` and ``length`` of the payload in the file, without the size that may follow; ``kind``, the name
    of its compression; ``compression``, the Format of that name, None if the name is not known."""

    __slots__ = ("compression", "kind", "length", "offset")

    def __init__(self, offset: int, length: int, kind: str) -> None:
        self.offset = offset
        self.length = length
        self.kind = kind
        self.compression = COMPRESSIONS.get(kind.removesuffix("_with_size"))


def read_header(file: ImageFile) -> ZbootHeader:
    """Read and check the header of an EFI zboot image.  Raises InvalidZboot."""
    head = file.read(0, HEADER_SIZE)
    if len(head) < HEADER_SIZE or head[:2] != b"MZ" or head[4:8] != MAGIC:
        raise InvalidZboot(f'{file.path}: no EFI zboot header ("MZ", and "zimg" at 4)', "give another image")
    offset = int.from_bytes(head[8:12], "little")
    length = int.from_bytes(head[12:16], "little")
    if offset < HEADER_SIZE or not length or offset + length > file.size:
        raise InvalidZboot(
            f"{file.path}: the payload, {length:#x} bytes at {offset:#x} (0x8 and 0xc), is not within the file's"
            f" {file.size:#x}",
            "was it copied completely?",
        )
    return ZbootHeader(offset, length, head[0x18:0x38].split(b"\0")[0].decode("ascii", "replace"))
