"""What each field of a kernel image's headers means, in words for people, and where that is documented.

Kept apart from :mod:`loader.descriptions`, which every boot imports.  Layouts stand in
:mod:`loader.structs`, numbers in :mod:`loader.enums`.
"""

from __future__ import annotations

from loader.enums import LoadFlags, SetupDataType, XLoadFlags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Documents, by the short names that the tables below use; Linux paths are those of its source tree.
DOCUMENTS = {
    "x86": "Linux Documentation/arch/x86/boot.rst",
    "arm64": "Linux Documentation/arch/arm64/booting.rst",
    "riscv": "Linux Documentation/arch/riscv/boot-image-header.rst",
    "zboot": "Linux drivers/firmware/efi/libstub/zboot-header.S",
    "gabi": "System V gABI",
    "xen": "Xen public/elfnote.h",
    "pvh": "Xen docs/misc/pvh.pandoc",
}

_HEADER = "Details of Header Fields"
_HANDOVER = "EFI Handover Protocol (deprecated)"


def section(document: str, title: str) -> str:
    """A reference as it is printed: the document and the section in it."""
    return f'{DOCUMENTS[document]}, "{title}"' if title else DOCUMENTS[document]


#: The x86 setup header: name, first boot protocol that has the field, meaning, section of boot.rst.
SETUP_HEADER: tuple[tuple[str, int, str, str], ...] = (
    ("setup_sects", 0x000, "sectors of 512 bytes of setup code after the boot sector; 0 means 4", _HEADER),
    ("root_flags", 0x000, "the root file system is first mounted read-only, unless 0 (use ro, rw)", _HEADER),
    ("syssize", 0x000, "protected-mode code in units of 16 bytes", _HEADER),
    ("ram_size", 0x000, "obsolete; left to the old boot sector", _HEADER),
    ("vid_mode", 0x000, "video mode that the setup code chooses", "Special Command Line Options"),
    ("root_dev", 0x000, "default root device, major and minor number (use root=)", _HEADER),
    ("boot_flag", 0x000, "magic of a boot sector, 0xaa55", _HEADER),
    ("jump", 0x200, "jump over the header; its target tells where the header ends", _HEADER),
    ("header", 0x200, 'magic, "HdrS"', _HEADER),
    ("version", 0x200, "version of the boot protocol, major and minor byte", _HEADER),
    ("realmode_swtch", 0x200, "hook to run before protected mode is entered", "Advanced Boot Loader Hooks"),
    ("start_sys_seg", 0x200, "obsolete; the segment for kernels that are loaded low", _HEADER),
    ("kernel_version", 0x200, "where the version string is in the file, less 0x200; 0 if nowhere", _HEADER),
    ("type_of_loader", 0x200, "the boot loader's identity, which it fills in", _HEADER),
    ("loadflags", 0x200, "options between kernel and boot loader", _HEADER),
    ("setup_move_size", 0x200, "bytes to move to 0x90000; protocols 2.00 and 2.01 alone use it", _HEADER),
    ("code32_start", 0x200, "32-bit entry point, and with it the default load address", _HEADER),
    ("ramdisk_image", 0x200, "address of the initrd, which the boot loader fills in", _HEADER),
    ("ramdisk_size", 0x200, "bytes of the initrd, which the boot loader fills in", _HEADER),
    ("bootsect_kludge", 0x200, "obsolete; left to the old boot sector", _HEADER),
    ("heap_end_ptr", 0x201, "end of the setup code's stack and heap, less 0x200", _HEADER),
    ("ext_loader_ver", 0x202, "more of the boot loader's version", _HEADER),
    ("ext_loader_type", 0x202, "more of the boot loader's identity, where that is 0xe", _HEADER),
    ("cmd_line_ptr", 0x202, "address of the command line, which the boot loader fills in", _HEADER),
    ("initrd_addr_max", 0x203, "last byte that an initrd may occupy", _HEADER),
    ("kernel_alignment", 0x205, "alignment of the address that a relocatable kernel runs at", _HEADER),
    ("relocatable_kernel", 0x205, "the kernel may be loaded anywhere (aligned), unless 0", _HEADER),
    ("min_alignment", 0x20A, "smallest alignment that still boots, as a power of two", _HEADER),
    ("xloadflags", 0x20C, "what the kernel can do", _HEADER),
    ("cmdline_size", 0x206, "characters of a command line that are kept, without the NUL", _HEADER),
    ("hardware_subarch", 0x207, "kind of machine", _HEADER),
    ("hardware_subarch_data", 0x207, "more about the kind of machine", _HEADER),
    ("payload_offset", 0x208, "where the payload is, from the start of the protected-mode code", _HEADER),
    ("payload_length", 0x208, "bytes of the payload", _HEADER),
    ("setup_data", 0x209, "address of a list of further boot parameters; the boot loader's", _HEADER),
    ("pref_address", 0x20A, "address the kernel prefers to be loaded at; one not relocatable runs there", _HEADER),
    ("init_size", 0x20A, "memory from the run-time start on that must be there before it is mapped", _HEADER),
    ("handover_offset", 0x20B, "EFI handover entry point in the protected-mode code", _HANDOVER),
    ("kernel_info_offset", 0x20F, "where kernel_info is in the protected-mode code", "The kernel_info"),
)  # fmt: skip

#: kernel_info: name, offset, meaning.
KERNEL_INFO: tuple[tuple[str, int, str], ...] = (
    ("kernel_info.header", 0, 'magic, "LToP"'),
    ("kernel_info.size", 4, "bytes of its fixed part"),
    ("kernel_info.size_total", 8, "bytes with the variable part"),
    ("kernel_info.setup_type_max", 12, "largest setup_data type the kernel knows"),
)

#: The 64-byte header of an arm64 Image: name, offset, size, meaning.
ARM64_IMAGE: tuple[tuple[str, int, int, str], ...] = (
    ("code0", 0x00, 4, "instruction; its low bytes read MZ where the image is an EFI program too"),
    ("code1", 0x04, 4, "instruction, a branch to the kernel's start"),
    ("text_offset", 0x08, 8, "distance of the image from a 2 MiB boundary"),
    ("image_size", 0x10, 8, "memory to keep free from the image's start on; 0 in kernels before 3.17"),
    ("flags", 0x18, 8, "byte order, page size and placement"),
    ("res2", 0x20, 8, "reserved"),
    ("res3", 0x28, 8, "reserved"),
    ("res4", 0x30, 8, "reserved"),
    ("magic", 0x38, 4, 'magic, "ARM\\x64"'),
    ("res5", 0x3C, 4, "where the PE header is, for EFI"),
)
ARM64_SECTION = "4. Call the kernel image"

#: The 64-byte header of a riscv Image: name, offset, size, meaning.
RISCV_IMAGE: tuple[tuple[str, int, int, str], ...] = (
    ("code0", 0x00, 4, "instruction; its low bytes read MZ where the image is an EFI program too"),
    ("code1", 0x04, 4, "instruction, a jump to the kernel's start"),
    ("text_offset", 0x08, 8, "distance of the image from the start of RAM"),
    ("image_size", 0x10, 8, "memory to keep free from the image's start on"),
    ("flags", 0x18, 8, "byte order"),
    ("version", 0x20, 4, "version of this header, major and minor"),
    ("res1", 0x24, 4, "reserved"),
    ("res2", 0x28, 8, "reserved"),
    ("magic", 0x30, 8, 'magic, "RISCV" (deprecated)'),
    ("magic2", 0x38, 4, 'magic, "RSC\\x05"'),
    ("res3", 0x3C, 4, "where the PE header is, for EFI"),
)

#: The header of an EFI zboot image: name, offset, size, meaning.
EFI_ZBOOT: tuple[tuple[str, int, int, str], ...] = (
    ("mz_magic", 0x00, 2, 'magic of a DOS program, "MZ"'),
    ("zimg_magic", 0x04, 4, 'magic, "zimg"'),
    ("payload_offset", 0x08, 4, "where the compressed image is in the file"),
    ("payload_size", 0x0C, 4, "its bytes, without the size appended to it"),
    ("comp_type", 0x18, 32, "how it is compressed"),
    ("linux_magic", 0x38, 4, "magic of a Linux EFI program, 0x818223cd"),
    ("pe_header", 0x3C, 4, "where the PE header is"),
)

#: The ELF header: name, meaning.  Offsets and sizes depend on the class.
ELF_HEADER: tuple[tuple[str, str], ...] = (
    ("ei_class", "width of addresses"),
    ("ei_data", "byte order"),
    ("ei_osabi", "operating system it was made for; 0 is none in particular"),
    ("e_type", "kind of file"),
    ("e_machine", "architecture"),
    ("e_version", "version of the format, 1"),
    ("e_entry", "entry point"),
    ("e_phoff", "where the program headers are in the file"),
    ("e_shoff", "where the section headers are in the file; 0 if nowhere"),
    ("e_flags", "flags of the architecture"),
    ("e_ehsize", "bytes of this header"),
    ("e_phentsize", "bytes of a program header"),
    ("e_phnum", "number of program headers"),
    ("e_shentsize", "bytes of a section header"),
    ("e_shnum", "number of section headers"),
    ("e_shstrndx", "section that holds the sections' names"),
)
ELF_SECTION = "ELF Header"

SEGMENT_TYPES = {
    0: "NULL",
    1: "LOAD",
    2: "DYNAMIC",
    3: "INTERP",
    4: "NOTE",
    5: "SHLIB",
    6: "PHDR",
    7: "TLS",
    0x6474E550: "GNU_EH_FRAME",
    0x6474E551: "GNU_STACK",
    0x6474E552: "GNU_RELRO",
    0x6474E553: "GNU_PROPERTY",
}

OBJECT_TYPES = {0: "NONE", 1: "REL", 2: "EXEC", 3: "DYN", 4: "CORE"}

XEN_NOTES = {
    0: "INFO",
    1: "ENTRY",
    2: "HYPERCALL_PAGE",
    3: "VIRT_BASE",
    4: "PADDR_OFFSET",
    5: "XEN_VERSION",
    6: "GUEST_OS",
    7: "GUEST_VERSION",
    8: "LOADER",
    9: "PAE_MODE",
    10: "FEATURES",
    11: "BSD_SYMTAB",
    12: "HV_START_LOW",
    13: "L1_MFN_VALID",
    14: "SUSPEND_CANCEL",
    15: "INIT_P2M",
    16: "MOD_START_PFN",
    17: "SUPPORTED_FEATURES",
    18: "PHYS32_ENTRY",
    19: "PHYS32_RELOC",
}
#: The Xen notes that hold text; the others hold numbers.
XEN_TEXT_NOTES = frozenset((0, 5, 6, 7, 8, 9, 10, 11))

GNU_NOTES = {1: "ABI_TAG", 2: "HWCAP", 3: "BUILD_ID", 4: "GOLD_VERSION", 5: "PROPERTY_TYPE_0"}
LINUX_NOTES = {0x100: "BUILD_SALT", 0x101: "BUILD_LTO", 0x257: "LINUX_ELFNOTE"}

#: Boot loaders by the high digit of type_of_loader.
LOADER_TYPES = {
    0: "LILO",
    1: "Loadlin",
    2: "bootsect-loader",
    3: "Syslinux",
    4: "Etherboot, iPXE",
    5: "ELILO",
    7: "GRUB",
    8: "U-Boot",
    9: "Xen",
    0xA: "Gujin",
    0xB: "QEMU",
    0xC: "Arcturus uCbootloader",
    0xD: "kexec-tools",
    0xE: "extended",
    0xF: "undefined",
}

SUBARCHITECTURES = {0: "PC", 1: "lguest", 2: "Xen", 3: "Moorestown MID", 4: "CE4100 TV platform"}

ARM64_PAGE_SIZES = {0: "page size not given", 1: "4 KiB pages", 2: "16 KiB pages", 3: "64 KiB pages"}


def constants(group: type) -> dict[int, str]:
    """The names of a group of numbers in :mod:`loader.enums`, by number."""
    return {value: name for name, value in vars(group).items() if isinstance(value, int)}


LOADFLAGS = constants(LoadFlags)
XLOADFLAGS = {**constants(XLoadFlags), 1 << 7: "MEM_ENCRYPTION"}
SETUP_DATA_TYPES = constants(SetupDataType)


def bits(value: int, names: Mapping[int, str]) -> list[str]:
    """The names of the bits set in ``value``, lowest first; a bit without a name as ``bit N``."""
    return [names.get(1 << n, f"bit {n}") for n in range(value.bit_length()) if value >> n & 1]
