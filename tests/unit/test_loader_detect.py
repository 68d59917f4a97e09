"""Telling files apart by content."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

import pytest
from loader_images import Elf, bzimage, kernel

from loader.detect import Format, identify, pe_machine


def at(offset: int, *data: bytes) -> bytes:
    return bytes(offset) + b"".join(data)


def pe(machine: int, *, extra: bytes = b"") -> bytes:
    return b"MZ" + extra.ljust(0x3A, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0" + struct.pack("<H", machine)


def zboot() -> bytes:
    extra = b"\0\0zimg" + struct.pack("<II", 0x1000, 0x2000) + bytes(8) + b"zstd22\0"
    return pe(0xAA64, extra=extra)


CASES = [
    (bzimage(), Format.BZIMAGE, "x86_64", "a bzImage for x86_64"),
    (bzimage(xloadflags=0x7E), Format.BZIMAGE, "i386", "a bzImage for i386"),
    (bzimage(version=0x20B), Format.BZIMAGE, "i386", "a bzImage for i386"),
    (bzimage(version=0x20C), Format.BZIMAGE, "x86_64", "a bzImage for x86_64"),
    (bzimage(version=0x200), Format.BZIMAGE, "i386", "a bzImage for i386"),
    (bzimage()[:0x212], Format.BZIMAGE, "i386", "a bzImage for i386"),
    (bzimage(boot_flag=0), Format.BZIMAGE, "x86_64", "a bzImage for x86_64"),
    (b"MZ" + bzimage()[2:], Format.BZIMAGE, "x86_64", "a bzImage for x86_64"),
    (bzimage()[:0x211], Format.BZIMAGE, "i386", "a truncated bzImage"),
    (bzimage(loadflags=0), Format.ZIMAGE, "i386", "an old zImage"),
    (bzimage(version=0x1FF), Format.ZIMAGE, "i386", "an old zImage"),
    (bytes(kernel()), Format.ELF, "x86_64", "an ELF file for x86_64"),
    (bytes(kernel(machine=183)), Format.ELF, "aarch64", "an ELF file for aarch64"),
    (bytes(kernel(machine=243)), Format.ELF, "riscv64", "an ELF file for riscv64"),
    (bytes(kernel(machine=243, ident_class=1)), Format.ELF, "riscv32", "an ELF file for riscv32"),
    (bytes(kernel(machine=3, ident_class=1)), Format.ELF, "i386", "an ELF file for i386"),
    (bytes(kernel(machine=22)), Format.ELF, "machine 22", "an ELF file for machine 22"),
    (bytes(kernel(kind=1)), Format.ELF, "x86_64", "an ELF object file or kernel module for x86_64"),
    (bytes(kernel(kind=3)), Format.ELF, "x86_64", "a position-independent ELF file for x86_64"),
    (bytes(kernel(kind=9)), Format.ELF, "x86_64", "an ELF file of type 9 for x86_64"),
    (
        b"\x7fELF\x02\x02\x01" + bytes(9) + b"\0\2\0\x15",
        Format.ELF,
        "machine 21",
        "a big-endian ELF file for machine 21",
    ),
    (b"\x7fELF", Format.ELF, "", "a damaged ELF file"),
    (bytes(Elf(ident_class=7)), Format.ELF, "", "a damaged ELF file"),
    (at(0x38, b"ARM\x64"), Format.ARM64_IMAGE, "aarch64", "an Image for aarch64"),
    (b"MZ" + at(0x36, b"ARM\x64"), Format.ARM64_IMAGE, "aarch64", "an Image for aarch64"),
    (at(0x38, b"RSC\x05"), Format.RISCV64_IMAGE, "riscv64", "an Image for riscv64"),
    (zboot(), Format.EFI_ZBOOT, "aarch64", "an EFI zboot image (zstd22-compressed) for aarch64"),
    (b"MZ\0\0zimg", Format.EFI_ZBOOT, "", "an EFI zboot image (-compressed)"),
    (pe(0x8664), Format.PE, "x86_64", "a PE (Windows or EFI) program for x86_64"),
    (pe(0x14C), Format.PE, "i386", "a PE (Windows or EFI) program for i386"),
    (pe(0x1C2), Format.PE, "arm", "a PE (Windows or EFI) program for arm"),
    (pe(0x5064), Format.PE, "riscv64", "a PE (Windows or EFI) program for riscv64"),
    (pe(0x1234), Format.PE, "machine 0x1234", "a PE (Windows or EFI) program for machine 0x1234"),
    (b"MZ" + bytes(100), Format.UNKNOWN, "", "a DOS program or damaged PE file"),
    (gzip.compress(b"kernel"), Format.GZIP, "", "a gzip-compressed file"),
    (lzma.compress(b"kernel"), Format.XZ, "", "an xz-compressed file"),
    (lzma.compress(b"kernel", lzma.FORMAT_ALONE), Format.LZMA, "", "an lzma-compressed file"),
    (bz2.compress(b"kernel"), Format.BZIP2, "", "a bzip2-compressed file"),
    (b"\x28\xb5\x2f\xfd\0", Format.ZSTD, "", "a zstd-compressed file"),
    (b"\x02\x21\x4c\x18\0", Format.LZ4, "", "an lz4-compressed file"),
    (b"\x04\x22\x4d\x18\0", Format.LZ4, "", "an lz4-compressed file"),
    (b"\x89LZO\0\r\n", Format.LZO, "", "an lzo-compressed file"),
    (b"070701" + b"0" * 104, Format.CPIO, "", "a newc cpio archive (an initramfs?)"),
    (b"070702" + b"0" * 104, Format.CPIO, "", "a newc cpio archive with checksums (an initramfs?)"),
    (b"070707" + b"0" * 70, Format.CPIO, "", "an old cpio archive, of a kind the kernel does not unpack"),
    (b"!<arch>\ndebian-binary", Format.UNKNOWN, "", "an ar archive (a Debian package?)"),
    (at(0x101, b"ustar\0"), Format.UNKNOWN, "", "a tar archive"),
    (at(0x24, b"\x18\x28\x6f\x01"), Format.UNKNOWN, "", "a zImage for 32-bit ARM"),
    (at(0x1FE, b"\x55\xaa"), Format.UNKNOWN, "", "a boot sector or disk image without a kernel header"),
    (b"", Format.EMPTY, "", "an empty file"),
    (b"#!/bin/sh\nexit 0\n", Format.TEXT, "", "a script"),
    ("Grüße\n".encode(), Format.TEXT, "", "a text file"),
    (("x" * 4095 + "é").encode()[:4096], Format.TEXT, "", "a text file"),
    (bytes(4096), Format.UNKNOWN, "", "a file of zeroes"),
    (b"\x01\x02\x03\xff", Format.UNKNOWN, "", "a file of unknown content"),
    (b"text with a \x01 in it", Format.UNKNOWN, "", "a file of unknown content"),
]


@pytest.mark.parametrize(("head", "format", "machine", "description"), CASES, ids=[case[3] for case in CASES])
def test_identify(head, format, machine, description):
    found = identify(head)
    assert (found.format, found.machine, found.description) == (format, machine, description)


@pytest.mark.parametrize(("head", "format"), [case[:2] for case in CASES])
def test_a_file_that_is_no_kernel_comes_with_advice(head, format):
    if format not in (Format.BZIMAGE, Format.ARM64_IMAGE, Format.RISCV64_IMAGE):
        assert identify(head).hint


def test_compressed_data_that_looks_like_a_boot_sector_is_still_compressed():
    assert identify(b"\x1f\x8b" + bytes(0x1FC) + b"\x55\xaa").format is Format.GZIP


def test_pe_header_outside_the_head():
    assert pe_machine(b"MZ" + bytes(0x3A) + b"\xff\xff\xff\xff") == ""


def test_repr_names_the_format():
    assert "BZIMAGE" in repr(identify(bzimage()))
