"""The MP table, read back as a kernel without ACPI reads it: found by its signature, summed, entry by entry."""

from __future__ import annotations

import struct

import pytest

from pyvmm.arch.x86_64 import layout, mptable

#: Bytes of an entry by its type: MultiProcessor Specification 1.4, table 4-3.
SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


class Table:
    """What stands in the window from 0xf0000, parsed independently of how it was made."""

    def __init__(self, cpu_count: int) -> None:
        window = bytearray(0x10000)
        blob = mptable.build(cpu_count)
        window[: len(blob)] = blob
        found = [at for at in range(0, len(window), 16) if window[at : at + 4] == b"_MP_"]
        assert found == [0]
        pointer = window[:16]
        assert sum(pointer) % 256 == 0
        physical, length, revision, _, *features = struct.unpack_from("<IBBB5B", pointer, 4)
        assert (length, revision, features) == (1, 4, [0, 0, 0, 0, 0])
        at = physical - 0xF0000
        (size,) = struct.unpack_from("<H", window, at + 4)
        assert at + size == len(blob)
        table = bytes(window[at : at + size])
        assert sum(table) % 256 == 0
        assert table[:4] == b"PCMP"
        assert table[6] == 4
        assert table[8:28] == b"PYVMM   PYVMM       "
        oem, oem_size, count, self.local_apic, extended = struct.unpack_from("<IHHIH", table, 28)
        assert (oem, oem_size, extended) == (0, 0, 0)
        self.entries: list[bytes] = []
        at = 44
        while at < size:
            self.entries.append(table[at : at + SIZES[table[at]]])
            at += SIZES[table[at]]
        assert at == size
        assert len(self.entries) == count
        kinds = [entry[0] for entry in self.entries]
        assert kinds == sorted(kinds), "entries come by type"

    def of(self, kind: int) -> list[bytes]:
        return [entry for entry in self.entries if entry[0] == kind]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 37, 38, 254, 255])
def test_every_vcpu_is_there_and_the_first_boots(count: int) -> None:
    processors = Table(count).of(0)
    assert [entry[1] for entry in processors] == list(range(count))
    assert [entry[3] for entry in processors] == [3] + [1] * (
        count - 1
    )  # enabled; the first is the boot processor
    assert {entry[2] for entry in processors} == {0x14}


def test_vcpus_without_an_8_bit_apic_id_are_left_out() -> None:
    assert len(Table(300).of(0)) == 255


@pytest.mark.parametrize("count", [1, 2, 8, 254])
def test_the_io_apic_has_an_id_of_its_own(count: int) -> None:
    table = Table(count)
    ((_, id, version, flags, address),) = [struct.unpack("<BBBBI", entry) for entry in table.of(2)]
    assert id == count
    assert (version, flags, address) == (0x11, 1, 0xFEC00000)
    assert table.local_apic == 0xFEE00000


def test_no_id_is_the_broadcast() -> None:
    assert Table(255).of(2)[0][1] < 255


def test_all_interrupt_lines_but_the_cascade_lead_to_their_pin() -> None:
    table = Table(2)
    ((_, bus, name),) = [struct.unpack("<BB6s", entry) for entry in table.of(1)]
    assert name == b"ISA   "
    lines = {}
    for entry in table.of(3):
        _, kind, flags, source_bus, source, destination, pin = struct.unpack("<BBHBBBB", entry)
        assert (kind, source_bus, destination) == (0, bus, 2)
        assert flags == 0b0101  # active high, edge: said, as 16 and above have no default on an ISA bus
        lines[source] = pin
    assert lines == {gsi: gsi for gsi in range(24) if gsi != 2}


def test_the_local_apics_pins_are_as_firmware_leaves_them() -> None:
    fields = [struct.unpack("<BBHBBBB", entry) for entry in Table(4).of(4)]
    assert [(kind, apic, pin) for _, kind, _, _, _, apic, pin in fields] == [(3, 0, 0), (1, 0xFF, 1)]


def test_it_fits_the_place_the_map_has_for_it() -> None:
    ((start, size),) = [(start, size) for start, size, what in layout.MEMORY_MAP if what == "MP table"]
    assert start == layout.MP_TABLE == 0xF0000
    assert len(mptable.build(255)) <= size
