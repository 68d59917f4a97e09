"""Layouts of the boot structures, as ctypes structures under their C names.

``setup_header``, ``boot_params``, ``boot_e820_entry`` and ``setup_data`` are those of Linux
arch/x86/include/uapi/asm/bootparam.h (explained in Documentation/arch/x86/boot.rst and zero-page.rst);
``hvm_start_info`` and its tables those of include/xen/interface/hvm/start_info.h; the Image headers those of
arch/arm64/include/asm/image.h and arch/riscv/include/asm/image.h.  All little-endian.
Fields nobody here touches are opaque bytes.
"""

from __future__ import annotations

from ctypes import LittleEndianStructure
from ctypes import c_uint8 as u8
from ctypes import c_uint16 as u16
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64

# Each structure names its fields a second time for type checkers alone: ctypes takes an assignment to a
# field that does not exist without a word, so a checker must be able to see which ones do.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import Array


class setup_header(LittleEndianStructure):
    """The kernel's header at 0x1f1 of a bzImage, and of the zero page."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [
        ("setup_sects", u8),  # 0x1f1
        ("root_flags", u16),
        ("syssize", u32),
        ("ram_size", u16),
        ("vid_mode", u16),
        ("root_dev", u16),
        ("boot_flag", u16),
        ("jump", u16),  # 0x200
        ("header", u32),
        ("version", u16),
        ("realmode_swtch", u32),
        ("start_sys_seg", u16),
        ("kernel_version", u16),
        ("type_of_loader", u8),  # 0x210
        ("loadflags", u8),
        ("setup_move_size", u16),
        ("code32_start", u32),
        ("ramdisk_image", u32),
        ("ramdisk_size", u32),
        ("bootsect_kludge", u32),  # 0x220
        ("heap_end_ptr", u16),
        ("ext_loader_ver", u8),
        ("ext_loader_type", u8),
        ("cmd_line_ptr", u32),
        ("initrd_addr_max", u32),
        ("kernel_alignment", u32),  # 0x230
        ("relocatable_kernel", u8),
        ("min_alignment", u8),
        ("xloadflags", u16),
        ("cmdline_size", u32),
        ("hardware_subarch", u32),
        ("hardware_subarch_data", u64),  # 0x240
        ("payload_offset", u32),
        ("payload_length", u32),
        ("setup_data", u64),  # 0x250
        ("pref_address", u64),
        ("init_size", u32),  # 0x260
        ("handover_offset", u32),
        ("kernel_info_offset", u32),
    ]
    if TYPE_CHECKING:
        setup_sects = root_flags = syssize = ram_size = vid_mode = root_dev = boot_flag = jump = header = 0
        version = realmode_swtch = start_sys_seg = kernel_version = type_of_loader = loadflags = 0
        setup_move_size = code32_start = ramdisk_image = ramdisk_size = bootsect_kludge = heap_end_ptr = 0
        ext_loader_ver = ext_loader_type = cmd_line_ptr = initrd_addr_max = kernel_alignment = 0
        relocatable_kernel = min_alignment = xloadflags = cmdline_size = hardware_subarch = 0
        hardware_subarch_data = payload_offset = payload_length = setup_data = pref_address = init_size = 0
        handover_offset = kernel_info_offset = 0


class boot_e820_entry(LittleEndianStructure):
    """An entry of the zero page's memory map: address and size in bytes, an E820Type."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("addr", u64), ("size", u64), ("type", u32)]
    if TYPE_CHECKING:
        addr = size = type = 0


class setup_data(LittleEndianStructure):
    """The head of a setup_data node: the next node's address (0: none), a SetupDataType, the data's size."""

    _fields_ = [("next", u64), ("type", u32), ("len", u32)]
    if TYPE_CHECKING:
        next = type = len = 0


class boot_params(LittleEndianStructure):
    """The zero page: what a boot loader tells an x86 kernel."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [
        ("screen_info", u8 * 64),  # 0x000
        ("apm_bios_info", u8 * 20),  # 0x040
        ("_pad2", u8 * 4),
        ("tboot_addr", u64),  # 0x058
        ("ist_info", u8 * 16),  # 0x060
        ("acpi_rsdp_addr", u64),  # 0x070
        ("_pad3", u8 * 8),
        ("hd0_info", u8 * 16),  # 0x080
        ("hd1_info", u8 * 16),  # 0x090
        ("sys_desc_table", u8 * 16),  # 0x0a0
        ("olpc_ofw_header", u8 * 16),  # 0x0b0
        ("ext_ramdisk_image", u32),  # 0x0c0
        ("ext_ramdisk_size", u32),  # 0x0c4
        ("ext_cmd_line_ptr", u32),  # 0x0c8
        ("_pad4", u8 * 112),
        ("cc_blob_address", u32),  # 0x13c
        ("edid_info", u8 * 128),  # 0x140
        ("efi_info", u8 * 32),  # 0x1c0
        ("alt_mem_k", u32),  # 0x1e0
        ("scratch", u32),  # 0x1e4
        ("e820_entries", u8),  # 0x1e8
        ("eddbuf_entries", u8),  # 0x1e9
        ("edd_mbr_sig_buf_entries", u8),  # 0x1ea
        ("kbd_status", u8),  # 0x1eb
        ("secure_boot", u8),  # 0x1ec
        ("_pad5", u8 * 2),
        ("sentinel", u8),  # 0x1ef
        ("_pad6", u8 * 1),
        ("hdr", setup_header),  # 0x1f1
        ("_pad7", u8 * 36),
        ("edd_mbr_sig_buffer", u32 * 16),  # 0x290
        ("e820_table", boot_e820_entry * 128),  # 0x2d0
        ("_pad8", u8 * 48),
        ("eddbuf", u8 * 492),  # 0xd00
        ("_pad9", u8 * 276),
    ]
    if TYPE_CHECKING:
        tboot_addr = acpi_rsdp_addr = ext_ramdisk_image = ext_ramdisk_size = ext_cmd_line_ptr = 0
        cc_blob_address = alt_mem_k = scratch = e820_entries = eddbuf_entries = edd_mbr_sig_buf_entries = 0
        kbd_status = secure_boot = sentinel = 0
        hdr: setup_header
        e820_table: Array[boot_e820_entry]


class hvm_start_info(LittleEndianStructure):
    """What a PVH guest finds by EBX; version 1.  Addresses are guest-physical, 0 for what is absent."""

    _fields_ = [
        ("magic", u32),
        ("version", u32),
        ("flags", u32),
        ("nr_modules", u32),
        ("modlist_paddr", u64),
        ("cmdline_paddr", u64),
        ("rsdp_paddr", u64),
        ("memmap_paddr", u64),
        ("memmap_entries", u32),
        ("reserved", u32),
    ]
    if TYPE_CHECKING:
        magic = version = flags = nr_modules = modlist_paddr = cmdline_paddr = rsdp_paddr = 0
        memmap_paddr = memmap_entries = reserved = 0


class hvm_modlist_entry(LittleEndianStructure):
    """A module for a PVH guest; Linux takes the first as its initrd."""

    _fields_ = [("paddr", u64), ("size", u64), ("cmdline_paddr", u64), ("reserved", u64)]
    if TYPE_CHECKING:
        paddr = size = cmdline_paddr = reserved = 0


class hvm_memmap_table_entry(LittleEndianStructure):
    """An entry of the PVH memory map: address and size in bytes, an E820Type."""

    _fields_ = [("addr", u64), ("size", u64), ("type", u32), ("reserved", u32)]
    if TYPE_CHECKING:
        addr = size = type = reserved = 0


class arm64_image_header(LittleEndianStructure):
    """The first 64 bytes of an arm64 Image: Linux Documentation/arch/arm64/booting.rst."""

    _fields_ = [
        ("code0", u32),
        ("code1", u32),
        ("text_offset", u64),
        ("image_size", u64),
        ("flags", u64),
        ("res2", u64),
        ("res3", u64),
        ("res4", u64),
        ("magic", u32),  # 0x38
        ("res5", u32),
    ]
    if TYPE_CHECKING:
        code0 = code1 = text_offset = image_size = flags = res2 = res3 = res4 = magic = res5 = 0


class riscv64_image_header(LittleEndianStructure):
    """The first 64 bytes of a riscv64 Image: Linux Documentation/arch/riscv/boot-image-header.rst."""

    _fields_ = [
        ("code0", u32),
        ("code1", u32),
        ("text_offset", u64),
        ("image_size", u64),
        ("flags", u64),
        ("version", u32),
        ("res1", u32),
        ("res2", u64),
        ("magic", u64),  # 0x30, deprecated
        ("magic2", u32),  # 0x38
        ("res3", u32),
    ]
    if TYPE_CHECKING:
        code0 = code1 = text_offset = image_size = flags = version = res1 = res2 = magic = magic2 = res3 = 0
