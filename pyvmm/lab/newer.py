"""Which QEMU the lab runs in: this host's, or a newer one of Debian's backports where the host's loses guests.

QEMU 7.2's emulation of AMD SVM now and then, once in some 300,000 exits and more often on a busy host, goes on in the
guest at the instruction pointer of the lab's own kernel (behind VMRUN in kvm_amd's __svm_vcpu_run): a triple fault,
a panic, or silence.  10.0 was not seen to, in 400,000.  Debian 12 has 7.2, and 10.0 in its backports, built for the
libraries that are there; it is unpacked into the cache beside the base image, and runs from there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time

from pyvmm import cache
from pyvmm.errors import HostError
from pyvmm.lab import foreign, packages, qemu
from pyvmm.lab.platforms import PLATFORMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.lab.platforms import Platform

#: The first major version of QEMU that is good enough.
WANTED = 8
#: Where a newer QEMU is looked for: Debian's release -> its backports.
BACKPORTS = {"bookworm": "bookworm-backports"}
#: Seconds after which what could not be had is asked for again.
PATIENCE = 24 * 3600.0

_DESCRIPTION = "description.json"
#: Depended on, and of no use here: no screen, no sound, no firmware but the BIOS.
_PARTS = ("qemu-system-common", "qemu-system-data")


def find(platform: Platform, report: Callable[[str], None], note: Callable[[str], None]) -> str:
    """The path of the QEMU to use: a good one of the host's, else a newer one, fetched once; else the host's.

    ``$PYVMM_LAB_QEMU`` names another, for the architecture that its name says, or any.  ``report`` is told what takes
    long, ``note`` what went wrong.

    :raises HostError: there is none
    """
    chosen = os.environ.get("PYVMM_LAB_QEMU")
    others = {other.qemu for other in PLATFORMS.values()} - {platform.qemu}
    if chosen and os.path.basename(chosen) not in others:
        if shutil.which(chosen) is None:
            raise HostError(f"PYVMM_LAB_QEMU={chosen}: not a program", "name a QEMU, or unset it")
        return chosen
    own = shutil.which(platform.qemu)
    identity = "" if own is None else qemu.identity(own)
    folder = cache.path("lab", "qemu", platform.architecture)
    known = _described(folder)
    if known is None or known.get("host") != identity:
        if own is not None and version(own) >= WANTED:
            return own
        known = None
    if known is None or (known.get("failed") and time.time() - float(known["failed"]) > PATIENCE):
        _fetch(platform, identity, report, note)
    return fetched(platform) or qemu.find(platform)


def fetched(platform: Platform) -> str | None:
    """The path of the newer QEMU, if it has been fetched."""
    path = cache.path("lab", "qemu", platform.architecture, "root", "usr", "bin", platform.qemu)
    return path if os.path.exists(path) else None


def version(program: str) -> int:
    """The major version of a QEMU; 0 if it does not say."""
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError:
        return 0
    found = re.search(r"version (\d+)\.", done.stdout)
    return int(found[1]) if found else 0


def _described(folder: str) -> dict[str, str] | None:
    try:
        with open(os.path.join(folder, _DESCRIPTION), "rb") as file:
            description: dict[str, str] = json.load(file)
            return description
    except (OSError, ValueError):
        return None


def _fetch(
    platform: Platform, identity: str, report: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Have the newer QEMU in the cache, or a description that says when it could not be had."""
    with cache.lock("lab", "qemu") as locked, cache.workspace(locked) as work:
        final = os.path.join(locked, platform.architecture)
        known = _described(final)
        if known is not None and known.get("host") == identity and not known.get("failed"):
            return  # another process was first
        made = os.path.join(work, "made")
        os.mkdir(made)
        description = {"host": identity}
        try:
            description["packages"] = _unpack(platform, os.path.join(made, "root"), report)
        except HostError as error:
            note(f"no newer QEMU than this host's: {error.message}")
            description["failed"] = str(time.time())
            shutil.rmtree(os.path.join(made, "root"), ignore_errors=True)
        with open(os.path.join(made, _DESCRIPTION), "w") as file:
            json.dump(description, file)
        cache.publish(made, final)


def _unpack(platform: Platform, root: str, report: Callable[[str], None]) -> str:
    """Fetch and unpack it under ``root``, and see it run; the packages' names and versions."""
    releases = [BACKPORTS[release] for _, release in foreign.own_sources() if release in BACKPORTS]
    if not releases:
        raise HostError("there are no backports for this release", "install a newer QEMU")
    report("fetching a newer QEMU for the lab (once, 14 MB)")
    wanted = (platform.qemu_package, *_PARTS, *platform.firmware)
    with foreign.selected(foreign.own_architecture(), (releases[0],)) as folder:

        def download() -> list[packages.Package]:
            found = packages.candidates(wanted)
            store = os.path.join(folder, "packages")
            os.makedirs(store, exist_ok=True)
            for deb in packages.fetch(found, store):
                done = subprocess.run(
                    ["dpkg-deb", "-x", deb, root], stdin=subprocess.DEVNULL, capture_output=True, check=False
                )
                if done.returncode:
                    raise HostError(f"{deb} cannot be unpacked", "remove it and try again; is the disk full?")
            shutil.rmtree(store, ignore_errors=True)
            return found

        found = foreign.with_lists(folder, download, report)
    program = os.path.join(root, "usr", "bin", platform.qemu)
    if version(program) < WANTED:
        raise HostError("it does not run here: a library is missing", f"install {platform.qemu_package}")
    return ", ".join(f"{package.name} {package.version}" for package in found)
