"""What goes into the lab with a command, and what comes back: always at the same absolute paths.

In go the project (its packages with their compiled code where the lab's Python can use it, the test
guests), every argument of the command that names a regular file, and what was asked for.  A program that is
linked dynamically brings its libraries.  So a command line works in the lab as it stands.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys

from pyvmm.errors import UsageError
from pyvmm.lab.bytecode import Bytecode
from pyvmm.lab.transfer import Outgoing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LARGEST_FOLDER = 16 * 1024 * 1024
"""A folder of test guests that is larger than this stays at home."""

_PYC_UNCHECKED = (1).to_bytes(4, "little") + bytes(
    8
)  # PEP 552: a hash that is not checked against the source
_NOT_OURS = ("/proc/", "/sys/", "/dev/")


def project_root() -> str:
    """The directory that holds the package ``pyvmm``: a checkout, or site-packages."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def packages() -> list[str]:
    """The directories of the Python packages that pyvmm consists of."""
    found = []
    for name in ("pyvmm", "loader"):
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            found.append(os.path.abspath(place))
    return found


def add_project(transfer: Outgoing, python: Sequence[int]) -> dict[str, str]:
    """Add the project; returns the environment that makes the lab's Python (its version given) find it."""
    same_bytecode = tuple(python[:2]) == sys.version_info[:2]
    folders = packages()
    bytecode = Bytecode(folders) if same_bytecode else None
    for folder in folders:
        _add_package(transfer, folder, bytecode)
    if bytecode is not None:
        bytecode.keep()
    root = project_root()
    for guests in (os.path.join(root, "kernels", "build"), os.path.join(root, "tests", "kernels")):
        if os.path.isdir(guests) and _size(guests) <= LARGEST_FOLDER:
            transfer.add_tree(guests)
    transfer.add_bytes("/usr/local/bin/pyvmm", _LAUNCHER, 0o755)
    _add_interpreters(transfer)
    search = dict.fromkeys(os.path.dirname(folder) for folder in folders)
    return {"PYTHONPATH": ":".join(search)}


_LAUNCHER = b"#!/usr/bin/python3\nimport sys\nfrom pyvmm.cli import main\nsys.exit(main())\n"


def _add_package(transfer: Outgoing, folder: str, bytecode: Bytecode | None) -> None:
    """Add a package's files and its modules' bytecode."""
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if name != "__pycache__")
        transfer.add_directory(place)
        for name in sorted(names):
            path = os.path.join(place, name)
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue
            transfer.add_file(path)
            if bytecode is not None and name.endswith(".py"):
                code = bytecode.of(path)
                if code is not None:
                    transfer.add_bytes(importlib.util.cache_from_source(path), code)


def _add_interpreters(transfer: Outgoing) -> None:
    """Give this Python's own names to the lab's, so that a script's first line or an argument may name it."""
    folder = os.path.dirname(os.path.abspath(sys.executable)) if sys.executable else ""
    if folder and folder not in ("/usr/bin", "/bin"):
        for name in dict.fromkeys(("python", "python3", os.path.basename(sys.executable))):
            transfer.add_link(os.path.join(folder, name), "/usr/bin/python3")


def _size(folder: str) -> int:
    return sum(
        os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names
    )


def named_files(argv: Sequence[str], cwd: str) -> list[str]:
    """The absolute paths of the regular files that the arguments of a command name, also as ``--opt=FILE``.

    The lab has its own Python; what names this one is left out.
    """
    found: dict[str, None] = {}
    for argument in argv:
        candidates = [argument]
        if argument.startswith("-") and "=" in argument:
            candidates = [argument.partition("=")[2]]
        for candidate in candidates:
            path = os.path.normpath(os.path.join(cwd, candidate))
            if not candidate or path.startswith(_NOT_OURS) or not os.path.isfile(path):
                continue
            if os.path.realpath(path) != os.path.realpath(sys.executable):
                found[path] = None
    return list(found)


def add_paths(transfer: Outgoing, paths: Iterable[str], cwd: str) -> None:
    """Add files, and directories with all that is in them, and the libraries of dynamically linked programs.

    :raises UsageError: one does not exist or cannot be read
    """
    for given in paths:
        path = os.path.normpath(os.path.join(cwd, given))
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                transfer.add_tree(path)
                continue
            with open(path, "rb") as file:
                start = file.read(4)
            transfer.add_file(path)
        except FileNotFoundError:
            raise UsageError(f"cannot carry {given} into the lab: no such file", "check the name") from None
        except OSError as error:
            raise UsageError(
                f"cannot carry {given} into the lab: {error.strerror}",
                "give files and directories that can be read",
            ) from None
        if start == b"\x7fELF" and os.access(path, os.X_OK):
            for library in _libraries(path):
                transfer.add_file(library)


def _libraries(program: str) -> list[str]:
    """The shared libraries that a program of this host's architecture needs, as ldd finds them.

    The C library and its loader are left out: the lab's own belong together.
    """
    ldd = shutil.which("ldd")
    if ldd is None:
        return []
    done = subprocess.run(
        [ldd, program], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    libraries = []
    for line in done.stdout.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        path = rest.partition(" (")[0]
        if arrow and os.path.isabs(path) and not _of_the_c_library(os.path.basename(name)):
            libraries.append(path)
    return libraries


def _of_the_c_library(name: str) -> bool:
    stem = name.partition(".so")[0]
    return stem in (
        "libc",
        "libm",
        "libdl",
        "libpthread",
        "librt",
        "libresolv",
        "libutil",
    ) or stem.startswith("ld-")


def within(paths: Sequence[str], cwd: str) -> list[str]:
    """The absolute forms of ``paths``, which a transfer out of the lab may write."""
    return [os.path.normpath(os.path.join(cwd, path)) for path in paths]


def is_allowed(path: str, allowed: Sequence[str]) -> bool:
    """Whether ``path`` is one of ``allowed`` or below one of them."""
    return any(path == place or path.startswith(f"{place.rstrip('/')}/") for place in allowed)
