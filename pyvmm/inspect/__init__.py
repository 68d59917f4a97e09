"""What a file is and says of itself, and where it would stand in a machine: ``pyvmm inspect``.

:func:`inspect_path` gives a :class:`~pyvmm.inspect.report.Report` of plain data; :mod:`~pyvmm.inspect.table` and
:mod:`~pyvmm.inspect.memory_map` draw it.  One module reads each format, leniently; the strict readers, which
decide what boots, are those of :mod:`loader`.  Needs no KVM, and runs on any host.
"""

from __future__ import annotations

from loader.detect import COMPRESSION_MAGICS, HEAD_SIZE, Format, identify
from loader.files import ImageFile, open_file
from pyvmm.inspect.report import Payload, Report

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os

    from loader.detect import Identity

__all__ = ["Report", "inspect_open", "inspect_path"]

_COMPRESSED = frozenset(format for _, format in COMPRESSION_MAGICS)


def inspect_path(path: str | bytes | os.PathLike[str], memory: int) -> Report:
    """Inspect the file at ``path``, for a machine of ``memory`` bytes.

    Raises the FileErrors of :func:`loader.files.open_file`, and UsageError for memory a machine cannot have.
    """
    with open_file(path) as file:
        return inspect_open(file, memory)


def inspect_open(file: ImageFile, memory: int, *, unpack: bool = True) -> Report:
    """The same for an open file; ``unpack`` says whether to look into a compressed payload."""
    identity = identify(file.read(0, HEAD_SIZE))
    report = _report(file, identity)
    if identity.format in (Format.BZIMAGE, Format.ZIMAGE):
        from pyvmm.inspect import bzimage

        bzimage.inspect(report, file, memory)
    elif identity.format is Format.ELF:
        from pyvmm.inspect import elf

        elf.inspect(report, file, memory)
    elif identity.format in (Format.ARM64_IMAGE, Format.RISCV64_IMAGE):
        from pyvmm.inspect import image

        image.inspect(report, file, memory)
    elif identity.format is Format.EFI_ZBOOT:
        from pyvmm.inspect import image

        image.inspect_zboot(report, file)
    elif identity.format is Format.CPIO:
        from pyvmm.inspect import cpio

        cpio.inspect(report, file)
    elif identity.format in _COMPRESSED:
        report.payload = Payload(0, file.size, identity.format.value)
    if unpack and report.payload is not None:
        _look_inside(report, file, memory, compressed_file=identity.format in _COMPRESSED)
    if report.is_kernel:
        report.hint = ""
    return report


def _report(file: ImageFile, identity: Identity) -> Report:
    report = Report(file.path, file.size)
    report.format = identity.format.value
    report.machine = identity.machine
    # It may quote the file, as the name of a compression that nobody knows.
    report.description = "".join(c if c.isprintable() else "?" for c in identity.description)
    report.hint = identity.hint
    return report


def _look_inside(report: Report, file: ImageFile, memory: int, *, compressed_file: bool) -> None:
    """Unpack the payload, and take from what is in it what the outer file does not say."""
    from pyvmm.inspect import content

    report.content = content.inspect_payload(
        report, file, lambda inner: inspect_open(inner, memory, unpack=False)
    )
    if compressed_file:
        content.describe(report)
    inner = report.content
    if inner is None:
        return
    if not report.version:
        report.version = inner.version
        report.version_source = f"{inner.version_source}, unpacked" if inner.version else ""
    report.kaslr = report.kaslr or inner.kaslr
    if report.relocatable is None:
        report.relocatable = inner.relocatable
