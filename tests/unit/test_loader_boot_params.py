"""Boot parameters as lists, and the configurators that write them, beyond the crate's own tests."""

from __future__ import annotations

import tracemalloc

import pytest

from loader import errors
from loader.boot_params import LIST_SIZE_MAX, BootParams
from loader.buffer import BufferMemory
from loader.configurator import linux, pvh
from loader.enums import XEN_HVM_START_MAGIC
from loader.structs import boot_params, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info

U64 = 2**64
KINDS = pytest.mark.parametrize("kind", ["section", "module"])


def adder(params: BootParams, kind: str):
    return getattr(params, f"add_{kind}")


def content(params: BootParams, kind: str):
    return getattr(params, f"{kind}s"), getattr(params, f"{kind}s_start")


class TestLists:
    @KINDS
    def test_far_address_does_not_allocate_the_gap(self, kind):
        """The crate fills it with zeroes."""
        params = BootParams(b"", 0)
        adder(params, kind)(b"ab", 0x1000)
        tracemalloc.start()
        for addr in (0x1000 + LIST_SIZE_MAX - 1, 1 << 40, U64 - 2):
            with pytest.raises(
                errors.BootParamsGap, match=f"2 bytes at {addr:#x} would make its list at 0x1000"
            ):
                adder(params, kind)(b"cd", addr)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < LIST_SIZE_MAX
        assert content(params, kind) == (b"ab", 0x1000)
        adder(params, kind)(b"cd", 0x1000 + LIST_SIZE_MAX - 2)
        data, _ = content(params, kind)
        assert (len(data), data[-2:], any(data[2:-2])) == (LIST_SIZE_MAX, b"cd", False)

    @KINDS
    def test_overwriting_never_shortens(self, kind):
        params = BootParams(b"", 0)
        adder(params, kind)(b"abcdef", 0)
        adder(params, kind)(b"XY", 0)
        adder(params, kind)(b"Z", 5)
        adder(params, kind)(b"!")
        assert content(params, kind) == (b"XYcdeZ!", 0)

    @KINDS
    def test_messages(self, kind):
        params = BootParams(b"", 0)
        add = adder(params, kind)
        with pytest.raises(errors.MissingStartAddress, match="an element of 0x2 bytes"):
            add(b"ab")
        with pytest.raises(errors.BootParamsOverflow, match="2 bytes at 0xffffffffffffffff passes"):
            add(b"ab", U64 - 1)
        with pytest.raises(errors.BootParamsOverflow, match="at -0x1 "):
            add(b"ab", -1)
        assert content(params, kind) == (None, None)
        add(b"ab", U64 - 2)
        with pytest.raises(errors.BootParamsOverflow, match="1 bytes at 0x10000000000000000 "):
            add(b"c")
        with pytest.raises(errors.InvalidAddress, match="at 0xff, before its list at 0xf"):
            add(b"c", 0xFF)

    @KINDS
    def test_set_past_the_end(self, kind):
        params = BootParams(b"", 0)
        set_all = getattr(params, f"set_{kind}s")
        for start in (U64 - 1, -1):
            with pytest.raises(errors.BootParamsOverflow, match=f"2 bytes of {kind}s at {start:#x} pass"):
                set_all([b"a", b"b"], start)
        assert content(params, kind) == (None, None)
        set_all([b"a", bytearray(b"b")], U64 - 2)
        assert content(params, kind) == (b"ab", U64 - 2)

    def test_a_number_is_no_element(self):
        with pytest.raises(TypeError):
            BootParams(4096, 0)  # type: ignore[arg-type]

    def test_the_element_is_copied(self):
        page = boot_params(e820_entries=2)
        params = BootParams(page, 0)
        page.e820_entries = 3
        assert params.header[0x1E8] == 2


class TestLinux:
    @pytest.mark.parametrize("size", [0, 4095, 4097])
    def test_no_zero_page(self, size):
        with pytest.raises(errors.ZeroPageSetup, match=f"header of {size} bytes is no zero page"):
            linux.write_bootparams(BufferMemory([(0, 0x4000)]), BootParams(bytes(size), 0))


class TestPvh:
    def params(self, **fields: int) -> BootParams:
        info = hvm_start_info(**{"magic": XEN_HVM_START_MAGIC, "version": 1, **fields})
        params = BootParams(info, 0x1000)
        params.set_sections([hvm_memmap_table_entry(size=0x4000, type=1)] * 2, 0x1100)
        return params

    def refuse(self, params: BootParams, error: type[errors.LoaderError], match: str) -> None:
        memory = BufferMemory([(0, 0x4000)], fill=0xFF)
        with pytest.raises(error, match=match):
            pvh.write_bootparams(memory, params)
        assert memory.read(0, 0x4000) == b"\xff" * 0x4000

    @pytest.mark.parametrize("modules", [None, b""])
    def test_without_modules(self, modules):
        memory = BufferMemory([(0, 0x4000)])
        params = self.params(nr_modules=7, modlist_paddr=7, memmap_entries=7, rsdp_paddr=0xE0000)
        params.modules, params.modules_start = modules, 0x2000
        pvh.write_bootparams(memory, params)
        info = hvm_start_info.from_buffer_copy(memory.read(0x1000, 56))
        assert (info.nr_modules, info.modlist_paddr, info.rsdp_paddr) == (0, 0, 0xE0000)
        assert (info.memmap_entries, info.memmap_paddr) == (2, 0x1100)

    def test_memory_map(self):
        params = self.params()
        params.sections_start = None
        self.refuse(params, errors.MemmapTableAddressMissing, "no address")
        params = self.params()
        params.add_section(b"x")
        self.refuse(params, errors.MemmapTableSetup, "49 bytes is not of entries of 24")
        params.sections = b""
        self.refuse(params, errors.MemmapTableMissing, "no memory map")

    def test_start_info(self):
        params = self.params()
        params.header += b"x"
        self.refuse(params, errors.StartInfoSetup, "57 bytes is no start_info, which has 56")
        self.refuse(self.params(magic=1), errors.StartInfoSetup, "magic 0x1 and version 1")
        self.refuse(self.params(version=0), errors.StartInfoSetup, "0x336ec578 and version 0")

    def test_modules(self):
        params = self.params()
        params.modules = bytes(hvm_modlist_entry(paddr=1, size=1))
        self.refuse(params, errors.ModulesAddressMissing, "no address")
        params.modules_start = 0x2000
        params.add_module(b"x")
        self.refuse(params, errors.ModulesSetup, "33 bytes is not of entries of 32")
