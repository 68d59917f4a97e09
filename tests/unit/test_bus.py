"""The bus: look-up, widths, what nobody answers, and the counts."""

from __future__ import annotations

import pytest

from pyvmm.devices.bus import UNHANDLED, UNHANDLED_KEPT, Bus
from pyvmm.errors import UsageError


class Registers:
    """Four one-byte registers that remember."""

    def __init__(self) -> None:
        self.values = [0x11, 0x22, 0x33, 0x44]
        self.order: list[int] = []
        self.reads = [lambda index=index: self.read(index) for index in range(4)]
        self.writes = [lambda value, index=index: self.write(index, value) for index in range(4)]

    def read(self, index: int) -> int:
        self.order.append(index)
        return self.values[index]

    def write(self, index: int, value: int) -> None:
        assert 0 <= value <= 0xFF
        self.order.append(index)
        self.values[index] = value


def read(bus: Bus, port: int, size: int = 1) -> int:
    """As the run loop does."""
    slot = bus.pio_in.get(port) or bus.unknown_in(port)
    slot.count += 1
    return slot.access(size)


def write(bus: Bus, port: int, value: int, size: int = 1) -> None:
    """As the run loop does."""
    slot = bus.pio_out.get(port) or bus.unknown_out(port)
    slot.count += 1
    slot.access(value, size)


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def registers(bus: Bus) -> Registers:
    device = Registers()
    bus.add_pio_bytes("four", 0x100, device.reads, device.writes)
    return device


def test_a_byte_goes_to_the_register_at_its_port(bus: Bus, registers: Registers) -> None:
    write(bus, 0x102, 0xAB)
    assert registers.values == [0x11, 0x22, 0xAB, 0x44]
    assert read(bus, 0x103) == 0x44


def test_a_wide_access_is_split_into_bytes_lowest_port_first(bus: Bus, registers: Registers) -> None:
    assert read(bus, 0x100, 4) == 0x44332211
    assert read(bus, 0x101, 2) == 0x3322
    registers.order.clear()
    write(bus, 0x100, 0xDDCCBBAA, 4)
    assert registers.values == [0xAA, 0xBB, 0xCC, 0xDD]
    assert registers.order == [0, 1, 2, 3]


def test_a_wide_access_counts_as_one_exit(bus: Bus, registers: Registers) -> None:
    read(bus, 0x100, 4)
    assert bus.counts() == {"four": 1}


def test_a_wide_access_over_the_end_of_a_device_reaches_the_next_one(bus: Bus, registers: Registers) -> None:
    other = Registers()
    bus.add_pio_bytes("other", 0x104, other.reads, other.writes)
    assert read(bus, 0x103, 2) == 0x1144
    write(bus, 0x103, 0x9988, 2)
    assert (registers.values[3], other.values[0]) == (0x88, 0x99)


def test_a_wide_access_over_the_end_finds_all_ones_where_nothing_stands(
    bus: Bus, registers: Registers
) -> None:
    assert read(bus, 0x103, 2) == 0xFF44
    write(bus, 0x103, 0x1234, 2)
    assert registers.values[3] == 0x34
    assert read(bus, 0xFF, 2) == 0x11FF, "and the other way round"
    write(bus, 0xFF, 0x5678, 2)
    assert registers.values[0] == 0x56


def test_a_device_of_wide_registers_gets_the_size(bus: Bus) -> None:
    seen: list[tuple[int, int]] = []
    bus.add_pio("wide", 0xCF8, [lambda size: 0x1000 + size], [lambda value, size: seen.append((value, size))])
    write(bus, 0xCF8, 0x80000000, 4)
    assert seen == [(0x80000000, 4)]
    assert read(bus, 0xCF8, 2) == 0x1002


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_an_unhandled_port_reads_all_ones_and_ignores_writes(bus: Bus, size: int, ones: int) -> None:
    assert read(bus, 0x42, size) == ones
    write(bus, 0x42, 0, size)
    assert read(bus, 0x42, size) == ones


def test_unhandled_ports_are_found_by_the_next_look_up_and_counted_by_port(bus: Bus) -> None:
    read(bus, 0x42)
    assert bus.pio_in[0x42].device == UNHANDLED
    read(bus, 0x42)
    write(bus, 0x99, 1)
    assert bus.counts() == {UNHANDLED: 3}
    assert bus.unhandled() == {"in 0x42": 2, "out 0x99": 1}


@pytest.mark.parametrize("ports_first", [False, True])
def test_a_guest_that_scans_everything_does_not_fill_memory(bus: Bus, ports_first: bool) -> None:
    def scan_ports() -> None:
        for port in range(0x10000):
            read(bus, port)
            write(bus, port, 0)

    def scan_memory() -> None:
        for address in range(0, 1 << 24, 1 << 12):
            bus.mmio_read(address, 4)
            bus.mmio_write(address, 0, 4)

    for scan in (scan_ports, scan_memory) if ports_first else (scan_memory, scan_ports):
        scan()
    assert len(bus.pio_in) + len(bus.pio_out) + len(bus._unknown_mmio) == UNHANDLED_KEPT
    everything = 2 * 0x10000 + 2 * (1 << 12)
    assert bus.counts() == {UNHANDLED: everything}, "no access goes uncounted"
    assert bus.unhandled()["elsewhere"] == everything - UNHANDLED_KEPT


def test_two_devices_on_one_port_are_an_error_that_names_both(bus: Bus, registers: Registers) -> None:
    with pytest.raises(UsageError, match=r"second and four both want port 0x103"):
        bus.add_pio_bytes("second", 0x103, registers.reads, registers.writes)
    assert 0x104 not in bus.pio_in, "a refused device leaves nothing behind"
    with pytest.raises(UsageError, match="both want"):
        bus.add_pio("second", 0x103, [], [lambda value, size: None])


def test_none_leaves_the_port_to_another_device(bus: Bus) -> None:
    bus.add_pio_bytes("first", 0x200, [lambda: 1, None, lambda: 3], [None, lambda value: None])
    bus.add_pio_bytes("second", 0x201, [lambda: 2], [])
    assert [read(bus, port) for port in (0x200, 0x201, 0x202)] == [1, 2, 3]
    assert 0x200 not in bus.pio_out


def test_a_device_may_take_a_port_that_was_unhandled(bus: Bus) -> None:
    assert read(bus, 0x300) == 0xFF
    bus.add_pio_bytes("late", 0x300, [lambda: 7], [])
    assert read(bus, 0x300) == 7


def test_ports_end_at_ffff(bus: Bus) -> None:
    bus.add_pio_bytes("last", 0xFFFF, [lambda: 5], [])
    assert read(bus, 0xFFFF, 2) == 0xFF05
    with pytest.raises(UsageError, match="beyond cannot stand at port 0x10000"):
        bus.add_pio_bytes("beyond", 0xFFFF, [None, lambda: 6], [])


class Memory:
    """An MMIO device that records its accesses."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append((offset, size))
        return 0x5A

    def write(self, offset: int, value: int, size: int) -> None:
        self.seen.append((offset, value, size))


def test_mmio_finds_the_device_and_passes_the_offset(bus: Bus) -> None:
    low, high = Memory(), Memory()
    bus.add_mmio("high", 0xD0001000, 0x1000, high.read, high.write)
    bus.add_mmio("low", 0xD0000000, 0x200, low.read, low.write)
    assert bus.mmio_read(0xD0001FFC, 4) == 0x5A
    bus.mmio_write(0xD0000000, 9, 1)
    bus.mmio_read(0xD00001FF, 1)
    assert high.seen == [(0xFFC, 4)]
    assert low.seen == [(0, 9, 1), (0x1FF, 1)]
    assert bus.counts() == {"low": 2, "high": 1}


@pytest.mark.parametrize("address", [0xCFFFFFFE, 0xCFFFFFFF, 0xD00001FD, 0xD0000200, 0])
def test_mmio_that_no_device_holds_whole_is_unhandled(bus: Bus, address: int) -> None:
    device = Memory()
    bus.add_mmio("device", 0xD0000000, 0x200, device.read, device.write)
    assert bus.mmio_read(address, 4) == 0xFFFFFFFF
    bus.mmio_write(address, 0, 8)
    assert device.seen == []
    assert bus.unhandled() == {f"read {address:#x}": 1, f"write {address:#x}": 1}


def test_mmio_reads_of_eight_bytes_are_all_ones_too(bus: Bus) -> None:
    assert bus.mmio_read(0x1234, 8) == 0xFFFFFFFFFFFFFFFF


@pytest.mark.parametrize(
    ("base", "size"),
    [
        (0xD0000000, 0x1000),
        (0xCFFFF000, 0x1001),
        (0xD0000FFF, 1),
        (0xC0000000, 0x20000000),
        (0xD0000800, 4),
    ],
)
def test_overlapping_mmio_is_an_error_that_names_both(bus: Bus, base: int, size: int) -> None:
    device = Memory()
    bus.add_mmio("below", 0x1000, 0x1000, device.read, device.write)
    bus.add_mmio("first", 0xD0000000, 0x1000, device.read, device.write)
    bus.add_mmio("above", 0xF0000000, 0x1000, device.read, device.write)
    with pytest.raises(UsageError, match=r"second at .* overlaps first at 0xd0000000-0xd0000fff"):
        bus.add_mmio("second", base, size, device.read, device.write)


def test_adjoining_mmio_does_not_overlap(bus: Bus) -> None:
    device = Memory()
    bus.add_mmio("first", 0xD0000000, 0x1000, device.read, device.write)
    bus.add_mmio("after", 0xD0001000, 0x1000, device.read, device.write)
    bus.add_mmio("before", 0xCFFFF000, 0x1000, device.read, device.write)
    bus.mmio_read(0xD0000FFC, 4)
    assert bus.counts() == {"first": 1}


def test_an_empty_mmio_range_is_refused(bus: Bus) -> None:
    device = Memory()
    with pytest.raises(UsageError, match="nothing cannot stand at 0xd0000000 with 0 bytes"):
        bus.add_mmio("nothing", 0xD0000000, 0, device.read, device.write)


def test_detail_lists_the_busiest_first(bus: Bus, registers: Registers) -> None:
    for _ in range(3):
        read(bus, 0x101)
    write(bus, 0x100, 0)
    read(bus, 0x60)
    read(bus, 0x60)
    assert bus.detail() == [("four", "in 0x101", 3), (UNHANDLED, "in 0x60", 2), ("four", "out 0x100", 1)]
    assert list(bus.counts().items()) == [("four", 4), (UNHANDLED, 2)]


@pytest.mark.parametrize("size", range(1, 9))
def test_unanswered_reads_of_every_size(size):
    """KVM cuts an access that crosses a page into pieces of any size."""
    assert Bus().mmio_read(0xD0000FFD, size) == (1 << 8 * size) - 1


def test_a_wide_write_reaches_the_device_beside_it_however_many_ports_were_scanned():
    bus = Bus()
    seen = []
    bus.add_pio("status", 0xF4, [], [lambda value, size: seen.append(value)])
    for port in range(0x1000, 0x1400):
        bus.unknown_out(port)
    bus.unknown_out(0xF1).access(0x2A000000, 4)
    assert seen == [0x2A]
