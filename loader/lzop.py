"""LZO as kernels are compressed with it: the lzop file format, its blocks unpacked by lzallright.

There is no specification but lzop's source (lzop.c, conf.h) and its reader in Linux, lib/decompress_unlzo.c.
A magic, a header, then blocks: unpacked size and packed size, u32 each, checksums as the flags say, data; a block
of size 0 ends it.  All numbers are big-endian.  A block whose two sizes agree is stored as it is.
"""

from __future__ import annotations

import zlib

from loader.decompress import Sink, Source
from loader.payload_errors import UnknownCompression

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

MAGIC = b"\x89LZO\0\r\n\x1a\n"
BLOCK_MAX = 256 << 10  # LZO_BLOCK_SIZE: what lzop makes and what the kernel takes

_WITH_LEVEL = (
    0x0940  # the version of lzop from which on the header has the fields version_needed, level, mtime_high
)


class Flags:
    """Of the header: which checksums there are, and which other parts."""

    ADLER32_UNPACKED = 0x1
    ADLER32_PACKED = 0x2
    EXTRA_FIELD = 0x40
    CRC32_UNPACKED = 0x100
    CRC32_PACKED = 0x200
    MULTIPART = 0x400
    FILTER = 0x800
    CRC32_HEADER = 0x1000


#: The checksums before a block's data, in their order: flag, function, whether of the unpacked data.
_CHECKSUMS: tuple[tuple[int, Callable[[bytes], int], bool], ...] = (
    (Flags.ADLER32_UNPACKED, zlib.adler32, True),
    (Flags.CRC32_UNPACKED, zlib.crc32, True),
    (Flags.ADLER32_PACKED, zlib.adler32, False),
    (Flags.CRC32_PACKED, zlib.crc32, False),
)


def decompressor(library: ModuleType) -> Callable[[Source, Sink], None]:
    """Unpack an lzop file from a Source into a Sink; ``library`` is the module lzallright."""

    def run(source: Source, sink: Sink) -> None:
        flags = _read_header(source)
        while _block(library, source, sink, flags):
            pass

    return run


def _u32(source: Source) -> int:
    return int.from_bytes(source.take(4), "big")


def _read_header(source: Source) -> int:
    """Read and check the header; returns the flags."""
    if source.take(len(MAGIC)) != MAGIC:
        raise source.corrupt("lzo", "no lzop magic")
    header = source.take(4)
    new = int.from_bytes(header[:2], "big") >= _WITH_LEVEL
    header += source.take(4 if new else 1)  # version_needed, method and level; or the method alone
    header += source.take(4)
    flags = int.from_bytes(header[-4:], "big")
    if flags & (Flags.FILTER | Flags.MULTIPART):
        raise UnknownCompression(
            f"{source.path}: an lzop file with options that no kernel has (flags {flags:#x})",
            "compress it with lzop's defaults",
        )
    header += source.take(12 if new else 8)  # mode and mtime
    header += source.take(1)
    header += source.take(header[-1])  # the name
    check = zlib.crc32 if flags & Flags.CRC32_HEADER else zlib.adler32
    if check(header) != _u32(source):
        raise source.corrupt("lzo", "the lzop header's checksum is wrong")
    if flags & Flags.EXTRA_FIELD:
        source.take(_u32(source) + 4)
    return flags


def _block(library: ModuleType, source: Source, sink: Sink, flags: int) -> bool:
    """Unpack one block; False if it was the end."""
    size = _u32(source)
    if not size:
        return False
    packed_size = _u32(source)
    if size > BLOCK_MAX or packed_size > size:
        raise source.corrupt("lzo", f"a block of {packed_size:#x} bytes for {size:#x}")
    stored = packed_size == size
    wanted = [
        (check, unpacked, _u32(source))
        for flag, check, unpacked in _CHECKSUMS
        if flags & flag and (unpacked or not stored)
    ]
    packed = source.take(packed_size)
    data = packed
    if not stored:
        try:
            data = library.LZOCompressor.decompress(packed, size)
        except (library.LZOError, MemoryError) as reason:
            raise source.corrupt("lzo", reason or type(reason).__name__) from None
    if len(data) != size:
        raise source.corrupt("lzo", f"a block of {len(data):#x} bytes instead of {size:#x}")
    for check, unpacked, value in wanted:
        if check(data if unpacked else packed) != value:
            raise source.corrupt("lzo", "a block's checksum is wrong")
    sink.write(data)
    return True
