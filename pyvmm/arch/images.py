"""What every architecture does alike with the user's files: open the kernel, place the initrd."""

from __future__ import annotations

from loader import files, initrd
from loader.errors import LoaderError, NotAKernel
from loader.kernel_file import open_kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from loader.kernel_file import KernelFile
    from pyvmm.machine.spec import MachineSpec
    from pyvmm.memory import GuestMemory


def open_image(path: str, machine: str) -> KernelFile:
    """Open the kernel image, unpacked if it is compressed (a file as a whole, EFI zboot), and find that it is one for
    ``machine``, a name as of ``uname -m``.  Raises LoaderError."""
    try:
        return open_kernel(path, machine=machine)
    except NotAKernel as error:
        from loader import payload

        with files.open_file(path) as file:
            try:
                packed = payload.find(file)
            except LoaderError:
                raise error from None  # not compressed: what was said of it first is what it is
            return payload.open_unpacked(file, packed, machine=machine)


def load_initrd(
    spec: MachineSpec, memory: GuestMemory, place: Callable[[int], int]
) -> tuple[int, int] | None:
    """Load the initrd to where ``place(size)`` says; (address, size), None if there is none.

    Raises LoaderError or GuestMemoryError, and what ``place`` raises.
    """
    source = spec.initrd
    if source is None:
        return None
    image = files.open_file(source) if isinstance(source, str) else source
    try:
        if not isinstance(image, bytes):
            image.may_map = spec.map_files
        size = len(image) if isinstance(image, bytes) else image.size
        address = place(size)
        memory.claim(address, size, "initrd")
        initrd.load(memory, image, address)
    finally:
        if not isinstance(image, bytes):
            image.close()
    return address, size
