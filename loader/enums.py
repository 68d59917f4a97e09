"""Numbers of the formats: magics, flags and types, by the names the specifications give them.

Layouts stand in :mod:`loader.structs`, words for people in :mod:`loader.descriptions`.  Sources: Linux
Documentation/arch/x86/boot.rst and zero-page.rst, arch/x86/include/uapi/asm/bootparam.h,
include/xen/interface/elfnote.h and hvm/start_info.h; the ELF gABI; ACPI 6.5 table 15.3.

The groups are plain classes of ints, not enums: these modules are imported by every boot, and two
milliseconds of making enums is more than loading a small kernel takes.
"""

from __future__ import annotations

U32_MAX = (1 << 32) - 1
U64_MAX = (1 << 64) - 1
FILE_OFFSET_MAX = (1 << 63) - 1  # what an off_t holds: a larger offset is no place in a file
PAGE_SIZE = 4096

# -- x86 boot protocol ---------------------------------------------------------------------------------

SETUP_HEADER_OFFSET = 0x1F1
SETUP_HEADER_LIMIT = 0x290  # where struct boot_params continues: the header may never reach further
SECTOR_SIZE = 512
DEFAULT_SETUP_SECTS = 4  # what 0 means
BOOT_FLAG = 0xAA55
HDRS_MAGIC = 0x53726448  # "HdrS"
KERNEL_INFO_MAGIC = 0x506F544C  # "LToP"
ENTRY_64_OFFSET = 0x200  # the 64-bit entry point, from the start of the protected-mode code
HIGH_LOAD_ADDRESS = 0x10_0000  # where a bzImage is loaded unless the loader knows better
LOADER_TYPE_UNDEFINED = 0xFF  # a loader without an assigned id
VID_MODE_NORMAL = 0xFFFF
E820_MAX_ENTRIES = 128  # E820_MAX_ENTRIES_ZEROPAGE
INITRD_ADDR_MAX_OLD = 0x37FF_FFFF  # before protocol 2.03; the last byte, as the field that replaced it
INITRD_ADDR_MAX_64 = 0x7FFF_FFFF  # what a 64-bit kernel's header says; for a vmlinux, which has none
CMDLINE_SIZE_OLD = 255  # before protocol 2.06; without the NUL, as the field that replaced it
CMDLINE_SIZE_X86 = 2047  # COMMAND_LINE_SIZE - 1
KERNEL_ALIGNMENT = 0x20_0000  # MIN_KERNEL_ALIGN of a 64-bit kernel


class Protocol:
    """Boot protocol versions that brought something the loader reads or writes."""

    HIGH_LOAD = 0x200
    HEAP_END = 0x201
    COMMAND_LINE_POINTER = 0x202
    INITRD_ADDR_MAX = 0x203
    SYSSIZE_32_BIT = 0x204
    RELOCATABLE = 0x205
    CMDLINE_SIZE = 0x206
    PAYLOAD = 0x208
    SETUP_DATA = 0x209
    INIT_SIZE = 0x20A
    XLOADFLAGS = 0x20C
    KERNEL_INFO = 0x20F


class LoadFlags:
    """setup_header.loadflags."""

    LOADED_HIGH = 1 << 0
    KASLR_FLAG = 1 << 1
    QUIET_FLAG = 1 << 5
    KEEP_SEGMENTS = 1 << 6
    CAN_USE_HEAP = 1 << 7


class XLoadFlags:
    """setup_header.xloadflags, from protocol 2.12."""

    KERNEL_64 = 1 << 0
    CAN_BE_LOADED_ABOVE_4G = 1 << 1
    EFI_HANDOVER_32 = 1 << 2
    EFI_HANDOVER_64 = 1 << 3
    EFI_KEXEC = 1 << 4
    FIVE_LEVEL = 1 << 5
    FIVE_LEVEL_ENABLED = 1 << 6


class SetupDataType:
    """setup_data.type: what a node of the list holds."""

    NONE = 0
    E820_EXT = 1
    DTB = 2
    PCI = 3
    EFI = 4
    APPLE_PROPERTIES = 5
    JAILHOUSE = 6
    CC_BLOB = 7
    IMA = 8
    RNG_SEED = 9


SETUP_INDIRECT = 1 << 31


class E820Type:
    """Address range types, shared by the zero page's e820 table and the PVH memory map."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    UNUSABLE = 5
    DISABLED = 6
    PMEM = 7


# -- ELF -----------------------------------------------------------------------------------------------

ELF_MAGIC = b"\x7fELF"
ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB, ELFDATA2MSB = 1, 2
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_386, EM_ARM, EM_X86_64, EM_AARCH64, EM_RISCV = 3, 40, 62, 183, 243
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
NT_GNU_ABI_TAG = 1
XEN_ELFNOTE_GUEST_OS = 6
XEN_ELFNOTE_PHYS32_ENTRY = 18
XEN_ELFNOTE_PHYS32_RELOC = 19

# -- PVH -----------------------------------------------------------------------------------------------

XEN_HVM_START_MAGIC = 0x336E_C578
XEN_HVM_START_VERSION = 1
PVH_ADDRESS_MAX = U32_MAX  # the kernel's PVH entry runs without paging: all it reads lies below 4 GiB
PVH_MEMMAP_MAX = 126  # Linux adds the ISA hole to the table it copies into its zero page

# -- arm64 and riscv64 Image, device tree --------------------------------------------------------------

ARM64_IMAGE_MAGIC = 0x644D_5241  # "ARM\x64"
RISCV64_IMAGE_MAGIC2 = 0x0543_5352  # "RSC\x05"
IMAGE_BASE_ALIGNMENT = 0x20_0000
ARM64_TEXT_OFFSET_OLD = 0x8_0000  # before Linux 3.17, whose images have no image_size
ARM64_INITRD_WINDOW = 32 << 30  # from the 1 GiB boundary at or below the kernel on
CMDLINE_SIZE_ARM64 = 2047  # COMMAND_LINE_SIZE - 1, as for x86
CMDLINE_SIZE_RISCV64 = 1023
FDT_MAGIC = b"\xd0\x0d\xfe\xed"
FDT_HEADER_SIZE = 40  # version 17
DTB_SIZE_MAX = 0x20_0000
DTB_ALIGNMENT = 8
