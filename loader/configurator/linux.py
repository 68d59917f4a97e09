"""The zero page: struct boot_params, what the Linux/x86 boot protocols hand to the kernel.

Linux Documentation/arch/x86/zero-page.rst, and boot.rst: "32-bit Boot Protocol", "64-bit Boot Protocol",
"Details of Header Fields" (setup_data).  :func:`build` makes it from a bzImage's header, or from one made
up for a vmlinux (:func:`header_for_vmlinux`); :func:`write` puts it, and the setup_data list, into memory.
"""

from __future__ import annotations

import ctypes

from loader import errors
from loader.enums import (
    BOOT_FLAG,
    CMDLINE_SIZE_X86,
    E820_MAX_ENTRIES,
    HDRS_MAGIC,
    INITRD_ADDR_MAX_64,
    KERNEL_ALIGNMENT,
    LOADER_TYPE_UNDEFINED,
    SETUP_HEADER_OFFSET,
    SETUP_INDIRECT,
    U32_MAX,
    U64_MAX,
    VID_MODE_NORMAL,
    LoadFlags,
    Protocol,
)
from loader.structs import boot_params, setup_data, setup_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loader.boot_params import BootParams
    from loader.bzimage import BzImageHeader
    from loader.memory import Memory
    from loader.result import KernelLoaderResult

ZERO_PAGE_SIZE = 4096
_HEAP_END = 0xE000  # of the real-mode code's segment, as boot.rst suggests ("Sample Boot Configuration")


def build(
    header: BzImageHeader | None,
    result: KernelLoaderResult,
    *,
    e820: Sequence[tuple[int, int, int]],
    cmdline_addr: int,
    initrd: tuple[int, int] | None = None,
    acpi_rsdp_addr: int = 0,
    setup_data_addr: int = 0,
) -> boot_params:
    """A zero page.  Addresses are guest-physical, 0 for what there is not.

    ``header`` is the bzImage's, None for a vmlinux; ``result``, from loading it.  ``e820`` holds (start,
    size, E820Type), 2 to 128 entries.  ``cmdline_addr`` may not be 0: a kernel takes that for a boot
    loader before protocol 2.02.  ``initrd`` is (address, size).  ``setup_data_addr`` is the list's first
    node (see :func:`write_setup_data`).  Raises InvalidE820 and ZeroPageSetup.
    """
    params = boot_params()
    if header is None:
        params.hdr = header_for_vmlinux(result)
    else:
        # Only the header, from 0x1f1 to its own end: what lies before it is for the file alone (the byte
        # at 0x1ef would tell the kernel that the rest of the page cannot be trusted).
        ctypes.memmove(ctypes.addressof(params) + SETUP_HEADER_OFFSET, header.raw, len(header.raw))
        params.hdr.code32_start = result.load_base & U32_MAX
    hdr = params.hdr
    if hdr.version < Protocol.COMMAND_LINE_POINTER:
        raise errors.ZeroPageSetup(
            f"the kernel's boot protocol {hdr.version:#x} has no pointer to a command line",
            "use a kernel from 2.4 on",
        )
    hdr.type_of_loader = LOADER_TYPE_UNDEFINED
    hdr.vid_mode = VID_MODE_NORMAL
    hdr.loadflags |= LoadFlags.CAN_USE_HEAP
    hdr.heap_end_ptr = _HEAP_END - 0x200
    if not cmdline_addr:
        raise errors.ZeroPageSetup(
            "no address for the command line (cmd_line_ptr is 0)", "an empty one will do"
        )
    _set_wide(params, "cmd_line_ptr", "ext_cmd_line_ptr", cmdline_addr)
    _set_wide(params, "ramdisk_image", "ext_ramdisk_image", initrd[0] if initrd else 0)
    _set_wide(params, "ramdisk_size", "ext_ramdisk_size", initrd[1] if initrd else 0)
    params.acpi_rsdp_addr = _u64(acpi_rsdp_addr, "acpi_rsdp_addr")
    if setup_data_addr:
        if hdr.version < Protocol.SETUP_DATA:
            raise errors.ZeroPageSetup(
                f"the kernel's boot protocol {hdr.version:#x} has no setup_data", "leave the list out"
            )
        hdr.setup_data = _u64(setup_data_addr, "setup_data")
    _set_e820(params, e820)
    return params


def _u64(value: int, field: str) -> int:
    """``value``, once it is known to fit: ctypes would cut it without a word."""
    if not 0 <= value <= U64_MAX:
        raise errors.ZeroPageSetup(f"{field} {value:#x} does not fit 64 bits")
    return value


def _set_wide(params: boot_params, low: str, high: str, value: int) -> None:
    """Set a field of 32 bits in the header and its upper half, which the zero page has from 2.12 on."""
    if _u64(value, low) > U32_MAX and params.hdr.version < Protocol.XLOADFLAGS:
        raise errors.ZeroPageSetup(
            f"{low} {value:#x} passes the 32 bits of boot protocol {params.hdr.version:#x}",
            "place it below 4 GiB",
        )
    setattr(params.hdr, low, value & U32_MAX)
    setattr(params, high, value >> 32)


def _set_e820(params: boot_params, e820: Sequence[tuple[int, int, int]]) -> None:
    if not 2 <= len(e820) <= E820_MAX_ENTRIES:
        raise errors.InvalidE820(
            f"the memory map has {len(e820)} entries, and a zero page takes 2 to {E820_MAX_ENTRIES}"
        )
    for index, (start, size, kind) in enumerate(e820):
        if start < 0 or not 0 < size <= U64_MAX or start + size - 1 > U64_MAX:
            raise errors.InvalidE820(
                f"entry {index} of the memory map, {size:#x} bytes at {start:#x}, is no range of memory"
            )
        entry = params.e820_table[index]
        entry.addr, entry.size, entry.type = start, size, kind
    params.e820_entries = len(e820)


def header_for_vmlinux(result: KernelLoaderResult) -> setup_header:
    """The setup header a vmlinux would have had: the image itself carries none, and the kernel reads some
    of it (the version, for one, tells it that the fields this module sets are there)."""
    return setup_header(
        boot_flag=BOOT_FLAG,
        header=HDRS_MAGIC,
        version=Protocol.KERNEL_INFO,
        loadflags=LoadFlags.LOADED_HIGH,
        code32_start=result.load_base & U32_MAX,
        initrd_addr_max=INITRD_ADDR_MAX_64,
        kernel_alignment=KERNEL_ALIGNMENT,
        cmdline_size=CMDLINE_SIZE_X86,
        pref_address=result.load_base,
        init_size=(result.kernel_end - result.load_base) & U32_MAX,
    )


def accepts_setup_data(header: BzImageHeader | None, kind: int) -> bool:
    """Whether the kernel says that it takes setup_data of the SetupDataType ``kind``.

    A header from protocol 2.15 on points to the largest type it knows (boot.rst, "The kernel_info"); older
    kernels skip the types they do not know (arch/x86/kernel/setup.c, parse_setup_data), and so does a
    vmlinux, whose image does not say.
    """
    if header is None:
        return True
    if header.protocol < Protocol.SETUP_DATA:
        return False
    return header.setup_type_max is None or kind <= header.setup_type_max & ~SETUP_INDIRECT


def write_setup_data(memory: Memory, addr: int, nodes: Iterable[tuple[int, bytes]]) -> int:
    """Write (SetupDataType, data) nodes from ``addr`` on as a linked list; returns its end.

    Each node starts on an 8-byte boundary, as does ``addr``, which is not 0: that ends a list.  Without nodes
    nothing is written: pass 0 to :func:`build`.  Raises SetupDataPastRamEnd.
    """
    head_size = ctypes.sizeof(setup_data)
    nodes = list(nodes)
    for index, (kind, data) in enumerate(nodes):
        end = addr + head_size + len(data)
        following = (end + 7) & ~7
        if not addr or addr % 8 or not memory.contains(addr, head_size + len(data)):
            raise errors.SetupDataPastRamEnd(
                f"setup_data of type {kind}, {len(data)} bytes, at {addr:#x}: not RAM, or not 8-byte aligned,"
                " or 0, which ends a list"
            )
        last = index == len(nodes) - 1
        memory.write(addr, bytes(setup_data(next=0 if last else following, type=kind, len=len(data))) + data)
        addr = end if last else following
    return addr


def write(memory: Memory, addr: int, params: boot_params) -> None:
    """Write a zero page to ``addr``.  One that ends exactly where RAM does is fine (the crate refuses it).

    Raises ZeroPagePastRamEnd.
    """
    if not memory.contains(addr, ZERO_PAGE_SIZE):
        raise errors.ZeroPagePastRamEnd(
            f"the zero page at {addr:#x}..{addr + ZERO_PAGE_SIZE:#x} does not lie in RAM"
        )
    memory.write(addr, bytes(params))


def write_bootparams(memory: Memory, params: BootParams) -> None:
    """Write the zero page that is the header of ``params``, as the crate's LinuxBootConfigurator does.

    Raises ZeroPageSetup if it is no zero page, and ZeroPagePastRamEnd.
    """
    if len(params.header) != ZERO_PAGE_SIZE:
        raise errors.ZeroPageSetup(
            f"a header of {len(params.header)} bytes is no zero page, which has {ZERO_PAGE_SIZE}",
            "give a boot_params structure",
        )
    write(memory, params.header_start, boot_params.from_buffer_copy(params.header))
