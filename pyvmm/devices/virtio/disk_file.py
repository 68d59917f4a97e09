"""A file or block device of the host as a disk: opened, measured, locked against double use, holes made in it.

The locks are the image locks that QEMU's tools take as well (open file description locks, fcntl(2), on single bytes
of the file: byte 100 + n says "I do n", byte 200 + n "nobody else may do n"), so that pyvmm, QEMU, qemu-img and
qemu-storage-daemon keep out of each other's way.  They end with the descriptor, however the process ends, and two
descriptors of one process exclude each other too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from pyvmm.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    class Disk(Protocol):
        """What a block device works on.  Offsets and sizes are bytes, multiples of 512, within ``size``.

        Everything raises OSError.  ``granularity`` is the size of what can be discarded, and of the writes
        that need no reading first.
        """

        size: int
        read_only: bool
        granularity: int

        def read(self, views: Sequence[memoryview], offset: int, size: int) -> None:
            """Fill ``views``, ``size`` bytes together, from ``offset``."""

        def write(self, views: Sequence[memoryview], offset: int, size: int) -> None:
            """Write ``views``, ``size`` bytes together, to ``offset``."""

        def flush(self) -> None:
            """Return once all that was written would survive a loss of power."""

        def discard(self, offset: int, size: int) -> None:
            """Give the room back where that can be done; afterwards it reads as zeroes or as before."""

        def write_zeroes(self, offset: int, size: int, unmap: bool) -> None:
            """Make it read as zeroes; ``unmap``: the room may be given back."""

        def close(self) -> None:
            """Give the files back."""


SECTOR = 512

_BLKGETSIZE64 = 0x8008_1272  # _IOR(0x12, 114, size_t), <linux/fs.h>
_READ, _WRITE, _RESIZE = 0, 1, 3  # the n of the locks
_USES, _BARS = 100, 200
_OFD_GETLK, _OFD_SETLK = 36, 37  # <fcntl.h>; in Python's fcntl from 3.9 on, where the C library had them
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock on 64-bit hosts: type, whence, start, length, pid


class DiskFile:
    """An open file or block device: ``fd``, ``path``, ``length`` in bytes, ``read_only``, ``mtime`` in nanoseconds.

    ``size`` is the length in whole sectors, in bytes.
    """

    __slots__ = ("fd", "is_device", "length", "mtime", "path", "read_only", "size")

    def __init__(self, path: str, read_only: bool) -> None:
        """Open ``path``.  Raises HostError or UsageError, a line and a hint."""
        self.path = path
        self.read_only = read_only
        flags = os.O_RDONLY if read_only else os.O_RDWR
        try:
            # Not blocking: the open of a FIFO would wait for somebody at its other end.
            self.fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _cannot_open(path, read_only, error) from None
        try:
            status = os.fstat(self.fd)
            self.is_device = stat.S_ISBLK(status.st_mode)
            if self.is_device:
                self.length = int.from_bytes(fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8)), "little")
            elif stat.S_ISREG(status.st_mode):
                self.length = status.st_size
            else:
                raise UsageError(
                    f"disk {path} is neither a file nor a block device",
                    "give an image file, or a block device",
                )
            self.mtime = 0 if self.is_device else status.st_mtime_ns
            self.size = self.length // SECTOR * SECTOR
            os.set_blocking(self.fd, True)
        except OSError as error:
            self.close()
            raise HostError(f"cannot use the disk {path}: {error.strerror}") from None
        except UsageError:
            self.close()
            raise

    def check_size(self, say: Callable[[str], None]) -> None:
        """UsageError if there is not even one sector; a note if the length is no multiple of one."""
        if not self.size:
            raise UsageError(
                f"disk {self.path} has {self.length} bytes: a disk has at least {SECTOR}",
                f"make it as large as the disk is to be: truncate -s 10G {self.path}",
            )
        if self.length != self.size:
            say(
                f"disk {self.path}: the guest does not see the last {self.length - self.size} bytes, "
                f"which are less than a sector of {SECTOR}"
            )

    def lock(self, say: Callable[[str], None]) -> None:
        """Keep everyone else from writing, and, unless read-only, from using it at all.  HostError if in use.

        Where the file system has no locks, a note says so.
        """
        uses = (_READ,) if self.read_only else (_READ, _WRITE, _RESIZE)
        bars = (_WRITE, _RESIZE)
        try:
            # First tell, then look: of two that come at once both may fail, but never none.
            for byte in [_USES + use for use in uses] + [_BARS + use for use in bars]:
                fcntl.fcntl(self.fd, _OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
            for byte in [_BARS + use for use in uses] + [_USES + use for use in bars]:
                found = fcntl.fcntl(self.fd, _OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
                if _FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
                    raise self._in_use()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise self._in_use() from None
            say(f"disk {self.path} is not protected against double use: no locks there ({error.strerror})")

    def _in_use(self) -> HostError:
        return HostError(
            f"disk {self.path} is in use: another machine or tool, or this machine twice, "
            + ("writes to it" if self.read_only else "has it open"),
            "end the other one first, or give each a disk of its own: --disk "
            f"{self.path},overlay keeps changes apart while nobody writes to the file",
        )

    def close(self) -> None:
        """Close the descriptor, and with it the locks."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _cannot_open(path: str, read_only: bool, error: OSError) -> HostError | UsageError:
    if error.errno == errno.ENOENT:
        return UsageError(
            f"there is no disk {path}", f"check the name, or make an empty disk: truncate -s 10G {path}"
        )
    if error.errno == errno.EISDIR or os.path.isdir(path):
        return UsageError(f"disk {path} is a directory", f"share a directory with --share {path}:TAG")
    hint = "check who may use the file"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not read_only:
        if os.access(path, os.R_OK):
            hint = f"use it read-only, --disk {path},ro, or keep changes apart, --disk {path},overlay"
        return HostError(f"disk {path} may not be written: {error.strerror}", hint)
    return HostError(f"cannot open the disk {path}: {error.strerror}", hint)
