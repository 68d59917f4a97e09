"""Compressed kernels for tests: made with the programs that the kernel's build uses, where they are here."""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess

import pytest
from conftest import cannot
from loader_images import bzimage, guest_os_note, kernel

PAYLOAD_OFFSET = 0x600  # from the start of the protected-mode code; the kernel_info lies before it

#: How Linux scripts/Makefile.lib and scripts/xz_wrap.sh call the compressors.
COMMANDS = {
    "gzip": ["gzip", "-n", "-9", "-c"],
    "bzip2": ["bzip2", "-9", "-c"],
    "lzma": ["xz", "--format=lzma", "-9", "-c"],
    "xz": ["xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB", "-c"],
    "lzo": ["lzop", "-9", "-c"],
    "lz4": ["lz4", "-l", "-9", "-c", "-q"],
    "zstd": ["zstd", "-22", "--ultra", "-c", "-q"],  # and so with a window of 128 MiB
}
MODULES = {"lz4": "lz4.block", "lzo": "lzallright", "zstd": "backports.zstd"}


@functools.cache
def compress(kind: str, data: bytes) -> bytes:
    """``data`` as the kernel's build compresses it; skips the test where program or library is missing."""
    command = COMMANDS[kind]
    if shutil.which(command[0]) is None:
        cannot(f"the program {command[0]} is not here")
    if kind in MODULES:
        pytest.importorskip(MODULES[kind])
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def vmlinux(size: int = 300_000, **changes: object) -> bytes:
    """An ELF kernel that says it is Linux, its first segment ``size`` bytes of something that compresses."""
    elf = kernel(guest_os_note(b"linux"), **changes)
    piece = b"".join(struct.pack("<IBI", i * 977, 0xE8, i % 251) for i in range(min(size, 1 << 20) // 9 + 1))
    elf.segments[0].data = (piece * (size // len(piece) + 1))[:size]
    elf.segments[1].paddr += 1 << 26
    return bytes(elf)


def with_payload(payload: bytes, trailer: bytes = b"", **fields: int) -> bytes:
    """A bzImage with this payload, and a ``trailer`` such as a signature after its code."""
    code = bytes(range(1, 256)) * 6
    code = code.ljust(PAYLOAD_OFFSET, b"\x90") + payload + b"\xcc" * 64
    fields.setdefault("init_size", 0x6000000)
    return bzimage(code=code, payload_offset=PAYLOAD_OFFSET, payload_length=len(payload), **fields) + trailer


def packed_bzimage(kind: str, content: bytes, trailer: bytes = b"", **fields: int) -> bytes:
    """A bzImage that holds ``content``, compressed, its size appended as the build does."""
    payload = compress(kind, content)
    if kind != "gzip":
        payload += struct.pack("<I", len(content))
    return with_payload(payload, trailer, **fields)
