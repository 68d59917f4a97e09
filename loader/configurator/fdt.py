"""The device tree blob as boot parameters: what arm64 and riscv64 kernels find by x0 and a1.

Linux Documentation/arch/arm64/booting.rst and arch/riscv/boot.rst; the checks of the blob stand in
:mod:`loader.dtb`.
"""

from __future__ import annotations

from loader import dtb, errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.boot_params import BootParams
    from loader.memory import Memory


def write_bootparams(memory: Memory, params: BootParams) -> None:
    """Write the blob, which is the header of ``params``.  One that ends where RAM does is fine (the crate
    refuses it).  Nothing is written unless all of it lies in RAM.

    Raises the errors of :func:`loader.dtb.check`, FDTPastRamEnd, and WriteFDTToMemory for a hole.
    """
    addr, size = params.header_start, len(params.header)
    dtb.check(params.header[:8], size, addr)
    if not memory.contains(addr, size):
        where = f"the device tree at {addr:#x}..{addr + size:#x}"
        end = max((start + length for start, length in memory.ranges), default=0)
        if addr + size > end:
            raise errors.FDTPastRamEnd(f"{where} ends past the end of RAM at {end:#x}", "place it lower")
        raise errors.WriteFDTToMemory(f"{where} does not lie in RAM", "place it elsewhere")
    memory.write(addr, params.header)
