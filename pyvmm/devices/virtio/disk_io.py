"""Whole transfers between views of guest RAM and a file, without a copy; holes; ranges of zeroes.

preadv(2), pwritev(2) and fallocate(2).  All of it lets other threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

IOV_MAX = 1024  # <limits.h>; the kernel's UIO_MAXIOV

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # <linux/falloc.h>
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL)
_ZEROES = 256 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def read_all(fd: int, views: Sequence[memoryview], offset: int, size: int) -> None:
    """Fill ``views``, ``size`` bytes together, from ``offset`` of ``fd``.  EIO where the file ends before."""
    if len(views) <= IOV_MAX:
        done = os.preadv(fd, views, offset)
        if done == size:
            return
    else:
        done = 0
    while done < size:
        count = os.preadv(fd, part(views, done, size - done)[:IOV_MAX], offset + done)
        if not count:
            raise OSError(errno.EIO, "the file ends before its end")
        done += count


def write_all(fd: int, views: Sequence[memoryview], offset: int, size: int) -> None:
    """Write ``views``, ``size`` bytes together, to ``offset`` of ``fd``."""
    if len(views) <= IOV_MAX:
        done = os.pwritev(fd, views, offset)
        if done == size:
            return
    else:
        done = 0
    while done < size:
        count = os.pwritev(fd, part(views, done, size - done)[:IOV_MAX], offset + done)
        if not count:
            raise OSError(errno.EIO, "the host writes nothing")
        done += count


def part(views: Sequence[memoryview], start: int, size: int) -> list[memoryview]:
    """The ``size`` bytes from ``start`` on of all ``views`` together, as views."""
    found = []
    for view in views:
        length = len(view)
        if start >= length:
            start -= length
            continue
        piece = view[start : start + size] if start or size < length else view
        found.append(piece)
        size -= len(piece)
        start = 0
        if not size:
            break
    return found


def punch_hole(fd: int, offset: int, size: int) -> bool:
    """Give the room of ``size`` bytes at ``offset`` back; they read as zeroes.  False, and nothing has changed,
    where that cannot be done."""
    return _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, size)


def write_zeroes(fd: int, offset: int, size: int) -> None:
    """Make ``size`` bytes at ``offset`` zeroes, their room being kept."""
    if _fallocate(fd, _ZERO_RANGE | _KEEP_SIZE, offset, size):
        return
    zeroes = memoryview(bytes(min(size, _ZEROES)))
    while size:
        count = os.pwrite(fd, zeroes[: min(size, _ZEROES)], offset)
        if not count:
            raise OSError(errno.EIO, "the host writes nothing")
        offset += count
        size -= count


def _fallocate(fd: int, mode: int, offset: int, size: int) -> bool:
    while _libc.fallocate(fd, mode, offset, size):
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
