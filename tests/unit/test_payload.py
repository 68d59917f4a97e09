"""Compressed kernels: found, unpacked, and never more than that."""

from __future__ import annotations

import gzip
import os
import struct
import sys
import time
import tracemalloc
import zlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from loader_images import as_file, bzimage
from payload_images import COMMANDS, MODULES, compress, packed_bzimage, vmlinux, with_payload

from loader import decompress, payload
from loader.bzimage import read_header
from loader.detect import Format
from loader.errors import LoaderError, NotAKernel, WrongMachine
from loader.payload_errors import (
    CompressionUnavailable,
    InvalidZboot,
    PayloadCorrupt,
    PayloadError,
    PayloadNotFound,
    PayloadSizeMismatch,
    PayloadTimeout,
    PayloadTooLarge,
    PayloadTruncated,
    UnknownCompression,
)
from loader.zboot import read_header as read_zboot_header

MIB = 1 << 20
KINDS = sorted(COMMANDS)
ARM64_IMAGE = bytes(0x38) + b"ARM\x64" + bytes(4) + bytes(range(256)) * 40


def content(file) -> bytes:
    return file.read(0, file.size)


def unpacked(data: bytes, **options) -> bytes:
    with as_file(data) as file, payload.open_unpacked(file, **options) as kernel:
        return content(kernel)


def unpack_all(data: bytes, **options) -> int:
    """Unpack ``data`` somewhere; how much was written, whether it went well or not, is left in ``written``."""
    fd = os.memfd_create("out")
    try:
        with as_file(data) as file:
            return payload.unpack(file, payload.find(file), fd, **options).total
    finally:
        unpack_all.written = os.fstat(fd).st_size
        os.close(fd)


@pytest.mark.parametrize("kind", KINDS)
def test_bzimage_payload(kind):
    image = vmlinux()
    data = packed_bzimage(kind, image, trailer=b"signature" * 99)
    with as_file(data) as file:
        found = payload.find(file)
        assert found.compression.value == kind
        assert (found.offset, found.size) == (read_header(file).payload_offset, len(image))
        with payload.open_unpacked(file, machine="x86_64") as kernel:
            assert (kernel.format, kernel.machine) == (Format.ELF, "x86_64")
            assert content(kernel) == image


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trailing", [b"", b"\0\0\0\0rest"])
def test_image_compressed_as_a_whole(kind, trailing):
    data = compress(kind, ARM64_IMAGE)
    if kind != "lz4":  # its legacy format does not say where it ends
        data += trailing
    with as_file(data) as file, payload.open_unpacked(file, machine="aarch64") as kernel:
        assert kernel.format is Format.ARM64_IMAGE
        assert content(kernel) == ARM64_IMAGE


def test_large_payload_of_several_blocks():
    """More than one LZ4 block of 8 MiB and many LZO blocks of 256 KiB."""
    image = vmlinux(20 * MIB)
    for kind in ("lz4", "lzo", "gzip"):
        assert unpacked(packed_bzimage(kind, image)) == image, kind


@pytest.mark.parametrize("kind", ["lz4", "gzip", "zstd", "lzo"])
def test_never_whole_in_memory(kind):
    data = packed_bzimage(kind, vmlinux(32 * MIB))
    fd = os.memfd_create("out")
    with as_file(data) as file:
        found = payload.find(file)
        payload.decompressor(found.compression)
        tracemalloc.start()
        total = payload.unpack(file, found, fd).total
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    os.close(fd)
    assert total > 32 * MIB
    assert peak < 24 * MIB  # a block of LZ4 legacy, twice, and its packed form


def test_crc_of_what_was_written():
    image = vmlinux()
    fd = os.memfd_create("out")
    with as_file(packed_bzimage("gzip", image)) as file:
        sink = payload.unpack(file, payload.find(file), fd)
    assert (sink.total, sink.crc32) == (len(image), zlib.crc32(image))
    assert os.pread(fd, len(image) + 1, 0) == image
    os.close(fd)


def test_streams_after_each_other():
    """What parallel compressors make."""
    for kind in ("gzip", "bzip2", "xz", "zstd"):
        data = compress(kind, ARM64_IMAGE[:3000]) + compress(kind, ARM64_IMAGE[3000:]) + b"other"
        assert unpacked(data) == ARM64_IMAGE, kind


def test_streams_after_each_other_have_an_end(monkeypatch):
    monkeypatch.setattr(decompress, "STREAMS_MAX", 3)
    for kind in ("gzip", "bzip2", "xz", "zstd"):
        packed = compress(kind, ARM64_IMAGE)
        assert unpacked(packed * 3 + b"other") == ARM64_IMAGE * 3, kind
        with pytest.raises(PayloadCorrupt, match=f"its {kind} data .* more than 3 streams after each other"):
            unpacked(packed * 4)


def test_tiny_streams_are_not_each_read_with_all_that_follows(monkeypatch):
    """Once found: each empty gzip member copied all that follows it: 3 s for 1 MiB of them, growing by the square."""
    pieces: list[int] = []

    class Watched(decompress._Gzip):
        __slots__ = ()

        def decompress(self, data, max_length):
            pieces.append(len(data))
            return super().decompress(data, max_length)

    monkeypatch.setattr(decompress, "_Gzip", Watched)
    large = gzip.compress(os.urandom(3 * MIB))
    for tiny, count in ((gzip.compress(b""), 2000), (gzip.compress(b"x" * 900), 2000)):
        pieces.clear()
        unpack_all(large + tiny * count)
        assert max(pieces) == decompress.CHUNK  # the large one is read quickly
        assert sum(pieces) < 6 * MIB + count * 4096
        assert len(pieces) < 30 + count * 2


def test_ten_mebibytes_of_empty_streams_are_given_up_soon():
    member = gzip.compress(b"")
    start = time.process_time()
    with pytest.raises(PayloadCorrupt, match="more than 65536 streams"):
        unpack_all(member * (10 * MIB // len(member)))
    assert time.process_time() - start < 10
    assert unpack_all.written == 0


def test_lz4_repeated_magic_and_appended_size():
    data = compress("lz4", ARM64_IMAGE[:3000]) + compress("lz4", ARM64_IMAGE[3000:])
    assert unpacked(data) == ARM64_IMAGE
    assert unpacked(data + struct.pack("<I", len(ARM64_IMAGE))) == ARM64_IMAGE
    with pytest.raises(PayloadTruncated):  # another number is the size of a block that is not there
        unpacked(data + struct.pack("<I", len(ARM64_IMAGE) + 1))


def test_lz4_frame():
    frame = pytest.importorskip("lz4.frame")
    data = frame.compress(ARM64_IMAGE)
    assert unpacked(data + b"rest") == ARM64_IMAGE
    image = ARM64_IMAGE + bytes(5 * MIB)  # more than comes out at once of what goes in at once
    packed = frame.compress(image, block_size=frame.BLOCKSIZE_MAX4MB)
    assert len(packed) < decompress.CHUNK < len(image)
    assert unpacked(packed) == image
    with pytest.raises(PayloadTruncated):
        unpacked(data[:-9])
    with pytest.raises(PayloadCorrupt):
        unpacked(data[:30] + b"\xff" * 20 + data[50:])


def test_lz4_block_of_an_impossible_size():
    pytest.importorskip("lz4.block")
    with pytest.raises(PayloadCorrupt, match="0x1000000"):
        unpacked(b"\x02\x21\x4c\x18" + struct.pack("<I", 1 << 24) + bytes(1 << 24))


# -- what is wrong with a payload ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_truncated(kind):
    packed = compress(kind, ARM64_IMAGE)
    with pytest.raises(PayloadTruncated, match=f"ends at {len(packed) - 20:#x}"):
        unpacked(packed[: len(packed) - 20])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind):
    """The formats without a checksum (lzma, lz4) are found out by the size, or by what cannot be."""
    image = vmlinux()
    packed = compress(kind, image) + (b"" if kind == "gzip" else struct.pack("<I", len(image)))
    middle = len(packed) // 2
    packed = packed[:middle] + b"\xff" * 40 + packed[middle + 40 :]
    with pytest.raises(PayloadError):
        unpacked(with_payload(packed))


@pytest.mark.parametrize("kind", KINDS)
def test_library_missing(kind, monkeypatch):
    image = packed_bzimage(kind, vmlinux(3000))
    modules = {**MODULES, "bzip2": "bz2", "xz": "lzma", "lzma": "lzma"}
    if kind == "gzip":
        pytest.skip("zlib is a part of every Python that has pip")
    monkeypatch.setitem(sys.modules, modules[kind], None)
    with pytest.raises(CompressionUnavailable, match=modules[kind]) as raised:
        unpacked(image)
    if kind in MODULES:
        assert raised.value.hint == f"python -m pip install {MODULES[kind].removesuffix('.block')}"
    else:
        assert "Python" in raised.value.hint


def test_larger_than_it_says_stops_at_once():
    """A gzip trailer that lies: 70 MiB, said to be 1 MiB."""
    for kind in ("gzip", "zstd", "lz4", "xz"):
        data = bytearray(packed_bzimage(kind, bytes(70 * MIB)))
        size = data.rindex(struct.pack("<I", 70 * MIB))
        data[size : size + 4] = struct.pack("<I", MIB)
        with pytest.raises(PayloadTooLarge):
            unpack_all(bytes(data))
        assert unpack_all.written <= MIB, kind


def test_smaller_than_it_says():
    data = bytearray(packed_bzimage("lz4", vmlinux()))
    size = data.rindex(struct.pack("<I", len(vmlinux())))
    data[size : size + 4] = struct.pack("<I", len(vmlinux()) + 1)
    with pytest.raises(PayloadSizeMismatch, match=hex(len(vmlinux()) + 1)):
        unpacked(bytes(data))


@pytest.mark.parametrize(
    ("said", "fields"), [(payload.SIZE_LIMIT + 1, {"init_size": 0}), (0x800001, {"init_size": 0x800000})]
)
def test_size_beyond_all_measure_is_refused_before_anything_is_written(said, fields):
    """More than any kernel has, and more than this one makes room for."""
    packed = compress("zstd", vmlinux())
    with pytest.raises(PayloadTooLarge, match=hex(said)):
        unpack_all(with_payload(packed + struct.pack("<I", said), **fields))
    assert unpack_all.written == 0


def test_size_that_fills_init_size_exactly():
    image = vmlinux()
    assert unpacked(packed_bzimage("gzip", image, init_size=len(image))) == image


def test_bomb_of_unknown_size():
    bomb = gzip.compress(bytes(70 * MIB))
    with pytest.raises(PayloadTooLarge):
        unpack_all(bomb)
    assert unpack_all.written <= payload.RATIO_FREE
    with pytest.raises(PayloadTooLarge, match="0x1000 bytes"):
        unpack_all(gzip.compress(ARM64_IMAGE), limit=0x1000)
    assert unpack_all(gzip.compress(ARM64_IMAGE), limit=len(ARM64_IMAGE)) == len(ARM64_IMAGE)


def test_time_is_bounded():
    with pytest.raises(PayloadTimeout):
        unpacked(packed_bzimage("gzip", vmlinux()), seconds=-1.0)
    pytest.importorskip("lz4.block")
    with pytest.raises(PayloadTimeout):  # frames of no block at all
        unpacked(b"\x02\x21\x4c\x18" * 1000, seconds=-1.0)


def test_no_payload():
    with pytest.raises(PayloadNotFound, match="0x207"):
        unpacked(bzimage(version=0x207))
    with pytest.raises(PayloadNotFound):
        unpacked(bzimage(payload_length=8))
    with pytest.raises(PayloadNotFound, match="not compressed"):
        unpacked(vmlinux(100))
    with pytest.raises(UnknownCompression, match="starts with"):
        unpacked(with_payload(b"what is this, then?" * 9))


def test_payload_beyond_the_end():
    data = packed_bzimage("gzip", vmlinux())
    with as_file(data) as file:
        header = read_header(file)
        header.payload_length = file.size
        with pytest.raises(PayloadTruncated, match="ends at"):
            payload.in_bzimage(file, header)


def test_what_comes_out_is_no_kernel():
    with pytest.raises(NotAKernel, match="a text file"):
        unpacked(gzip.compress(b"only words\n" * 100))
    with pytest.raises(WrongMachine, match="aarch64"):
        unpacked(gzip.compress(ARM64_IMAGE), machine="x86_64")


def test_no_descriptor_is_lost():
    before = len(os.listdir("/proc/self/fd"))
    for bad in (gzip.compress(b"words"), gzip.compress(ARM64_IMAGE)[:-30], bzimage()):
        with pytest.raises(LoaderError):
            unpacked(bad)
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_cut_while_it_is_unpacked():
    data = packed_bzimage("gzip", os.urandom(3 * MIB))
    fd = os.memfd_create("out")
    with as_file(data) as file:
        found = payload.find(file)
        os.ftruncate(file.fd, 2 * MIB + 1)
        with pytest.raises(PayloadTruncated, match=f"ends at {2 * MIB + 1:#x}"):
            payload.unpack(file, found, fd)
    os.close(fd)


def test_payload_says_what_it_is():
    with as_file(with_payload(gzip.compress(bytes(0x12345)))) as file:
        found = payload.find(file)
        assert repr(found) == f"<Payload gzip {found.length:#x} bytes at {found.offset:#x} for 0x12345>"
    assert repr(payload.Payload(Format.XZ, 0x40, 0x10)) == "<Payload xz 0x10 bytes at 0x40>"


def run(format: Format, data: bytes) -> None:
    """Straight to the decompressor, whatever ``data`` starts with."""
    fd = os.memfd_create("out")
    try:
        with as_file(data) as file:
            sink = decompress.Sink(fd, file.path, MIB, 5.0)
            decompress.decompressor(format)(decompress.Source(file, 0, len(data)), sink)
    finally:
        os.close(fd)


def test_not_in_the_format_that_was_said():
    with pytest.raises(UnknownCompression, match="ELF is no compression"):
        run(Format.ELF, b"")
    for format in (Format.GZIP, Format.BZIP2, Format.XZ, Format.LZMA):
        with pytest.raises(PayloadCorrupt, match=f"its {format.value} data is damaged"):
            run(format, b"\xff" * 100)
    for kind in ("lzo", "zstd", "lz4"):
        pytest.importorskip(MODULES[kind])
        with pytest.raises(PayloadCorrupt, match=f"its {kind} data is damaged"):
            run(Format(kind), b"\xff" * 100)


# -- lzop ----------------------------------------------------------------------------------------------


def test_lzop_checksums():
    packed = bytearray(compress("lzo", ARM64_IMAGE))
    header = bytes(packed)
    packed[20] ^= 1  # a time in the header
    with pytest.raises((PayloadCorrupt, UnknownCompression)):
        unpacked(bytes(packed))
    flags = 9 + 2 + 2 + 2 + 1 + 1
    packed = bytearray(header)
    packed[flags + 2] |= 0x08  # a filter
    with pytest.raises(UnknownCompression, match="flags"):
        unpacked(bytes(packed))


def lzop_file(*blocks: bytes, flags: int = 0, extra: bytes | None = None, version: int = 0x1040) -> bytes:
    """An lzop file, as lzop.c writes it; blocks ready-made."""
    head = struct.pack(">HH", version, 0x20A0)
    head += struct.pack(">HBB", 0x0940, 3, 9) if version >= 0x0940 else b"\3"
    head += struct.pack(">I", flags) + bytes(12 if version >= 0x0940 else 8) + b"\x02ab"
    check = zlib.crc32(head) if flags & 0x1000 else zlib.adler32(head)
    data = b"\x89LZO\0\r\n\x1a\n" + head + struct.pack(">I", check)
    if extra is not None:
        data += struct.pack(">I", len(extra)) + extra + bytes(4)
    return data + b"".join(blocks) + bytes(4)


def stored(data: bytes, *checks: int) -> bytes:
    return struct.pack(f">{2 + len(checks)}I", len(data), len(data), *checks) + data


def test_lzop_variants():
    lzo = pytest.importorskip("lzallright").LZOCompressor()
    image = ARM64_IMAGE
    packed = bytes(lzo.compress(image))
    plain = struct.pack(">II", len(image), len(packed)) + packed
    every = struct.pack(
        ">6I", len(image), len(packed), zlib.adler32(image), zlib.crc32(image), zlib.adler32(packed), zlib.crc32(packed)
    )  # fmt: skip
    assert unpacked(lzop_file(plain)) == image
    assert unpacked(lzop_file(plain, version=0x0900)) == image
    assert unpacked(lzop_file(plain, flags=0x1040, extra=b"something")) == image
    assert unpacked(lzop_file(every + packed, flags=0x303)) == image
    assert unpacked(lzop_file(stored(image, zlib.adler32(image)), flags=0x3)) == image
    for position in range(8, 24):  # each byte of each checksum counts
        broken = bytearray(every)
        broken[position] ^= 1
        with pytest.raises(PayloadCorrupt, match="checksum"):
            unpacked(lzop_file(bytes(broken) + packed, flags=0x303))
    for bad in (
        struct.pack(">II", (256 << 10) + 1, 100) + bytes(100),  # larger than lzop makes them
        struct.pack(">II", len(image), len(image) + 1) + packed,  # larger packed than not
        struct.pack(">II", len(image) + 1, len(packed)) + packed,
        struct.pack(">II", len(image) - 1, len(packed)) + packed,
    ):
        with pytest.raises(PayloadCorrupt):
            unpacked(lzop_file(bad))


# -- EFI zboot -----------------------------------------------------------------------------------------


def zboot(packed: bytes, kind: str, *, offset: int = 0x240, length: int | None = None) -> bytes:
    head = bytearray(offset)
    head[:8] = b"MZ\0\0zimg"
    head[8:16] = struct.pack("<II", offset, len(packed) if length is None else length)
    head[0x18 : 0x18 + len(kind)] = kind.encode()
    head[0x38:0x3C] = b"\xcd\x23\x82\x81"
    return bytes(head) + packed


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((kind, kind) for kind in KINDS), ("xzkern", "xz"), ("zstd22", "zstd"), ("of the future", "gzip")],
)
def test_zboot(name, kind):
    packed = compress(kind, ARM64_IMAGE)
    size = b"" if kind == "gzip" else struct.pack("<I", len(ARM64_IMAGE))  # not part of the length
    data = zboot(packed + size, name, length=len(packed)) + b"more sections" * 50
    with as_file(data) as file:
        found = payload.find(file)
        assert (found.compression.value, found.offset, found.length) == (kind, 0x240, len(packed))
    assert unpacked(data, machine="aarch64") == ARM64_IMAGE


@pytest.mark.parametrize(
    "data", [b"", zboot(b"", "gzip")[:63], b"MZ" + bytes(62), bytes(4) + b"zimg" + bytes(60)]
)
def test_no_zboot_header(data):
    with as_file(data) as file, pytest.raises(InvalidZboot, match="no EFI zboot header"):
        read_zboot_header(file)


@pytest.mark.parametrize(
    "fields",
    [{"offset": 0x240, "length": 0}, {"length": 1 << 20}, {"length": 0xFFFFFFFF}, {"offset": 0x40 - 8}],
)
def test_zboot_header_that_makes_no_sense(fields):
    data = zboot(gzip.compress(ARM64_IMAGE), "gzip", **fields)
    with pytest.raises((InvalidZboot, PayloadNotFound)):
        unpacked(data)


def test_zboot_that_says_one_thing_and_holds_another():
    with pytest.raises(UnknownCompression, match="'lz4'"):
        unpacked(zboot(gzip.compress(ARM64_IMAGE), "lz4"))
    with pytest.raises(UnknownCompression, match="starts with"):
        unpacked(zboot(b"garbage!" * 9, "gzip"))


# -- anything at all -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_own_errors_leave(kind):
    image = vmlinux(6000)
    seed = compress(kind, image)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(seed) - 1), st.binary(min_size=1, max_size=12), st.booleans())
    @example(0, b"\0", True)
    def fuzz(position, junk, whole):
        data = seed[:position] + junk + seed[position + len(junk) :]
        data = data if whole else with_payload(data + struct.pack("<I", len(image)))
        try:
            unpack_all(data, limit=MIB, seconds=5)
        except LoaderError as error:
            assert error.message and "\n" not in error.message
        assert unpack_all.written <= MIB

    fuzz()
