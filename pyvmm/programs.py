"""What a program needs beside itself: its interpreter and shared libraries, found as the host's loader finds them.

ELF programs name them in PT_INTERP, DT_NEEDED, DT_RPATH and DT_RUNPATH (System V gABI, "Dynamic Linking"; ld.so(8) for
the order); scripts name their interpreter after "#!" (execve(2)).  What is opened at run time (dlopen, locales, NSS)
cannot be seen here.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Container, Iterator
from typing import NamedTuple

from pyvmm.errors import ImageError, UsageError

#: What the loader looks into after everything else; ``{triplet}`` is Debian's name for the machine.
_DEFAULT_FOLDERS = ("/lib/{triplet}", "/usr/lib/{triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
_DEFAULT_FOLDERS_32 = ("/lib/{triplet}", "/usr/lib/{triplet}", "/lib", "/usr/lib", "/lib32", "/usr/lib32")
_TRIPLETS = {
    ("EM_X86_64", 64): "x86_64-linux-gnu",
    ("EM_X86_64", 32): "x86_64-linux-gnux32",
    ("EM_386", 32): "i386-linux-gnu",
    ("EM_AARCH64", 64): "aarch64-linux-gnu",
    ("EM_ARM", 32): "arm-linux-gnueabihf",
    ("EM_RISCV", 64): "riscv64-linux-gnu",
}
_CONFIGURATION = "/etc/ld.so.conf"
_HINT = "install what is missing, add it with --file, or leave all libraries out with --no-libs"
#: The kernel follows so many interpreters of interpreters (fs/exec.c).
_DEEPEST = 5


class _Elf(NamedTuple):
    """What an ELF file says of what it needs."""

    machine: tuple[str, int]
    interpreter: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


class _Object(NamedTuple):
    """A program or library: on the host, in the guest, and the one that needed it."""

    host: str
    guest: str
    elf: _Elf
    needed_by: _Object | None


def requirements(host: str, guest: str, *, present: Container[str] = ()) -> dict[str, str]:
    """What the program ``host`` needs when it lies at ``guest``: host files by their absolute path in the guest.

    Nothing, if it is neither a script nor an ELF file that needs something.  What is in ``present``, by its path in
    the guest, is not looked for, and has to bring itself what it needs.

    :raises UsageError: something it needs is not on this host
    :raises ImageError: a file cannot be read, or is damaged
    """
    found: dict[str, str] = {}
    program, place = host, guest
    for _ in range(_DEEPEST):
        words = _hash_bang(program)
        if not words:
            break
        interpreter = words[0]
        if interpreter in present:
            return found
        if not os.path.isfile(interpreter):
            raise UsageError(f"{program} needs {interpreter}, which is not on this host", _HINT)
        found[interpreter] = interpreter
        if os.path.basename(interpreter) == "env" and len(words) > 1:
            meant = shutil.which(words[-1])
            if meant is not None:
                found[meant] = meant
                found.update(_libraries(meant, meant, present))
        program = place = interpreter
    found.update(_libraries(program, place, present))
    return found


def interpreter_of(path: str) -> str:
    """The loader that the ELF program ``path`` names; "" if it needs none, or is no ELF file.

    :raises ImageError: it cannot be read, or is damaged
    """
    elf = _read(path)
    return "" if elf is None else elf.interpreter


def _hash_bang(path: str) -> list[str]:
    """The words after "#!"; none if it is no script."""
    try:
        with open(path, "rb") as file:
            line = file.read(256).split(b"\n", 1)[0]
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}", "") from None
    return os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []


def _libraries(host: str, guest: str, present: Container[str]) -> dict[str, str]:
    elf = _read(host)
    if elf is None or not (elf.interpreter or elf.needed):
        return {}
    found: dict[str, str] = {}
    home = ""
    if elf.interpreter:
        if not os.path.isfile(elf.interpreter):
            raise UsageError(f"{host} needs {elf.interpreter}, which is not on this host", _HINT)
        found[elf.interpreter] = elf.interpreter
        home = os.path.dirname(os.path.realpath(elf.interpreter))
    loaded = {os.path.basename(elf.interpreter)}
    queue = [_Object(host, guest, elf, None)]
    for current in queue:  # grows: breadth first, as the loader goes
        for name in current.elf.needed:
            if name in loaded:
                continue
            loaded.add(name)
            library = _find(name, current, home, present)
            if library is None:
                continue
            found[library.guest] = library.host
            queue.append(library)
    return found


def _find(name: str, current: _Object, home: str, present: Container[str]) -> _Object | None:
    """The library ``name`` that ``current`` needs; None if the guest has it.  ``home``: where the guest's loader itself
    lies, which is one of the directories it looks into."""
    if "/" in name:
        places = iter([(name, name)])
    else:
        places = (
            (os.path.join(here, name), os.path.join(there, name)) for here, there in _folders(current, home)
        )
    for path, place in places:
        if place in present:
            return None
        if os.path.isfile(path):
            elf = _read(path)
            if elf is not None and elf.machine == current.elf.machine:
                return _Object(path, os.path.normpath(place), elf, current)
    raise UsageError(f"{current.host} needs {name}, which is not on this host", _HINT)


def _folders(current: _Object, home: str) -> Iterator[tuple[str, str]]:
    """Where a library that ``current`` needs may be: on the host, and where it is then put in the guest."""
    if not current.elf.runpath:
        one: _Object | None = current
        while one is not None:
            if not one.elf.runpath:
                yield from _expanded(one.elf.rpath, one)
            one = one.needed_by
    yield from _expanded(current.elf.runpath, current)
    default = [each.format(triplet=_TRIPLETS.get(current.elf.machine, "none")) for each in _defaults(current)]
    for folder in _configured(_CONFIGURATION):
        # The guest has no ld.so.cache, so that only the loader's own directories are of use there.
        yield folder, folder if folder in default or not home else home
    for folder in (*default, *([home] if home else [])):
        yield folder, folder


def _defaults(current: _Object) -> tuple[str, ...]:
    return _DEFAULT_FOLDERS if current.elf.machine[1] == 64 else _DEFAULT_FOLDERS_32


def _expanded(folders: tuple[str, ...], one: _Object) -> Iterator[tuple[str, str]]:
    """With what $ORIGIN, $LIB and $PLATFORM stand for; those that are not absolute say nothing."""
    for folder in folders:
        both = []
        for path in (os.path.realpath(one.host), one.guest):
            text = folder
            for name, value in (
                ("ORIGIN", os.path.dirname(path)),
                ("LIB", "lib" if one.elf.machine[1] == 32 else "lib64"),
            ):
                text = text.replace(f"${{{name}}}", value).replace(f"${name}", value)
            both.append(os.path.normpath(text))
        if all(each.startswith("/") and "$" not in each for each in both):
            yield both[0], both[1]


def _configured(path: str, depth: int = 0) -> list[str]:
    """The directories in /etc/ld.so.conf and the files it includes (ldconfig(8))."""
    found: list[str] = []
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return found
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["include"] and depth < _DEEPEST:
            for pattern in words[1:]:
                for each in sorted(glob.glob(os.path.join(os.path.dirname(path), pattern))):
                    found += _configured(each, depth + 1)
        elif words and words[0].startswith("/"):
            found.append(words[0].rstrip("/"))
    return found


def _read(path: str) -> _Elf | None:
    """What the file says; None if it is no ELF file."""
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    try:
        with open(path, "rb") as file:
            if file.read(4) != b"\x7fELF":
                return None
            elf = ELFFile(file)
            interpreter = ""
            tags: dict[str, list[str]] = {"needed": [], "rpath": [], "runpath": []}
            for segment in elf.iter_segments():
                if isinstance(segment, InterpSegment):
                    interpreter = segment.get_interp_name()
                elif isinstance(segment, DynamicSegment):
                    for tag in segment.iter_tags():
                        kind = str(tag.entry.d_tag).removeprefix("DT_").lower()
                        if kind in tags:
                            text = str(getattr(tag, kind))
                            tags[kind] += (
                                [text] if kind == "needed" else [each for each in text.split(":") if each]
                            )
            machine = (str(elf.header.e_machine), int(elf.elfclass))
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}", "") from None
    except (ELFError, ConstructError, ValueError, AttributeError, KeyError, UnicodeError) as error:
        raise ImageError(
            f"{path} is a damaged ELF file: {error or type(error).__name__}", "was it copied whole?"
        ) from None
    return _Elf(machine, interpreter, tuple(tags["needed"]), tuple(tags["rpath"]), tuple(tags["runpath"]))
