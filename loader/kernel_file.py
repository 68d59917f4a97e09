"""A kernel image, opened and told apart; the start of every boot."""

from __future__ import annotations

from loader import errors
from loader.detect import HEAD_SIZE, KERNEL_FORMATS, Format, Identity, identify
from loader.files import ImageFile, open_file, open_regular, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os

#: The machines that a machine can stand in for: an x86_64 processor runs 32-bit kernels.
_COMPATIBLE = {"x86_64": ("x86_64", "i386")}


class KernelFile(ImageFile):
    """An open kernel image: an :class:`~loader.files.ImageFile` with what it was found to be.

    ``format`` is a Format, ``machine`` a name as of ``uname -m``, ``description`` a phrase for people.
    """

    __slots__ = ("description", "format", "machine")

    def __init__(self, fd: int, path: str, identity: Identity) -> None:
        super().__init__(fd, path)
        self.format = identity.format
        self.machine = identity.machine
        self.description = identity.description


def open_kernel(path: str | bytes | os.PathLike[str], machine: str | None = None) -> KernelFile:
    """Open a kernel image, for the machine ``machine`` ("x86_64", ...) if that is given.

    Raises, each with a hint: FileMissing, FilePermission, FileIsDirectory, FileNotRegular, FileEmpty,
    FileUnreadable; NotAKernel for any content that is no kernel image; WrongMachine.
    """
    file = open_file(path)
    try:
        identity = identify(file.read(0, HEAD_SIZE))
        if identity.format not in KERNEL_FORMATS:
            raise errors.NotAKernel(
                f"{file.path}: {identity.description}, not a kernel that can be loaded", identity.hint
            )
        if machine is not None and identity.machine not in _COMPATIBLE.get(machine, (machine,)):
            raise errors.WrongMachine(
                f"{file.path}: {identity.description}, and the machine is {machine}",
                f"give a kernel built for {machine}",
            )
        return KernelFile(file.fd, file.path, identity)
    except BaseException:
        file.close()
        raise


def identify_path(path: str | bytes | os.PathLike[str]) -> Identity:
    """What the file at ``path`` is, kernel or not; a directory and an empty file are told too.

    Raises FileMissing, FilePermission, FileNotRegular or FileUnreadable.
    """
    try:
        fd = open_regular(path)
    except errors.FileIsDirectory as error:
        return Identity(Format.DIRECTORY, "a directory", hint=error.hint)
    with ImageFile(fd, printable(path)) as file:
        return identify(file.read(0, HEAD_SIZE))
