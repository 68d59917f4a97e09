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

    ``modules`` names their place: a directory as ``/lib/modules/VERSION``, a root that has one, a build tree, or any
    directory with modules in it.  Otherwise they are looked for in the build tree that the image is in, beside the
    image, and in ``/lib/modules``.

    :raises UsageError: ``modules`` holds none, or those of another kernel
    """
    release = release_of(kernel)
    if modules is not None:
        tree = _given(modules, release)
        if release:
            tree.check_version(release)
        return tree
    for place in _places(kernel, release):
        if os.path.isdir(place):
            tree = ModuleTree(place, release)
            if len(tree):
                if release:
                    tree.check_version(release)
                return tree
    return None


def _given(place: str, release: str) -> ModuleTree:
    if not os.path.isdir(place):
        raise UsageError(
            f"{place}: no such directory of modules", "give /lib/modules/VERSION, or a kernel's build tree"
        )
    inside = [
        os.path.join(place, *parts, release) for parts in (("lib", "modules"), ("usr", "lib", "modules"), ())
    ]
    for each in (*(path for path in inside if release), place):
        if os.path.isdir(each):
            tree = ModuleTree(each, release)
            if len(tree):
                return tree
    raise UsageError(f"{place}: there are no modules in it", "give the directory that has the *.ko files")


def _places(kernel: str, release: str) -> list[str]:
    path = os.path.realpath(kernel)
    match = _IN_TREE.fullmatch(path)
    places = []
    if match and any(os.path.exists(os.path.join(match["tree"], sign)) for sign in _SIGNS):
        places.append(match["tree"])
    if release:
        beside = os.path.dirname(path)
        places += [os.path.join(beside, "lib", "modules", release), os.path.join(beside, "modules", release)]
        places += [f"/lib/modules/{release}", f"/usr/lib/modules/{release}"]
    return places
