"""The lab's kernel: which Debian packages hold it, and its modules in an order they can be loaded in.

The packages bring no modules.dep; what a module depends on stands in its own ``.modinfo`` section.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import subprocess

from pyvmm.errors import HostError
from pyvmm.lab import packages
from pyvmm.lab.platforms import Platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def kernel_packages(made_of: Platform) -> list[str]:
    """The package with the kernel that the first known meta-package stands for, and those with its modules."""
    for meta in made_of.kernels:
        direct = packages.direct_dependencies(meta)
        images = [name for name in direct or () if name.startswith("linux-image-")]
        if images:
            more = packages.direct_dependencies(images[0]) or []
            return [images[0], *(name for name in more if name.startswith("linux-modules-"))]
    raise HostError(f"apt knows no kernel package ({' or '.join(made_of.kernels)})", packages.UPDATE_HINT)


def unpack(debs: Iterable[str], kernel: str, folder: str) -> dict[str, str | None]:
    """Put the kernel at ``kernel`` and all modules into the directory ``folder``, which is made.

    Returns the path of each module by its name (as lsmod spells it), None for one built into the kernel.
    """
    os.mkdir(folder)
    modules: dict[str, str | None] = {}
    found = False
    for deb in debs:
        for member, contents in packages.members(deb):
            name = os.path.basename(member.name)
            if contents is None:
                continue
            if re.match(r"boot/vmlinu[xz]-", member.name):
                found = True
                with open(kernel, "wb") as file:
                    shutil.copyfileobj(contents, file)
            elif name == "modules.builtin":
                for line in contents.read().decode().split():
                    modules.setdefault(_module_name(line), None)
            elif re.search(r"\.ko(\.[a-z]+)?$", name):
                path = os.path.join(folder, name)
                with open(path, "wb") as file:
                    shutil.copyfileobj(contents, file)
                modules[_module_name(name)] = path
    if not found:
        raise HostError("the kernel package holds no kernel", "this is a bug in pyvmm: please report it")
    return modules


def _module_name(path: str) -> str:
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


def _module_bytes(path: str) -> bytes:
    if path.endswith(".zst"):
        if shutil.which("zstd") is None:
            raise HostError("zstd not found on this host", "install the package zstd")
        return subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        return lzma.decompress(data)
    return gzip.decompress(data) if path.endswith(".gz") else data


def load_order(modules: dict[str, str | None], wanted: Iterable[str]) -> dict[str, bytes]:
    """The contents of the ``wanted`` modules and those they depend on, in an order they can be loaded in."""
    loaded: dict[str, bytes] = {}

    def load(name: str, optional: bool) -> None:
        if name not in modules:
            if optional:
                return
            raise HostError(
                f"the kernel package has no module {name}", "this is a bug in pyvmm: please report it"
            )
        path = modules[name]
        if path is None or name in loaded:
            return
        data = _module_bytes(path)
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends.group(1).decode().split(",") if depends else ():
            if other:
                load(other.replace("-", "_"), optional)
        loaded[name] = data

    for name in wanted:
        load(name.removeprefix("?"), name.startswith("?"))
    return loaded
