"""The PVH start_info and its tables: counts, pointers, reach, and the order of the errors."""

from __future__ import annotations

import struct

import pytest

from loader import errors
from loader.buffer import BufferMemory
from loader.configurator import pvh
from loader.structs import hvm_start_info

GIB = 1 << 30
E820 = [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (0x100000, 0x7F00000, 1)]


def build(**changes: object) -> pvh.PvhBootParams:
    return pvh.build(0x6000, **{"memmap": E820, "cmdline_addr": 0x20000, "rsdp_addr": 0xE0000, **changes})


def memory() -> BufferMemory:
    return BufferMemory([(0, 0x8000)], fill=0xFF)


def start_info(ram: BufferMemory) -> tuple[int, ...]:
    return struct.unpack("<4I4Q2I", ram.read(0x6000, 56))


def test_without_modules():
    ram = memory()
    pvh.write(ram, 0x6000, build())
    assert start_info(ram) == (0x336EC578, 1, 0, 0, 0, 0x20000, 0xE0000, 0x6040, 3, 0)
    table = [struct.unpack("<QQII", ram.read(0x6040 + 24 * index, 24)) for index in range(3)]
    assert table == [(*entry, 0) for entry in E820]
    assert ram.read(0x6040 + 72, 1) == b"\xff"


def test_what_there_is_not_has_address_0():
    ram = memory()
    pvh.write(ram, 0x6000, pvh.build(0x6000, memmap=E820))
    assert start_info(ram)[4:7] == (0, 0, 0)


def test_with_modules():
    ram = memory()
    pvh.write(ram, 0x6000, build(modules=[(0x7000000, 0x123456), (0x6000000, 5)]))
    assert start_info(ram) == (0x336EC578, 1, 0, 2, 0x6040, 0x20000, 0xE0000, 0x6080, 3, 0)
    assert struct.unpack("<4Q", ram.read(0x6040, 32)) == (0x7000000, 0x123456, 0, 0)
    assert struct.unpack("<4Q", ram.read(0x6060, 32)) == (0x6000000, 5, 0, 0)
    assert struct.unpack("<QQII", ram.read(0x6080, 24)) == (0, 0x9FC00, 1, 0)


def test_tables_at_given_addresses():
    ram = memory()
    pvh.write(ram, 0x6000, build(modules=[(0x7000000, 1)], modlist_addr=0x500, memmap_addr=0x1000))
    info = start_info(ram)
    assert (info[4], info[7]) == (0x500, 0x1000)
    assert ram.read(0x500, 8) == (0x7000000).to_bytes(8, "little")
    assert ram.read(0x1008, 8) == (0x9FC00).to_bytes(8, "little")


def test_the_largest_memory_map_fits_between_start_info_and_zero_page():
    entries = [(index << 20, 1 << 20, 1) for index in range(127)]
    params = build(memmap=entries[:126], modules=[(0x7000000, 1)])
    assert params.start_info.memmap_paddr + 126 * 24 <= 0x7000
    with pytest.raises(errors.MemmapTableSetup, match="127 entries, and Linux takes 126"):
        build(memmap=entries)


def test_memory_map_missing():
    with pytest.raises(errors.MemmapTableMissing):
        build(memmap=[])
    with pytest.raises(errors.MemmapTableMissing):
        pvh.write(memory(), 0x6000, pvh.PvhBootParams(hvm_start_info(), []))


@pytest.mark.parametrize("entry", [(0, 0, 1), (-1, 1, 1), (2**64 - 1, 2, 1), (0, 2**64, 1)])
def test_memory_map_entry_that_is_no_range(entry):
    with pytest.raises(errors.MemmapTableSetup, match="entry 1 of the memory map"):
        build(memmap=[E820[0], entry])


def test_memory_map_entry_to_the_end_of_the_address_space():
    assert build(memmap=[(2**64 - 1, 1, 2)]).memmap[0].addr == 2**64 - 1


@pytest.mark.parametrize("module", [(4 * GIB, 1), (4 * GIB - 1, 2), (0, 1), (0x1000, 0)])
def test_module_out_of_reach(module):
    with pytest.raises(errors.ModulesSetup, match="module 1"):
        build(modules=[(0x1000, 1), module])


def test_module_that_ends_at_4_gib():
    assert build(modules=[(4 * GIB - 1, 1)]).modules[0].paddr == 4 * GIB - 1


@pytest.mark.parametrize(("name", "what"), [("cmdline_addr", "the command line"), ("rsdp_addr", "the RSDP")])
def test_address_out_of_reach(name, what):
    assert build(**{name: 4 * GIB - 1})
    for address in (4 * GIB, -1):
        with pytest.raises(errors.StartInfoSetup, match=f"{what} at .* does not lie below 4 GiB"):
            build(**{name: address})


def test_memory_map_address_missing():
    with pytest.raises(errors.MemmapTableAddressMissing):
        pvh.write(memory(), 0x6000, build(memmap_addr=0))


def test_module_list_address_missing():
    params = build(modules=[(0x1000, 1)], modlist_addr=0)
    with pytest.raises(errors.ModulesAddressMissing):
        pvh.write(memory(), 0x6000, params)


def test_what_must_be_in_ram():
    ram = memory()
    size = 3 * 24
    pvh.write(ram, 0x6000, build(memmap_addr=0x8000 - size))  # ends where RAM does
    with pytest.raises(errors.MemmapTablePastRamEnd, match="0x7fb9"):
        pvh.write(ram, 0x6000, build(memmap_addr=0x8000 - size + 1))
    pvh.write(ram, 0x8000 - 56, build(memmap_addr=0x1000))
    with pytest.raises(errors.StartInfoPastRamEnd, match="0x7fc9"):
        pvh.write(ram, 0x8000 - 55, build(memmap_addr=0x1000))
    pvh.write(ram, 0x6000, build(modules=[(1, 1)], memmap_addr=0x1000, modlist_addr=0x8000 - 32))
    with pytest.raises(errors.ModulesSetup, match="0x7fe1"):
        pvh.write(ram, 0x6000, build(modules=[(1, 1)], memmap_addr=0x1000, modlist_addr=0x8000 - 31))


def test_nothing_is_written_unless_all_can_be():
    ram = memory()
    with pytest.raises(errors.ModulesSetup):
        pvh.write(ram, 0x6000, build(modules=[(1, 1)], modlist_addr=0x9000, memmap_addr=0x1000))
    assert ram.read(0, 0x8000) == b"\xff" * 0x8000


def test_tables_may_not_overlap():
    with pytest.raises(
        errors.StartInfoSetup, match="the start_info at 0x6000 reaches into the memory map at 0x6037"
    ):
        pvh.write(memory(), 0x6000, build(memmap_addr=0x6037))
    pvh.write(memory(), 0x6000, build(memmap_addr=0x6038))
    with pytest.raises(errors.StartInfoSetup, match="the module list at 0x1000 reaches into the memory map"):
        pvh.write(memory(), 0x6000, build(modules=[(1, 1)], modlist_addr=0x1000, memmap_addr=0x101F))


def test_start_info_and_tables_lie_below_4_gib():
    high = BufferMemory([(4 * GIB, 0x4000)])
    params = pvh.build(4 * GIB, memmap=E820)
    with pytest.raises(errors.StartInfoSetup, match="the start_info at 0x100000000"):
        pvh.write(high, 4 * GIB, params)
