"""Kernels taken out of bzImages, kept in the cache directory, so that a guest need not unpack itself at each boot.

``vmlinux/`` in the cache holds an ELF file for each payload, named by the SHA-256 of the compressed bytes, and in
``vmlinux/index/`` symbolic links from what stat(2) says of a bzImage to the name: a boot from the cache costs a few
system calls.  :mod:`pyvmm.kernel_cache_fill` makes both.  Several processes may use them at once.

- An entry is renamed to its place whole and on disk.  Its name holds its size and a time stamp, which the file has as
  well: what has been cut or written to since is told by that, judged by the CRC-32 in the name, and thrown away.
- A link says that *this* file had that content, by device, inode, size, and the times of its last change.

Nothing here ever stops a boot: without an entry the guest unpacks itself, as it would on bare metal.
"""

from __future__ import annotations

import os
import time
from stat import S_ISREG

from loader.errors import LoaderError
from pyvmm import cache
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.bzimage import BzImageHeader
    from loader.kernel_file import KernelFile

FOLDER = "vmlinux"
INDEX = "index"
TEMPORARY = "tmp-"
BUFFER = 1 << 20
NANO = 10**9
_USED_SECONDS = 60  # how exactly the time of the last use is kept
KEY_DIGITS = 40


class Entry:
    """A kernel in the cache, as its file name says: ``key``, ``size``, ``crc32``, ``stamp`` (seconds since 1970, its
    mtime), ``release`` of the kernel.  ``used``, the time of the last use, is known to those of :func:`entries`."""

    __slots__ = ("crc32", "key", "name", "release", "size", "stamp", "used")

    def __init__(self, key: str, size: int, crc32: int, stamp: int, release: str) -> None:
        self.key = key
        self.size = size
        self.crc32 = crc32
        self.stamp = stamp
        self.release = release
        self.name = f"{key}-{size:x}-{crc32:08x}-{stamp:x}-{release}"
        self.used = 0.0

    @staticmethod
    def parse(name: str) -> Entry | None:
        """The entry whose file is called ``name``; None for any other file."""
        parts = name.split("-", 4)
        if len(parts) < 5 or len(parts[0]) != KEY_DIGITS:
            return None
        try:
            entry = Entry(parts[0], int(parts[1], 16), int(parts[2], 16), int(parts[3], 16), parts[4])
        except ValueError:
            return None
        return entry if entry.name == name else None


def directory() -> str:
    """The absolute path of the directory with the entries; it need not exist."""
    return cache.path(FOLDER)


def vmlinux(kernel: KernelFile, header: BzImageHeader) -> KernelFile | None:
    """The kernel inside the bzImage ``kernel``, ready to be loaded; the caller closes it.

    From the cache, or unpacked and put there.  None if there is no way to have it: a library is missing, the
    payload is damaged or of an unknown kind, the disk is full.
    """
    try:
        folder = directory()
        status = os.fstat(kernel.fd)
        link = os.path.join(folder, INDEX, stat_key(status))
        try:
            found = open_entry(folder, os.readlink(link))
        except OSError:
            found = None
        if found is None:
            from pyvmm import kernel_cache_fill

            found = kernel_cache_fill.fill(kernel, header, folder, link, status)
        return found
    except (LoaderError, PyvmmError, OSError):
        return None


def stat_key(status: os.stat_result) -> str:
    """What tells a file, and any change of its content, from every other."""
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "-".join(f"{part:x}" for part in parts)


def open_entry(folder: str, name: str) -> KernelFile | None:
    """Open an entry, once it is certain that it has the content it was made with; else throw it away: None."""
    from loader.detect import Format, Identity
    from loader.kernel_file import KernelFile

    entry = Entry.parse(name)
    if entry is None:
        return None
    path = os.path.join(folder, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not _is_whole(fd, entry):
            remove(path)
            os.close(fd)
            return None
        return KernelFile(fd, path, Identity(Format.ELF, "an ELF file for x86_64", "x86_64"))
    except BaseException:
        os.close(fd)
        raise


def _is_whole(fd: int, entry: Entry) -> bool:
    """Whether an entry's file is what it was; if so, note that it is used now."""
    status = os.fstat(fd)
    if not S_ISREG(status.st_mode) or status.st_size != entry.size:
        return False
    now = time.time_ns()
    if status.st_mtime_ns != entry.stamp * NANO:
        # Written to, or copied here by something that keeps no times: the content decides.
        if _crc32(fd) != entry.crc32:
            return False
    elif abs(now - status.st_atime_ns) < _USED_SECONDS * NANO:
        return True
    try:
        os.utime(fd, ns=(now, entry.stamp * NANO))
    except OSError:
        pass  # another user's cache: it can be read all the same
    return True


def _crc32(fd: int) -> int:
    from zlib import crc32

    value = offset = 0
    buffer = memoryview(bytearray(BUFFER))
    while count := os.preadv(fd, [buffer], offset):
        value = crc32(buffer[:count], value)
        offset += count
    return value


def remove(path: str) -> bool:
    """Remove a file; False if that was not possible, because another process did, for instance."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def names(folder: str) -> list[str]:
    """The names in a directory; none if there is no such directory."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def entries() -> list[Entry]:
    """The entries of the cache, those used last first."""
    folder = directory()
    found = []
    for name in names(folder):
        entry = Entry.parse(name)
        if entry is None:
            continue
        try:
            entry.used = os.stat(os.path.join(folder, name)).st_atime
        except OSError:
            continue  # another process has just removed it
        found.append(entry)
    found.sort(key=lambda entry: entry.used, reverse=True)
    return found
