"""Compiled code for the project's modules in the lab, where compiling takes twenty times as long as here.

It is kept in the cache, in one file for each checkout and Python version, which holds for each source file
its size, its time of modification and its code.  In the lab the code is marked as never out of date
(PEP 552, an unchecked hash): the source beside it is the one it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import marshal
import os
import sys

from pyvmm import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_HEADER = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)


class Bytecode:
    """The compiled code of the source files below ``folders``, compiling what is new."""

    def __init__(self, folders: Iterable[str]) -> None:
        key = "\0".join([sys.implementation.cache_tag or "", *folders])
        name = f"bytecode-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self._path = cache.path("lab", name)
        self._known = _load(self._path)
        self._used: dict[str, tuple[int, int, bytes]] = {}

    def of(self, path: str) -> bytes | None:
        """The contents of a .pyc file for the source file ``path``; None if it cannot be compiled."""
        status = os.stat(path)
        size, time, code = self._known.get(path, (-1, -1, b""))
        if (size, time) != (status.st_size, status.st_mtime_ns):
            with open(path, "rb") as file:
                source = file.read()
            try:
                code = marshal.dumps(compile(source, path, "exec", dont_inherit=True))
            except (SyntaxError, ValueError):
                return None
        self._used[path] = (status.st_size, status.st_mtime_ns, code)
        return _HEADER + code

    def keep(self) -> None:
        """Write what was used, if anything in it is new; a cache that cannot be written is no error."""
        if self._used == self._known:
            return
        temporary = f"{self._path}.{os.getpid()}"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(marshal.dumps(self._used))
            os.replace(temporary, self._path)


def _load(path: str) -> dict[str, tuple[int, int, bytes]]:
    try:
        with open(path, "rb") as file:
            known = marshal.loads(file.read())
    except (OSError, ValueError, EOFError, TypeError):
        return {}
    return known if isinstance(known, dict) else {}
