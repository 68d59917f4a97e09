"""Images of arm64 and riscv64: their header, where they go, what they reserve."""

from __future__ import annotations

import os

import pytest
from loader_images import MIB, as_file
from loader_structures import arm64_image, riscv64_image

from loader import errors, image
from loader.buffer import BufferMemory

BOTH = pytest.mark.parametrize("make", [arm64_image, riscv64_image])
RAM = 0x40000000


def memory(start: int = RAM, size: int = 8 * MIB) -> BufferMemory:
    return BufferMemory([(start, size)], fill=0xFF)


def load(data: bytes, *arguments, ram: BufferMemory | None = None, **options):
    with as_file(data) as file:
        return image.load(ram or memory(), file, *arguments, **options)


def refuse(error: type[errors.LoaderError], match: str, data: bytes, *arguments, **options):
    with pytest.raises(error, match=match) as caught:
        load(data, *arguments, **options)
    return caught.value


class TestHeader:
    def test_arm64_fields(self):
        header = image.read_header(as_file(arm64_image(text_offset=0, image_size=0x3000, flags=0xB)))
        assert (header.machine, header.text_offset, header.memory_size) == ("aarch64", 0, 0x3000)
        assert (header.fields.flags, header.fields.code1, header.fields.magic) == (
            0xB,
            0x14000000,
            0x644D5241,
        )
        assert header.big_endian
        assert not image.read_header(as_file(arm64_image(flags=0xA))).big_endian

    def test_riscv64_fields(self):
        header = image.read_header(as_file(riscv64_image()), "riscv64")
        assert (header.machine, header.text_offset, header.memory_size) == ("riscv64", 0x200000, 0x2000)
        assert header.fields.version == 2
        assert header.fields.magic2 == 0x05435352

    def test_arm64_without_image_size_has_the_old_text_offset(self):
        header = image.read_header(as_file(arm64_image(text_offset=0x12340000, image_size=0)))
        assert (header.text_offset, header.memory_size) == (0x80000, 0x1000)
        header = image.read_header(as_file(riscv64_image(text_offset=0x400000, image_size=0)))
        assert (header.text_offset, header.memory_size) == (0x400000, 0x1000)

    def test_room_is_never_less_than_the_file(self):
        assert image.read_header(as_file(arm64_image(image_size=0xFFF))).memory_size == 0x1000

    @BOTH
    def test_short(self, make):
        refuse(errors.ReadImageHeader, "ends at 0x3f, inside the Image header of 64", make()[:63])
        assert load(make(64, image_size=64)).kernel_end % 0x1000 == 64

    def test_read_error(self, monkeypatch):
        def pread(*_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "pread", pread)
        refuse(errors.ReadImageHeader, "reading at 0x0: Input/output error", arm64_image())

    @pytest.mark.parametrize("magic", [b"\0\0\0\0", b"ARM\x65", b"RISC"])
    def test_magic(self, magic):
        number = int.from_bytes(magic, "little")
        refuse(
            errors.InvalidImageMagicNumber,
            f"magic number {number:#010x} at 0x38, and not that of an Image for aarch64 or riscv64",
            arm64_image(magic=magic),
        )

    def test_magic_of_another_machine(self):
        refuse(
            errors.InvalidImageMagicNumber, "0x05435352 .* for aarch64", riscv64_image(), machine="aarch64"
        )
        refuse(errors.InvalidImageMagicNumber, "0x644d5241 .* for riscv64", arm64_image(), machine="riscv64")


class TestLoad:
    def test_content_and_result_arm64(self):
        ram, data = memory(), arm64_image()
        result = load(data, RAM, ram=ram)
        start = RAM + 0x80000
        assert ram.read(start - 1, 0x1002) == b"\xff" + data + b"\xff"
        assert (result.kernel_load, result.load_base, result.entry_64) == (start, start, start)
        assert result.kernel_end == start + 0x1000
        assert result.reserved == ((start, 0x2000),)
        assert result.initrd_addr_max == RAM + (32 << 30) - 1
        assert result.cmdline_size == 2047
        assert (result.entry_32, result.setup_header, result.is_linux) == (None, None, True)

    def test_result_riscv64(self):
        result = load(riscv64_image())
        assert result.kernel_load == RAM + 0x200000
        assert (result.initrd_addr_max, result.cmdline_size) == (2**64 - 1, 1023)

    def test_the_window_of_the_initrd_starts_on_a_gib(self):
        ram = memory((5 << 30) - 2 * MIB, 4 * MIB)
        assert load(arm64_image(), ram=ram).initrd_addr_max == (36 << 30) - 1

    @pytest.mark.parametrize(
        ("start", "base"), [(0, 0), (RAM, RAM), (RAM + 1, RAM + 2 * MIB), (RAM + 2 * MIB, RAM + 2 * MIB)]
    )
    def test_without_a_base_at_the_start_of_ram(self, start, base):
        """The crate takes address 0."""
        assert load(arm64_image(), ram=memory(start)).kernel_load == base + 0x80000

    def test_without_a_base_where_there_is_room(self):
        ram = BufferMemory([(0, 0x81000), (RAM, 0x82000)])
        assert load(arm64_image(), ram=ram).kernel_load == RAM + 0x80000
        error = refuse(
            errors.KernelDoesNotFit,
            r"0x2001 bytes of RAM in one piece, 0x80000 above a 0x200000 boundary \(image_size 0x2001 at 0x10",
            arm64_image(image_size=0x2001),
            ram=ram,
        )
        assert error.hint == "give the machine at least 1 MiB of memory"

    @pytest.mark.parametrize("base", [RAM + 1, RAM + 0x1FFFFF, -1])
    def test_base_off_its_boundary(self, base):
        refuse(errors.InvalidBaseAddrAlignment, f"{base:#x} is off a 0x200000 boundary", arm64_image(), base)

    def test_no_address(self):
        refuse(
            errors.InvalidImage,
            r"0xffffffffffe00000 plus text_offset 0x200000 \(at 0x8\) is no address",
            riscv64_image(),
            2**64 - 2 * MIB,
        )
        refuse(errors.InvalidImage, "-0x200000", riscv64_image(), -2 * MIB)

    def test_end_passes_64_bits(self):
        refuse(errors.MemoryOverflow, "0x1001 bytes at 0xf.*image_size 0x1001", arm64_image(
            text_offset=2 * MIB - 0x1000, image_size=0x1001), 2**64 - 2 * MIB)  # fmt: skip
        refuse(errors.ImageOutsideRam, "not all RAM", arm64_image(
            text_offset=2 * MIB - 0x1000, image_size=0x1000), 2**64 - 2 * MIB)  # fmt: skip

    def test_highmem_start(self):
        """The crate ignores it."""
        assert load(arm64_image(), RAM, RAM + 0x80000).kernel_load == RAM + 0x80000
        refuse(
            errors.InvalidKernelStartAddress,
            "at 0x40080000, below .* 0x40080001",
            arm64_image(),
            RAM,
            RAM + 0x80001,
        )

    def test_what_is_reserved_must_be_ram_and_nothing_is_written_else(self):
        ram = memory(RAM, 0x82000)
        assert load(arm64_image(), RAM, ram=ram).kernel_end == RAM + 0x81000
        ram = memory(RAM, 0x81FFF)
        refuse(
            errors.ImageOutsideRam,
            "needs 0x40080000..0x40082000 .image_size 0x2000 at 0x10., and that is not all RAM",
            arm64_image(),
            RAM,
            ram=ram,
        )
        assert ram.read(RAM + 0x80000, 0x1000) == b"\xff" * 0x1000
        assert issubclass(errors.ImageOutsideRam, errors.PeReadKernelImage)

    def test_file_cut_while_it_is_loaded(self):
        with as_file(arm64_image()) as file:
            os.ftruncate(file.fd, 0x800)
            with pytest.raises(errors.PeReadKernelImage, match="ends at 0x800, and had 0x1000 bytes"):
                image.load(memory(), file)

    def test_a_header_given_is_not_read_again(self):
        with as_file(arm64_image()) as file:
            header = image.read_header(file)
            header.text_offset = 0
            assert image.load(memory(), file, header=header).kernel_load == RAM
