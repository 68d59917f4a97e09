"""Which lab: that of this host's own architecture, or the one that a kernel was built for."""

from __future__ import annotations

import os

from loader.errors import LoaderError
from pyvmm.lab.platforms import PLATFORMS, platform

DEFAULT = "x86_64"
_SAME = {"i386": "x86_64"}  # a PVH kernel may be one, and runs on the other


def default_architecture() -> str:
    """This host's architecture; x86_64 where there is no lab of it."""
    own = os.uname().machine
    return own if own in PLATFORMS else DEFAULT


def architecture_for(kernel: str) -> str:
    """The architecture of the lab that the kernel image at ``kernel`` boots in: what it was built for.

    A file that is no kernel goes to the default one, where pyvmm says what is the matter with it.

    :raises UsageError: it is a kernel for an architecture of which there is no lab
    """
    machine = _machine(kernel)
    return platform(_SAME.get(machine, machine)).architecture if machine else default_architecture()


def _machine(path: str) -> str:
    """The machine that a kernel image, compressed or not, is for; empty if it does not tell or is none."""
    from loader.detect import HEAD_SIZE, KERNEL_FORMATS, Format, identify
    from loader.files import open_file
    from loader.payload import open_unpacked

    try:
        with open_file(path) as file:
            found = identify(file.read(0, HEAD_SIZE))
            if found.format in KERNEL_FORMATS or (found.format is Format.EFI_ZBOOT and found.machine):
                return found.machine
            with open_unpacked(file) as kernel:
                return kernel.machine
    except LoaderError:
        return ""
