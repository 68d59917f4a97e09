"""The errors of relocation: a table that cannot be right, and a kernel that cannot be moved as asked."""

from __future__ import annotations

from loader.errors import LoaderError


class RelocationError(LoaderError):
    """The kernel cannot be relocated."""


class NoRelocations(RelocationError):
    """Nothing after the ELF file says where the kernel's addresses stand."""


class InvalidRelocationTable(RelocationError):
    """What follows the ELF file starts as a relocation table does, and is none."""


class RelocationOutsideImage(RelocationError):
    """The table names a place that is not in the loaded image; nothing was changed."""


class InvalidRelocationOffset(RelocationError):
    """The offset is not a multiple of the alignment, or moves the kernel out of its 1 GiB of addresses."""
