"""Every stock kernel that scripts/fetch-kernels knows: both series, cloud and generic, amd64, arm64 and riscv64.

They are not fetched here (scripts/test does that beforehand): one that is not in the cache is said to be skipped,
and in CI it is a failure.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from array import array
from pathlib import Path

import pytest
from conftest import cannot, run_pyvmm
from test_loader_real_kernels import extracted

from loader import BufferMemory, bzimage, elf, image, initrd, open_kernel, payload, relocation
from loader.detect import Format
from loader.payload_errors import CompressionUnavailable
from pyvmm.lab import kernels
from pyvmm.memory import GuestMemory

MIB = 1 << 20
X86 = [name for name, stock in kernels.STOCK.items() if stock.architecture == "amd64"]
ARM64 = [name for name, stock in kernels.STOCK.items() if stock.architecture == "arm64"]


@functools.cache
def found(name: str) -> str | None:
    return kernels.find(name)


def kernel(name: str) -> Path:
    path = found(name)
    if path is None:
        cannot(f"{name} is not in the cache: run scripts/fetch-kernels {name}")
    assert path is not None
    if kernels.STOCK[name].series and os.path.realpath(path) != os.path.join(
        os.path.realpath(os.path.join(path, "..", "..")), name, os.path.basename(path)
    ):
        pytest.skip(f"this release has no {name}, and another stands in for it")
    return Path(path)


def recorded(path: Path) -> dict[str, str]:
    return json.loads(path.with_name(f"{path.name}.json").read_text())


class Unpacked:
    """A bzImage with its header, and the kernel in it as an open file with its headers and relocation table."""

    def __init__(self, path: Path, stack) -> None:
        self.path = path
        self.outer = stack(open_kernel(path, machine="x86_64"))
        self.header = bzimage.read_header(self.outer)
        self.payload = payload.find(self.outer)
        self.file = stack(payload.open_unpacked(self.outer, self.payload, machine="x86_64"))
        self.image = elf.read_image(self.file)
        table = relocation.read_table(self.file, self.image)
        assert table is not None
        self.table = table


@pytest.fixture(scope="module", params=X86)
def unpacked(request):
    path = kernel(request.param)
    opened = []

    def stack(file):
        opened.append(file)
        return file

    try:
        kernel_in_it = Unpacked(path, stack)
    except CompressionUnavailable as error:
        cannot(f"{error.message}: {error.hint}")
    yield kernel_in_it
    for file in opened:
        file.close()


def test_it_is_the_release_that_was_fetched(unpacked):
    release = recorded(unpacked.path)["release"]
    assert unpacked.header.version.startswith(f"{release} ")
    assert release.endswith("-cloud-amd64") == ("-cloud" in unpacked.path.parent.name)
    assert (unpacked.outer.format, unpacked.outer.machine) == (Format.BZIMAGE, "x86_64")
    # 64-bit entry, above 4 GiB, EFI handover and kexec, five-level paging
    assert (unpacked.header.protocol, unpacked.header.xloadflags, unpacked.header.relocatable) == (
        0x20F,
        0x7F,
        True,
    )
    assert unpacked.header.kernel_alignment == 2 * MIB


def test_payload_is_what_the_compressors_own_program_unpacks(unpacked, tmp_path):
    expected = {"debian-6.1-cloud": Format.LZ4, "debian-6.1": Format.XZ}.get(
        unpacked.path.parent.name, Format.ZSTD
    )
    assert unpacked.payload.compression is expected
    program = extracted(unpacked.path, unpacked.header, tmp_path)
    assert unpacked.file.size == unpacked.payload.size == program.stat().st_size
    with program.open("rb") as theirs, open(f"/proc/self/fd/{unpacked.file.fd}", "rb") as ours:
        assert hashlib.file_digest(ours, "sha256").digest() == hashlib.file_digest(theirs, "sha256").digest()


def test_vmlinux_fits_what_the_bzimage_says(unpacked):
    header, image_, table = unpacked.header, unpacked.image, unpacked.table
    assert image_.is_linux
    assert image_.base == header.pref_address == 16 * MIB
    needed = image_.segments[-1].paddr + image_.segments[-1].file_size - image_.base
    assert needed <= header.init_size < 128 * MIB
    assert image_.segments[0].paddr <= image_.entry < image_.segments[0].end
    assert image_.base <= image_.notes.pvh_entry < image_.segments[0].end
    # the table, with nothing before or after it, names places in the image only
    assert image_.end + 4 * len(table.words) == unpacked.file.size
    assert len(table.lists) == 3
    assert table.count > 200_000
    low = 0x8000_0000 + image_.base
    for bits, sign, _, _ in table.lists:
        sites = table.sites(bits, sign)
        assert min(sites) >= low
        assert max(sites) + bits // 8 <= low + image_.segments[-1].end - image_.base


def test_only_the_newer_series_says_that_pvh_may_enter_it_elsewhere(unpacked):
    expected = (2 * MIB, 16 * MIB, 0x3FFF_FFFF) if "-6.12" in unpacked.path.parent.name else None
    assert unpacked.image.notes.pvh_reloc == expected


def test_bzimage_and_initrd_in_guest_memory(unpacked):
    with GuestMemory([(0, 256 * MIB)]) as memory:
        result = bzimage.load(
            memory, unpacked.outer, bzimage.place(memory, unpacked.header), header=unpacked.header
        )
        code = os.pread(unpacked.outer.fd, unpacked.header.code_size, unpacked.header.setup_size)
        assert bytes(memory.slice(result.load_base, len(code))) == code
        kept = result.load_base + unpacked.header.init_size
        assert any(start <= result.load_base and kept <= start + size for start, size in result.reserved)
        assert initrd.place(memory.ranges, 32 * MIB, result.reserved, result.initrd_addr_max) == 224 * MIB


def test_kaslr_moves_every_address_and_nothing_else(unpacked):
    moved_by, physical = 0x0A60_0000, 0x0200_0000
    with (
        GuestMemory([(0, 160 * MIB)], poison=0xA5) as memory,
        GuestMemory([(0, 160 * MIB)], poison=0xA5) as still,
    ):
        result = elf.load(memory, unpacked.file, physical, image=unpacked.image)
        before = elf.load(still, unpacked.file, physical, image=unpacked.image)
        size = result.kernel_end - result.load_base
        assert (result.load_base, result.entry_64) == (18 * MIB + 30 * MIB, unpacked.image.entry + physical)
        assert before.load_base == result.load_base
        original = bytes(still.slice(before.load_base, size))
        same = bytes(memory.slice(result.load_base, size)) == original
        assert same
        choices = relocation.slots(unpacked.image, unpacked.header.init_size)
        assert 400 < choices < 496
        assert moved_by == relocation.kaslr(
            memory, unpacked.file, unpacked.image, result, room=unpacked.header.init_size, offset=moved_by
        )
        # Moving back the places that the table names must give what was loaded, so nothing else was changed.
        view = memory.slice(result.load_base, size)
        low = 0x8000_0000 + unpacked.image.base
        changed = 0
        for bits, sign, _, _ in unpacked.table.lists:
            number, mask = struct.Struct("<Q" if bits == 64 else "<I"), (1 << bits) - 1
            for word in array("I", unpacked.table.sites(bits, sign)):
                value = number.unpack_from(view, word - low)[0]
                number.pack_into(view, word - low, (value - sign * moved_by) & mask)
                changed += 1
        assert changed == unpacked.table.count
        same = bytes(view) == original
        assert same


@pytest.mark.parametrize("name", ARM64)
def test_arm64_image(name):
    path = kernel(name)
    with open_kernel(path, machine="aarch64") as file:
        header = image.read_header(file)
        assert (file.format, header.machine, header.big_endian) == (Format.ARM64_IMAGE, "aarch64", False)
        # Since 5.10 text_offset is 0; flags: 4 KiB pages, anywhere in memory.
        assert (header.text_offset, header.fields.flags, header.fields.res5) == (0, 0b1010, 0x40)
        assert file.size < header.memory_size == header.fields.image_size < file.size + 2 * MIB
        check_loaded(file, header, 1 << 30, 0)
        assert file.read(0, 2) == b"MZ"
        assert file.read(0x40, 6) == b"PE\0\0\x64\xaa"
    check_release(path)


def test_riscv64_image():
    path = kernel("debian-riscv64")
    with open_kernel(path, machine="riscv64") as file:
        header = image.read_header(file)
        assert (file.format, header.machine, header.big_endian) == (Format.RISCV64_IMAGE, "riscv64", False)
        assert (header.text_offset, header.fields.flags, header.fields.version) == (2 * MIB, 0, 2)
        assert struct.pack("<Q", header.fields.magic) == b"RISCV\0\0\0"
        assert file.size < header.memory_size == header.fields.image_size < file.size + 2 * MIB
        check_loaded(file, header, 2 << 30, 2 * MIB)
    check_release(path)


def check_loaded(file, header, ram, offset):
    """It is loaded as it is, ``offset`` above the start of ``ram``, and its BSS is kept free."""
    memory = BufferMemory([(ram, 96 * MIB)])
    result = image.load(memory, file, header=header)
    assert result.load_base == result.entry_64 == ram + offset
    assert result.kernel_end == result.load_base + file.size
    assert result.reserved == ((result.load_base, header.memory_size),)
    assert memory.slice(result.load_base, file.size) == os.pread(file.fd, file.size, 0)
    assert not any(memory.slice(result.kernel_end, header.memory_size - file.size))


def check_release(path):
    """The image is of the release that its package was for."""
    assert f"Linux version {recorded(path)['release']} ".encode() in path.read_bytes()


@pytest.mark.parametrize("name", kernels.KNOWN)
def test_inspect_tells_every_kernel(name):
    path = kernel(name)
    done = run_pyvmm("inspect", "--json", path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    stock = kernels.STOCK[name]
    machine = {"amd64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64"}[stock.architecture]
    assert (report["machine"], report["is_kernel"], report["relocatable"]) == (machine, True, True)
    assert report["version"].startswith(f"{recorded(path)['release']} ")
    assert report["size"] == path.stat().st_size
    if stock.architecture == "amd64":
        assert report["kaslr"].startswith("yes: a relocation table of ")
    table = run_pyvmm("inspect", path)
    assert (table.returncode, table.stderr) == (0, "")
    assert recorded(path)["release"] in table.stdout.decode()
