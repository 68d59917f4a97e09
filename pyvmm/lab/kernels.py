"""Stock Debian kernels for tests and for trying things: ``python -m pyvmm.lab.kernels NAME ...``.

A kernel is named ``debian-SERIES-cloud`` (series: 6.1, 6.12) and kept in the cache as
``kernels/NAME/bzImage``, with what it is and its checksum in ``kernels/NAME/bzImage.json``, against which it
is verified whenever it is asked for.  apt verifies what it downloads against Debian's signed lists.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

from pyvmm import cache
from pyvmm.errors import HostError, PyvmmError, UsageError
from pyvmm.lab import packages
from pyvmm.lab.platforms import platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

KNOWN = ("debian-6.1-cloud", "debian-6.12-cloud")
IMAGE = "bzImage"
_USAGE = f"""\
usage: scripts/fetch-kernels [--all] [NAME ...]

Fetch stock Debian kernels into pyvmm's cache and print their paths, one a line.
Names: {", ".join(KNOWN)} (default: the first).
"""


def find(name: str) -> str | None:
    """The path of kernel ``name`` in the cache; None if it is not there, or not as it was when fetched."""
    folder = cache.path("kernels", name)
    image = os.path.join(folder, IMAGE)
    try:
        with open(f"{image}.json", "rb") as file:
            expected = json.load(file)["sha256"]
        return image if packages.sha256(image) == expected else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fetch(name: str) -> str:
    """The path of kernel ``name``, fetched if it is not in the cache.

    Where this release has no kernel of that series, it is the release's own cloud kernel, and says so on
    standard error.

    :raises UsageError: no such name
    :raises HostError: it could not be fetched
    """
    if name not in KNOWN:
        raise UsageError(f"there is no kernel '{name}' to fetch", f"choose from {', '.join(KNOWN)}")
    found = find(name)
    if found is not None:
        return found
    with cache.lock("kernels") as folder:
        found = find(name)
        if found is not None:
            return found
        instead = packages.with_fresh_lists(lambda: _have_newest(name, folder), _say)
        if instead != name:
            link = os.path.join(folder, name)
            if os.path.islink(link):
                os.unlink(link)
            elif os.path.isdir(link):
                shutil.rmtree(link)
            os.symlink(instead, link)
    return os.path.join(folder, name, IMAGE)


def _say(text: str) -> None:
    print(f"fetch-kernels: {text}", file=sys.stderr)


def _have_newest(name: str, folder: str) -> str:
    """Have the newest kernel for ``name`` in ``folder``; returns what it is called there."""
    package = _newest(name)
    instead = _name_of(package)
    if instead != name:
        _say(f"this release has no {name}; using its own {package}")
    if find(instead) is None:
        _unpack(package, instead, folder)
    return instead


def _newest(name: str) -> str:
    """The newest package of the series that ``name`` names, or else the release's own kernel package."""
    series = name.split("-")[1]
    pattern = rf"linux-image-{re.escape(series)}\.\d[^-]*(-\d+)?-cloud-amd64"
    fitting = packages.search(pattern)
    if fitting:
        return max(fitting, key=lambda package: [int(digits) for digits in re.findall(r"\d+", package)])
    for meta in platform("x86_64").kernels:
        for package in packages.direct_dependencies(meta) or ():
            if package.startswith("linux-image-"):
                return package
    raise HostError(f"apt knows no package for {name}", packages.UPDATE_HINT)


def _name_of(package: str) -> str:
    """What we call the kernel of ``package``."""
    series = re.match(r"linux-image-(\d+\.\d+)", package)
    flavour = "cloud" if "cloud" in package else "generic"
    return f"debian-{series.group(1) if series else 'unknown'}-{flavour}"


def _unpack(package: str, name: str, folder: str) -> None:
    """Fetch ``package`` and put its kernel into ``folder`` as ``name``."""
    candidate = packages.candidates([package])[0]
    with cache.workspace(folder) as work:
        deb = packages.fetch([candidate], work)[0]
        made = os.path.join(work, name)
        os.mkdir(made)
        image = os.path.join(made, IMAGE)
        for member, contents in packages.members(deb):
            if contents is not None and member.name.startswith("boot/vmlinuz-"):
                with open(image, "wb") as file:
                    shutil.copyfileobj(contents, file)
                break
        else:
            raise HostError(f"{package} holds no kernel", "this is a bug in pyvmm: please report it")
        description = {
            "package": package,
            "version": candidate.version,
            "release": os.path.basename(member.name).removeprefix("vmlinuz-"),
            "sha256": packages.sha256(image),
        }
        with open(f"{image}.json", "w") as file:
            json.dump(description, file, indent=1)
        cache.publish(made, os.path.join(folder, name))


def main(arguments: Sequence[str]) -> int:
    """Fetch the kernels named, and print their paths; 125 with a line and a hint if that fails."""
    if any(argument in ("-h", "--help") for argument in arguments):
        sys.stdout.write(_USAGE)
        return 0
    try:
        unknown = [argument for argument in arguments if argument.startswith("-") and argument != "--all"]
        if unknown:
            raise UsageError(f"there is no option {unknown[0]}", "scripts/fetch-kernels --help lists them")
        names = list(KNOWN) if "--all" in arguments else list(arguments) or [KNOWN[0]]
        for name in names:
            print(fetch(name), flush=True)
    except PyvmmError as error:
        print(f"fetch-kernels: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 125
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
