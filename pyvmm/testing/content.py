"""Files by their content: what a case needs on another host, under its SHA-256, in the cache there.

A content is written whole or not at all, and verified; what was used longest ago goes when there is too much.
"""

from __future__ import annotations

import contextlib
import hashlib
import os

from pyvmm import cache
from pyvmm.errors import HostError

#: Bytes that the store may hold.
MOST_BYTES = 8 << 30
FOLDER = "content"


def digest_of(data: bytes) -> str:
    """What a content is known by: its SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def put(digest: str, data: bytes, *, most: int = MOST_BYTES) -> str:
    """Have ``data`` in the store; returns its path, a file that only is to be read.  Written only if it is not there.

    :raises HostError: ``data`` is not what ``digest`` says, or it cannot be written
    """
    if len(digest) != 64 or any(character not in "0123456789abcdef" for character in digest):
        raise HostError(f"{digest!r} is no digest", "this is a bug in pyvmm: please report it")
    with cache.lock(FOLDER) as folder:
        path = os.path.join(folder, digest)
        if _is_whole(path, digest, len(data)):
            os.utime(path)
            return path
        if digest_of(data) != digest:
            raise HostError("a file was damaged on its way to this worker", "run it again")
        _make_room(folder, len(data), most)
        with cache.workspace(folder) as work:
            made = os.path.join(work, digest)
            try:
                with open(made, "wb") as file:
                    file.write(data)
                os.chmod(made, 0o400)
                os.replace(made, path)
            except OSError as error:
                raise HostError(
                    f"cannot write {path}: {error.strerror}", "free some space on the worker"
                ) from None
    return path


def _is_whole(path: str, digest: str, size: int) -> bool:
    try:
        if os.stat(path).st_size != size:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


def _make_room(folder: str, size: int, most: int) -> None:
    """Remove what was used longest ago, until ``size`` more bytes fit.  What is open stays readable: its name goes."""
    found = []
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if len(name) == 64:
                found.append((status.st_mtime, status.st_size, path))
    total = sum(each for _, each, _ in found) + size
    for _, each, path in sorted(found):
        if total <= most:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
            total -= each
