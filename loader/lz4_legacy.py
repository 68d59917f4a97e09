"""LZ4 as kernels are compressed with it: the legacy frame; and the later frame, which lz4 makes by default.

https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md, "Legacy frame": a magic, then blocks of up to 8 MiB,
each after its compressed size, u32, to the end of the file; another magic begins another frame.  Linux
lib/decompress_unlz4.c.  The library's frame module refuses the legacy format, so its block module does the work.
"""

from __future__ import annotations

from loader.decompress import CHUNK, LZ4_BLOCK, LZ4_LEGACY, Sink, Source, library

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

LZ4_BLOCK_COMPRESSED = LZ4_BLOCK + LZ4_BLOCK // 255 + 16  # LZ4_compressBound


def decompressor(block: ModuleType) -> Callable[[Source, Sink], None]:
    """Unpack either frame from a Source into a Sink; ``block`` is the module lz4.block."""

    def run(source: Source, sink: Sink) -> None:
        magic = source.take(4)
        if magic == LZ4_LEGACY:
            _legacy(block, source, sink)
        else:
            source.push(magic)
            _frames(source, sink)

    return run


def _legacy(block: ModuleType, source: Source, sink: Sink) -> None:
    """The blocks after the first magic.

    The kernel's build may have appended the unpacked size, u32, which only its place tells from a block's size:
    nothing follows.
    """
    while source.remaining:
        word = source.take(4)
        if word == LZ4_LEGACY:
            sink.check_time()
            continue
        size = int.from_bytes(word, "little")
        if not source.remaining and sink.total & 0xFFFF_FFFF == size:
            return
        if size > LZ4_BLOCK_COMPRESSED:
            raise source.corrupt("lz4", f"a block of {size:#x} bytes")
        sink.write(_block(block, source, size))


def _block(block: ModuleType, source: Source, size: int) -> bytes:
    try:
        unpacked: bytes = block.decompress(source.take(size), uncompressed_size=LZ4_BLOCK)
    except (block.LZ4BlockError, ValueError, MemoryError) as reason:
        raise source.corrupt("lz4", reason) from None
    return unpacked


def _frames(source: Source, sink: Sink) -> None:
    frame = library("lz4.frame", "lz4")
    stream = frame.LZ4FrameDecompressor()
    while not stream.eof:
        data = b""
        if stream.needs_input:
            data = source.read(CHUNK)
            if not data:
                raise source.truncated()
        try:
            result = stream.decompress(data, min(CHUNK, sink.room + 1))
        except (RuntimeError, ValueError, MemoryError) as reason:
            raise source.corrupt("lz4", reason) from None
        sink.write(result)
    source.push(stream.unused_data or b"")
