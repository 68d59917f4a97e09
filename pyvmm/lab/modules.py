"""Kernels in Debian's packages: which hold the lab's, and how the modules come out of them.

The packages bring no modules.dep: :class:`pyvmm.modules.ModuleTree` sees what each module depends on.
"""

from __future__ import annotations

import os
import re
import shutil

from pyvmm.errors import HostError
from pyvmm.lab import packages
from pyvmm.lab.platforms import Platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_KERNEL = re.compile(r"boot/vmlinu[xz]-[^/]+")
_MODULE = re.compile(r"(?:usr/)?lib/modules/[^/]+/(?:.+\.ko(?:\.\w+)?|modules\.[\w.]+)")


def kernel_packages(made_of: Platform) -> list[str]:
    """The package with the kernel that the first known meta-package stands for, and those with its modules."""
    for meta in made_of.kernels:
        direct = packages.direct_dependencies(meta)
        images = [name for name in direct or () if name.startswith("linux-image-")]
        if images:
            more = packages.direct_dependencies(images[0]) or []
            return [images[0], *(name for name in more if name.startswith("linux-modules-"))]
    raise HostError(f"apt knows no kernel package ({' or '.join(made_of.kernels)})", packages.UPDATE_HINT)


def unpack(debs: Iterable[str], folder: str, kernel: str | None = None) -> None:
    """Put the modules in ``debs`` below ``folder``, where they would be installed, and the kernel at ``kernel``.

    :raises HostError: a package cannot be unpacked, or the kernel is wanted and in none of them
    """
    missing = kernel is not None
    for deb in debs:
        for member, contents in packages.members(deb):
            if contents is None or ".." in member.name:
                continue
            if _MODULE.fullmatch(member.name):  # with or without usr/: there is to be one directory
                path = os.path.join(folder, member.name.removeprefix("usr/"))
                os.makedirs(os.path.dirname(path), exist_ok=True)
            elif kernel is not None and _KERNEL.fullmatch(member.name):
                path = kernel
                missing = False
            else:
                continue
            with open(path, "wb") as file:
                shutil.copyfileobj(contents, file)
    if missing:
        raise HostError("the kernel package holds no kernel", "this is a bug in pyvmm: please report it")
