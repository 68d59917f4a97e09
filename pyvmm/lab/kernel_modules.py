"""The modules of a kernel out of a Debian package: the one that ``scripts/fetch-kernels`` fetched it from, or one that
the user gives.  They are unpacked into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import sys

from pyvmm import cache
from pyvmm.errors import HostError, UsageError
from pyvmm.lab import foreign, kernels, packages
from pyvmm.lab.modules import unpack
from pyvmm.modules import Module, ModuleTree, find, given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Packages given by the user whose modules are kept in the cache.
_KEPT = 4


def modules_of(kernel: str | None, modules: str | None = None) -> ModuleTree | None:
    """The modules of the kernel image at ``kernel``, or those at ``modules`` if that is None; None: not found.

    ``modules`` is as of :func:`pyvmm.modules.given`, or a Debian package.

    :raises UsageError: ``modules`` holds none, or those of another kernel
    :raises HostError: the package cannot be fetched or unpacked
    """
    if modules is not None and modules.endswith(".deb"):
        modules = _unpacked(modules)
    if kernel is None:
        return None if modules is None else given(modules)
    tree = find(kernel, modules=modules)
    return fetched_modules(kernel) if tree is None and modules is None else tree


def load_order(
    kernel: str | None, modules: str | None, needed: Iterable[str], named: Sequence[str]
) -> list[Module]:
    """The modules ``needed``, which may be built in where none are found, and those that the user ``named``, which may
    not; with what they depend on, in an order in which they can be loaded.  Errors as :func:`modules_of`.

    :raises UsageError: one is not there
    """
    tree = modules_of(kernel, modules)
    if tree is not None:
        return tree.load_order(dict.fromkeys([*needed, *named]))
    if named:
        raise UsageError(
            f"the modules of {kernel} were not found, so {named[0]} cannot be loaded",
            "give their directory with --modules (/lib/modules/VERSION, or the kernel's build tree)",
        )
    return []


def _unpacked(deb: str) -> str:
    """A directory with the modules of the package file ``deb``."""
    try:
        with open(deb, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UsageError(
            f"{deb}: {error.strerror}", "give a kernel's package, as linux-image-*.deb"
        ) from None
    with cache.lock("modules") as locked:
        final = os.path.join(locked, f"deb-{digest}")
        if os.path.isdir(final):
            os.utime(final)
            return final
        with cache.workspace(locked) as work:
            made = os.path.join(work, "made")
            os.mkdir(made)
            unpack([deb], made)
            if not os.listdir(made):
                raise UsageError(
                    f"{deb}: there are no modules in it", "give a kernel's package, as linux-image-*.deb"
                )
            cache.publish(made, final)
        cache.keep(locked, "deb-", _KEPT, final)
    return final


def fetched_modules(kernel: str) -> ModuleTree | None:
    """The modules of the kernel image at ``kernel``, fetched if they are not in the cache; None if it is none of ours.

    :raises HostError: they could not be fetched
    """
    image = os.path.realpath(kernel)
    name = os.path.basename(os.path.dirname(image))
    stock = kernels.STOCK.get(name)
    if stock is None or os.path.dirname(os.path.dirname(image)) != os.path.realpath(cache.path("kernels")):
        return None
    try:
        with open(f"{image}.json", "rb") as file:
            about = json.load(file)
        package, version, release = about["package"], about["version"], about["release"]
    except (OSError, ValueError, KeyError):
        return None
    return given(_folder(package, version, stock.architecture), release)


def _folder(package: str, version: str, architecture: str) -> str:
    """A directory with the modules of a kernel's package."""
    name = f"{package}-{version.replace(':', '_')}"
    with cache.lock("modules") as locked:
        final = os.path.join(locked, name)
        if not os.path.isdir(os.path.join(final, "lib")):  # older ones have their modules elsewhere
            _say(f"fetching the modules of {package}, once")
            with cache.workspace(locked) as work:
                debs = foreign.using(architecture, lambda: _packages(package, version, work), _say)
                made = os.path.join(work, "made")
                os.mkdir(made)
                unpack(debs, made)
                cache.publish(made, final)
    return final


def _packages(package: str, version: str, folder: str) -> list[str]:
    """The package of a kernel, and those of its modules, fetched into ``folder``."""
    more = packages.direct_dependencies(package) or []
    found = packages.candidates([package, *(each for each in more if each.startswith("linux-modules-"))])
    if found[0].version != version:
        raise HostError(
            f"{package} is {found[0].version} by now, the kernel in the cache is of {version}",
            "fetch the kernel again: remove its directory in the cache and run scripts/fetch-kernels",
        )
    return packages.fetch(found, folder)


def _say(text: str) -> None:
    print(f"pyvmm: {text}", file=sys.stderr)
