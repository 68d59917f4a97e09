"""Writes the corpus: a few small files for each target, valid ones to start from, in tests/fuzz/corpus/TARGET/."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit")]

import lz4.block  # noqa: E402
import lz4.frame  # noqa: E402
from backports import zstd  # noqa: E402
from loader_images import bzimage, guest_os_note, kernel, note, pvh_note  # noqa: E402
from targets import COMPRESSIONS  # noqa: E402

from loader.detect import Format  # noqa: E402

ELF = bytes(kernel(note(b"Linux\0", 0x100, b"6.1\0"), guest_os_note(b"linux"), pvh_note(0x1000000)))
ARM64 = struct.pack("<2I6Q2I", 0x91005A4D, 0x14000000, 0, 0x1000, 0xA, 0, 0, 0, 0x644D5241, 0) + bytes(64)
RISCV64 = struct.pack("<2I3Q2I2Q2I", 0x106F, 0, 1 << 21, 0x1000, 0, 2, 0, 0, 0x5643534952, 0x05435352, 0)
DTB = struct.pack(">10I", 0xD00DFEED, 64, 40, 40, 40, 17, 16, 0, 0, 0) + bytes(24)
CPIO = (
    b"070701" + b"%08x" * 13 % (0, 0o100755, 0, 0, 1, 0, 5, 0, 0, 0, 0, 5, 0) + b"init\0\0hello\0\0\0"
    b"070701" + b"%08x" * 13 % (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0) + b"TRAILER!!!\0"
)  # fmt: skip
LOW = 0x8100_0000  # what the relocation target's image is linked at


def packed() -> dict[Format, bytes]:
    """The kernel in each compression, as the kernel's build makes them."""
    block = lz4.block.compress(ELF, store_size=False)
    lzop = b"\x10\x30\x20\x80\x09\x40\x03\x09" + bytes(4) + bytes(12) + b"\0"
    lzop = b"\x89LZO\0\r\n\x1a\n" + lzop + struct.pack(">I", __import__("zlib").adler32(lzop))
    return {
        Format.GZIP: gzip.compress(ELF, mtime=0),
        Format.XZ: lzma.compress(ELF, check=lzma.CHECK_CRC32),
        Format.ZSTD: zstd.compress(ELF),
        Format.LZ4: b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block,
        Format.BZIP2: bz2.compress(ELF),
        Format.LZMA: lzma.compress(ELF, lzma.FORMAT_ALONE),
        Format.LZO: lzop + struct.pack(">2I", len(ELF), len(ELF)) + ELF + bytes(4),
    }


def zboot(format: Format, data: bytes) -> bytes:
    """What follows the magic of an EFI zboot image."""
    name = format.value.encode().ljust(32, b"\0")
    return struct.pack("<2I8x", 64, len(data)) + name + bytes(8) + data


def corpus() -> dict[str, bytes]:
    """The files by their paths."""
    files: dict[str, bytes] = {
        "relocation/three-lists": struct.pack("<B6I", 0, 0, LOW, 0, LOW + 9, 0, LOW + 20),
        "relocation/two-lists": struct.pack("<B4I", 1, 0, 0, LOW, LOW + 3),
        "relocation/past-4-gib": struct.pack("<B4I", 3, 0, 0x10, 0, 0xFFFF_F010),
        "relocation/outside": struct.pack("<B4I", 0, 0, LOW + 0x1FFF, 0, LOW),
        "image/arm64": b"\1" + ARM64,
        "image/riscv64": b"\0" + RISCV64,
        "dtb/empty": b"\0" + DTB,
        "dtb/misaligned": b"\1" + DTB,
        "cmdline/boot": b"\xffconsole=ttyS0\nroot=a,b\nquiet splash\ninit args",
        "cmdline/quotes": b'\x80a="b c" -- d\nk="v w"\n"\n\xff',
        "cpio/init": CPIO,
        "inspect/cpio": b"\0" + CPIO,
        "inspect/elf": b"\0" + ELF,
        "inspect/arm64": b"\1" + ARM64,
        "inspect/bzimage": b"\2" + bzimage(),
    }
    for number in range(0, 24, 5):
        files[f"elf/{number}"] = bytes((number,)) + ELF
    for number in range(0, 8, 3):
        files[f"bzimage/{number}"] = bytes((number,)) + bzimage()
    for format, data in packed().items():
        name = format.value
        files[f"payload/{name}"] = data
        files[f"zboot/{name}"] = zboot(format, data)
        files[f"decompress/{name}"] = bytes((COMPRESSIONS.index(format),)) + data
    code = packed()[Format.XZ] + struct.pack("<I", len(ELF))
    files["payload/bzimage"] = bzimage(
        code=bytes(0x600) + code, payload_offset=0x600, payload_length=len(code)
    )
    return files


if __name__ == "__main__":
    for path, data in corpus().items():
        target = HERE / "corpus" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
