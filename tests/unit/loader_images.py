"""Made-up kernel images for the loader's tests: every field can be set, and set wrong."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

from loader.enums import (
    BOOT_FLAG,
    EM_X86_64,
    ET_EXEC,
    HDRS_MAGIC,
    KERNEL_INFO_MAGIC,
    PT_LOAD,
    PT_NOTE,
    XEN_ELFNOTE_GUEST_OS,
    XEN_ELFNOTE_PHYS32_ENTRY,
)
from loader.files import ImageFile
from loader.structs import setup_header

MIB = 1 << 20
VERSION = b"6.1.0-test (someone@somewhere) #1 SMP\0"


def as_file(data: bytes, *, size: int | None = None) -> ImageFile:
    """``data`` as an open input file without a name on disk; ``size`` makes it sparse."""
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    os.pwrite(fd, data, 0)
    if size is not None:
        os.ftruncate(fd, size)
    return ImageFile(fd, "image")


def bzimage(
    *,
    code: bytes = b"",
    jump: bytes = b"\xeb\x6a",
    setup_sects: int = 4,
    kernel_info: bool = True,
    **fields: int,
) -> bytes:
    """A bzImage in the likeness of Debian's: its setup code, then ``code`` (made up if empty)."""
    header = setup_header(
        setup_sects=setup_sects,
        boot_flag=BOOT_FLAG,
        header=HDRS_MAGIC,
        version=0x20F,
        kernel_version=0x200,
        loadflags=1,
        code32_start=0x100000,
        initrd_addr_max=0x7FFFFFFF,
        kernel_alignment=0x200000,
        relocatable_kernel=1,
        min_alignment=21,
        xloadflags=0x7F,
        cmdline_size=2047,
        payload_offset=0x300,
        payload_length=0x100,
        pref_address=0x1000000,
        init_size=0x800000,
        kernel_info_offset=0x500 if kernel_info else 0,
    )
    code = code or bytes(range(1, 256)) * 8 + b"\x55" * 8
    if kernel_info:
        code = code[:0x500] + struct.pack("<4I", KERNEL_INFO_MAGIC, 16, 16, 0x80000009) + code[0x510:]
    header.syssize = len(code) // 16
    for name, value in fields.items():
        assert hasattr(header, name), name
        setattr(header, name, value)
    head = bytearray(((setup_sects or 4) + 1) * 512)
    head[0x1EF] = 0xFF  # the sentinel that must not reach the zero page
    head[0x1F1 : 0x1F1 + 123] = bytes(header)
    head[0x200:0x202] = jump
    head[0x26C : 0x26C + 4] = b"code"  # what follows the header is no part of it
    head[0x400 : 0x400 + len(VERSION)] = VERSION
    return bytes(head) + code


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    """An ELF note, padded."""
    return struct.pack("<3I", len(name), len(desc), kind) + _padded(name) + _padded(desc)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def pvh_note(entry: int, size: int = 4) -> bytes:
    """The note that names the PVH entry point."""
    return note(b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY, entry.to_bytes(size, "little"))


def guest_os_note(name: bytes) -> bytes:
    """The Xen note that names the operating system."""
    return note(b"Xen\0", XEN_ELFNOTE_GUEST_OS, name + b"\0")


@dataclass
class Phdr:
    """A program header and the bytes it is for; what is None follows from those."""

    data: bytes = b""
    paddr: int = 0
    memsz: int | None = None
    vaddr: int | None = None
    kind: int = PT_LOAD
    offset: int | None = None
    filesz: int | None = None
    align: int = 4


@dataclass
class Elf:
    """An ELF image to be: ``bytes()`` makes it."""

    segments: list[Phdr] = field(default_factory=list)
    entry: int = 0
    machine: int = EM_X86_64
    kind: int = ET_EXEC
    ident_class: int = 2
    ident_data: int = 1
    magic: bytes = b"\x7fELF"
    phoff: int = 64
    phentsize: int = 56
    phnum: int | None = None

    def __bytes__(self) -> bytes:
        phnum = len(self.segments) if self.phnum is None else self.phnum
        ident = self.magic + bytes((self.ident_class, self.ident_data, 1)) + bytes(9)
        numbers = (self.phoff, 0, 0, 64, self.phentsize, phnum, 0, 0, 0)
        header = struct.pack("<16s2HI3QI6H", ident, self.kind, self.machine, 1, self.entry, *numbers)
        headers, body = b"", b""
        start = 64 + 56 * len(self.segments)
        for s in self.segments:
            offset = start + len(body) if s.offset is None else s.offset
            filesz = len(s.data) if s.filesz is None else s.filesz
            memsz = filesz if s.memsz is None else s.memsz
            vaddr = s.paddr if s.vaddr is None else s.vaddr
            headers += struct.pack("<2I6Q", s.kind, 7, offset, vaddr, s.paddr, filesz, memsz, s.align)
            body += s.data
        return header + headers + body


def kernel(*notes: bytes, paddr: int = 0x1000000, entry: int | None = None, **changes: object) -> Elf:
    """An ELF kernel of two segments, the second with a BSS, and one note segment if there are notes."""
    segments = [
        Phdr(b"\x11" * 0x123, paddr),
        Phdr(b"\x22" * 0x45, paddr + 0x1000, memsz=0x2000),
    ]
    if notes:
        segments.append(Phdr(b"".join(notes), kind=PT_NOTE))
    elf = Elf(segments, entry=paddr + 0x10 if entry is None else entry)
    for name, value in changes.items():
        assert hasattr(elf, name), name
        setattr(elf, name, value)
    return elf
