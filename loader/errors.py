"""The errors of the loader: each one line that says what and where, with the offending value, and a hint.

A class for each thing that can be wrong with an image, so that a caller can tell them apart; under one
base, and grouped by format.  The names are those of the Rust crate ``linux-loader``, with the format in
front where two formats share a name there (``ElfOverflow``) or where the name alone says nothing
(``BzImageUnderflow``); the classes without a counterpart there are marked *(ours)*.  Reads here carry
their offset, so a plain seek never fails: the classes for that are kept for the names, marked *(unused)*.

Here stand the base and what the formats share.  The others have a module for each format, and are found here as well
(``errors.InvalidElfClass``): it is loaded when something is wrong.  To make a hundred classes takes a millisecond or
more, which a boot would otherwise spend in vain.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.boot_params_errors import *  # noqa: F403
    from loader.bzimage_errors import *  # noqa: F403
    from loader.cmdline_errors import *  # noqa: F403
    from loader.dtb_errors import *  # noqa: F403
    from loader.elf_errors import *  # noqa: F403
    from loader.image_errors import *  # noqa: F403
    from loader.payload_errors import *  # noqa: F403
    from loader.relocation_errors import *  # noqa: F403

_TOPICS = ("bzimage", "elf", "image", "dtb", "cmdline", "boot_params", "payload", "relocation")


class LoaderError(Exception):
    """Base of every error of this package: ``message`` is one line, ``hint`` what to do (may be empty)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


# -- files ----------------------------------------------------------------------------------------------


class FileError(LoaderError):
    """An input file cannot be used, whatever its format should have been. (ours)"""


class FileMissing(FileError):
    """There is no such file."""


class FilePermission(FileError):
    """The file may not be read by this user."""


class FileIsDirectory(FileError):
    """A directory was given where a file belongs."""


class FileNotRegular(FileError):
    """A pipe, socket or device: the loader reads at offsets, so it needs a regular file."""


class FileEmpty(FileError):
    """The file has no bytes."""


class FileUnreadable(FileError):
    """The operating system refused to open or read the file for another reason."""


class FileChanged(FileError):
    """The file ended earlier than its size said when it was opened."""


class NotAKernel(FileError):
    """The content is nothing that can be booted."""


class WrongMachine(FileError):
    """A kernel, but for another architecture."""


# -- shared by the formats ------------------------------------------------------------------------------


class InvalidKernelStartAddress(LoaderError):
    """The kernel would be loaded below the start of high memory."""


class MemoryOverflow(LoaderError):
    """The kernel would reach past the 64-bit address space or outside RAM."""


class KernelDoesNotFit(LoaderError):
    """The RAM cannot hold what the kernel needs to start. (ours)"""


# -- initrd ---------------------------------------------------------------------------------------------


class InitrdError(LoaderError):
    """Something is wrong with an initrd. (ours)"""


class InitrdDoesNotFit(InitrdError):
    """No free RAM is left for the initrd where the boot protocol allows one."""


class InitrdOutsideRam(InitrdError):
    """The address given for the initrd is not RAM."""


if not TYPE_CHECKING:  # pragma: no branch

    def __getattr__(name):
        for topic in () if name.startswith("_") else _TOPICS:
            module = __import__(f"loader.{topic}_errors", fromlist=(name,))
            if name in vars(module):
                return vars(module)[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
