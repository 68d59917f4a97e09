"""PVH: the start_info, its module list and its memory map, all of which must lie below 4 GiB.

Linux include/xen/interface/hvm/start_info.h; the Xen documentation, misc/pvh.  The kernel's 32-bit entry
point finds the start_info by EBX, takes the first module for its initrd, and needs a memory map, for
which the start_info's version must be at least 1 (arch/x86/platform/pvh/enlighten.c).
"""

from __future__ import annotations

import ctypes
from itertools import pairwise

from loader import errors
from loader.enums import PVH_ADDRESS_MAX, PVH_MEMMAP_MAX, U64_MAX, XEN_HVM_START_MAGIC, XEN_HVM_START_VERSION
from loader.structs import hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from loader.boot_params import BootParams
    from loader.memory import Memory

_TABLE_ALIGNMENT = 64


class PvhBootParams:
    """A start_info with its tables: ``start_info``, ``modules``, ``memmap``, as ctypes structures."""

    __slots__ = ("memmap", "modules", "start_info")

    def __init__(
        self,
        start_info: hvm_start_info,
        memmap: Sequence[hvm_memmap_table_entry],
        modules: Sequence[hvm_modlist_entry] = (),
    ) -> None:
        self.start_info = start_info
        self.memmap = list(memmap)
        self.modules = list(modules)


def build(
    addr: int,
    *,
    memmap: Sequence[tuple[int, int, int]],
    cmdline_addr: int = 0,
    rsdp_addr: int = 0,
    modules: Sequence[tuple[int, int]] = (),
    modlist_addr: int | None = None,
    memmap_addr: int | None = None,
) -> PvhBootParams:
    """A start_info for ``addr``, with counts and pointers filled in.  Addresses are guest-physical.

    ``memmap`` holds (start, size, E820Type), at most 126 entries: Linux adds one to the 128 of its zero
    page.  ``modules`` are (address, size), the initrd first.  The tables follow the start_info unless
    their addresses are given.  Raises MemmapTableMissing, MemmapTableSetup, StartInfoSetup, ModulesSetup.
    """
    if modlist_addr is None:
        modlist_addr = _aligned(addr + ctypes.sizeof(hvm_start_info))
    if memmap_addr is None:
        memmap_addr = _aligned(modlist_addr + len(modules) * ctypes.sizeof(hvm_modlist_entry))
    _below_4g(cmdline_addr, 1, "the command line")
    _below_4g(rsdp_addr, 1, "the RSDP")
    start_info = hvm_start_info(
        magic=XEN_HVM_START_MAGIC,
        version=XEN_HVM_START_VERSION,
        nr_modules=len(modules),
        modlist_paddr=modlist_addr if modules else 0,
        cmdline_paddr=cmdline_addr,
        rsdp_paddr=rsdp_addr,
        memmap_paddr=memmap_addr,
        memmap_entries=len(memmap),
    )
    return PvhBootParams(start_info, _memmap(memmap), _modules(modules))


def _aligned(address: int) -> int:
    return (address + _TABLE_ALIGNMENT - 1) & -_TABLE_ALIGNMENT


def _below_4g(address: int, size: int, what: str) -> None:
    if address < 0 or address + size - 1 > PVH_ADDRESS_MAX:
        raise errors.StartInfoSetup(
            f"{what} at {address:#x} does not lie below 4 GiB, where a PVH kernel can reach it",
            "place it lower",
        )


def _memmap(memmap: Sequence[tuple[int, int, int]]) -> list[hvm_memmap_table_entry]:
    if not memmap:
        raise errors.MemmapTableMissing("no memory map, and a PVH kernel stops without one")
    if len(memmap) > PVH_MEMMAP_MAX:
        raise errors.MemmapTableSetup(
            f"the memory map has {len(memmap)} entries, and Linux takes {PVH_MEMMAP_MAX}"
        )
    for index, (start, size, _) in enumerate(memmap):
        if start < 0 or not 0 < size <= U64_MAX or start + size - 1 > U64_MAX:
            raise errors.MemmapTableSetup(
                f"entry {index} of the memory map, {size:#x} bytes at {start:#x}, is no range of memory"
            )
    return [hvm_memmap_table_entry(addr=start, size=size, type=kind) for start, size, kind in memmap]


def _modules(modules: Sequence[tuple[int, int]]) -> list[hvm_modlist_entry]:
    for index, (start, size) in enumerate(modules):
        if start <= 0 or size <= 0 or start + size - 1 > PVH_ADDRESS_MAX:
            raise errors.ModulesSetup(
                f"module {index}, {size:#x} bytes at {start:#x}, does not lie below 4 GiB", "place it lower"
            )
    return [hvm_modlist_entry(paddr=start, size=size) for start, size in modules]


def write(memory: Memory, addr: int, params: PvhBootParams) -> None:
    """Write the memory map, the start_info at ``addr``, and the module list, in this order.

    The tables go where the start_info points.  What ends exactly where RAM does is fine (the crate refuses
    it).  Raises MemmapTableMissing, MemmapTableAddressMissing, MemmapTablePastRamEnd, MemmapTableSetup,
    StartInfoPastRamEnd, StartInfoSetup, ModulesAddressMissing, ModulesSetup.
    """
    info = params.start_info
    memmap = b"".join(bytes(entry) for entry in params.memmap)
    modules = b"".join(bytes(entry) for entry in params.modules)
    if not memmap:
        raise errors.MemmapTableMissing("no memory map, and a PVH kernel stops without one")
    if not info.memmap_paddr:
        raise errors.MemmapTableAddressMissing("no address for the memory map (memmap_paddr is 0)")
    if not memory.contains(info.memmap_paddr, len(memmap)):
        raise errors.MemmapTablePastRamEnd(
            f"the memory map of {len(memmap):#x} bytes at {info.memmap_paddr:#x} is not in RAM"
        )
    if not memory.contains(addr, ctypes.sizeof(info)):
        raise errors.StartInfoPastRamEnd(f"the start_info at {addr:#x} is not in RAM")
    if modules and not info.modlist_paddr:
        raise errors.ModulesAddressMissing("no address for the module list (modlist_paddr is 0)")
    if modules and not memory.contains(info.modlist_paddr, len(modules)):
        raise errors.ModulesSetup(
            f"the module list of {len(modules):#x} bytes at {info.modlist_paddr:#x} is not in RAM"
        )
    _check_reach(addr, info, len(memmap), len(modules))
    memory.write(info.memmap_paddr, memmap)
    memory.write(addr, bytes(info))
    if modules:
        memory.write(info.modlist_paddr, modules)


def _check_reach(addr: int, info: hvm_start_info, memmap_size: int, modules_size: int) -> None:
    """Below 4 GiB, and none over another."""
    items = [
        (addr, ctypes.sizeof(info), "the start_info"),
        (info.memmap_paddr, memmap_size, "the memory map"),
    ]
    if modules_size:
        items.append((info.modlist_paddr, modules_size, "the module list"))
    items.sort()
    for start, size, what in items:
        _below_4g(start, size, what)
    for (start, size, what), (following, _, other) in pairwise(items):
        if start + size > following:
            raise errors.StartInfoSetup(
                f"{what} at {start:#x} reaches into {other} at {following:#x}", "place them apart"
            )


def write_bootparams(memory: Memory, params: BootParams) -> None:
    """Write ``params``: its header, a start_info; its sections, the memory map; its modules, their list.

    As the crate's PvhBootConfigurator does, but the counts and pointers of the start_info are filled in, so
    that they agree with what is written.  Raises the errors of :func:`write`; MemmapTableSetup,
    StartInfoSetup and ModulesSetup also for what has another size than such structures have.
    """
    if not params.sections:
        raise errors.MemmapTableMissing("no memory map, and a PVH kernel stops without one")
    if params.sections_start is None:
        raise errors.MemmapTableAddressMissing("no address for the memory map")
    memmap_size, modlist_size = ctypes.sizeof(hvm_memmap_table_entry), ctypes.sizeof(hvm_modlist_entry)
    if len(params.sections) % memmap_size:
        raise errors.MemmapTableSetup(
            f"a memory map of {len(params.sections)} bytes is not of entries of {memmap_size}"
        )
    if len(params.header) != ctypes.sizeof(hvm_start_info):
        raise errors.StartInfoSetup(
            f"a header of {len(params.header)} bytes is no start_info, which has {ctypes.sizeof(hvm_start_info)}"
        )
    info = hvm_start_info.from_buffer_copy(params.header)
    if info.magic != XEN_HVM_START_MAGIC or info.version < XEN_HVM_START_VERSION:
        raise errors.StartInfoSetup(
            f"start_info with magic {info.magic:#x} and version {info.version}, and a kernel stops unless they"
            f" are {XEN_HVM_START_MAGIC:#x} and {XEN_HVM_START_VERSION} or more"
        )
    modules = params.modules or b""
    if len(modules) % modlist_size:
        raise errors.ModulesSetup(
            f"a module list of {len(modules)} bytes is not of entries of {modlist_size}"
        )
    memmap = [
        hvm_memmap_table_entry.from_buffer_copy(params.sections, at)
        for at in range(0, len(params.sections), memmap_size)
    ]
    modlist = [hvm_modlist_entry.from_buffer_copy(modules, at) for at in range(0, len(modules), modlist_size)]
    info.memmap_paddr, info.memmap_entries = params.sections_start, len(memmap)
    info.modlist_paddr, info.nr_modules = (params.modules_start or 0) if modules else 0, len(modlist)
    write(memory, params.header_start, PvhBootParams(info, memmap, modlist))
