"""The 38 unit tests of the crate ``linux-loader`` 0.14, as facts: each test names the one it stands for.

Where the crate has a quirk the correct behaviour is pinned, and the docstring says so.
"""

from __future__ import annotations

import ctypes
import sys

import loader_images
import pytest
from loader_images import MIB, Elf, Phdr, as_file, kernel, note, pvh_note
from loader_structures import arm64_image, dtb, riscv64_image

from loader import bzimage, cmdline, elf, errors, image
from loader.boot_params import BootParams
from loader.buffer import BufferMemory
from loader.cmdline_builder import Cmdline
from loader.configurator import fdt, linux, pvh
from loader.enums import XEN_HVM_START_MAGIC
from loader.result import PVH_ENTRY_IGNORED, PVH_ENTRY_NOT_PRESENT, pvh_entry_present
from loader.structs import boot_params, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info

U64 = 2**64


def memory(size: int = 32 * MIB) -> BufferMemory:
    return BufferMemory([(0, size)], fill=0xFF)


class TestCmdline:
    def test_insert_hello_world(self):
        line = Cmdline.new(100)
        assert line.as_cstring() == b""
        line.insert("hello", "world")
        assert line.as_cstring() == b"hello=world"

    def test_insert_multi(self):
        line = Cmdline(100)
        line.insert("hello", "world")
        line.insert("foo", "bar")
        assert line.as_cstring() == b"hello=world foo=bar"

    def test_insert_space(self):
        line = Cmdline(100)
        for key in ("a ", " a", "a b"):
            for value in ("b", "b "):
                with pytest.raises(errors.HasSpace):
                    line.insert(key, value)
        for value in ("b ", " b", "b c", '"b c', 'b c"'):
            with pytest.raises(errors.NoQuoteSpace):
                line.insert("a", value)
        for value in ('"b" c', '"foo" "bar"', 'b"c'):
            with pytest.raises(errors.InvalidQuote):
                line.insert("a", value)
        assert line.as_cstring() == b""
        line.insert("a", '"b c"')
        assert line.as_cstring() == b'a="b c"'

    def test_insert_equals(self):
        """HasEquals comes before anything about the value, which may have one."""
        line = Cmdline(100)
        for key, value in (("a=", "b"), ("=a", "b "), ("a=b", 'c"d')):
            with pytest.raises(errors.HasEquals):
                line.insert(key, value)
        assert line.as_cstring() == b""
        line.insert("root", "LABEL=x")
        assert line.as_cstring() == b"root=LABEL=x"

    def test_insert_emoji(self):
        line = Cmdline(100)
        for key, value in (("heart", "\U0001f496"), ("\U0001f496", "love")):
            with pytest.raises(errors.InvalidAscii):
                line.insert(key, value)
        assert line.as_cstring() == b""

    def test_insert_string(self):
        line = Cmdline(13)
        line.insert_str("noapic")
        line.insert_str("nopci")
        assert line.as_cstring() == b"noapic nopci"

    def test_insert_too_large(self):
        line = Cmdline(4)
        for key, value in (("hello", "world"), ("a", "world"), ("hello", "b")):
            with pytest.raises(errors.TooLarge):
                line.insert(key, value)
        line.insert("a", "b")
        for _ in range(2):
            with pytest.raises(errors.TooLarge):
                line.insert("a", "b")
        assert line.as_cstring() == b"a=b"

        line = Cmdline(10)
        line.insert("ab", "ba")
        line.insert("c", "d")
        assert line.as_cstring() == b"ab=ba c=d"

        line = Cmdline(11)
        line.insert("ab", "ba")
        with pytest.raises(errors.TooLarge):
            line.insert("c", "da=")
        line.insert("c", "da")
        assert line.as_cstring() == b"ab=ba c=da"

        line = Cmdline(20)
        line.insert("ab", "ba")
        line.insert_init_args("0123456789")
        with pytest.raises(errors.TooLarge):
            line.insert_init_args("x")
        assert line.as_cstring() == b"ab=ba -- 0123456789"
        assert len(bytes(line)) == 20

    def test_add_virtio_mmio_device(self):
        line = Cmdline(5)
        with pytest.raises(errors.MmioSize):
            line.add_virtio_mmio_device(0, 0, 0)
        with pytest.raises(errors.TooLarge):
            line.add_virtio_mmio_device(1, 0, 1)
        line = Cmdline(150)
        line.add_virtio_mmio_device(1, 0, 1)
        expected = "virtio_mmio.device=1@0x0:1"
        assert str(line) == expected
        line.add_virtio_mmio_device(2 << 10, 0x100, 2)
        expected += " virtio_mmio.device=2K@0x100:2"
        line.add_virtio_mmio_device(3 << 20, 0x1000, 3)
        expected += " virtio_mmio.device=3M@0x1000:3"
        line.add_virtio_mmio_device(4 << 30, 0x1_0000_ABCD, 4, 42)
        expected += " virtio_mmio.device=4G@0x10000abcd:4:42"
        assert str(line) == expected

    def test_insert_kv(self):
        """Here under the crate's method insert_multiple."""
        line = Cmdline(10)
        with pytest.raises(errors.HasEquals):
            line.insert_multiple("foo=", ())
        with pytest.raises(errors.MissingVal, match="'foo'"):
            line.insert_multiple("foo", ())
        with pytest.raises(errors.TooLarge):
            line.insert_multiple("foo", ("bar1", "bar2"))
        with pytest.raises(errors.NoQuoteSpace):
            line.insert_multiple("foo", ("b", "c d"))
        line = Cmdline(100)
        line.insert_multiple("foo", ["bar1"])
        line.insert_multiple("foo", ("bar2", "bar3"))
        assert line.as_cstring() == b"foo=bar1 foo=bar2,bar3"

    def test_try_from_cmdline_for_vec(self):
        """try_from_cmdline_for_vec: the bytes come with the NUL."""
        line = Cmdline(7)
        assert bytes(line) == b"\0"
        line.insert_str("foobar")
        assert bytes(line) == b"foobar\0"
        only_init = Cmdline(15)
        only_init.insert_init_args("foobar")
        with pytest.raises(errors.NoBootArgsInserted):
            bytes(only_init)

    def test_as_cstring(self):
        line = Cmdline(100)
        assert line.as_cstring() == b""
        line.insert_init_args("/etc/passwd")
        with pytest.raises(errors.NoBootArgsInserted, match="/etc/passwd"):
            line.as_cstring()
        line.insert_str("noapic")
        line.insert_init_args("second")
        line.insert("a", "b")
        assert line.as_cstring() == b"noapic a=b -- /etc/passwd second"

    def test_partial_eq(self):
        one, other = Cmdline(20), Cmdline(30)
        for line in (one, other):
            line.insert_str("hello world!")
        assert one == other
        other.insert_init_args("x")
        assert one != other

    def test_try_from(self):
        line = Cmdline.try_from("foo --  bar", 11)
        assert (line.boot_args, line.init_args) == ("foo", "bar")
        assert line.as_cstring() == b"foo -- bar"
        line = Cmdline.try_from('foo=" -- " --  bar -- baz ', 100)
        assert (line.boot_args, line.init_args) == ('foo=" -- "', "bar -- baz")
        for text in ("arg1--", "arg1-- arg2", "--arg1", "arg1", ""):
            line = Cmdline.try_from(text, 100)
            assert (line.boot_args, line.init_args) == (text, "")

    def test_error_try_from(self):
        for capacity in (0, 5, 10):
            with pytest.raises(errors.InvalidCapacity):
                Cmdline.try_from("foo --  bar", capacity)


class TestLoader:
    def test_cmdline_overflow(self):
        end = 0x4000
        ram = memory(end)
        assert cmdline.load_cmdline(ram, end - 6, "12345") == end
        with pytest.raises(errors.CommandLineOverflow):
            cmdline.load_cmdline(ram, end - 5, "12345")

    def test_cmdline_write_end_regresion(self):
        ram = memory(0x4000)
        line = Cmdline(100)
        line.insert_str("12345")
        assert cmdline.load_cmdline(ram, 0x100, line) == 0x106
        assert ram.read(0x100, 7) == b"12345\0\xff"

    def test_load_elf(self):
        file = as_file(bytes(Elf([Phdr(b"code", 0x400)], entry=0x400)))
        assert elf.load(memory(), file, 0x200000, 0).kernel_load == 0x200400
        assert elf.load(memory(), file, 0x200000).kernel_load == 0x200400
        assert elf.load(memory(), file, None, 0).kernel_load == 0x400
        with pytest.raises(errors.InvalidEntryAddress):
            elf.load(memory(), file, None, 0xA00000)

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            pytest.param({"magic": b"\x01ELF"}, errors.InvalidElfMagicNumber, id="bad_magic_number"),
            pytest.param({"ident_data": 2}, errors.BigEndianElfOnLittle, id="bad_endian"),
            pytest.param({"phoff": 63}, errors.InvalidProgramHeaderOffset, id="bad_phoff"),
        ],
    )
    def test_bad_elf(self, changes, error):
        with pytest.raises(error):
            elf.load(memory(), as_file(bytes(kernel(**changes))))

    def test_overflow_loadaddr(self):
        with pytest.raises(errors.ElfOverflow):
            elf.load(memory(), as_file(bytes(kernel())), U64 - 1)

    def test_load_pvh(self):
        file = as_file(bytes(kernel(pvh_note(0x1E1FE1F))))
        assert elf.load(memory(), file).pvh_boot_cap == pvh_entry_present(0x1E1FE1F)
        assert elf.load(memory(), file, 0x200000).pvh_boot_cap == PVH_ENTRY_IGNORED

    def test_dummy_elfnote(self):
        file = as_file(bytes(kernel(note(b"dummy\0", 1, b"1234"))))
        assert elf.load(memory(), file).pvh_boot_cap == PVH_ENTRY_NOT_PRESENT

    def test_bad_elfnote(self):
        with pytest.raises(errors.InvalidPvhNote):
            elf.load(memory(), as_file(bytes(kernel(pvh_note(0x1E1F, size=2)))))

    @pytest.mark.parametrize("align", [8, 13])
    def test_load_pvh_with_align(self, align):
        """Notes are padded to 4 bytes whatever p_align says, so no alignment is an error."""
        built = kernel(note(b"GNU\0", 3, b"12345"), pvh_note(0x1E1FE1F, size=8))
        built.segments[-1].align = align
        assert elf.load(memory(), as_file(bytes(built))).pvh_boot_cap == pvh_entry_present(0x1E1FE1F)

    def test_load_bzImage(self):
        """The size of Debian's 5.10.218: the protected-mode code ends at 0x8b5e40 when loaded at 1 MiB.

        The crate compares the file's code32_start with highmem_start; here, where it is loaded counts.
        """
        code = 0x8B5E40 - 0x100000
        data = loader_images.bzimage(payload_length=code - 0x1000)
        size = 0xA00 + code
        with as_file(data, size=size) as file:
            result = bzimage.load(memory(), file)
            assert (result.kernel_load, result.kernel_end) == (0x100000, 0x8B5E40)
            assert result.setup_header is not None
            assert result.setup_header.version == 0x20F
            assert bzimage.load(memory(), file, 0x200000, 0x200000).kernel_load == 0x200000
            with pytest.raises(errors.InvalidKernelStartAddress):
                bzimage.load(memory(), file, None, 0x200000)

    def test_invalid_bzimage_underflow(self):
        """A fuzzer's file: 559 bytes, 198 sectors of setup code, a truncated header."""
        with as_file(loader_images.bzimage(setup_sects=198)[:559]) as file:
            with pytest.raises(errors.BzImageUnderflow, match="0x22f.*setup_sects 198"):
                bzimage.load(memory(), file)

    @pytest.mark.parametrize(
        ("make", "base", "end"),
        [
            pytest.param(arm64_image, 0x200000, 0x281000, id="load_arm64_image"),
            pytest.param(riscv64_image, 0x400000, 0x601000, id="load_riscv64_image"),
        ],
    )
    def test_load_image(self, make, base, end):
        with as_file(make()) as file:
            result = image.load(memory(), file, base)
            assert (result.kernel_load, result.kernel_end) == (end - 0x1000, end)
            with pytest.raises(errors.InvalidBaseAddrAlignment):
                image.load(memory(), file, base + 0x100)
        with as_file(make(magic=b"ARM\x65")) as file:
            with pytest.raises(errors.InvalidImageMagicNumber):
                image.load(memory(), file, base)


class TestConfigurator:
    def test_bootparam_list_addition(self):
        """Elements of any type; the first without an address has nowhere to go."""
        params = BootParams(b"", 0)
        with pytest.raises(errors.MissingStartAddress):
            params.add_section(b"\1\2\3\4")
        params.add_section(b"\1\2\3\4", 0x1000)
        with pytest.raises(errors.InvalidAddress):
            params.add_section(b"\5", 0xFFF)
        with pytest.raises(errors.BootParamsOverflow):
            params.add_section(b"\5\6", U64 - 1)
        params.add_section(ctypes.c_uint32.from_buffer_copy(b"\5\6\7\x08"))  # appended
        params.add_section(b"\x09", 0x100C)  # after a gap of 4: 13 bytes in all
        params.add_section(b"\xaa\xbb", 0x1003)  # over two elements
        assert params.sections == b"\1\2\3\xaa\xbb\6\7\x08\0\0\0\0\x09"
        assert params.sections_start == 0x1000

    def test_bootparams(self):
        params = BootParams(hvm_start_info(magic=1), 0x6000)
        assert (len(params.header), params.header_start) == (56, 0x6000)
        assert (params.sections, params.modules) == (None, None)
        params.set_sections([hvm_memmap_table_entry(addr=n) for n in range(2)], 0x7000)
        params.set_modules([hvm_modlist_entry(paddr=1)], 0x8000)
        assert params.sections is not None
        assert params.modules is not None
        assert (len(params.sections), params.sections_start) == (48, 0x7000)
        assert (len(params.modules), params.modules_start) == (32, 0x8000)
        params.add_section(hvm_memmap_table_entry())
        params.add_module(hvm_modlist_entry(paddr=2))
        params.add_module(b"end")
        assert (len(params.sections), len(params.modules)) == (72, 67)
        params.set_modules([b"other"], 0x9000)
        assert (params.modules, params.modules_start) == (b"other", 0x9000)

    def test_configure_linux_boot(self):
        """A zero page that ends exactly where RAM does is accepted (the crate tests the byte after)."""
        ram = memory(0x4000)
        page = boot_params(e820_entries=2)
        linux.write_bootparams(ram, BootParams(page, 0x3000))
        assert ram.read(0x3000, 0x1000) == bytes(page)
        with pytest.raises(errors.ZeroPagePastRamEnd, match="0x3001"):
            linux.write_bootparams(ram, BootParams(page, 0x3001))

    def test_configure_pvh_boot(self):
        """The same for each part of PVH; counts and pointers, which the crate leaves alone, are filled in."""
        ram = memory(0x4000)
        params = BootParams(hvm_start_info(magic=XEN_HVM_START_MAGIC, version=1), 0x1000)
        with pytest.raises(errors.MemmapTableMissing):
            pvh.write_bootparams(ram, params)
        entry = hvm_memmap_table_entry(addr=0, size=0x4000, type=1)
        params.add_section(entry, 0x4000 - 23)
        with pytest.raises(errors.MemmapTablePastRamEnd):
            pvh.write_bootparams(ram, params)
        params.set_sections([entry], 0x4000 - 24)
        module = hvm_modlist_entry(paddr=0x3000, size=16)
        params.add_module(module, 0x2000)
        pvh.write_bootparams(ram, params)
        info = hvm_start_info.from_buffer_copy(ram.read(0x1000, 56))
        assert (info.memmap_paddr, info.memmap_entries) == (0x4000 - 24, 1)
        assert (info.modlist_paddr, info.nr_modules) == (0x2000, 1)
        assert ram.read(0x4000 - 24, 24) == bytes(entry)
        assert ram.read(0x2000, 32) == bytes(module)
        params.header_start = 0x4000 - 55
        with pytest.raises(errors.StartInfoPastRamEnd):
            pvh.write_bootparams(ram, params)
        params.header_start = 0x1000
        params.modules_start = 0x4000 - 31
        with pytest.raises(errors.ModulesSetup):
            pvh.write_bootparams(ram, params)

    def test_configure_fdt_boot(self):
        """The same for a device tree; and it must be one."""
        ram = memory(0x4000)
        blob = dtb(0x1000)
        fdt.write_bootparams(ram, BootParams(blob, 0x3000))
        assert ram.read(0x3000, 0x1000) == blob
        with pytest.raises(errors.FDTPastRamEnd, match="0x3008..0x4008 ends past the end of RAM at 0x4000"):
            fdt.write_bootparams(ram, BootParams(blob, 0x3008))
        holes = BufferMemory([(0, 0x1000), (0x4000, 0x1000)])
        with pytest.raises(errors.WriteFDTToMemory, match="0x800..0x1800"):
            fdt.write_bootparams(holes, BootParams(blob, 0x800))

    @pytest.mark.parametrize(
        "base",
        [
            pytest.param(errors.LoaderError, id="error_messages of the loader"),
            pytest.param(errors.CommandLineError, id="error_messages of the command line"),
            pytest.param(errors.BootParamsError, id="error_messages of the boot parameters"),
            pytest.param(errors.ConfiguratorError, id="error_messages of the configurators"),
        ],
    )
    def test_error_messages(self, base):
        """Each class says in a line what is wrong, in words of its own, and carries its message and hint."""
        classes = [
            item for item in vars(sys.modules[base.__module__]).values()
            if isinstance(item, type) and issubclass(item, base)
        ]  # fmt: skip
        assert len(classes) >= 5
        assert len({item.__doc__ for item in classes}) == len(classes)
        for item in classes:
            assert str(item("what", "do")) == "what"
            assert item("what", "do").hint == "do"


#: Errors of the crate that have no test in this file or the others, since a read here carries its offset.
UNUSED = {
    "SeekElfStart", "SeekBzImageEnd", "SeekBzImageHeader", "SeekBzImageCompressedKernel", "SeekImageEnd",
    "SeekImageHeader", "SeekDtbEnd", "SeekDtbStart",
}  # fmt: skip
CRATE_ERRORS = [
    "InvalidCommandLine", "CommandLineCopy", "CommandLineOverflow", "InvalidKernelStartAddress", "MemoryOverflow",
    "ReadImageHeader", "InvalidImageMagicNumber", "InvalidBaseAddrAlignment", "InvalidImage", "PeReadKernelImage",
    "DtbTooBig", "ReadDtbImage", "InvalidCapacity", "InvalidAscii", "HasSpace", "HasEquals", "InvalidQuote",
    "NoQuoteSpace", "MissingVal", "TooLarge", "NoBootArgsInserted", "NullTerminator", "MmioSize",
    "MissingStartAddress", "BootParamsOverflow", "InvalidAddress", "FDTPastRamEnd", "WriteFDTToMemory",
    *sorted(UNUSED),
]  # fmt: skip


@pytest.mark.parametrize("name", CRATE_ERRORS)
def test_each_error_of_the_crate_has_a_class(name):
    item = getattr(errors, name)
    assert item.__name__ == name
    assert ("(unused)" in item.__doc__) == (name in UNUSED)
