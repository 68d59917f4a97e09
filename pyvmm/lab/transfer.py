"""Files on the wire: a list of entries; then, by the mailbox, the contents of all its files, end to end.

An entry is a JSON list ``[type, path, mode, size or target]``: type ``d`` a directory, ``f`` a regular file
(``size`` bytes of contents), ``l`` a symbolic link (``target``).  Paths are absolute.
"""

from __future__ import annotations

import errno
import os
import stat

from pyvmm.lab.protocol import MAILBOX_SIZE, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIRECTORY, FILE, LINK = "d", "f", "l"
READ_SIZE = 1024 * 1024


class Outgoing:
    """A transfer to be sent: entries and where the contents of each file come from."""

    __slots__ = ("_sources", "entries", "size")

    def __init__(self) -> None:
        self.entries: list[list[object]] = []
        self._sources: list[tuple[bytes | str, int]] = []
        self.size = 0  # bytes of contents

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """A directory, made with its parents where missing."""
        self.entries.append([DIRECTORY, path, mode, 0])

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self.entries.append([LINK, path, 0o777, target])

    def add_bytes(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file with these contents."""
        self._add(path, data, len(data), mode)

    def add_file(self, path: str, source: str | None = None, mode: int | None = None) -> None:
        """A regular file with the contents (and, unless given, permissions) that ``source`` has here.

        :raises OSError: it cannot be examined
        """
        source = path if source is None else source
        status = os.stat(source)
        self._add(path, source, status.st_size, stat.S_IMODE(status.st_mode) if mode is None else mode)

    def _add(self, path: str, source: bytes | str, size: int, mode: int) -> None:
        self.entries.append([FILE, path, mode, size])
        self._sources.append((source, size))
        self.size += size

    def add_tree(self, path: str, wanted: Callable[[str], bool] | None = None) -> None:
        """A file, a link or a directory with all below it, at the same path there.

        ``wanted`` is asked for each path below; whatever is no file, directory or link is left out.
        :raises OSError: something cannot be read
        """
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            self.add_link(path, os.readlink(path))
        elif stat.S_ISREG(mode):
            self.add_file(path)
        elif stat.S_ISDIR(mode):
            self.add_directory(path, stat.S_IMODE(mode))
            for name in sorted(os.listdir(path)):
                below = os.path.join(path, name)
                if wanted is None or wanted(below):
                    self.add_tree(below, wanted)

    def contents(self) -> Iterator[bytes]:
        """The contents of all files, end to end; exactly :attr:`size` bytes, small files gathered.

        A file that shrank since it was added is filled up with zero bytes; what it grew by is left out.
        """
        gathered: list[bytes] = []
        length = 0
        for source, size in self._sources:
            for piece in [source] if isinstance(source, bytes) else _read(source, size):
                gathered.append(piece)
                length += len(piece)
                if length >= READ_SIZE:
                    yield b"".join(gathered)
                    gathered, length = [], 0
        if gathered:
            yield b"".join(gathered)


def send_contents(transfer: Outgoing, mailbox: int, announce: Callable[[int], None]) -> None:
    """Write a transfer's contents to the descriptor ``mailbox``, as often as it is full or at the end.

    ``announce`` is told the number of bytes in it, and returns when they have been taken.
    """
    position = 0
    for piece in transfer.contents():
        view = memoryview(piece)
        while view:
            written = os.pwrite(mailbox, view[: MAILBOX_SIZE - position], position)
            position += written
            view = view[written:]
            if position == MAILBOX_SIZE:
                announce(position)
                position = 0
    if position:
        announce(position)


def _read(path: str, size: int) -> Iterator[bytes]:
    left = size
    try:
        with open(path, "rb", buffering=0) as file:
            while left:
                piece = file.read(min(left, READ_SIZE))
                if not piece:
                    break
                left -= len(piece)
                yield piece
    except FileNotFoundError:
        pass
    while left:
        piece = bytes(min(left, READ_SIZE))
        left -= len(piece)
        yield piece


class Incoming:
    """A transfer being received: writes each file as its contents arrive, in place or atomically.

    ``allowed`` is asked for each path before anything is written: a transfer from the lab may only write
    what was asked for.  Links are made last, so that nothing is ever written through one of them.

    :raises ProtocolError: an entry is malformed or not allowed
    :raises OSError: something cannot be written
    """

    def __init__(
        self, entries: list[list[object]], allowed: Callable[[str], bool] | None = None, atomic: bool = False
    ) -> None:
        self._files: list[tuple[str, int, int]] = []
        self._links: list[tuple[str, str]] = []
        self._atomic = atomic
        self._made: set[str] = set()
        self._descriptor = -1
        self._temporary = ""  # the file being written
        self._next = 0
        self._left = 0
        for kind, path, mode, extra in entries:
            if (
                not isinstance(path, str)
                or not isinstance(mode, int)
                or path[:1] != "/"
                or "/../" in f"{path}/"
            ):
                raise ProtocolError(f"a transfer names {path!r}")
            if allowed is not None and not allowed(path):
                raise ProtocolError(f"a transfer names {path!r}")
            if kind == FILE and isinstance(extra, int) and extra >= 0:
                self._files.append((path, mode & 0o777, extra))
            elif kind == DIRECTORY:
                self._make(path)
            elif kind == LINK and isinstance(extra, str):
                self._links.append((path, extra))
            else:
                raise ProtocolError(f"a transfer has an entry {kind!r} with {extra!r}")
        self._advance()

    @property
    def done(self) -> bool:
        """Whether everything has been received and written."""
        return self._descriptor < 0

    def feed(self, data: bytes | memoryview) -> None:
        """Write the next piece of the contents."""
        view = memoryview(data)
        while view:
            if self.done:
                raise ProtocolError(f"a transfer has {len(view)} bytes too many")
            written = os.write(self._descriptor, view[: self._left])
            self._left -= written
            view = view[written:]
            if not self._left:
                self._finish()
                self._advance()

    def abandon(self) -> None:
        """Leave off in the middle; a file being written atomically vanishes."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._atomic:
                os.unlink(self._temporary)

    def _make(self, path: str) -> None:
        if path not in self._made:
            os.makedirs(path, exist_ok=True)
            self._made.add(path)

    def _advance(self) -> None:
        """Open the next file that has contents, making empty ones on the way; after the last, the links."""
        while self._next < len(self._files):
            path, mode, self._left = self._files[self._next]
            self._next += 1
            self._make(os.path.dirname(path))
            self._temporary = f"{path}.{os.getpid()}.tmp" if self._atomic else path
            self._descriptor = _create(self._temporary, mode)
            if self._left:
                return
            self._finish()
        for path, target in self._links:
            self._make(os.path.dirname(path))
            if os.path.lexists(path):
                os.unlink(path)
            os.symlink(target, path)
        self._links = []

    def _finish(self) -> None:
        path, mode, _size = self._files[self._next - 1]
        os.fchmod(self._descriptor, mode)  # whatever the umask, and what the file was before
        os.close(self._descriptor)
        self._descriptor = -1
        if self._atomic:
            os.replace(self._temporary, path)


def _create(path: str, mode: int) -> int:
    """Open an empty file at ``path`` for writing, never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, mode)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ETXTBSY):
            raise
        os.unlink(path)
        return os.open(path, flags, mode)
