"""A file that a run writes when it ends: found to be writable before, then written whole or not at all."""

from __future__ import annotations

import os
import stat

from pyvmm.errors import UsageError


def check(option: str, path: str) -> None:
    """UsageError now, not after the run, where the file at ``path``, which ``option`` ("--result") names, cannot be
    written."""
    target = os.path.realpath(path) if os.path.islink(path) else path
    folder = os.path.dirname(target) or "."
    if os.path.isdir(path):
        raise UsageError(f"{option} {path}: is a directory", "name a file")
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {path}: there is no directory {folder}", "make the directory first")
    written = [path] if _in_place(path) else [path, folder] if os.path.exists(path) else [folder]
    if not all(os.access(each, os.W_OK) for each in written):
        raise UsageError(f"{option} {path}: not writable", "choose a writable place")


def write(option: str, path: str, data: bytes, *, wait: bool = True) -> None:
    """Write ``data``: a file, or that which a link leads to, whole or not at all; a pipe or a device in place.

    ``wait``: for a reader, where ``path`` is a pipe that has none; without it that is an error.  UsageError.
    """
    try:
        if _in_place(path):
            _write(path, os.O_NOCTTY | (0 if wait else os.O_NONBLOCK), data)
            return
        target = os.path.realpath(path)
        temporary = f"{target}.{os.urandom(6).hex()}.tmp"
        try:
            _write(temporary, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, data)
            os.replace(temporary, target)
        except BaseException:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise UsageError(
            f"cannot write {option} {path}: {error.strerror}", "choose a writable place with enough space"
        ) from None


def write_all(fd: int, data: bytes) -> None:
    """All of ``data`` to a descriptor that blocks.  OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _in_place(path: str) -> bool:
    """Whether there is something at ``path`` that cannot be replaced: a pipe, a device, a socket."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _write(path: str, flags: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o666)
    try:
        os.set_blocking(fd, True)  # O_NONBLOCK is for the opening alone
        write_all(fd, data)
    finally:
        os.close(fd)
