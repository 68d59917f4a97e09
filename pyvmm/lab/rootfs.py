"""The lab's root file system, as it is made on the host: Debian packages unpacked into a directory, and their Python
compiled there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys

from pyvmm import initramfs
from pyvmm.errors import HostError
from pyvmm.lab import packages

_PRUNED = re.compile(
    r"usr/share/(doc|doc-base|man|info|locale|lintian|bash-completion|bug|applications|pixmaps|binfmts|initramfs-tools)/"
    r"|usr/lib/python3[^/]*/(test|idlelib|tkinter|turtledemo|turtle\.py|lib2to3|ensurepip|pydoc_data|__pycache__)(/|$)"
    r"|usr/lib/python3[^/]*/lib-dynload/_(test|xxtest|ctypes_test)"
    r"|var/|etc/(init\.d|apt|cron)"
)
_MERGED = re.compile(r"(bin|sbin|lib|lib32|lib64|libx32)(/|$)")
#: Where Debian's Python looks for modules of packages.
PYTHON_PACKAGES = "usr/lib/python3/dist-packages"


def _place(name: str) -> str:
    """Where a file of a package goes: what belongs in /bin, /lib and so on goes below /usr."""
    return f"usr/{name}" if _MERGED.match(name) else name


def unpack(deb: str, root: str) -> None:
    """Put the files of the package ``deb`` below ``root``, without those that the lab never reads.

    :raises HostError: it cannot be unpacked
    """
    for member, contents in packages.members(deb):
        place = _place(member.name)
        if place == "." or place.startswith("..") or _PRUNED.match(place):
            continue
        path = os.path.join(root, place)
        if member.isdir():
            os.makedirs(path, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        if contents is not None:
            with open(path, "wb") as file:
                shutil.copyfileobj(contents, file)
            os.chmod(path, member.mode & 0o755)
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.islnk():
            os.link(os.path.join(root, _place(os.path.normpath(member.linkname))), path)


def add_python(root: str) -> str:
    """Name Python's versions in ``root`` and compile its library; returns the program, ``python3.N``.

    :raises HostError: there is none, or it is too old
    """
    programs = [
        name for name in os.listdir(os.path.join(root, "usr/bin")) if re.fullmatch(r"python3\.\d+", name)
    ]
    if not programs:
        raise HostError(
            "Debian's Python packages hold no python3.N", "this is a bug in pyvmm: please report it"
        )
    program = programs[0]
    if int(program.partition(".")[2]) < 11:
        raise HostError(
            f"this release's Python is too old for the lab ({program})",
            "use Debian 12, Ubuntu 24.04 or newer",
        )
    for name in ("python3", "python"):
        link = os.path.join(root, "usr/bin", name)
        if not os.path.lexists(link):
            os.symlink(program, link)
    compileall = ["-m", "compileall", "-q", "-s", root, "--invalidation-mode", "unchecked-hash"]
    folders = [os.path.join(root, "usr/lib", program), os.path.join(root, PYTHON_PACKAGES)]
    for python in _compilers(root, program):
        with contextlib.suppress(OSError):  # the host cannot run programs of another architecture
            done = subprocess.run(
                [*python, "-S", "-E", *compileall, *folders],
                env={"LC_ALL": "C.UTF-8"},
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if done.returncode >= 0 and any("__pycache__" in names for _, names, _ in os.walk(folders[0])):
                break
    return program


def _compilers(root: str, program: str) -> list[list[str]]:
    """What may compile the library in ``root`` for its own Python, ``program``: that one itself, run by its own
    dynamic loader; or one of the host's of the same version, whose bytecode is the same on every architecture.

    Where there is none the lab works all the same, only slower.
    """
    library = os.path.join(root, "usr/lib")
    loaders = [
        os.path.join(folder, name)
        for folder in (f"{library}64", library)
        for name in (os.listdir(folder) if os.path.isdir(folder) else ())
        if name.startswith("ld-linux")
    ]
    paths = ":".join(folder for folder, _, names in os.walk(library) if any(".so" in name for name in names))
    found = [
        [os.path.realpath(loader), "--library-path", paths, f"{root}/usr/bin/{program}"]
        for loader in loaders[:1]
    ]
    if program == "python{}.{}".format(*sys.version_info):
        found.append([sys.executable])
    elif (own := shutil.which(program)) is not None:
        found.append([own])
    return found


def entries(root: str) -> list[initramfs.Entry]:
    """Everything below ``root``."""
    found = []
    for folder, subfolders, names in os.walk(root):
        below = os.path.relpath(folder, root)
        for name in [*subfolders, *names]:
            path, source = os.path.normpath(os.path.join(below, name)), os.path.join(folder, name)
            mode = os.lstat(source).st_mode
            if stat.S_ISLNK(mode):
                found.append(initramfs.symlink(path, os.readlink(source)))
            elif stat.S_ISREG(mode):
                found.append(initramfs.host_file(path, source))
            elif not os.listdir(source):
                found.append(initramfs.directory(path))
    return found
