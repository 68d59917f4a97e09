"""bzImage: the header's checks and defaults, where it is loaded, and what it then occupies."""

from __future__ import annotations

import errno
import os

import loader_images
import pytest
from loader_images import MIB, VERSION, as_file

from loader import bzimage, errors, files
from loader.buffer import BufferMemory

POISON = 0xA5


def memory(size: int = 24 * MIB) -> BufferMemory:
    return BufferMemory([(0, size)], fill=POISON)


def header_of(**changes: object) -> bzimage.BzImageHeader:
    with as_file(loader_images.bzimage(**changes)) as file:  # type: ignore[arg-type]
        return bzimage.read_header(file)


def refuse(data: bytes, error: type[Exception], match: str) -> None:
    with as_file(data) as file, pytest.raises(errors.LoaderError, match=match) as caught:
        bzimage.read_header(file)
    assert type(caught.value) is error
    assert isinstance(caught.value, errors.BzImageError)


class TestHeader:
    def test_fields(self):
        header = header_of()
        assert header.protocol == 0x20F
        assert header.setup_size == 5 * 512
        assert header.code_size == len(loader_images.bzimage()) - 5 * 512
        assert header.version == VERSION.rstrip(b"\0").decode()
        assert header.xloadflags == 0x7F
        assert header.relocatable
        assert (header.kernel_alignment, header.pref_address, header.init_size) == (
            0x200000,
            0x1000000,
            0x800000,
        )
        assert (header.initrd_addr_max, header.cmdline_size) == (0x7FFFFFFF, 2047)
        assert (header.payload_offset, header.payload_length) == (5 * 512 + 0x300, 0x100)
        assert header.setup_type_max == 0x80000009
        assert "6.1.0-test" in repr(header)

    def test_no_setup_sects_means_four(self):
        assert header_of(setup_sects=0).setup_size == 5 * 512

    @pytest.mark.parametrize(
        ("protocol", "field", "before", "since"),
        [
            (0x203, "initrd_addr_max", 0x37FFFFFF, 0x7FFFFFFF),
            (0x205, "relocatable", False, True),
            (0x205, "kernel_alignment", 1, 0x200000),
            (0x206, "cmdline_size", 255, 2047),
            (0x208, "payload_offset", 0, 5 * 512 + 0x300),
            (0x208, "payload_length", 0, 0x100),
            (0x20A, "pref_address", 0, 0x1000000),
            (0x20A, "init_size", 0, 0x800000),
            (0x20C, "xloadflags", 0, 0x7F),
            (0x20F, "setup_type_max", None, 0x80000009),
        ],
    )
    def test_a_field_counts_from_its_protocol_version_on(self, protocol, field, before, since):
        assert getattr(header_of(version=protocol - 1), field) == before
        assert getattr(header_of(version=protocol), field) == since

    @pytest.mark.parametrize(
        ("field", "default"),
        [("initrd_addr_max", 0x37FFFFFF), ("kernel_alignment", 1), ("cmdline_size", 255)],
    )
    def test_zero_means_the_old_default(self, field, default):
        assert getattr(header_of(**{field: 0}), field) == default

    def test_raw_ends_where_the_jump_says(self):
        assert len(header_of().raw) == 0x26C - 0x1F1
        assert len(header_of(jump=b"\xeb\x20").raw) == 0x222 - 0x1F1
        assert header_of(jump=b"\xeb\x20").initrd_addr_max == 0x37FFFFFF  # its bytes are not the header's
        assert len(header_of(jump=b"\xeb\x10").raw) == 0x212 - 0x1F1

    def test_raw_ends_at_0x290_at_most(self):
        assert len(header_of(jump=b"\xeb\x7f").raw) == 0x281 - 0x1F1
        assert len(header_of(jump=b"\xe9\x6a").raw) == 0x290 - 0x1F1  # no short jump: it tells nothing
        assert len(header_of(jump=b"\xeb\x80").raw) == 0x290 - 0x1F1  # backwards
        assert len(header_of(jump=b"\xeb\x0f").raw) == 0x290 - 0x1F1  # into the header itself

    @pytest.mark.parametrize(("offset", "text"), [(0, ""), (5 * 512 - 0x200, ""), (0xFFFF, "")])
    def test_version_string_must_lie_in_the_setup_code(self, offset, text):
        assert header_of(kernel_version=offset).version == text
        assert "no version" in repr(header_of(kernel_version=offset))

    def test_version_string_without_an_end_is_cut(self):
        data = bytearray(loader_images.bzimage(kernel_version=0x200))
        data[0x400 : 5 * 512] = b"v" * (5 * 512 - 0x400)
        with as_file(bytes(data)) as file:
            assert bzimage.read_header(file).version == "v" * 256

    def test_version_string_does_not_reach_into_the_kernel(self):
        code = b"kernel" + bytes(2042)
        assert header_of(kernel_version=5 * 512 - 0x200 + 2, code=code, kernel_info=False).version == ""
        data = bytearray(
            loader_images.bzimage(kernel_version=5 * 512 - 0x200 - 4, code=code, kernel_info=False)
        )
        data[5 * 512 - 4 : 5 * 512] = b"6.12"
        with as_file(bytes(data)) as file:
            assert bzimage.read_header(file).version == "6.12"

    def test_kernel_info_at_the_very_end(self):
        code = bytes(0x400) + b"LToP" + bytes((16, 0, 0, 0) * 2) + b"\x09\0\0\x80"
        changes = {"code": code, "kernel_info": False, "kernel_info_offset": 0x400}
        assert header_of(**changes).setup_type_max == 0x80000009

    @pytest.mark.parametrize("offset", [0, 4, 0xFFFFFFFF])
    def test_kernel_info_that_is_not_there(self, offset):
        assert header_of(kernel_info_offset=offset).setup_type_max is None


class TestRefused:
    def test_ends_before_the_load_flags(self):
        refuse(
            loader_images.bzimage()[:0x211],
            errors.ReadBzImageHeader,
            "ends at 0x211, inside the setup header",
        )

    def test_ends_with_the_load_flags(self):
        refuse(
            loader_images.bzimage()[:0x212], errors.BzImageUnderflow, "ends at 0x212, inside its setup code"
        )

    def test_read_error(self, monkeypatch):
        def broken(*arguments):
            raise OSError(errno.EIO, "Input/output error")

        with as_file(loader_images.bzimage()) as file:
            monkeypatch.setattr(files.os, "pread", broken)
            with pytest.raises(errors.ReadBzImageHeader, match="Input/output error"):
                bzimage.read_header(file)

    def test_no_magic(self):
        refuse(
            loader_images.bzimage(header=0x12345678),
            errors.InvalidBzImage,
            'no "HdrS" at 0x202 but 0x12345678',
        )

    def test_protocol_before_2_00(self):
        refuse(loader_images.bzimage(version=0x1FF), errors.InvalidBzImage, "boot protocol 0x1ff at 0x206")

    def test_protocol_2_00_is_enough(self):
        assert header_of(version=0x200).protocol == 0x200

    def test_zimage(self):
        refuse(
            loader_images.bzimage(loadflags=0x80), errors.InvalidBzImage, "a zImage.*loadflags 0x80 at 0x211"
        )

    def test_fuzz_regression_of_the_crate(self):
        """A file of 559 bytes with setup_sects 198 and its header cut off."""
        data = loader_images.bzimage(setup_sects=198)[:559]
        refuse(data, errors.BzImageUnderflow, "ends at 0x22f, inside its setup code of 0x18e00 bytes")

    def test_ends_with_the_setup_code(self):
        data = loader_images.bzimage()[: 5 * 512]
        refuse(
            data,
            errors.BzImageTruncated,
            "has 0x0 bytes of kernel from 0xa00 on, and its header announces 0x800",
        )
        refuse(data[:-1], errors.BzImageUnderflow, "ends at 0x9ff")

    def test_ends_before_syssize_says(self):
        refuse(
            loader_images.bzimage()[:-1], errors.BzImageTruncated, "0x7ff bytes of kernel .* announces 0x800"
        )

    def test_syssize_has_16_bits_before_2_04(self):
        assert header_of(version=0x203, syssize=0xFFFFFFFF).code_size == 0x800
        refuse(loader_images.bzimage(version=0x204, syssize=0x81), errors.BzImageTruncated, "announces 0x810")

    def test_payload_ends_outside_the_file(self):
        refuse(loader_images.bzimage(payload_length=0x501), errors.BzImageTruncated, "its payload at 0x1201")
        assert header_of(payload_length=0x500).payload_length == 0x500

    def test_alignment_is_a_power_of_two(self):
        refuse(loader_images.bzimage(kernel_alignment=0x300000), errors.InvalidBzImage, "0x300000 at 0x230")

    def test_room_passes_64_bits(self):
        data = loader_images.bzimage(pref_address=2**64 - 0x1000)
        refuse(data, errors.InvalidBzImage, "0xfffffffffffff000 at 0x258 plus init_size 0x800000 at 0x260")


class TestLoad:
    def test_by_default_at_code32_start(self):
        data = loader_images.bzimage()
        ram = memory()
        with as_file(data) as file:
            result = bzimage.load(ram, file)
        code = data[5 * 512 :]
        assert ram.read(0x100000, len(code)) == code
        assert ram.read(0x100000 - 1, 1)[0] == ram.read(0x100000 + len(code), 1)[0] == POISON
        assert (result.kernel_load, result.load_base, result.kernel_end) == (
            0x100000,
            0x100000,
            0x100000 + len(code),
        )
        assert (result.entry_64, result.entry_32) == (0x100200, 0x100000)
        assert result.pvh_boot_cap.status == "ignored"
        assert (result.initrd_addr_max, result.cmdline_size, result.is_linux) == (0x7FFFFFFF, 2047, True)
        assert "0x100000..0x100800" in repr(result)

    def test_kernel_offset_is_absolute_and_code32_start_follows(self):
        with as_file(loader_images.bzimage()) as file:
            result = bzimage.load(memory(), file, 0x345000)
        assert result.kernel_load == 0x345000
        assert result.setup_header.code32_start == 0x345000

    def test_the_header_given_is_not_changed(self):
        with as_file(loader_images.bzimage()) as file:
            header = bzimage.read_header(file)
            bzimage.load(memory(), file, 0x345000, header=header)
        assert header.setup_header.code32_start == 0x100000

    def test_signature_after_the_code_is_loaded_too(self):
        data = loader_images.bzimage() + b"signature"
        ram = memory()
        with as_file(data) as file:
            result = bzimage.load(ram, file)
        assert ram.read(result.kernel_end - 9, 9) == b"signature"

    def test_highmem_start(self):
        with as_file(loader_images.bzimage()) as file:
            assert bzimage.load(memory(), file, highmem_start=0x100000).kernel_load == 0x100000
            with pytest.raises(errors.InvalidKernelStartAddress, match="at 0x100000, below .* at 0x200000"):
                bzimage.load(memory(), file, highmem_start=0x200000)

    def test_highmem_start_is_compared_with_where_it_goes(self):
        """The crate compares the code32_start of the file, wherever it loads."""
        with as_file(loader_images.bzimage()) as file:
            assert bzimage.load(memory(), file, 0x200000, 0x200000).kernel_load == 0x200000
            with pytest.raises(errors.InvalidKernelStartAddress, match="0x80000"):
                bzimage.load(memory(), file, 0x80000, 0x100000)

    def test_no_64_bit_entry(self):
        with as_file(loader_images.bzimage(xloadflags=0x7E)) as file:
            result = bzimage.load(memory(), file)
        assert result.entry_64 is None
        assert "entry_64=none" in repr(result)

    def test_exact_fit(self):
        size = 0x100000 + 0x800
        with as_file(loader_images.bzimage()) as file:
            assert bzimage.load(memory(size), file).kernel_end == size
            with pytest.raises(
                errors.MemoryOverflow, match="0x800 bytes at 0x100000 do not lie in RAM"
            ) as caught:
                bzimage.load(memory(size - 1), file)
        assert "2 MiB" in caught.value.hint

    def test_not_across_a_hole(self):
        ram = BufferMemory([(0, 0x100400), (0x100800, MIB)])
        with as_file(loader_images.bzimage()) as file, pytest.raises(errors.MemoryOverflow):
            bzimage.load(ram, file)

    @pytest.mark.parametrize("offset", [2**64 - 1, 2**64 - 0x800, 2**64])
    def test_past_64_bits(self, offset):
        with as_file(loader_images.bzimage()) as file, pytest.raises(errors.MemoryOverflow):
            bzimage.load(memory(), file, offset)

    def test_above_4_gib_only_if_the_kernel_can(self):
        high = 1 << 32
        ram = BufferMemory([(high, MIB)])
        with as_file(loader_images.bzimage()) as file:
            result = bzimage.load(ram, file, high)
        assert (result.entry_64, result.entry_32) == (high + 0x200, None)
        assert result.setup_header.code32_start == 0
        with as_file(loader_images.bzimage(xloadflags=1)) as file:
            with pytest.raises(errors.MemoryOverflow, match=r"below 4 GiB \(xloadflags 0x1 at 0x236\)"):
                bzimage.load(ram, file, high)

    def test_up_to_4_gib_any_kernel_can(self):
        edge = 1 << 32
        ram = BufferMemory([(edge - MIB, 2 * MIB)])
        with as_file(loader_images.bzimage(xloadflags=1)) as file:
            assert bzimage.load(ram, file, edge - 0x800).kernel_end == edge
            with pytest.raises(errors.MemoryOverflow, match="would end at 0x100000001"):
                bzimage.load(ram, file, edge - 0x7FF)
        with as_file(loader_images.bzimage()) as file:
            assert bzimage.load(ram, file, edge - 1).entry_32 == edge - 1

    def test_at_address_0(self):
        with as_file(loader_images.bzimage()) as file:
            assert bzimage.load(memory(), file, 0).kernel_load == 0

    def test_file_cut_while_it_is_loaded(self):
        with as_file(loader_images.bzimage()) as file:
            header = bzimage.read_header(file)
            os.ftruncate(file.fd, 5 * 512 + 16)
            with pytest.raises(errors.ReadBzImageCompressedKernel, match="ends at 0xa10"):
                bzimage.load(memory(), file, header=header)


class TestPlace:
    def test_preferred_address_if_there_is_room(self):
        header = header_of()
        assert bzimage.place(memory(32 * MIB), header) == 0x1000000
        assert header.reserved(0x1000000) == ((0x1000000, 0x800), (0x1000000, 0x800000))

    def test_exact_fit(self):
        assert bzimage.place(memory(24 * MIB), header_of()) == 0x1000000

    def test_too_little_memory_says_how_much_it_takes(self):
        with pytest.raises(
            errors.KernelDoesNotFit, match="RAM up to 0x1800000 to start .* ends at 0x17ff000"
        ) as caught:
            bzimage.place(memory(24 * MIB - 4096), header_of())
        assert caught.value.hint == "give the machine at least 24 MiB of memory"

    def test_no_memory_at_all(self):
        with pytest.raises(errors.KernelDoesNotFit, match="RAM ends at 0x0"):
            bzimage.place(BufferMemory([]), header_of())

    def test_preferred_address_is_aligned(self):
        assert (
            bzimage.place(memory(32 * MIB), header_of(pref_address=0x1000001, kernel_alignment=0x400000))
            == 0x1400000
        )

    def test_kernel_that_cannot_be_moved(self):
        header = header_of(relocatable_kernel=0)
        assert bzimage.place(memory(), header) == 0x100000
        assert header.reserved(0x100000) == ((0x100000, 0x800), (0x1000000, 0x800000))

    def test_old_kernel_has_no_known_room(self):
        header = header_of(version=0x209)
        assert bzimage.place(memory(), header) == 0x100000
        assert header.reserved(0x100000) == ((0x100000, 0x800),)

    def test_old_kernel_that_cannot_be_moved_runs_where_it_is(self):
        assert header_of(version=0x204).runtime_start(0x100000) == 0x100000

    def test_room_may_not_reach_into_a_hole(self):
        ram = BufferMemory([(0, 8 * MIB), (0x1800000, 8 * MIB)])
        assert bzimage.place(ram, header_of(pref_address=0x1800000)) == 0x1800000
        with pytest.raises(errors.KernelDoesNotFit):
            bzimage.place(ram, header_of(pref_address=0x200000))

    def test_hole_at_the_preferred_address(self):
        ram = BufferMemory([(0, 0x1000000 - 4096), (0x1200000, 0x800000)])
        assert bzimage.place(ram, header_of(init_size=0)) == 0x100000

    @pytest.mark.parametrize(
        ("load", "start"),
        [(0x100000, 0x1000000), (0x1000000, 0x1000000), (0x1000001, 0x1200000), (0x1200000, 0x1200000)],
    )
    def test_runtime_start(self, load, start):
        """max(align_up(load, kernel_alignment), pref_address): from the decompressor's head_64.S."""
        assert header_of().runtime_start(load) == start
