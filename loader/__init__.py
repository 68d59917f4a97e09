"""Loading kernels: from an image file to guest memory, and the boot parameters beside it.

Knows no KVM: it writes through a small memory protocol (:class:`loader.memory.Memory`), so that any VMM
can use it.  Loading a bzImage into memory made of a bytearray::

    import loader
    from loader import bzimage, cmdline, initrd
    from loader.configurator import linux

    memory = loader.BufferMemory([(0, 256 << 20)])
    with loader.open_kernel("bzImage", machine="x86_64") as kernel:
        header = bzimage.read_header(kernel)
        result = bzimage.load(memory, kernel, bzimage.place(memory, header), header=header)
    cmdline.load_cmdline(memory, 0x20000, cmdline.check("console=ttyS0", result.cmdline_size))
    e820 = [(0, 0x9FC00, 1), (0x100000, (256 << 20) - 0x100000, 1)]
    linux.write(memory, 0x7000, linux.build(header, result, e820=e820, cmdline_addr=0x20000))
    # now enter a vCPU at result.entry_64 with RSI = 0x7000

The modules: :mod:`~loader.detect` and :mod:`~loader.kernel_file` (what a file is), :mod:`~loader.bzimage`,
:mod:`~loader.elf` and :mod:`~loader.image` (formats), :mod:`~loader.initrd`, :mod:`~loader.dtb`,
:mod:`~loader.cmdline` and :mod:`~loader.cmdline_builder`, :mod:`~loader.configurator.linux`,
:mod:`~loader.configurator.pvh`, :mod:`~loader.configurator.fdt` and :mod:`~loader.boot_params` (boot
parameters), and :mod:`~loader.errors`.  Each loads only what it needs, and so does this one: its names are
imported when they are first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.boot_params import BootParams
    from loader.buffer import BufferMemory
    from loader.cmdline_builder import Cmdline
    from loader.detect import Format, Identity, identify
    from loader.errors import LoaderError
    from loader.files import ImageFile, open_file
    from loader.kernel_file import KernelFile, identify_path, open_kernel
    from loader.memory import Memory
    from loader.result import KernelLoaderResult, PvhBootCapability

__all__ = [
    "BootParams",
    "BufferMemory",
    "Cmdline",
    "Format",
    "Identity",
    "ImageFile",
    "KernelFile",
    "KernelLoaderResult",
    "LoaderError",
    "Memory",
    "PvhBootCapability",
    "identify",
    "identify_path",
    "open_file",
    "open_kernel",
]

_HOME = {
    "BootParams": "boot_params",
    "BufferMemory": "buffer",
    "Cmdline": "cmdline_builder",
    "Format": "detect",
    "Identity": "detect",
    "ImageFile": "files",
    "KernelFile": "kernel_file",
    "KernelLoaderResult": "result",
    "LoaderError": "errors",
    "Memory": "memory",
    "PvhBootCapability": "result",
    "identify": "detect",
    "identify_path": "kernel_file",
    "open_file": "files",
    "open_kernel": "kernel_file",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = __import__(f"loader.{_HOME[name]}", fromlist=(name,))
    value = globals()[name] = getattr(module, name)
    return value
