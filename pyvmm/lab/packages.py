"""Debian packages without installing them: which ones, by apt's own index; fetched and verified by apt.

Only ``apt-cache``, ``apt-get download`` and ``dpkg-deb`` are used, none of which needs root.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import subprocess
import tarfile

from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import IO, TypeVar

    Result = TypeVar("Result")

LISTS = "/var/lib/apt/lists"
LISTS_NAME = "apt package lists"
UPDATE_HINT = "run `apt-get update` as root, then try again"
INSTALL_HINT = "this needs a Debian or Ubuntu host with apt; elsewhere use a Debian container or machine"


class Package:
    """A package that can be fetched: ``name``, ``version``, and the ``sha256`` of its file."""

    __slots__ = ("name", "sha256", "version")

    def __init__(self, name: str, version: str, sha256: str) -> None:
        self.name = name
        self.version = version
        self.sha256 = sha256

    def __repr__(self) -> str:
        return f"{self.name} {self.version}"


def tools() -> list[tuple[str, bool, str]]:
    """What fetching needs on this host, as (name, present, hint)."""
    found = [
        (tool, shutil.which(tool) is not None, INSTALL_HINT) for tool in ("apt-get", "apt-cache", "dpkg-deb")
    ]
    lists = bool(glob.glob(f"{LISTS}/*Packages*"))
    return [*found, (LISTS_NAME, lists, "run `apt-get update` as root")]


def with_fresh_lists(action: Callable[[], Result], report: Callable[[str], None]) -> Result:
    """Do ``action``, which uses apt; where it fails, as root, once more after ``apt-get update``.

    Lists of a few days ago name packages that have been superseded and are gone.

    :raises HostError: a tool is missing, or ``action`` failed
    """
    missing = [(name, hint) for name, present, hint in tools() if not present]
    if missing and missing[0][0] != LISTS_NAME:
        raise HostError(f"{missing[0][0]} not found on this host", missing[0][1])
    try:
        if missing:
            raise HostError("apt has no package lists", UPDATE_HINT)
        return action()
    except HostError:
        if os.geteuid() != 0:
            raise
        report("reading apt's package lists")
        if _apt("apt-get", "update").returncode:
            raise
    return action()


def _apt(program: str, *arguments: str, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    options = ["-q", "-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else ["-q"]
    return subprocess.run(
        [program, *options, *arguments], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}, check=False,
    )  # fmt: skip


def _last_complaint(text: str) -> str:
    complaints = [line for line in text.splitlines() if line.startswith(("E:", "Err:"))]
    return complaints[-1] if complaints else text.strip().rpartition("\n")[2] or "no reason given"


def search(pattern: str) -> list[str]:
    """The names of the packages that match the regular expression ``pattern``, sorted."""
    done = _apt("apt-cache", "pkgnames")
    return sorted(name for name in done.stdout.split() if re.fullmatch(pattern, name))


def dependencies(roots: Sequence[str], excluded: Collection[str] = ()) -> list[str]:
    """``roots`` and all they depend on, without ``excluded`` and what only those need; sorted.

    Of alternatives the first is taken; a virtual package is skipped.

    :raises HostError: apt knows none of that name
    """
    done = _apt(
        "apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks",
        "--no-replaces", "--no-enhances", *roots,
    )  # fmt: skip
    if done.returncode:
        raise HostError(
            f"apt knows no package {' '.join(roots)}: {_last_complaint(done.stderr)}", UPDATE_HINT
        )
    needs: dict[str, list[str]] = {}
    current: list[str] = []
    satisfied = False  # an earlier alternative of the same dependency was taken
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            current = needs.setdefault(line.strip(), [])
        elif "epends: " in line:
            name = line.partition("epends: ")[2].strip()
            if not satisfied and not name.startswith("<"):
                current.append(name)
                satisfied = True
            if not line.startswith(" |"):
                satisfied = False
    wanted: set[str] = set()
    queue = list(roots)
    while queue:
        name = queue.pop()
        if name not in wanted and name not in excluded:
            wanted.add(name)
            queue += needs.get(name, [])
    return sorted(wanted)


def direct_dependencies(name: str) -> list[str] | None:
    """What package ``name`` depends on itself; None if apt does not know it."""
    done = _apt("apt-cache", "depends", "--important", name)
    if done.returncode or not done.stdout:
        return None
    return [line.partition("epends: ")[2].strip() for line in done.stdout.splitlines() if "epends: " in line]


def candidates(names: Sequence[str]) -> list[Package]:
    """The version of each package that apt would install, in the order of ``names``.

    :raises HostError: one of them cannot be fetched from anywhere
    """
    done = _apt("apt-cache", "show", "--no-all-versions", *names)
    found: dict[str, Package] = {}
    for stanza in done.stdout.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if "Package" in fields and "SHA256" in fields:
            found[fields["Package"]] = Package(fields["Package"], fields["Version"], fields["SHA256"])
    missing = [name for name in names if name.partition(":")[0] not in found]
    if missing:
        raise HostError(f"apt has no source for package {missing[0]}", UPDATE_HINT)
    return [found[name.partition(":")[0]] for name in names]


def sha256(path: str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(packages: Iterable[Package], store: str) -> list[str]:
    """Have the files of ``packages`` in the directory ``store``; returns their paths, in order.

    Files there with the right checksum are kept, others fetched; apt verifies those against its signed lists.

    :raises HostError: apt could not fetch one
    """
    packages = list(packages)
    paths = [os.path.join(store, f"{package.name}-{package.sha256[:16]}.deb") for package in packages]
    missing = [
        (package, path)
        for package, path in zip(packages, paths, strict=True)
        if not (os.path.exists(path) and sha256(path) == package.sha256)
    ]
    if not missing:
        return paths
    incoming = os.path.join(store, "incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    os.mkdir(incoming)
    try:
        done = _apt(
            "apt-get", "-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=30", "download",
            *(f"{package.name}={package.version}" for package, _ in missing), cwd=incoming,
        )  # fmt: skip
        arrived = {sha256(path): path for path in glob.glob(f"{glob.escape(incoming)}/*.deb")}
        for package, path in missing:
            if package.sha256 not in arrived:
                raise HostError(
                    f"apt could not download {package.name}: {_last_complaint(done.stderr)}",
                    f"is the network there? If the package lists are old, {UPDATE_HINT}",
                )
            os.rename(arrived[package.sha256], path)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return paths


def members(deb: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """The files of a package, as (tar member with a path without leading ``./``, contents if it has any).

    :raises HostError: it cannot be unpacked
    """
    unpacker = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", deb],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it complains when we have seen enough
    )
    damaged = HostError(f"{deb} cannot be unpacked", "remove it and try again; is the disk full?")
    try:
        with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
            for member in archive:
                member.name = os.path.normpath(member.name)
                yield member, archive.extractfile(member) if member.isreg() else None
        if unpacker.wait():
            raise damaged
    except (tarfile.TarError, EOFError):
        raise damaged from None
    finally:
        if unpacker.stdout is not None:
            unpacker.stdout.close()
        unpacker.wait()
