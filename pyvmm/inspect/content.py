"""What is inside a compressed image: unpacked to memory without a name on disk, within limits, and inspected.

A kernel is unpacked whole (the notes that name its PVH entry point stand near its end); of anything else
only the start is.
"""

from __future__ import annotations

import os

from loader.detect import HEAD_SIZE, KERNEL_FORMATS, Format, identify
from loader.errors import LoaderError
from loader.files import ImageFile
from pyvmm.inspect.report import Payload, Report, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: What is unpacked at most, in bytes and in seconds.
SIZE_LIMIT = 256 << 20
SECONDS = 20.0


class _NotAKernel(Exception):
    """The start has been unpacked, and is none of a kernel: there is no reason to go on."""


def inspect_payload(
    report: Report, file: ImageFile, inspect_open: Callable[[ImageFile], Report]
) -> Report | None:
    """Unpack the payload that ``report`` names and inspect what comes out, as far as it does.

    Whatever keeps it from being unpacked becomes the payload's ``problem``.
    """
    payload = report.payload
    if payload is None or payload.compression in ("none", "unknown"):
        return None
    try:
        fd = os.memfd_create("inspected", os.MFD_CLOEXEC)
    except OSError as error:
        payload.problem = f"not unpacked: {error.strerror}"
        return None
    with ImageFile(fd, f"{report.path} (unpacked)") as unpacked:
        _unpack(file, payload, fd)
        unpacked.size = os.fstat(fd).st_size
        if not unpacked.size:
            return None
        identity = identify(unpacked.read(0, HEAD_SIZE))
        payload.content = identity.description
        if identity.format not in KERNEL_FORMATS:
            report.hint = identity.hint
            return None
        content = inspect_open(unpacked)
    payload.content = content.description
    return content


def _unpack(file: ImageFile, payload: Payload, fd: int) -> None:
    """Write what the payload holds to ``fd``."""
    from loader.decompress import Sink, Source, decompressor

    class HeadSink(Sink):
        """Stops when the first bytes show that there is no kernel."""

        __slots__ = ()

        def write(self, data: bytes) -> None:
            super().write(data)
            first = self.total - len(data) < HEAD_SIZE <= self.total
            if first and identify(os.pread(fd, HEAD_SIZE, 0)).format not in KERNEL_FORMATS:
                raise _NotAKernel

    try:
        sink = HeadSink(fd, file.path, SIZE_LIMIT, SECONDS)
        source = Source(file, payload.offset, _stream_length(payload))
        decompressor(Format(payload.compression))(source, sink)
    except _NotAKernel:
        return
    except LoaderError as error:
        payload.problem = f"{error.message.removeprefix(file.path + ': ')}"
        if error.hint:
            payload.problem += f" ({error.hint})"
        return
    except OSError as error:
        payload.problem = f"not unpacked: {error.strerror}"
        return
    if payload.unpacked_size not in (None, sink.total):
        payload.problem = f"unpacks to {sink.total:#x} bytes, and says {payload.unpacked_size:#x}"
    else:
        payload.unpacked_size = sink.total


def _stream_length(payload: Payload) -> int:
    """The bytes of the compressed stream: without the size that the kernel's build appends."""
    if payload.unpacked_size is None or payload.compression == "gzip":
        return payload.length
    return payload.length - 4


def describe(report: Report) -> None:
    """Say of a compressed file what is in it, now that it is known.  (Of an initramfs, no more than that.)"""
    content, payload = report.content, report.payload
    if payload is None or not payload.content:
        return
    article = "an" if payload.compression[0] in "lx" else "a"
    report.description = f"{article} {payload.compression}-compressed file with {payload.content} in it"
    if content is None:
        return
    report.is_kernel = content.is_kernel
    report.machine = content.machine
    report.version = content.version
    report.version_source = f"{content.version_source}, unpacked" if content.version else ""
    if payload.unpacked_size is not None and not payload.problem:
        report.description += f" ({size_text(payload.unpacked_size)})"
