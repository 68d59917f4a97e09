"""Made-up Images for arm64 and riscv64, and device tree blobs, for the loader's tests."""

from __future__ import annotations

import struct


def arm64_image(
    size: int = 0x1000,
    *,
    text_offset: int = 0x80000,
    image_size: int = 0x2000,
    flags: int = 0xA,
    magic: bytes = b"ARM\x64",
) -> bytes:
    """An arm64 Image of ``size`` bytes."""
    head = struct.pack("<2I3Q24x4s4x", 0x91005A4D, 0x14000000, text_offset, image_size, flags, magic)
    return (head + bytes(range(1, 256)) * (size // 255 + 1))[:size]


def riscv64_image(
    size: int = 0x1000,
    *,
    text_offset: int = 0x200000,
    image_size: int = 0x2000,
    flags: int = 0,
    magic: bytes = b"RSC\x05",
) -> bytes:
    """A riscv64 Image of ``size`` bytes, without the deprecated magic at 0x30."""
    head = struct.pack("<2I3Q2I8x8x4s4x", 0x5A4D, 0x106F, text_offset, image_size, flags, 2, 0, magic)
    return head + bytes(size - 64)


def dtb(size: int, *, magic: bytes = b"\xd0\x0d\xfe\xed", total: int | None = None) -> bytes:
    """Something with the first bytes of a device tree blob of ``size`` bytes."""
    return (magic + (size if total is None else total).to_bytes(4, "big")).ljust(size, b"\x44")[:size]
