"""Files of this host put into an initramfs: single ones, whole directories, and what the programs among them need.

What is put there depends on the files' contents, names and permissions, without those of others to write, in which
umasks differ: not on times, owners, or the order in which a directory lists them.
"""

from __future__ import annotations

import os
import stat

from pyvmm.errors import UsageError
from pyvmm.initramfs import Entry, directory, symlink
from pyvmm.programs import interpreter_of, requirements

#: Of a file's permissions; everything belongs to root, so that the others' say nothing more.
_KEPT_MODE = 0o755
#: Links that are followed in a path, until it must be a loop (as path_resolution(7)).
_LINKS = 40


class Contents:
    """What an initramfs will hold.  ``libraries``: with the libraries and interpreters of the programs that are added.

    Directories have to be added before what goes into them: a link in one, as /lib to /usr/lib, is followed.
    """

    def __init__(self, *, libraries: bool = True) -> None:
        self._libraries = libraries
        self._entries: dict[str, Entry] = {}
        self._programs: list[str] = []
        self._in_folders: list[str] = []  # programs in directories, which may bring their own libraries

    def __contains__(self, guest: object) -> bool:
        return isinstance(guest, str) and self._place(guest) in self._entries

    def add(self, entry: Entry, *, weak: bool = False) -> None:
        """Put ``entry`` there; a ``weak`` one gives way to what is there.

        :raises UsageError: there is something else
        """
        entry.path = self._place(entry.path)
        there = self._entries.get(entry.path)
        if there is None:
            self._entries[entry.path] = entry
        elif not weak and _told(there) != _told(entry):
            if stat.S_ISDIR(there.mode) and stat.S_ISDIR(entry.mode):
                there.mode |= entry.mode
                return
            raise UsageError(
                f"/{entry.path} in the initramfs would be both {_named(there)} and {_named(entry)}",
                "give one of them another place: HOST:GUEST",
            )

    def add_file(self, host: str, guest: str, *, mode: int | None = None) -> None:
        """Put the file ``host`` at ``guest``; its permissions are those of ``host`` unless ``mode`` is given.

        :raises UsageError: there is no such file
        """
        try:
            status = os.stat(host)
        except OSError as error:
            raise UsageError(f"{host}: {error.strerror}", "give the path of a file on this host") from None
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{host} is a directory", f"put it there by --dir {host}:/{guest.lstrip('/')}")
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{host} is no regular file", "copy what it gives into a file first")
        kept = status.st_mode & _KEPT_MODE if mode is None else mode
        entry = Entry(guest, stat.S_IFREG | kept, source=host)
        self.add(entry)
        self._programs.append(entry.path)

    def add_directory(self, host: str, guest: str) -> None:
        """Put all that is in the directory ``host`` below ``guest``: links as links, device nodes as such.

        :raises UsageError: it cannot be read
        """
        try:
            self._add_folder(host, guest.strip("/"))
        except OSError as error:
            raise UsageError(
                f"{error.filename or host}: {error.strerror}",
                "give a directory that you can read: --dir HOST:GUEST",
            ) from None

    def _add_folder(self, host: str, guest: str) -> None:
        if guest:
            self.add(directory(guest, _permissions(host)))
        with os.scandir(host) as listed:
            names = sorted(each.name for each in listed)
        for name in names:
            path, place = os.path.join(host, name), f"{guest}/{name}"
            status = os.lstat(path)
            mode = status.st_mode
            if stat.S_ISDIR(mode):
                self._add_folder(path, place)
            elif stat.S_ISLNK(mode):
                self.add(symlink(place, os.readlink(path)))
            elif stat.S_ISREG(mode):
                entry = Entry(place, stat.S_IFREG | mode & _KEPT_MODE, source=path)
                self.add(entry)
                if mode & 0o100 and self._brings(path):
                    self._in_folders.append(entry.path)
            else:
                device = (os.major(status.st_rdev), os.minor(status.st_rdev))
                self.add(Entry(place, stat.S_IFMT(mode) | mode & _KEPT_MODE, rdev=device))

    def _brings(self, path: str) -> bool:
        """Whether it is a program with a loader: a directory's scripts and libraries are left as they are."""
        return self._libraries and bool(interpreter_of(path))

    def complete(self) -> list[Entry]:
        """The entries, with what the programs among them need where that is not there already.

        :raises UsageError: something that a program needs is not on this host
        """
        own = {path for path in self._in_folders if interpreter_of(self._entries[path].source) in self}
        for path in sorted({*self._programs, *self._in_folders} - own) if self._libraries else ():
            for guest, host in requirements(self._entries[path].source, f"/{path}", present=self).items():
                mode = os.stat(host).st_mode & _KEPT_MODE
                self.add(Entry(guest, stat.S_IFREG | mode, source=host), weak=True)
        return list(self._entries.values())

    def _place(self, guest: str) -> str:
        """The path where what is named ``guest`` lies, once the links above it are followed."""
        left = [part for part in guest.split("/") if part not in ("", ".")]
        done: list[str] = []
        followed = 0
        while left:
            part = left.pop(0)
            if part == "..":
                done = done[:-1]
                continue
            done.append(part)
            there = self._entries.get("/".join(done))
            if there is None or not stat.S_ISLNK(there.mode) or not left:
                continue
            followed += 1
            if followed > _LINKS:
                raise UsageError(
                    f"/{guest.lstrip('/')} in the initramfs: links that go round in circles", "see --dir"
                )
            target = os.fsdecode(there.data)
            done = [] if target.startswith("/") else done[:-1]
            left = [each for each in target.split("/") if each not in ("", ".")] + left
        return "/".join(done)


def _permissions(folder: str) -> int:
    """Those of a directory: one that all may write to, as /tmp, stays so."""
    mode = stat.S_IMODE(os.stat(folder).st_mode)
    return mode if mode & stat.S_ISVTX else mode & _KEPT_MODE


def _told(entry: Entry) -> tuple[object, ...]:
    return entry.mode, entry.data, entry.source and os.path.realpath(entry.source), entry.rdev


def _named(entry: Entry) -> str:
    if entry.source:
        return entry.source
    if stat.S_ISLNK(entry.mode):
        return f"a link to {os.fsdecode(entry.data)}"
    return "a directory" if stat.S_ISDIR(entry.mode) else "pyvmm's own file"
