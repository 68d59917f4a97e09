"""Putting kernels into the cache: :mod:`pyvmm.kernel_cache` says what stands there and reads it.

A temporary file is also the lock for making its entry: whoever holds it with flock(2) makes the entry and renames it
to its place.  The lock ends with the process, so what a killed one left is taken over by the next.
"""

from __future__ import annotations

import os
import time
from fcntl import LOCK_EX, LOCK_NB, flock

from loader import decompress, payload
from loader.detect import Format
from loader.errors import WrongMachine
from loader.files import ImageFile
from loader.payload_errors import CompressionUnavailable, PayloadTruncated
from pyvmm import cache
from pyvmm.errors import HostError
from pyvmm.kernel_cache import (
    BUFFER,
    FOLDER,
    INDEX,
    KEY_DIGITS,
    NANO,
    TEMPORARY,
    Entry,
    directory,
    entries,
    names,
    open_entry,
    remove,
    stat_key,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.bzimage import BzImageHeader
    from loader.kernel_file import KernelFile
    from loader.payload import Payload

SIZE_LIMIT = 1 << 30  # bytes that all entries may have together
LINKS_LIMIT = 256
SECONDS = 60.0  # for unpacking
WAIT_SECONDS = 20.0  # for another process that is unpacking the same kernel
SETTLED_SECONDS = 2.5  # the coarsest clock of a file system ticks every 2 s (FAT)
#: What this host unpacks much faster than the guest boots: worth doing even where nothing can be kept.
QUICK = (Format.LZ4, Format.ZSTD, Format.LZO)


def fill(
    kernel: KernelFile, header: BzImageHeader, folder: str, link: str, status: os.stat_result
) -> KernelFile | None:
    """Find the entry by what the bzImage holds, or make it; and link it, to be found faster next time.

    ``status`` is what fstat(2) said of the bzImage, ``link`` the name for it.  None, LoaderError or OSError if
    there is no way to have the kernel.
    """
    found = payload.in_bzimage(kernel, header)
    try:
        decompress.decompressor(found.compression)
    except CompressionUnavailable:
        if not names(folder):
            raise  # the one thing left would be an entry that is there
    # A file changed in the last moments gets no link: it could change again within the same tick of the clock.
    settled = time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS
    with _copy(kernel, found) as copy:
        key = _key(copy)
        compressed = payload.Payload(found.compression, 0, copy.size, found.size, found.limit)
        file = _existing(folder, key) or _make(copy, compressed, key, _release(header.version))
    if file is not None and settled and stat_key(os.fstat(kernel.fd)) == stat_key(status):
        _link(link, os.path.basename(file.path))
    return file


def _copy(kernel: KernelFile, found: Payload) -> ImageFile:
    """The compressed kernel by itself: what is unpacked is what the key was made of, whatever happens to the file."""
    fd = os.memfd_create("payload", os.MFD_CLOEXEC)
    try:
        offset, end = found.offset, found.offset + found.length
        while offset < end:
            count = os.sendfile(fd, kernel.fd, offset, end - offset)
            if not count:
                raise PayloadTruncated(f"{kernel.path}: was cut while it was read")
            offset += count
        return ImageFile(fd, kernel.path)
    except BaseException:
        os.close(fd)
        raise


def _key(copy: ImageFile) -> str:
    """What the compressed kernel ``copy`` is called in the cache."""
    from hashlib import sha256

    digest = sha256()
    buffer = memoryview(bytearray(BUFFER))
    offset = 0
    while count := os.preadv(copy.fd, [buffer], offset):
        digest.update(buffer[:count])
        offset += count
    return digest.hexdigest()[:KEY_DIGITS]


def _release(version: str) -> str:
    """The first word of a kernel's version string, as a part of a file name."""
    word = version.split(" ")[0][:64]
    return "".join(
        character if character.isascii() and (character.isalnum() or character in "-._+~") else "_"
        for character in word
    )


def _existing(folder: str, key: str) -> KernelFile | None:
    for name in names(folder):
        if name.startswith(f"{key}-"):
            file = open_entry(folder, name)
            if file is not None:
                return file
    return None


def _make(copy: ImageFile, found: Payload, key: str, release: str) -> KernelFile | None:
    """Unpack the kernel into the cache; where nothing can be kept, into memory, if that is quick."""
    try:
        cache.make(FOLDER, INDEX)
        folder = directory()
        room = os.statvfs(folder)
        if (found.size or 0) * 2 < room.f_bavail * room.f_frsize:
            return _make_entry(copy, found, folder, key, release)
    except (HostError, OSError):
        pass
    if found.compression in QUICK:
        return payload.open_unpacked(copy, found, machine="x86_64", seconds=SECONDS)
    return None


def _make_entry(copy: ImageFile, found: Payload, folder: str, key: str, release: str) -> KernelFile | None:
    temporary = os.path.join(folder, TEMPORARY + key)
    fd = _claim(temporary)
    try:
        file = _existing(folder, key)  # made by the process that held the lock before
        if file is not None:
            remove(temporary)
            return file
        os.ftruncate(fd, 0)
        made = payload.unpack(copy, found, fd, limit=SIZE_LIMIT, seconds=SECONDS)
        identity = payload.identify_kernel(fd, copy.path, "x86_64")
        if identity.format is not Format.ELF:
            raise WrongMachine(f"{copy.path}: holds {identity.description}")
        # No time that a later change could have; and even, since there are file systems that tick in 2 s.
        stamp = int(time.time()) - 10 & ~1
        os.utime(fd, ns=(time.time_ns(), stamp * NANO))
        os.fsync(fd)
        entry = Entry(key, made.total, made.crc32, stamp, release)
        os.rename(temporary, os.path.join(folder, entry.name))
    except BaseException:
        remove(temporary)
        raise
    finally:
        os.close(fd)
    trim(entry.name)
    return open_entry(folder, entry.name)


def _claim(temporary: str) -> int:
    """Open a temporary file and hold its lock.  TimeoutError, an OSError, if another process does so for long."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if _lock(fd) and _is_at(fd, temporary):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def _lock(fd: int) -> bool:
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: str) -> bool:
    """Whether ``path`` still names the open file: who held the lock before may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _link(link: str, name: str) -> None:
    """Make the symbolic link ``link`` to ``name``, in place of what was there."""
    if Entry.parse(name) is None:
        return  # unpacked into memory
    temporary = os.path.join(os.path.dirname(link), f"{TEMPORARY}{os.getpid()}")
    remove(temporary)
    try:
        os.symlink(name, temporary)
        os.rename(temporary, link)
    except OSError:
        remove(temporary)


def trim(current: str, limit: int = SIZE_LIMIT) -> None:
    """Remove the entries used longest ago until all have at most ``limit`` bytes, but not ``current``; and what leads
    nowhere or was left behind."""
    folder = directory()
    total = 0
    kept = {current}
    for entry in sorted(entries(), key=lambda entry: entry.name != current):
        total += entry.size
        if entry.name == current or total <= limit:
            kept.add(entry.name)
        else:
            total -= entry.size
            remove(os.path.join(folder, entry.name))
    _remove_abandoned(folder)
    _trim_links(os.path.join(folder, INDEX), kept)


def _remove_abandoned(folder: str) -> None:
    """Remove the temporary files of processes that are gone."""
    for name in names(folder):
        if not name.startswith(TEMPORARY):
            continue
        path = os.path.join(folder, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _lock(fd) and _is_at(fd, path):
                remove(path)
        finally:
            os.close(fd)


def _trim_links(index: str, kept: set[str]) -> None:
    alive: list[tuple[int, str]] = []
    for name in names(index):
        path = os.path.join(index, name)
        try:
            if os.readlink(path) in kept:
                alive.append((os.lstat(path).st_mtime_ns, path))
                continue
        except OSError:
            continue
        remove(path)
    alive.sort()
    for _, path in alive[: max(len(alive) - LINKS_LIMIT, 0)]:
        remove(path)


def clear() -> tuple[int, int]:
    """Remove all entries and links; returns how many entries there were, and their bytes.

    A process that has one open, or is making one, is not disturbed.
    """
    folder = directory()
    removed = [entry for entry in entries() if remove(os.path.join(folder, entry.name))]
    _remove_abandoned(folder)
    _trim_links(os.path.join(folder, INDEX), set())
    return len(removed), sum(entry.size for entry in removed)
