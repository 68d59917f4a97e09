"""Programs that serve devices beside pyvmm, for a lab: this host's own or, where the lab is of another architecture,
Debian's, unpacked in the cache with the libraries that they load.
"""

from __future__ import annotations

import os
import re
import shutil

from pyvmm import cache
from pyvmm.devices.virtio import disk_daemon, virtiofsd
from pyvmm.errors import HostError
from pyvmm.lab import foreign, packages
from pyvmm.lab.platforms import platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

FINDERS = {"virtiofsd": virtiofsd.find, disk_daemon.PROGRAM: disk_daemon.find}
#: Where they are, by turns: virtiofsd has had a package of its own since Debian 13.
PACKAGES = {"virtiofsd": ("virtiofsd", "qemu-system-common"), disk_daemon.PROGRAM: ("qemu-system-common",)}
#: Of what those packages depend on, what the two programs load (readelf -d).
LIBRARIES = re.compile(
    r"lib(aio1|cap-ng|fuse3-|glib2\.0-|gmp|gnutls|hogweed|nettle|numa|seccomp|uring|zstd|gcc-s)|zlib1g"
)
#: The lab has it.
UNWANTED = ("libc6", "gcc-12-base", "gcc-14-base", "libcrypt1")


class Programs:
    """The files to ``carry`` to where pyvmm runs, and the ``env`` in which the programs are found there."""

    def __init__(self) -> None:
        self.carry: list[str] = []
        self.env: dict[str, str] = {}


def find(names: Iterable[str], architecture: str) -> Programs:
    """The programs ``names`` ("" is none) for a lab of that architecture.

    One that is missing here is left out where it is this host's: pyvmm says in the lab what to install.

    :raises HostError: one for another architecture cannot be had
    """
    found = Programs()
    folders = []
    for name in sorted({*names} - {""}):
        if architecture == os.uname().machine:
            try:
                found.carry.append(FINDERS[name]())
            except HostError:
                pass
        else:
            folders.append(_unpacked(name, platform(architecture).debian))
    if folders:
        found.carry += folders
        paths = [
            *(f"{folder}/bin" for folder in folders),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
        ]
        found.env = {
            "PATH": ":".join(paths),
            "LD_LIBRARY_PATH": ":".join(f"{folder}/lib" for folder in folders),
        }
    return found


def _unpacked(name: str, architecture: str) -> str:
    """A folder with bin/``name`` and, in lib/, the libraries that it loads."""
    with cache.lock("programs") as locked:
        final = os.path.join(locked, f"{name}-{architecture}")
        if not os.path.exists(final):
            with cache.workspace(locked) as work:
                made = os.path.join(work, "made")
                for part in ("bin", "lib"):
                    os.makedirs(os.path.join(made, part))
                for deb in foreign.using(architecture, lambda: _fetch(name, work), lambda _text: None):
                    _take(name, deb, made)
                if not os.listdir(os.path.join(made, "bin")):
                    raise HostError(f"Debian's packages hold no {name}", "look for it with apt-file")
                cache.publish(made, final)
        return final


def _fetch(name: str, folder: str) -> list[str]:
    for package in PACKAGES[name]:
        direct = packages.direct_dependencies(package)
        if direct is not None:
            libraries = [each for each in direct if LIBRARIES.match(each)]
            wanted = [package, *packages.dependencies(libraries, UNWANTED)]
            return packages.fetch(packages.candidates(wanted), folder)
    raise HostError(f"apt knows no package with {name}", packages.UPDATE_HINT)


def _take(name: str, deb: str, folder: str) -> None:
    """Unpack the program, and the libraries: all of them are in one directory, where links may stay as they are."""
    for member, contents in packages.members(deb):
        base = os.path.basename(member.name)
        if contents is not None and base == name:
            place = os.path.join(folder, "bin", base)
        elif re.fullmatch(r"(usr/)?lib/[^/]+-linux-gnu/lib[^/]+\.so\.[^/]+", member.name):
            place = os.path.join(folder, "lib", base)
        else:
            continue
        if contents is not None:
            with open(place, "wb") as file:
                shutil.copyfileobj(contents, file)
            os.chmod(place, 0o755)
        elif member.issym():
            os.symlink(os.path.basename(member.linkname), place)
