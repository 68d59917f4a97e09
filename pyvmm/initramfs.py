"""Initial RAM file systems: a reproducible writer of the "newc" cpio format.

The format is the kernel's, Documentation/driver-api/early-userspace/buffer-format.rst: for each entry a
110-byte header of 8-digit hexadecimal numbers, the name, then the data, each padded to 4 bytes; a last
entry is named ``TRAILER!!!``.  The kernel unpacks archives that follow one another in one initrd, each into
what those before it left, so archives written here may be concatenated.

The same entries always give the same bytes: they are sorted, owned by root, dated 1970, and numbered from 1.
"""

from __future__ import annotations

import os
import stat

from pyvmm.errors import HostError, ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

DATA_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
"""Where scripts/build-guests puts what pyvmm carries: the static /init of each architecture."""

_TRAILER = "TRAILER!!!"
_CHUNK = 1 << 20


class Entry:
    """One file system object: its path without a leading slash, mode, contents and device number.

    ``data`` is the contents of a file or the target of a link; alternatively ``source`` is the path of a
    host file whose contents are copied when the archive is written.
    """

    __slots__ = ("data", "mode", "path", "rdev", "source")

    def __init__(
        self, path: str, mode: int, data: bytes = b"", source: str = "", rdev: tuple[int, int] = (0, 0)
    ) -> None:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts or ".." in parts or "\0" in path or parts == [_TRAILER]:
            raise ImageError(f"{path!r} cannot name an initramfs entry")
        self.path = "/".join(parts)
        self.mode = mode
        self.data = data
        self.source = source
        self.rdev = rdev


def directory(path: str, mode: int = 0o755) -> Entry:
    """A directory.  Those above an entry need not be named: the archive makes them."""
    return Entry(path, stat.S_IFDIR | mode)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file holding ``data``."""
    return Entry(path, stat.S_IFREG | mode, data)


def host_file(path: str, source: str, mode: int | None = None) -> Entry:
    """A regular file holding what the host file ``source`` holds when the archive is written.

    Its permissions are those of ``source`` unless ``mode`` is given.
    """
    if mode is None:
        try:
            mode = os.stat(source).st_mode & 0o777
        except OSError as error:
            raise ImageError(f"cannot put {source} into an initramfs: {error.strerror}") from None
    return Entry(path, stat.S_IFREG | mode, source=source)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link to ``target``."""
    return Entry(path, stat.S_IFLNK | 0o777, os.fsencode(target))


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(path, stat.S_IFCHR | mode, rdev=(major, minor))


def block_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A block device node."""
    return Entry(path, stat.S_IFBLK | mode, rdev=(major, minor))


CONSOLE = character_device("dev/console", 5, 1)
"""/dev/console, which the kernel opens for /init as its standard input, output and error."""


def write_archive(fd: int, entries: Iterable[Entry]) -> int:
    """Write the archive of ``entries`` to the file descriptor ``fd``; returns the bytes written.

    Two entries of the same path, a host file that cannot be read, or one whose size changes while it is
    copied: :exc:`ImageError`.
    """
    written = 0
    for number, entry in enumerate(_with_parents(entries), 1):
        if entry.source:
            written += _write_host_file(fd, entry, number)
        else:
            written += _write_all(fd, _record(entry, number))
    return written + _write_all(fd, _header(_TRAILER, 0, 0, 0, (0, 0)))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of ``entries`` as bytes; errors as :func:`write_archive`."""
    records = []
    for number, entry in enumerate(_with_parents(entries), 1):
        if entry.source:
            entry = Entry(entry.path, entry.mode, _read_host_file(entry))
        records.append(_record(entry, number))
    records.append(_header(_TRAILER, 0, 0, 0, (0, 0)))
    return b"".join(records)


def verify_initramfs(architecture: str) -> bytes:
    """The archive for ``boot --verify``: pyvmm's own static /init, which says it was reached and powers off.

    ``architecture`` is the kernel's machine name, such as ``x86_64``.  :exc:`HostError` if that /init has
    not been built.
    """
    path = os.path.join(DATA_FOLDER, f"init-{architecture}")
    try:
        with open(path, "rb", buffering=0) as opened:
            init = opened.read()
    except FileNotFoundError:
        raise HostError(
            f"pyvmm's own init for {architecture} has not been built: {path} is missing",
            "in the checkout, run scripts/build-guests (it needs gcc); install a copy of pyvmm again after that",
        ) from None
    return archive((CONSOLE, file("init", init, 0o755)))


def _with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` and the directories above them, every directory before its contents."""
    by_path: dict[str, Entry] = {}
    for entry in entries:
        if entry.path in by_path:
            raise ImageError(f"two initramfs entries are named {entry.path!r}")
        by_path[entry.path] = entry
    for path in list(by_path):
        above = os.path.dirname(path)
        while above:
            parent = by_path.setdefault(above, directory(above))
            if not stat.S_ISDIR(parent.mode):  # not even a link to one: its target may not be there yet
                raise ImageError(f"initramfs entry {path!r} lies in {above!r}, which is no directory")
            above = os.path.dirname(above)
    return [by_path[path] for path in sorted(by_path, key=lambda path: path.split("/"))]


def _header(path: str, number: int, mode: int, size: int, rdev: tuple[int, int]) -> bytes:
    """An entry up to its data: header, name, and zeroes to the next multiple of 4."""
    if size >> 32:
        raise ImageError(
            f"{path} has {size} bytes: the cpio format of an initramfs holds less than 4 GiB each"
        )
    encoded = os.fsencode(path) + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device, device of a node, size of the name, checksum
    fields = (number, mode, 0, 0, links, 0, size, 0, 0, *rdev, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return header + bytes(-len(header) % 4)


def _record(entry: Entry, number: int) -> bytes:
    size = len(entry.data)
    return _header(entry.path, number, entry.mode, size, entry.rdev) + entry.data + bytes(-size % 4)


def _read_host_file(entry: Entry) -> bytes:
    try:
        with open(entry.source, "rb", buffering=0) as opened:
            return opened.read()
    except OSError as error:
        raise _unreadable(entry, error) from None


def _write_host_file(fd: int, entry: Entry, number: int) -> int:
    """Copy in pieces: the file may be larger than is comfortable to hold."""
    try:
        opened = open(entry.source, "rb", buffering=0)  # noqa: SIM115  closed below
    except OSError as error:
        raise _unreadable(entry, error) from None
    with opened:
        size = left = os.fstat(opened.fileno()).st_size
        written = _write_all(fd, _header(entry.path, number, entry.mode, size, (0, 0)))
        while left:
            try:
                piece = opened.read(min(left, _CHUNK))
            except OSError as error:
                raise _unreadable(entry, error) from None
            if not piece:
                raise ImageError(f"{entry.source} shrank while it was copied into an initramfs")
            left -= len(piece)
            written += _write_all(fd, piece)
    return written + _write_all(fd, bytes(-size % 4))


def _unreadable(entry: Entry, error: OSError) -> ImageError:
    return ImageError(f"cannot put {entry.source} into an initramfs: {error.strerror}")


def _write_all(fd: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)
