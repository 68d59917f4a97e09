"""What a newc cpio archive (an initramfs) holds: how many entries, and whether there is an init.

Linux Documentation/driver-api/early-userspace/buffer-format.rst.  Archives may follow each other, compressed
or not; the first run of uncompressed ones is read.
"""

from __future__ import annotations

from pyvmm.inspect.report import Report, printable, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile

_HEADER = 110
_MAGICS = (b"070701", b"070702")
_NAME_MAX = 4096
#: Entries that are counted; an initramfs has some thousands.
ENTRIES_MAX = 20_000
_INITS = ("init", "./init", "/init", "linuxrc")


def inspect(report: Report, file: ImageFile) -> None:
    """Fill ``report`` with what ``file``, a cpio archive, holds."""
    if not file.read(0, 6).startswith(_MAGICS):
        return
    offset = entries = 0
    names: list[str] = []
    while entries < ENTRIES_MAX:
        header = file.read(offset, _HEADER)
        if len(header) < _HEADER or not header.startswith(_MAGICS):
            report.warn(f"no cpio header at {offset:#x}, and the archive has not ended")
            break
        try:
            size, name_size = (int.from_bytes(bytes.fromhex(header[at : at + 8].decode())) for at in (54, 94))
        except ValueError:
            report.warn(f"the cpio header at {offset:#x} is damaged")
            break
        name = printable(file.read(offset + _HEADER, min(name_size, _NAME_MAX)).split(b"\0")[0])
        following = -(-(-(-(offset + _HEADER + name_size) // 4) * 4 + size) // 4) * 4
        if name == "TRAILER!!!":
            _after(report, file, offset + _HEADER + name_size)
            break
        entries += 1
        if name in _INITS:
            names.append(name)
        if following > file.size + 3:
            report.warn(f"ends at {file.size:#x}, inside {name}")
            break
        offset = following
    init = f", with {names[0]}" if names else ", without an init"
    count = f"{entries} entries" if entries < ENTRIES_MAX else f"{entries} entries or more"
    report.description = f"a newc cpio archive (initramfs): {count}{init}"


def _after(report: Report, file: ImageFile, end: int) -> None:
    """Say what follows the first archive: often microcode comes first, and the initramfs, compressed, then."""
    from loader.detect import identify

    start = end
    while start < min(file.size, end + (1 << 16)):  # zeroes pad the archive
        data = file.read(start, 4096)
        rest = data.lstrip(b"\0")
        if rest:
            start += len(data) - len(rest)
            what = identify(file.read(start, 4096)).description
            size = size_text(file.size - start)
            report.warn(f"the archive ends at {end:#x}, and {what} follows at {start:#x} ({size})")
            return
        start += len(data)
