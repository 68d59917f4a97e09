"""Debian's arm64 Image in the other formats that arm64 kernels come in, which Debian does not have.

Linux drivers/firmware/efi/libstub/zboot-header.S and Documentation/arch/arm64/booting.rst; the ELF file as the
kernel's arch/arm64/kernel/vmlinux.lds.S makes it: position-independent, linked for virtual addresses, its physical
addresses the same.
"""

from __future__ import annotations

import gzip
import struct

#: Where Linux 6.1 links the kernel: KIMAGE_VADDR in arch/arm64/include/asm/memory.h.
LINKED_AT = 0xFFFF_8000_0800_0000
SEGMENT_ALIGNMENT = 0x1_0000
EM_AARCH64 = 183
ET_DYN, PT_LOAD = 3, 1
READ_EXECUTE, READ_WRITE_EXECUTE = 5, 7

PE_OFFSET = 0x40
PE_MACHINE_ARM64 = 0xAA64
LINUX_PE_MAGIC = 0x8182_23CD
PAYLOAD_OFFSET = 0x240


def image_gz(image: bytes) -> bytes:
    """As the kernel's build makes Image.gz."""
    return gzip.compress(image, 1, mtime=0)


def zboot(image: bytes) -> bytes:
    """An EFI zboot image, without the code by which EFI unpacks it."""
    payload = image_gz(image)
    head = struct.pack(
        "<2s2x4sIIQ32sII", b"MZ", b"zimg", PAYLOAD_OFFSET, len(payload), 0, b"gzip", LINUX_PE_MAGIC, PE_OFFSET
    )
    head += struct.pack("<4sH", b"PE\0\0", PE_MACHINE_ARM64)
    return head.ljust(PAYLOAD_OFFSET, b"\0") + payload


def vmlinux(image: bytes) -> bytes:
    """An ELF file in two segments; in memory they follow each other without a gap, in the file they do not."""
    (image_size,) = struct.unpack_from("<Q", image, 0x10)
    cut = len(image) // 2 & -SEGMENT_ALIGNMENT
    first, second = image[:cut], image[cut:]
    first_at = SEGMENT_ALIGNMENT
    second_at = first_at + cut + 3 * SEGMENT_ALIGNMENT
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", ET_DYN, EM_AARCH64, 1, LINKED_AT, 64, 0, 0, 64, 56, 2, 64, 0, 0
    )  # fmt: skip
    for flags, offset, below, size, memory in (
        (READ_EXECUTE, first_at, 0, len(first), len(first)),
        (READ_WRITE_EXECUTE, second_at, cut, len(second), image_size - cut),
    ):
        address = LINKED_AT + below
        header += struct.pack(
            "<IIQQQQQQ", PT_LOAD, flags, offset, address, address, size, memory, SEGMENT_ALIGNMENT
        )
    return header.ljust(first_at, b"\0") + first + bytes(second_at - first_at - cut) + second
