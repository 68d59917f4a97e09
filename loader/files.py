"""Input files: opened once, checked to be something the loader can read at offsets, read without copies.

Every read is bounded by the size the file had when it was opened; the kernel may return less than asked
for (Linux preadv(2)), so reads loop.  Whole pages are not even read where guest memory can map them.
"""

from __future__ import annotations

import os
import stat

from loader import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from loader.memory import Memory

#: Below this, copying takes no longer than a mapping and the page faults it brings.
MAP_MINIMUM = 256 << 10

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class ImageFile:
    """An open input file: ``path`` (for messages), ``fd``, ``size`` in bytes.  A context manager.

    ``may_map`` says that its pages may stand in guest memory themselves (see :meth:`load_into`): true at
    first; set it to False for a file that may be written or cut while the guest runs.

    Made by :func:`open_file`, or from a descriptor (a memfd, for instance), which it then owns.
    """

    __slots__ = ("fd", "may_map", "path", "size")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.size = os.fstat(fd).st_size
        self.may_map = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, for ``select`` and ``mmap``."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor; once closed, closing again does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, or as many as the file has there.  For headers, not for images.

        FileUnreadable if the system refuses.
        """
        size = min(size, self.size - offset)
        data = b""
        try:
            while len(data) < size:
                more = os.pread(self.fd, size - len(data), offset + len(data))
                if not more:
                    break
                data = data + more if data else more
        except OSError as error:
            raise self._unreadable(offset + len(data), error) from None
        return data

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill all of ``view`` from ``offset``, straight from the page cache.

        FileUnreadable if the system refuses, FileChanged if the file ends before.
        """
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self.fd, [view[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            raise self._unreadable(offset + done, error) from None
        if done < len(view):
            raise self._changed(offset + done)

    def load_into(self, memory: Memory, address: int, offset: int, size: int) -> int:
        """Put ``size`` bytes from ``offset`` at ``address``; returns how many were mapped and not copied.

        Whole pages are mapped privately where ``may_map``, the memory offers ``map_file``, and file offset
        and address agree within a page; the rest is read straight into memory.  Nothing beyond the bytes
        asked for gets there.  FileUnreadable if the system refuses, FileChanged if the file ends before.
        """
        first, last = self._whole_pages(memory, address, offset, size)
        if first < last and not memory.map_file(first, last - first, self.fd, offset + first - address):  # type: ignore[attr-defined]
            first = last = address
        for start, end in ((address, first), (last, address + size)):
            if start < end:
                self.read_into(memory.slice(start, end - start), offset + start - address)
        return last - first

    def _whole_pages(self, memory: Memory, address: int, offset: int, size: int) -> tuple[int, int]:
        """The addresses from where and up to where pages can be mapped; equal if none can or should be."""
        page = os.sysconf("SC_PAGESIZE")
        first, last = -(-address // page) * page, (address + size) // page * page
        if last - first < MAP_MINIMUM or (address - offset) % page or not self.may_map:
            return address, address
        if not hasattr(memory, "map_file"):
            return address, address
        now = os.fstat(self.fd).st_size
        if now < offset + size:  # a page behind the end would be a SIGBUS
            raise self._changed(now)
        return first, last

    def _changed(self, end: int) -> errors.FileChanged:
        return errors.FileChanged(
            f"{self.path}: ends at {end:#x}, and had {self.size:#x} bytes when it was opened",
            "do not write to the file while it is being loaded",
        )

    def _unreadable(self, offset: int, error: OSError) -> errors.FileUnreadable:
        return errors.FileUnreadable(
            f"{self.path}: reading at {offset:#x}: {error.strerror}", "is the disk in order?"
        )


def printable(path: str | bytes | os.PathLike[str]) -> str:
    """``path`` as it may stand in a one-line message."""
    text = os.fsdecode(path)
    return text if text.isprintable() and text else ascii(text)


def open_regular(path: str | bytes | os.PathLike[str]) -> int:
    """A descriptor for reading ``path``, which must be a regular file, of any size.

    Never blocks (a FIFO without a writer is refused as what it is).  Raises FileMissing, FilePermission,
    FileIsDirectory, FileNotRegular or FileUnreadable.
    """
    name = printable(path)
    try:
        mode = os.stat(path).st_mode  # first: opening some devices does something
        if stat.S_ISREG(mode):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise errors.FileMissing(f"{name}: no such file", "check the path") from None
    except PermissionError:
        raise errors.FilePermission(
            f"{name}: no permission to read it",
            "make a readable copy, or run as a user who may read it",
        ) from None
    except ValueError:
        raise errors.FileMissing(f"{name}: no file can have this name", "check the path") from None
    except OSError as error:
        raise errors.FileUnreadable(f"{name}: {error.strerror}", "check the path") from None
    if stat.S_ISDIR(mode):
        raise errors.FileIsDirectory(f"{name}: a directory, not a file", "give the file inside it")
    raise errors.FileNotRegular(
        f"{name}: {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, and the loader reads at offsets",
        "copy its content to a regular file first",
    )


def open_file(path: str | bytes | os.PathLike[str]) -> ImageFile:
    """Open an input file of any content: an initrd, for instance.

    Raises what :func:`open_regular` raises, and FileEmpty.
    """
    file = ImageFile(open_regular(path), printable(path))
    if not file.size:
        file.close()
        raise errors.FileEmpty(f"{file.path}: the file is empty", "was it made or copied completely?")
    return file
