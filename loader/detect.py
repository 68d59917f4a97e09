"""What a file is, by its content and never by its name.

Magics: Linux Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header"), arch/arm64/booting.rst,
arch/riscv/boot-image-header.rst, drivers/firmware/efi/libstub/zboot-header.S, driver-api/early-userspace/
buffer-format.rst (cpio); the ELF gABI; the compressors' own file formats.
"""

from __future__ import annotations

import codecs
from enum import Enum

from loader.descriptions import ELF_MACHINES, ELF_TYPES, OTHER_MAGICS, PHRASES
from loader.enums import (
    BOOT_FLAG,
    ELF_MAGIC,
    ELFCLASS32,
    ELFCLASS64,
    ELFDATA2LSB,
    ELFDATA2MSB,
    EM_RISCV,
    HDRS_MAGIC,
    LoadFlags,
    Protocol,
    XLoadFlags,
)

#: Bytes from the start of a file that decide what it is.
HEAD_SIZE = 4096


class Format(Enum):
    """The kinds of files that are told apart."""

    BZIMAGE = "bzImage"
    ZIMAGE = "zImage"
    ELF = "ELF"
    ARM64_IMAGE = "arm64 Image"
    RISCV64_IMAGE = "riscv64 Image"
    EFI_ZBOOT = "EFI zboot"
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    LZ4 = "lz4"
    BZIP2 = "bzip2"
    LZMA = "lzma"
    LZO = "lzo"
    CPIO = "cpio"
    PE = "PE"
    EMPTY = "empty"
    TEXT = "text"
    DIRECTORY = "directory"
    UNKNOWN = "unknown"


#: What a loader of this package can load, or will be able to.
KERNEL_FORMATS = frozenset((Format.BZIMAGE, Format.ELF, Format.ARM64_IMAGE, Format.RISCV64_IMAGE))

COMPRESSION_MAGICS: tuple[tuple[bytes, Format], ...] = (
    (b"\x1f\x8b", Format.GZIP),
    (b"\xfd7zXZ\0", Format.XZ),
    (b"\x28\xb5\x2f\xfd", Format.ZSTD),
    (b"\x02\x21\x4c\x18", Format.LZ4),  # the legacy frame, which the kernel uses
    (b"\x04\x22\x4d\x18", Format.LZ4),
    (b"BZh", Format.BZIP2),
    (b"\x5d\0\0", Format.LZMA),
    (b"\x89LZO", Format.LZO),
)

_CPIO_MAGICS = (
    (b"070701", "a newc cpio archive (an initramfs?)"),
    (b"070702", "a newc cpio archive with checksums (an initramfs?)"),
    (b"070707", "an old cpio archive, of a kind the kernel does not unpack"),
    (b"\xc7\x71", "an old binary cpio archive, of a kind the kernel does not unpack"),
)


class Identity:
    """What a file was found to be: ``format``, ``machine`` ("" if it has none), ``description``, ``hint``.

    ``description`` is a noun phrase with its article; ``hint`` says what to do where a kernel was wanted.
    """

    __slots__ = ("description", "format", "hint", "machine")

    def __init__(self, format: Format, description: str, machine: str = "", hint: str = "") -> None:
        self.format = format
        self.description = description
        self.machine = machine
        self.hint = hint

    def __repr__(self) -> str:
        return f"Identity({self.format}, {self.description!r}, {self.machine!r})"


def identify(head: bytes) -> Identity:
    """What a file is that starts with ``head``, its first HEAD_SIZE bytes (or all, if it has fewer)."""
    if not head:
        return Identity(Format.EMPTY, "an empty file", hint=PHRASES["not a kernel"])
    for recognise in (_elf, _x86, _zboot, _image, _pe, _compressed, _cpio, _other):
        identity = recognise(head)
        if identity:
            return identity
    return _text(head)


def _u16(head: bytes, offset: int) -> int:
    return int.from_bytes(head[offset : offset + 2], "little")


def _u32(head: bytes, offset: int) -> int:
    return int.from_bytes(head[offset : offset + 4], "little")


def elf_machine(number: int, bits: int) -> str:
    """The name of an ELF machine; ``bits`` is 32 or 64."""
    if number == EM_RISCV and bits == 32:
        return "riscv32"
    return ELF_MACHINES.get(number, f"machine {number}")


def _elf(head: bytes) -> Identity | None:
    if not head.startswith(ELF_MAGIC):
        return None
    if len(head) < 20 or head[4] not in (ELFCLASS32, ELFCLASS64) or head[5] not in (ELFDATA2LSB, ELFDATA2MSB):
        return Identity(Format.ELF, "a damaged ELF file", hint="was it copied completely?")
    order = "little" if head[5] == ELFDATA2LSB else "big"
    kind = int.from_bytes(head[16:18], order)  # type: ignore[arg-type]
    number = int.from_bytes(head[18:20], order)  # type: ignore[arg-type]
    machine = elf_machine(number, 64 if head[4] == ELFCLASS64 else 32)
    noun = ELF_TYPES.get(kind, f"ELF file of type {kind}")
    if order == "big":
        noun = f"big-endian {noun}"
    article = "an" if noun.startswith("ELF") else "a"
    return Identity(Format.ELF, f"{article} {noun} for {machine}", machine, PHRASES["not a kernel"])


def _x86(head: bytes) -> Identity | None:
    if _u32(head, 0x202) != HDRS_MAGIC:
        return None
    protocol = _u16(head, 0x206)
    if len(head) <= 0x211:
        return Identity(Format.BZIMAGE, "a truncated bzImage", "i386", hint="was it copied completely?")
    if protocol < Protocol.HIGH_LOAD or not head[0x211] & LoadFlags.LOADED_HIGH:
        return Identity(Format.ZIMAGE, "an old zImage", "i386", PHRASES["zimage"])
    wide = protocol >= Protocol.XLOADFLAGS and _u16(head, 0x236) & XLoadFlags.KERNEL_64
    machine = "x86_64" if wide else "i386"
    return Identity(Format.BZIMAGE, f"a bzImage for {machine}", machine)


def _zboot(head: bytes) -> Identity | None:
    if not head.startswith(b"MZ") or head[4:8] != b"zimg":
        return None
    name = head[0x18:0x38].split(b"\0")[0].decode("ascii", "replace")
    kind = name if name.isprintable() else ascii(name)
    machine = pe_machine(head)
    target = f" for {machine}" if machine else ""
    return Identity(
        Format.EFI_ZBOOT, f"an EFI zboot image ({kind}-compressed){target}", machine, PHRASES["zboot"]
    )


def _image(head: bytes) -> Identity | None:
    if head[0x38:0x3C] == b"ARM\x64":
        return Identity(Format.ARM64_IMAGE, "an Image for aarch64", "aarch64")
    if head[0x38:0x3C] == b"RSC\x05":
        return Identity(Format.RISCV64_IMAGE, "an Image for riscv64", "riscv64")
    return None


def pe_machine(head: bytes) -> str:
    """The machine of a PE file, "" if it has no readable COFF header."""
    offset = _u32(head, 0x3C)
    if offset + 6 > len(head) or head[offset : offset + 4] != b"PE\0\0":
        return ""
    names = {0x14C: "i386", 0x1C2: "arm", 0x8664: "x86_64", 0xAA64: "aarch64", 0x5064: "riscv64"}
    number = _u16(head, offset + 4)
    return names.get(number, f"machine {number:#x}")


def _pe(head: bytes) -> Identity | None:
    if not head.startswith(b"MZ"):
        return None
    machine = pe_machine(head)
    if not machine:
        return Identity(Format.UNKNOWN, "a DOS program or damaged PE file", hint=PHRASES["not a kernel"])
    return Identity(Format.PE, f"a PE (Windows or EFI) program for {machine}", machine, PHRASES["pe"])


def _compressed(head: bytes) -> Identity | None:
    for magic, format in COMPRESSION_MAGICS:
        if head.startswith(magic):
            article = "an" if format in (Format.XZ, Format.LZ4, Format.LZMA, Format.LZO) else "a"
            return Identity(format, f"{article} {format.value}-compressed file", hint=PHRASES["compressed"])
    return None


def _cpio(head: bytes) -> Identity | None:
    for magic, description in _CPIO_MAGICS:
        if head.startswith(magic):
            return Identity(Format.CPIO, description, hint=PHRASES["cpio"])
    return None


def _other(head: bytes) -> Identity | None:
    for offset, magic, description, hint in OTHER_MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return Identity(Format.UNKNOWN, description, hint=hint)
    if _u16(head, 0x1FE) == BOOT_FLAG:
        description = "a boot sector or disk image without a kernel header"
        return Identity(Format.UNKNOWN, description, hint=PHRASES["not a kernel"])
    return None


def _text(head: bytes) -> Identity:
    hint = PHRASES["not a kernel"]
    if head.startswith(b"#!"):
        return Identity(Format.TEXT, "a script", hint=hint)
    try:  # incrementally: the head may end in the middle of a character
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        text = "\0"
    if all(character.isprintable() or character in "\t\n\r\f" for character in text):
        return Identity(Format.TEXT, "a text file", hint=hint)
    if not any(head):
        return Identity(Format.UNKNOWN, "a file of zeroes", hint=hint)
    return Identity(Format.UNKNOWN, "a file of unknown content", hint=hint)
