"""The kernel that is meant: an image, or a kernel's build tree that has one."""

from __future__ import annotations

import os

from pyvmm.errors import ImageError

#: Where ``make`` leaves an image in a build tree, the most useful first (Documentation/kbuild/kbuild.rst).
IN_TREE = {
    "x86_64": ("arch/x86/boot/bzImage", "vmlinux"),
    "aarch64": (
        "arch/arm64/boot/Image",
        "arch/arm64/boot/Image.gz",
        "arch/arm64/boot/vmlinuz.efi",
        "vmlinux",
    ),
}
#: What shows that a directory is a build tree, whether it has an image or not.
_SIGNS = (".config", "Kbuild", "Module.symvers", "include/config/auto.conf")


def find_image(path: str) -> str:
    """The image file for ``path``: itself, unless it is a directory; then the image in that build tree: this host's
    architecture's, or another's if there is no such.

    :raises ImageError: the directory holds none
    """
    if not os.path.isdir(path):
        return path
    own = os.uname().machine
    for _, places in sorted(IN_TREE.items(), key=lambda each: each[0] != own):
        for place in places:
            image = os.path.join(path, place)
            if os.path.isfile(image):
                return image
    if any(os.path.exists(os.path.join(path, sign)) for sign in _SIGNS):
        raise ImageError(f"{path}: a kernel tree without an image", f"build one: make -C {path} -j$(nproc)")
    raise ImageError(
        f"{path}: a directory, and no kernel tree", "give a kernel image, or a tree that was built"
    )
