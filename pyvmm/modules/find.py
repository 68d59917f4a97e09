"""The modules of a kernel: where its image was built, where it was installed, or where the user says."""

from __future__ import annotations

import os
import re

from pyvmm.errors import UsageError
from pyvmm.modules.tree import ModuleTree

#: From an image in a build tree to the tree: arch/x86/boot/bzImage, arch/arm64/boot/Image, vmlinux.
_IN_TREE = re.compile(r"(?P<tree>.*?)/?(?:arch/[^/]+/boot/(?:compressed/)?)?[^/]+")
#: What a built tree has.
_SIGNS = ("modules.order", "Module.symvers", "include/config/auto.conf")
_RELEASE = re.compile(r"\d+\.\d+.*")


def release_of(kernel: str) -> str:
    """The release of a kernel image, as ``uname -r`` will say it; "" if it does not tell.

    :raises LoaderError: the file cannot be read
    """
    from loader.bzimage_header import read_header
    from loader.detect import HEAD_SIZE, Format, identify
    from loader.files import open_file

    with open_file(kernel) as file:
        if identify(file.read(0, HEAD_SIZE)).format is Format.BZIMAGE:
            version = read_header(file).version
            return version.split()[0] if version else ""
        from pyvmm.inspect import inspect_open

        version = inspect_open(file, 512 << 20, unpack=False).version
        if not version:
            version = inspect_open(file, 512 << 20).version
    return version.split()[0] if version else ""


def find(kernel: str, *, modules: str | None = None) -> ModuleTree | None:
    """The modules of the kernel image ``kernel``; None if they are not found.

    ``modules`` names their place, as of :func:`given`.  Otherwise they are looked for in the build tree that the image
    is in, beside the image, and in ``/lib/modules``; a place with modules for another kernel is passed over.

    :raises UsageError: ``modules`` holds none, or those of another kernel
    """
    release = release_of(kernel)
    if modules is not None:
        return given(modules, release)
    for place in _places(kernel, release):
        if os.path.isdir(place):
            tree = ModuleTree(place, release)
            try:
                tree.check_version(release)
            except UsageError:
                continue
            if len(tree):
                return tree
    return None


def given(place: str, release: str = "") -> ModuleTree:
    """The modules at ``place``: a directory as ``/lib/modules/VERSION``, a root that has one, a build tree, or any
    directory with modules in it.  ``release`` is that of their kernel, "" if that is not known.

    :raises UsageError: there are none, or those of another kernel; or of several, and ``release`` is not known
    """
    if not os.path.isdir(place):
        raise UsageError(
            f"{place}: no such directory of modules", "give /lib/modules/VERSION, or a kernel's build tree"
        )
    installed = _installed(place)
    if installed and not release:
        if len(installed) > 1:
            raise UsageError(
                f"{place} has the modules of several kernels: {', '.join(sorted(installed))}",
                f"name one of them: {next(iter(installed.values()))}",
            )
        release = next(iter(installed))
    if installed and release not in installed:
        raise UsageError(
            f"{place} has the modules of Linux {', '.join(sorted(installed))}, the kernel is {release}",
            "give the modules that were built with this kernel",
        )
    tree = ModuleTree(installed.get(release, place), release)
    if not len(tree):
        raise UsageError(f"{place}: there are no modules in it", "give the directory that has the *.ko files")
    tree.check_version(release)
    return tree


def _installed(place: str) -> dict[str, str]:
    """The directories named as a release, in the root ``place``, or in ``place`` as a /lib/modules: by release."""
    found: dict[str, str] = {}
    for folder in (os.path.join(place, "lib/modules"), os.path.join(place, "usr/lib/modules"), place):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            path = os.path.join(folder, name)
            if _RELEASE.fullmatch(name) and os.path.isdir(path):
                found.setdefault(name, path)
    return found


def _places(kernel: str, release: str) -> list[str]:
    path = os.path.realpath(kernel)
    match = _IN_TREE.fullmatch(path)
    places = []
    if (
        match
        and match["tree"] not in ("", "/")
        and any(os.path.exists(os.path.join(match["tree"], sign)) for sign in _SIGNS)
    ):
        places.append(match["tree"])
    if release:
        beside = os.path.dirname(path)
        places += [os.path.join(beside, "lib", "modules", release), os.path.join(beside, "modules", release)]
        places += [f"/lib/modules/{release}", f"/usr/lib/modules/{release}"]
    return places
