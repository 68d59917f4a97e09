"""Decompression from a file into a file, a piece at a time, by the libraries for each format.

Linux scripts/Makefile.lib ("Bzip2, LZMA, ...": how kernels are compressed) and lib/decompress*.c.  The libraries
are imported when they are needed: zlib, bz2 and lzma are Python's own; zstd is from 3.14 on (compression.zstd),
before that backports.zstd; lz4, and lzallright for LZO, are the extra "compression".  What comes out is never
trusted to end: a :class:`Sink` bounds its size and the time it takes.
"""

from __future__ import annotations

import os
import sys
import time
import zlib

from loader.detect import COMPRESSION_MAGICS, Format
from loader.payload_errors import (
    CompressionUnavailable,
    PayloadCorrupt,
    PayloadTimeout,
    PayloadTooLarge,
    PayloadTruncated,
    UnknownCompression,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Protocol

    from loader.files import ImageFile

    class Decompressor(Protocol):
        """What bz2, lzma and zstd offer."""

        eof: bool
        needs_input: bool
        unused_data: bytes

        def decompress(self, data: bytes, max_length: int) -> bytes: ...


CHUNK = 1 << 20
FIRST_PIECE = 4 << 10  # of a stream; what a decompressor did not want of a piece is read again
STREAMS_MAX = 64 << 10  # after each other; the smallest that parallel compressors make hold 64 KiB
LZMA_MEMORY = 256 << 20  # xz -9 takes 64 MiB to unpack, the kernel's own options 32 MiB
LZ4_BLOCK = 8 << 20  # of the legacy format; a compressed block is at most slightly larger than that
LZ4_LEGACY = b"\x02\x21\x4c\x18"


class Source:
    """Compressed bytes of ``file`` from ``offset`` to ``offset + size``, read from front to back."""

    __slots__ = ("_end", "_file", "_offset", "path")

    def __init__(self, file: ImageFile, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._end = min(offset + size, file.size)
        self.path = file.path

    @property
    def remaining(self) -> int:
        return self._end - self._offset

    def push(self, data: bytes) -> None:
        """Put back what was read too far: the next read starts there, and nothing is kept meanwhile."""
        self._offset -= len(data)

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, or as many as are left."""
        size = min(size, self._end - self._offset)
        if size <= 0:
            return b""
        data = self._file.read(self._offset, size)
        self._offset += len(data)
        if len(data) < size:  # the file has been cut since it was opened
            self._end = self._offset
        return data

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes; PayloadTruncated if there are fewer."""
        data = self.read(size)
        if len(data) < size:
            raise self.truncated()
        return data

    def truncated(self) -> PayloadTruncated:
        return PayloadTruncated(
            f"{self.path}: its compressed data ends at {self._end:#x}, before the kernel in it does",
            "was it copied completely?",
        )

    def corrupt(self, compression: str, reason: object) -> PayloadCorrupt:
        return PayloadCorrupt(
            f"{self.path}: its {compression} data is damaged before {self._offset:#x}: {reason}",
            "was it copied completely?",
        )


class Sink:
    """Writes what comes out to the descriptor ``fd``, at most ``limit`` bytes, until ``seconds`` from now.

    ``total`` and ``crc32`` are those of the bytes written so far.
    """

    __slots__ = ("_deadline", "_fd", "_path", "crc32", "limit", "total")

    def __init__(self, fd: int, path: str, limit: int, seconds: float) -> None:
        self._fd = fd
        self._path = path
        self._deadline = time.monotonic() + seconds
        self.limit = limit
        self.total = 0
        self.crc32 = 0

    @property
    def room(self) -> int:
        """The bytes that may still come."""
        return self.limit - self.total

    def check_time(self) -> None:
        """PayloadTimeout if the time is over: for what goes on without writing."""
        if time.monotonic() > self._deadline:
            raise PayloadTimeout(f"{self._path}: unpacking takes too long", "unpack it beforehand")

    def write(self, data: bytes) -> None:
        """Write all of ``data``.  PayloadTooLarge, PayloadTimeout; OSError where the system refuses."""
        if len(data) > self.room:
            raise PayloadTooLarge(
                f"{self._path}: unpacks to more than {self.limit:#x} bytes, and that is the most it may",
                "the file is damaged, or no kernel",
            )
        self.check_time()
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self.total += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)


def by_magic(head: bytes) -> Format | None:
    """The compression of data that starts with ``head`` (6 bytes suffice), None if it is none of them."""
    for magic, format in COMPRESSION_MAGICS:
        if head.startswith(magic):
            return format
    return None


def decompressor(compression: Format) -> Callable[[Source, Sink], None]:
    """The function that unpacks ``compression`` from a Source into a Sink.

    It raises PayloadTruncated, PayloadCorrupt, PayloadTooLarge, PayloadTimeout, UnknownCompression; OSError
    where the system refuses to write.  What follows the compressed data is left alone.

    Raises CompressionUnavailable if a library is missing: the time to find out, before anything is read.
    """
    if compression is Format.LZ4:
        from loader import lz4_legacy

        return lz4_legacy.decompressor(library("lz4.block", "lz4"))
    if compression is Format.LZO:
        from loader import lzop

        return lzop.decompressor(library("lzallright", "lzallright"))
    make, error = _streaming(compression)
    magic = next(magic for magic, format in COMPRESSION_MAGICS if format is compression)

    def run(source: Source, sink: Sink) -> None:
        _stream(source, sink, compression.value, magic, make, error)

    return run


def _streaming(compression: Format) -> tuple[Callable[[], Decompressor], type[Exception]]:
    """How to make a decompressor, and the error it raises."""
    if compression is Format.GZIP:
        return _Gzip, zlib.error
    if compression is Format.BZIP2:
        module = library("bz2", "")
        return module.BZ2Decompressor, OSError
    if compression in (Format.XZ, Format.LZMA):
        module = library("lzma", "")
        kind = module.FORMAT_XZ if compression is Format.XZ else module.FORMAT_ALONE
        return lambda: module.LZMADecompressor(kind, LZMA_MEMORY), module.LZMAError
    if compression is Format.ZSTD:
        name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        module = library(name, "backports.zstd")
        return module.ZstdDecompressor, module.ZstdError
    raise UnknownCompression(f"{compression.value} is no compression of kernels", "give a kernel")


def library(name: str, package: str) -> ModuleType:
    """Import a library, which the Python package ``package`` brings ("": Python itself)."""
    try:
        return __import__(name, fromlist=("*",))
    except ImportError:
        what = f"the Python module {name} is not here, and the kernel's compression needs it"
        hint = f"python -m pip install {package}" if package else "install a Python that was built with it"
        raise CompressionUnavailable(what, hint) from None


class _Gzip:
    """zlib's gzip decompressor with the face of the others."""

    __slots__ = ("_zlib", "eof", "needs_input", "unused_data")

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)  # 15 bits of window, and a gzip header and trailer
        self.eof = False
        self.needs_input = True
        self.unused_data = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        result = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.eof = self._zlib.eof
        self.unused_data = self._zlib.unused_data
        # A full result may not be all there is, even if no input is left over.
        self.needs_input = not self._zlib.unconsumed_tail and len(result) < max_length
        return result


def _stream(
    source: Source,
    sink: Sink,
    name: str,
    magic: bytes,
    make: Callable[[], Decompressor],
    error: type[Exception],
) -> None:
    """Unpack streams that follow each other (as parallel compressors make them) until something else comes.

    The pieces of a stream grow with it, so that many tiny streams do not each cost the reading of a large one;
    more than STREAMS_MAX are PayloadCorrupt.
    """
    for _ in range(STREAMS_MAX):
        stream = make()
        piece = FIRST_PIECE
        while not stream.eof:
            data = b""
            if stream.needs_input:
                data = source.read(piece)
                if not data:
                    raise source.truncated()
                piece = min(2 * piece, CHUNK)
            try:
                # One byte more than there is room for: enough to see that it is too much.
                result = stream.decompress(data, min(CHUNK, sink.room + 1))
            except (error, MemoryError) as reason:
                raise source.corrupt(name, reason) from None
            sink.write(result)
        source.push(stream.unused_data)
        head = source.read(len(magic))
        source.push(head)
        if head != magic:
            return
    raise source.corrupt(name, f"more than {STREAMS_MAX} streams after each other")
