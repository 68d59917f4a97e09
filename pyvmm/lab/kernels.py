"""Stock Debian kernels for tests and for trying things: ``python -m pyvmm.lab.kernels NAME ...``.

A kernel is named ``debian-SERIES[-cloud][-ARCHITECTURE]`` (:data:`KNOWN`; amd64 if it is not said) and kept in the
cache as ``kernels/NAME/bzImage``, or ``Image`` where it is one, with what it is and its SHA-256 beside it in
``bzImage.json``, against which it is verified whenever it is asked for.  What is downloaded is verified by apt: the
package by the SHA-256 in Debian's package lists, and those by their signature.

riscv64 has had kernels in Debian since trixie, so whatever this host runs, its kernel comes from there or, where the
mirror does not have that release, from a later one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

from pyvmm import cache
from pyvmm.errors import HostError, PyvmmError, UsageError
from pyvmm.lab import foreign, packages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


#: Debian's architectures whose kernels are no Image -> the name of the kernel's file.
_IMAGES = {"amd64": "bzImage"}
#: What a kernel's name here ends in, where it is not Debian's architecture.
_SUFFIXES = {"amd64": ""}


class Stock:
    """A kernel that can be fetched: ``series`` ("" for whatever there is), ``cloud``, Debian's ``architecture``; the
    ``releases`` of Debian to look for it in, by turns, none for this host's own."""

    __slots__ = ("architecture", "cloud", "releases", "series")

    def __init__(
        self, series: str, *, cloud: bool = False, architecture: str = "amd64", releases: tuple[str, ...] = ()
    ) -> None:
        self.series = series
        self.cloud = cloud
        self.architecture = architecture
        self.releases = releases

    @property
    def name(self) -> str:
        """What it is called here."""
        suffix = _SUFFIXES.get(self.architecture, self.architecture)
        parts = ("debian", self.series, "cloud" * self.cloud, suffix)
        return "-".join(filter(None, parts))

    @property
    def image(self) -> str:
        """The name of its file."""
        return _IMAGES.get(self.architecture, "Image")

    @property
    def metas(self) -> tuple[str, ...]:
        """Packages that depend on the release's own kernel: the first one that apt knows counts."""
        plain, generic = f"linux-image-{self.architecture}", "linux-image-generic"
        if not self.cloud:
            return (plain, generic)
        return (f"linux-image-cloud-{self.architecture}", plain, "linux-image-virtual", generic)

    def pattern(self, kind: str = "image") -> str:
        """A regular expression for the names of its packages."""
        series = rf"{re.escape(self.series)}\.\d" if self.series else r"\d+\.\d"
        return rf"linux-{kind}-{series}[^-]*(-\d+)?{'-cloud' * self.cloud}-{self.architecture}"


_STOCK = (
    *(
        Stock(series, cloud=cloud, architecture=architecture)
        for architecture in ("amd64", "arm64")
        for cloud in (True, False)
        for series in ("6.1", "6.12")
    ),
    Stock("", architecture="riscv64", releases=("trixie", "forky", "sid")),
)
STOCK = {stock.name: stock for stock in _STOCK}
KNOWN = tuple(STOCK)
_KERNEL_PATH = re.compile(r"boot/vmlinu[xz]-(?P<old>.+)|usr/lib/modules/(?P<new>[^/]+)/vmlinu[xz]")
_USAGE = f"""\
usage: scripts/fetch-kernels [--all] [NAME ...]

Fetch stock Debian kernels into pyvmm's cache and print their paths, one a line.
Names: {", ".join(KNOWN[:5])},
       {", ".join(KNOWN[5:])} (default: the first).
"""


def find(name: str) -> str | None:
    """The path of kernel ``name`` in the cache; None if it is not there, or not as it was when fetched."""
    folder = cache.path("kernels", name)
    image = os.path.join(folder, STOCK[name].image if name in STOCK else "bzImage")
    try:
        with open(f"{image}.json", "rb") as file:
            expected = json.load(file)["sha256"]
        return image if packages.sha256(image) == expected else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fetch(name: str) -> str:
    """The path of kernel ``name``, fetched if it is not in the cache.

    Where this release has no kernel of that series, it is the release's own kernel, and says so on
    standard error.

    :raises UsageError: no such name
    :raises HostError: it could not be fetched
    """
    if name not in STOCK:
        raise UsageError(f"there is no kernel '{name}' to fetch", f"choose from {', '.join(KNOWN)}")
    found = find(name)
    if found is not None:
        return found
    stock = STOCK[name]
    with cache.lock("kernels") as folder:
        found = find(name)
        if found is not None:
            return found
        if stock.architecture == foreign.own_architecture() and not stock.releases:
            instead = packages.with_fresh_lists(lambda: _have_newest(stock, folder), _say)
        else:
            instead = _have_foreign(stock, folder)
        if instead != name:
            link = os.path.join(folder, name)
            if os.path.islink(link):
                os.unlink(link)
            elif os.path.isdir(link):
                shutil.rmtree(link)
            os.symlink(instead, link)
    return os.path.join(folder, name, stock.image)


def _say(text: str) -> None:
    print(f"fetch-kernels: {text}", file=sys.stderr)


def _have_foreign(stock: Stock, folder: str) -> str:
    """:func:`_have_newest` for another architecture: from the first release whose lists and kernel can be had."""
    failure = HostError(
        f"there is no release to take {stock.name} from", "this is a bug in pyvmm: please report it"
    )
    for release in stock.releases or ("",):
        try:
            with foreign.selected(stock.architecture, (release,) if release else ()) as state:
                return foreign.with_lists(state, lambda: _have_newest(stock, folder), _say)
        except HostError as error:
            failure = error
    raise failure


def _have_newest(stock: Stock, folder: str) -> str:
    """Have the newest kernel for ``stock`` in ``folder``; returns what it is called there."""
    package = _newest(stock)
    instead = stock.name if not stock.series else _name_of(package, stock)
    if instead != stock.name:
        _say(f"this release has no {stock.name}; using its own {package}")
    if find(instead) is None:
        _unpack(package, instead, folder, stock.image)
    return instead


def _newest(stock: Stock) -> str:
    """The newest package of the kernel that is wanted, or else the release's own kernel package.

    The kernel itself is in ``linux-binary-...`` from forky on, in ``linux-image-...`` before.
    """
    for kind in ("binary", "image"):
        fitting = packages.search(stock.pattern(kind))
        if fitting:
            return max(fitting, key=lambda package: [int(digits) for digits in re.findall(r"\d+", package)])
    for meta in stock.metas:
        for package in packages.direct_dependencies(meta) or ():
            if package.startswith("linux-image-"):
                return package
    raise HostError(f"apt knows no package for {stock.name}", packages.UPDATE_HINT)


def _name_of(package: str, stock: Stock) -> str:
    """What we call the kernel of ``package``, which is for the architecture of ``stock``."""
    series = re.match(r"linux-[a-z]+-(\d+\.\d+)", package)
    return Stock(
        series.group(1) if series else "unknown", cloud="cloud" in package, architecture=stock.architecture
    ).name


def _unpack(package: str, name: str, folder: str, image_name: str) -> None:
    """Fetch ``package`` and put its kernel into ``folder`` as ``name``."""
    candidate = packages.candidates([package])[0]
    with cache.workspace(folder) as work:
        deb = packages.fetch([candidate], work)[0]
        made = os.path.join(work, name)
        os.mkdir(made)
        image = os.path.join(made, image_name)
        for member, contents in packages.members(deb):
            path = _KERNEL_PATH.fullmatch(member.name)
            if contents is not None and path:
                with open(image, "wb") as file:
                    shutil.copyfileobj(contents, file)
                break
        else:
            raise HostError(f"{package} holds no kernel", "this is a bug in pyvmm: please report it")
        description = {
            "package": package,
            "version": candidate.version,
            "release": path["old"] or path["new"],
            "sha256": packages.sha256(image),
        }
        with open(f"{image}.json", "w") as file:
            json.dump(description, file, indent=1)
        cache.publish(made, os.path.join(folder, name))


def main(arguments: Sequence[str]) -> int:
    """Fetch the kernels named, and print their paths; 125 with a line and a hint for each that fails."""
    if any(argument in ("-h", "--help") for argument in arguments):
        sys.stdout.write(_USAGE)
        return 0
    try:
        unknown = [argument for argument in arguments if argument.startswith("-") and argument != "--all"]
        if unknown:
            raise UsageError(f"there is no option {unknown[0]}", "scripts/fetch-kernels --help lists them")
    except UsageError as error:
        return _failed(error)
    status = 0
    for name in list(KNOWN) if "--all" in arguments else list(arguments) or [KNOWN[0]]:
        try:
            print(fetch(name), flush=True)
        except PyvmmError as error:
            status = _failed(error)
    return status


def _failed(error: PyvmmError) -> int:
    _say(error.message)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
