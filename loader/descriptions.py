"""Words for people: what a file is, said in a few of them.

The numbers behind them stand in :mod:`loader.enums`.
"""

from __future__ import annotations

from loader.enums import EM_386, EM_AARCH64, EM_ARM, EM_RISCV, EM_X86_64, ET_CORE, ET_DYN, ET_EXEC, ET_REL

#: Machine names, as ``uname -m`` prints them, by ELF e_machine; RISC-V depends on the class too.
ELF_MACHINES = {
    EM_386: "i386",
    EM_ARM: "arm",
    EM_X86_64: "x86_64",
    EM_AARCH64: "aarch64",
    EM_RISCV: "riscv64",
}

#: What an ELF file of each e_type is.
ELF_TYPES = {
    ET_REL: "ELF object file or kernel module",
    ET_EXEC: "ELF file",
    ET_DYN: "position-independent ELF file",
    ET_CORE: "ELF core dump",
}

#: Content that is no kernel but often given for one: (offset, magic, what it is, what to do about it).
OTHER_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (
        0,
        b"!<arch>\n",
        "an ar archive (a Debian package?)",
        "unpack it with dpkg -x and give the kernel inside",
    ),
    (0, b"\xed\xab\xee\xdb", "an RPM package", "unpack it with rpm2cpio and give the kernel inside"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree blob or FIT image", "give the kernel image itself"),
    (0, b"\x27\x05\x19\x56", "a U-Boot uImage", "give the kernel image it was made from"),
    (0, b"QFI\xfb", "a qcow2 disk image", "give a kernel; a disk image holds one, but is none"),
    (0, b"hsqs", "a squashfs file system", "give a kernel; this may be its root file system"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it and give the kernel inside"),
    (0x24, b"\x18\x28\x6f\x01", "a zImage for 32-bit ARM", "give a kernel built for the machine"),
    (0x101, b"ustar", "a tar archive", "unpack it and give the kernel inside"),
)

PHRASES = {
    "not a kernel": "give a bzImage, a vmlinux or another kernel image",
    "compressed": "decompress it first; an initramfs belongs in the initrd's place, not the kernel's",
    "cpio": "an initramfs belongs in the initrd's place, not the kernel's",
    "zimage": "such kernels are older than 1996's bzImage format; build a bzImage",
    "zboot": "give the kernel it was made from (Image or vmlinux)",
    "pe": "give the kernel as a bzImage or vmlinux; a unified kernel image holds it in its .linux section",
}


def mebibytes(size: int) -> str:
    """``size`` bytes in whole MiB, rounded up."""
    return f"{-(-size >> 20)} MiB"
