"""The zero page: what is copied from the header, what is filled in, and the setup_data list."""

from __future__ import annotations

import struct

import loader_images
import pytest
from loader_images import MIB, as_file, kernel

from loader import bzimage, elf, errors
from loader.buffer import BufferMemory
from loader.configurator import linux
from loader.enums import E820Type, SetupDataType
from loader.structs import boot_params

E820 = [(0, 0x9FC00, E820Type.RAM), (0x9FC00, 0x60400, E820Type.RESERVED), (0x100000, 31 * MIB, E820Type.RAM)]


def boot(**changes: object):
    """The header and the result of loading a bzImage at 0x345000."""
    with as_file(loader_images.bzimage(**changes)) as file:  # type: ignore[arg-type]
        header = bzimage.read_header(file)
        return header, bzimage.load(BufferMemory([(0, 4 * MIB)]), file, 0x345000, header=header)


def build(header=None, result=None, **changes: object) -> boot_params:
    if result is None:
        header, result = boot()
    return linux.build(header, result, **{"e820": E820, "cmdline_addr": 0x20000, **changes})


def vmlinux():
    with as_file(bytes(kernel())) as file:
        return elf.load(BufferMemory([(0x1000000, MIB)]), file)


def u32(page: bytes, offset: int) -> int:
    return struct.unpack_from("<I", page, offset)[0]


class TestBuild:
    def test_copies_the_header_and_nothing_else(self):
        page = bytes(build())
        source = loader_images.bzimage()
        assert page[:0x70] == bytes(0x70)
        assert page[0x1EF] == 0  # the sentinel of the file
        assert page[0x1F1:0x1FA] == source[0x1F1:0x1FA]
        assert page[0x1FE:0x210] == source[0x1FE:0x210]
        assert page[0x22C:0x250] == source[0x22C:0x250]
        assert page[0x258:0x26C] == source[0x258:0x26C]
        assert page[0x26C:0x290] == bytes(0x290 - 0x26C)  # "code" follows the header in the file

    def test_a_longer_header_is_copied_whole(self):
        header, result = boot(jump=b"\xeb\x70")
        assert bytes(build(header, result))[0x26C:0x272] == b"code\0\0"

    def test_fills_in_what_a_boot_loader_must(self):
        params = build()
        hdr = params.hdr
        assert (hdr.type_of_loader, hdr.vid_mode) == (0xFF, 0xFFFF)
        assert hdr.loadflags == 0x81  # as in the file, and CAN_USE_HEAP
        assert hdr.heap_end_ptr == 0xDE00
        assert hdr.code32_start == 0x345000
        assert (hdr.cmd_line_ptr, params.ext_cmd_line_ptr) == (0x20000, 0)
        assert (hdr.ramdisk_image, hdr.ramdisk_size) == (0, 0)
        assert (params.ext_ramdisk_image, params.ext_ramdisk_size) == (0, 0)
        assert (params.acpi_rsdp_addr, hdr.setup_data) == (0, 0)

    def test_addresses_at_the_documented_offsets(self):
        page = bytes(
            build(
                cmdline_addr=0x1_2345_6000,
                initrd=(0x2_89AB_C000, 0x3_0000_1234),
                acpi_rsdp_addr=0xE0000,
                setup_data_addr=0x2F000,
            )
        )
        assert (u32(page, 0x228), u32(page, 0xC8)) == (0x23456000, 1)
        assert (u32(page, 0x218), u32(page, 0xC0)) == (0x89ABC000, 2)
        assert (u32(page, 0x21C), u32(page, 0xC4)) == (0x1234, 3)
        assert struct.unpack_from("<Q", page, 0x70)[0] == 0xE0000
        assert struct.unpack_from("<Q", page, 0x250)[0] == 0x2F000

    def test_e820(self):
        page = bytes(build())
        assert page[0x1E8] == 3
        entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(4)]
        assert entries == [*E820, (0, 0, 0)]

    def test_e820_limits(self):
        many = [(index << 20, MIB, 1) for index in range(129)]
        params = build(e820=many[:128])
        assert params.e820_entries == 128
        assert bytes(params)[0xCD0:0xD00] == bytes(48)
        with pytest.raises(errors.InvalidE820, match="129 entries, and a zero page takes 2 to 128"):
            build(e820=many)
        with pytest.raises(errors.InvalidE820, match="1 entries"):
            build(e820=many[:1])

    @pytest.mark.parametrize("entry", [(0, 0, 1), (-1, 1, 1), (2**64 - 1, 2, 1), (0, -5, 1), (0, 2**64, 1)])
    def test_e820_entry_that_is_no_range(self, entry):
        with pytest.raises(errors.InvalidE820, match="entry 1 of the memory map"):
            build(e820=[E820[0], entry])

    def test_e820_entry_to_the_end_of_the_address_space(self):
        assert build(e820=[E820[0], (2**64 - 1, 1, 2)]).e820_table[1].addr == 2**64 - 1

    def test_no_command_line(self):
        with pytest.raises(errors.ZeroPageSetup, match="no address for the command line"):
            build(cmdline_addr=0)

    @pytest.mark.parametrize("name", ["cmdline_addr", "acpi_rsdp_addr", "setup_data_addr"])
    def test_a_value_that_does_not_fit_is_not_cut(self, name):
        with pytest.raises(errors.ZeroPageSetup, match="0x10000000000000000 does not fit 64 bits"):
            build(**{name: 1 << 64})
        with pytest.raises(errors.ZeroPageSetup):
            build(initrd=(0x1000, -1))
        assert build(acpi_rsdp_addr=2**64 - 1).acpi_rsdp_addr == 2**64 - 1

    def test_protocol_without_a_command_line_pointer(self):
        with pytest.raises(
            errors.ZeroPageSetup, match="boot protocol 0x201 has no pointer to a command line"
        ):
            build(*boot(version=0x201))
        assert build(*boot(version=0x202)).hdr.cmd_line_ptr == 0x20000

    def test_protocol_without_upper_halves(self):
        old = boot(version=0x20B)
        with pytest.raises(
            errors.ZeroPageSetup, match="ramdisk_image 0x100000000 passes the 32 bits of boot protocol 0x20b"
        ):
            build(*old, initrd=(1 << 32, 4096))
        assert build(*old, initrd=(0xFFFFFFFF, 4096)).hdr.ramdisk_image == 0xFFFFFFFF
        assert build(*boot(version=0x20C), initrd=(1 << 32, 4096)).ext_ramdisk_image == 1

    def test_protocol_without_setup_data(self):
        with pytest.raises(errors.ZeroPageSetup, match="0x208 has no setup_data"):
            build(*boot(version=0x208), setup_data_addr=0x1000)
        assert build(*boot(version=0x209), setup_data_addr=0x1000).hdr.setup_data == 0x1000


class TestVmlinux:
    def test_header_is_made_up(self):
        page = bytes(build(None, vmlinux(), initrd=(0x1800000, 5), acpi_rsdp_addr=0xE0000))
        assert page[0x202:0x208] == b"HdrS\x0f\x02"
        assert page[0x1FE:0x200] == b"\x55\xaa"
        params = boot_params.from_buffer_copy(page)
        hdr = params.hdr
        assert (hdr.type_of_loader, hdr.loadflags, hdr.code32_start) == (0xFF, 0x81, 0x1000000)
        assert (hdr.initrd_addr_max, hdr.kernel_alignment, hdr.cmdline_size) == (0x7FFFFFFF, 0x200000, 2047)
        assert (hdr.pref_address, hdr.init_size) == (0x1000000, 0x3000)
        assert (hdr.ramdisk_image, hdr.ramdisk_size) == (0x1800000, 5)
        assert params.acpi_rsdp_addr == 0xE0000
        assert params.sentinel == 0


class TestSetupData:
    def test_one_node(self):
        memory = BufferMemory([(0, 0x1000)], fill=0xFF)
        seed = bytes(range(32))
        assert linux.write_setup_data(memory, 0x100, [(SetupDataType.RNG_SEED, seed)]) == 0x130
        assert memory.read(0x100, 0x31) == struct.pack("<QII", 0, 9, 32) + seed + b"\xff"

    def test_list_is_linked_on_8_byte_boundaries(self):
        memory = BufferMemory([(0, 0x1000)])
        end = linux.write_setup_data(memory, 0x100, [(1, b"abcde"), (9, b""), (2, b"xyz")])
        assert end == 0x100 + 24 + 16 + 16 + 3
        assert struct.unpack("<QII5s", memory.read(0x100, 21)) == (0x118, 1, 5, b"abcde")
        assert struct.unpack("<QII", memory.read(0x118, 16)) == (0x128, 9, 0)
        assert struct.unpack("<QII3s", memory.read(0x128, 19)) == (0, 2, 3, b"xyz")

    def test_no_nodes(self):
        assert linux.write_setup_data(BufferMemory([]), 0x100, []) == 0x100

    def test_outside_ram_or_unaligned(self):
        memory = BufferMemory([(0, 0x1000)])
        assert linux.write_setup_data(memory, 0xFE0, [(9, bytes(16))]) == 0x1000
        with pytest.raises(errors.SetupDataPastRamEnd, match="type 9, 17 bytes, at 0xfe0"):
            linux.write_setup_data(memory, 0xFE0, [(9, bytes(17))])
        with pytest.raises(errors.SetupDataPastRamEnd):
            linux.write_setup_data(memory, 0x104, [(9, b"")])

    def test_what_the_kernel_accepts(self):
        def accepts(kind, **changes):
            return linux.accepts_setup_data(boot(**changes)[0], kind)

        assert accepts(SetupDataType.RNG_SEED)  # its setup_type_max is 0x80000009
        assert not accepts(10)
        assert accepts(10, kernel_info=False)  # it does not say, and skips what it does not know
        assert accepts(9, version=0x209)
        assert not accepts(9, version=0x208)
        assert linux.accepts_setup_data(None, 9)


class TestWrite:
    def test_write(self):
        memory = BufferMemory([(0, 0x8000)], fill=0xFF)
        params = build()
        linux.write(memory, 0x7000, params)  # ends where RAM does
        assert memory.read(0x6FFF, 0x1001) == b"\xff" + bytes(params)

    @pytest.mark.parametrize("addr", [0x7001, 0x8000, 2**64 - 1, 0xF800])
    def test_outside_ram(self, addr):
        memory = BufferMemory([(0, 0x8000), (0x9000, 0x7000)], fill=0xFF)
        with pytest.raises(errors.ZeroPagePastRamEnd, match=f"{addr:#x}"):
            linux.write(memory, addr, build())
