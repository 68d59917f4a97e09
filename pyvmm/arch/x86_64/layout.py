"""The address map of the x86_64 machine: everything that stands at a fixed place, in ascending order.

Low memory follows what boot loaders and firmware leave behind on a PC, so that a kernel finds what it
looks for: Linux Documentation/arch/x86/boot.rst ("Memory Layout") and Documentation/arch/x86/zero-page.rst
for the entry, ACPI 6.5 section 5.2.5.1 for the window that is searched for the RSDP, Intel SDM volume 3
section 11.4.1 for the LAPIC.  The e820 types are those of ACPI 6.5, section 15.2 (table 15.3).
"""

from __future__ import annotations

from pyvmm.errors import UsageError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE_SIZE = 4 * KIB

# -- RAM below 1 MiB ------------------------------------------------------------------------------------

GDT = 0x0500  # four descriptors: null, TSS, code, data (segments.py)
EXCEPTION_HANDLERS = 0x5000  # an IDT and handlers for the time before the guest has its own (handlers.py)
PVH_START_INFO = 0x6000  # hvm_start_info, then its module list and its memory map
PVH_MODULES = 0x6040
ZERO_PAGE = 0x7000  # struct boot_params
BOOT_STACK_TOP = 0x8FF0  # grows down to 0x8000; 16-byte aligned
PML4 = 0x9000  # identity map of the first 4 GiB (paging.py)
PDPT = 0xA000
PAGE_DIRECTORIES = 0xB000  # four, one for each GiB
COMMAND_LINE = 0x2_0000
COMMAND_LINE_SIZE = 0x1_0000
SETUP_DATA = 0x3_0000  # what the zero page has no field for: the RNG seed
EBDA = 0x9_FC00  # the end of what the kernel may use of low RAM
VGA_HOLE = 0xA_0000
ACPI_TABLES = 0xE_0000  # the RSDP first, where a kernel that is told nothing searches for it
MP_TABLE = 0xF_0000  # the floating pointer first, in the window that a kernel without ACPI searches
RESET_STUB = 0xF_FFF0  # the BIOS reset vector f000:fff0: Linux jumps here to restart (see RESET_STUB_CODE)
LOW_RAM_END = EBDA
HIMEM = 0x10_0000  # where kernels are loaded

# -- the hole below 4 GiB, and RAM above it -------------------------------------------------------------

HOLE = 0xC000_0000
VIRTIO = 0xD000_0000  # a page of registers for each virtio device, as many as there are VIRTIO_GSIS
IOAPIC = 0xFEC0_0000
LAPIC = 0xFEE0_0000
KVM_IDENTITY_MAP = 0xFFFB_C000  # one page that KVM on Intel needs for guests that run without paging
KVM_TSS = 0xFFFB_D000  # three pages that KVM on Intel needs for guests in real mode
HIGH_RAM = 0x1_0000_0000

# The interrupt of each virtio device; pins that no ISA device has come first (see the interrupts below).
VIRTIO_GSIS = (*range(16, 24), 5, 6, 7, *range(10, 16))

MEMORY_MAP: tuple[tuple[int, int, str], ...] = (
    # start            size                what
    (GDT, 0x20, "GDT"),
    (EXCEPTION_HANDLERS, 0x1000, "exception handlers"),
    (PVH_START_INFO, 0x1000, "PVH start_info, modules and memory map"),
    (ZERO_PAGE, 0x1000, "zero page"),
    (0x8000, 0x1000, "boot stack"),
    (PML4, 0x1000, "PML4"),
    (PDPT, 0x1000, "PDPT"),
    (PAGE_DIRECTORIES, 0x4000, "page directories"),
    (COMMAND_LINE, COMMAND_LINE_SIZE, "command line"),
    (SETUP_DATA, 0x1000, "setup_data"),
    (EBDA, 0x400, "EBDA"),
    (VGA_HOLE, 0x4_0000, "VGA and option ROM window"),
    (ACPI_TABLES, 0x1_0000, "ACPI tables"),
    (MP_TABLE, 0x2000, "MP table"),
    (RESET_STUB, 0x10, "reset stub"),
    (HIMEM, HOLE - HIMEM, "RAM from 1 MiB"),
    (VIRTIO, PAGE_SIZE * len(VIRTIO_GSIS), "virtio devices"),
    (IOAPIC, 0x1000, "IOAPIC"),
    (LAPIC, 0x1000, "LAPIC"),
    (KVM_IDENTITY_MAP, 0x1000, "KVM identity map"),
    (KVM_TSS, 0x3000, "KVM TSS"),
    (HIGH_RAM, (1 << 39) - HIGH_RAM, "RAM from 4 GiB"),
)

# mov al, 0xfe; out 0x64, al; hlt; jmp to the hlt.  Linux on hardware-reduced ACPI restarts through the
# BIOS vector (arch/x86/kernel/reboot.c); this turns the jump into a reset the machine sees.
RESET_STUB_CODE = bytes.fromhex("b0fe e664 f4 ebfd")

# -- I/O ports ------------------------------------------------------------------------------------------

CMOS_INDEX, CMOS_DATA = 0x70, 0x71
POST_CODE = 0x80
KEYBOARD_CONTROLLER = 0x64  # 0xfe written here resets the machine, as it did on the PC/AT
GUEST_STATUS = 0xF4  # the guest's exit status; writing it ends the guest
COM1, COM2, COM3, COM4 = 0x3F8, 0x2F8, 0x3E8, 0x2E8
SLEEP_CONTROL = 0x600  # ACPI hardware-reduced sleep registers, in the FADT
SLEEP_STATUS = 0x601
RESET_REGISTER = 0x602  # writing RESET_VALUE resets the machine, in the FADT
RESET_VALUE = 1
PCI_CONFIG, PCI_CONFIG_SIZE = 0xCF8, 8  # no PCI: reads are all ones
RESET_CONTROL = 0xCF9  # 6 written here resets the machine, as on Intel chipsets

PORT_MAP: tuple[tuple[int, int, str], ...] = (
    # first           count            what
    (KEYBOARD_CONTROLLER, 1, "keyboard controller"),
    (CMOS_INDEX, 2, "CMOS"),
    (POST_CODE, 1, "POST code"),
    (GUEST_STATUS, 1, "guest exit status"),
    (COM4, 8, "COM4"),
    (COM2, 8, "COM2"),
    (COM3, 8, "COM3"),
    (COM1, 8, "COM1"),
    (SLEEP_CONTROL, 1, "sleep control"),
    (SLEEP_STATUS, 1, "sleep status"),
    (RESET_REGISTER, 1, "reset register"),
    (PCI_CONFIG, PCI_CONFIG_SIZE, "PCI configuration, and reset control within it"),
)

# -- interrupts (GSI = ISA IRQ: the IOAPIC's first 16 pins) ---------------------------------------------

COM1_IRQ, COM2_IRQ = 4, 3
GED_GSI = 9  # the power button's event (acpi.py): where a PC has its SCI, which this machine lacks
IOAPIC_PINS = 24

# -- RAM ------------------------------------------------------------------------------------------------

MINIMUM_MEMORY = 2 * MIB  # low memory and 1 MiB to load into; the loader checks what the kernel needs
MAXIMUM_MEMORY = 511 * GIB  # with the hole it ends at 2**39, what the smallest 64-bit processors address

E820_RAM, E820_RESERVED, E820_ACPI, E820_NVS, E820_UNUSABLE = 1, 2, 3, 4, 5


def ram_ranges(size: int) -> list[tuple[int, int]]:
    """Where ``size`` bytes of RAM stand: (start, size) below the hole, and the rest from 4 GiB.

    UsageError if there is too little, too much, or a part of a page.
    """
    if size < MINIMUM_MEMORY:
        raise UsageError(
            f"memory of {_readable(size)} is less than the smallest machine's {_readable(MINIMUM_MEMORY)}",
            "give more with --memory; a distribution kernel needs 128M or more",
        )
    if size > MAXIMUM_MEMORY:
        raise UsageError(
            f"memory of {_readable(size)} is more than the largest machine's {_readable(MAXIMUM_MEMORY)}",
            "give less with --memory",
        )
    if size % PAGE_SIZE:
        raise UsageError(
            f"memory of {size} bytes is not a whole number of {PAGE_SIZE}-byte pages",
            "give --memory in mebibytes, as in 512M",
        )
    if size <= HOLE:
        return [(0, size)]
    return [(0, HOLE), (HIGH_RAM, size - HOLE)]


def e820(size: int) -> list[tuple[int, int, int]]:
    """The memory map the guest is told, for ``size`` bytes of RAM: (start, size, type), ascending.

    Low RAM ends at the EBDA; from there to 1 MiB is reserved although RAM backs it (ACPI tables, reset
    stub), so that a kernel leaves it alone.  Raises as :func:`ram_ranges` does.
    """
    (_, low), *high = ram_ranges(size)
    return [
        (0, LOW_RAM_END, E820_RAM),
        (LOW_RAM_END, HIMEM - LOW_RAM_END, E820_RESERVED),
        (HIMEM, low - HIMEM, E820_RAM),
        *((start, length, E820_RAM) for start, length in high),
    ]


def virtio_slot(index: int) -> tuple[int, int]:
    """Where virtio device ``index`` stands: (address of its registers, GSI).  UsageError if there is no room for it."""
    if index >= len(VIRTIO_GSIS):
        raise UsageError(
            f"there is no room for more than {len(VIRTIO_GSIS)} virtio devices", "attach fewer devices"
        )
    return VIRTIO + index * PAGE_SIZE, VIRTIO_GSIS[index]


def _readable(size: int) -> str:
    """``size`` in the largest unit that divides it."""
    for unit, suffix in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {suffix}"
    return f"{size} bytes"
