"""Compressed kernels: finding the kernel inside another file, and unpacking it.

Linux Documentation/arch/x86/boot.rst, "Details of Header Fields" (payload_offset, payload_length), for a bzImage;
:mod:`loader.zboot` for EFI zboot; any other file is compressed as a whole (Image.gz).  :func:`find` says what there
is, :func:`unpack` writes it to a descriptor, :func:`open_unpacked` opens it as a kernel.  Nothing is ever held whole
in the interpreter's memory.
"""

from __future__ import annotations

import os

from loader import errors
from loader.decompress import Sink, Source, by_magic, decompressor
from loader.detect import COMPRESSION_MAGICS, HEAD_SIZE, KERNEL_FORMATS, Format, Identity, identify
from loader.files import ImageFile
from loader.kernel_file import KernelFile
from loader.payload_errors import (
    PayloadNotFound,
    PayloadSizeMismatch,
    PayloadTooLarge,
    PayloadTruncated,
    UnknownCompression,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.bzimage_header import BzImageHeader

SIZE_LIMIT = 1 << 30  # bytes of an unpacked kernel: the room that x86_64 has for one
RATIO_LIMIT = 128  # of unpacked to packed; a kernel's is 3 to 7
RATIO_FREE = 64 << 20  # so much is allowed at any ratio
SECONDS = 120.0
MAGIC_SIZE = 8

_COMPRESSIONS = frozenset(format for _, format in COMPRESSION_MAGICS)


class Payload:
    """A compressed kernel in a file: ``compression``, a Format; ``offset`` and ``length`` of the compressed data
    there; ``size``, that of the kernel, None if it is not known; ``limit``, the most that it can be."""

    __slots__ = ("compression", "length", "limit", "offset", "size")

    def __init__(
        self, compression: Format, offset: int, length: int, size: int | None = None, limit: int = SIZE_LIMIT
    ) -> None:
        self.compression = compression
        self.offset = offset
        self.length = length
        self.size = size
        self.limit = limit

    def __repr__(self) -> str:
        size = "" if self.size is None else f" for {self.size:#x}"
        return f"<Payload {self.compression.value} {self.length:#x} bytes at {self.offset:#x}{size}>"


def find(file: ImageFile) -> Payload:
    """The compressed kernel in a bzImage, an EFI zboot image or a compressed file.

    Raises PayloadNotFound, UnknownCompression, InvalidZboot, and for a bzImage the errors of its header.
    """
    head = file.read(0, HEAD_SIZE)
    format = identify(head).format
    if format is Format.BZIMAGE:
        from loader.bzimage_header import read_header

        return in_bzimage(file, read_header(file))
    if format is Format.EFI_ZBOOT:
        return _in_zboot(file)
    if format in _COMPRESSIONS:
        return Payload(format, 0, file.size)
    raise PayloadNotFound(f"{file.path}: {identify(head).description}, not compressed", "use it as it is")


def in_bzimage(file: ImageFile, header: BzImageHeader) -> Payload:
    """The compressed kernel in a bzImage.  Raises PayloadNotFound, PayloadTruncated, UnknownCompression.

    Its last four bytes are the size of the kernel: the end of gzip's own trailer, for the others appended
    (Linux scripts/Makefile.lib, size_append).  What follows it, a signature for one, does not matter.
    """
    offset, length = header.payload_offset, header.payload_length
    if not offset or length <= MAGIC_SIZE:
        raise PayloadNotFound(
            f"{file.path}: the header does not say where the compressed kernel is (protocol {header.protocol:#x})",
            "use a kernel from 2.6.26 on",
        )
    if offset + length > file.size:
        raise PayloadTruncated(
            f"{file.path}: ends at {file.size:#x}, its payload at {offset + length:#x}",
            "was it copied completely?",
        )
    compression = by_magic(file.read(offset, MAGIC_SIZE))
    if compression is None:
        raise _unknown(file, offset)
    size = int.from_bytes(file.read(offset + length - 4, 4), "little")
    appended = 0 if compression is Format.GZIP else 4
    # The kernel unpacks itself into init_size bytes, so it cannot be larger.
    limit = min(header.init_size or SIZE_LIMIT, SIZE_LIMIT)
    return Payload(compression, offset, length - appended, size, limit)


def _in_zboot(file: ImageFile) -> Payload:
    from loader.zboot import read_header

    header = read_header(file)
    compression = by_magic(file.read(header.offset, MAGIC_SIZE))
    if compression is None or header.compression not in (compression, None):
        raise _unknown(file, header.offset, header.kind)
    return Payload(compression, header.offset, header.length)


def _unknown(file: ImageFile, offset: int, kind: str = "") -> UnknownCompression:
    head = file.read(offset, MAGIC_SIZE).hex(" ")
    said = f", and its header says {kind!r}" if kind else ""
    return UnknownCompression(
        f"{file.path}: the payload at {offset:#x} starts with {head}, no known compression{said}",
        "unpack it beforehand, or use a kernel compressed otherwise",
    )


def unpack(
    file: ImageFile, payload: Payload, fd: int, *, limit: int = SIZE_LIMIT, seconds: float = SECONDS
) -> Sink:
    """Write the kernel in ``payload`` to ``fd``; returns a Sink, which has its ``total`` size and ``crc32``.

    At most ``limit`` bytes are written, and no more than the payload says or can sensibly hold; after ``seconds``
    it is given up.  Raises PayloadTooLarge, PayloadSizeMismatch, PayloadTruncated, PayloadCorrupt,
    UnknownCompression, PayloadTimeout, CompressionUnavailable; OSError where the system refuses to write.
    """
    run = decompressor(payload.compression)
    limit = min(limit, payload.limit, max(RATIO_FREE, RATIO_LIMIT * payload.length))
    if payload.size is not None:
        if payload.size > limit:
            raise PayloadTooLarge(
                f"{file.path}: says that it unpacks to {payload.size:#x} bytes, and {limit:#x} are the most it may",
                "the file is damaged, or no kernel",
            )
        limit = payload.size
    sink = Sink(fd, file.path, limit, seconds)
    run(Source(file, payload.offset, payload.length), sink)
    if payload.size is not None and sink.total != payload.size:
        raise PayloadSizeMismatch(
            f"{file.path}: unpacks to {sink.total:#x} bytes, and says {payload.size:#x}",
            "was it copied completely?",
        )
    return sink


def open_unpacked(
    file: ImageFile, payload: Payload | None = None, *, machine: str | None = None, seconds: float = SECONDS
) -> KernelFile:
    """Unpack a compressed kernel into memory that has no name on disk, and open it as a kernel.

    Raises what :func:`find` and :func:`unpack` raise, NotAKernel, and WrongMachine if ``machine`` is given and it
    is for another.
    """
    payload = payload or find(file)
    fd = os.memfd_create("kernel", os.MFD_CLOEXEC)
    try:
        unpack(file, payload, fd, seconds=seconds)
        path = f"{file.path} (unpacked)"
        return KernelFile(fd, path, identify_kernel(fd, path, machine))
    except BaseException:
        os.close(fd)
        raise


def identify_kernel(fd: int, path: str, machine: str | None = None) -> Identity:
    """What the open file ``fd`` is, which must be a kernel that can be loaded, for ``machine`` if that is given.

    ``path`` is for messages.  Raises NotAKernel and WrongMachine.
    """
    identity = identify(os.pread(fd, HEAD_SIZE, 0))
    if identity.format not in KERNEL_FORMATS:
        raise errors.NotAKernel(
            f"{path}: {identity.description}, not a kernel that can be loaded", identity.hint
        )
    if machine is not None and identity.machine != machine:
        raise errors.WrongMachine(
            f"{path}: {identity.description}, and the machine is {machine}",
            f"give a kernel built for {machine}",
        )
    return identity
