"""The ports that end the guest, and the hardware that is not there, as kernels use and probe them."""

from __future__ import annotations

import calendar
import time

import pytest

from pyvmm.devices.absent import add_absent
from pyvmm.devices.bus import Bus
from pyvmm.devices.cmos import Cmos
from pyvmm.devices.power import PowerPorts

SLEEP_CONTROL, SLEEP_STATUS, RESET_REGISTER = 0x600, 0x601, 0x602
WAK_STS = 0x80


class Machine:
    """A bus with the power ports, and what the guest asked for."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []
        self.bus = Bus()
        self.power = PowerPorts(lambda kind, status: self.requests.append((kind, status)))
        self.power.connect(
            self.bus,
            sleep_control=SLEEP_CONTROL,
            sleep_status=SLEEP_STATUS,
            reset_register=RESET_REGISTER,
            reset_control=0xCF9,
            keyboard_command=0x64,
            guest_status=0xF4,
        )
        add_absent(
            self.bus,
            [("pci", 0xCF8, 8), ("absent uarts", 0x2F8, 8), ("absent uarts", 0x3E8, 8), ("post", 0x80, 1)],
        )
        self.now = calendar.timegm((2024, 2, 29, 23, 58, 59))
        cmos = Cmos(lambda: self.now)
        self.bus.add_pio_bytes("cmos", 0x70, cmos.reads, cmos.writes)

    def read(self, port: int, size: int = 1) -> int:
        slot = self.bus.pio_in.get(port) or self.bus.unknown_in(port)
        slot.count += 1
        return slot.access(size)

    def write(self, port: int, value: int, size: int = 1) -> None:
        slot = self.bus.pio_out.get(port) or self.bus.unknown_out(port)
        slot.count += 1
        slot.access(value, size)

    def cmos(self, index: int) -> int:
        self.write(0x70, index)
        return self.read(0x71)


@pytest.fixture
def machine() -> Machine:
    return Machine()


# -- ACPI -----------------------------------------------------------------------------------------------


def test_soft_off(machine: Machine) -> None:
    """acpi_hw_extended_sleep: clear WAK_STS, then SLP_TYP 5 with SLP_EN."""
    machine.write(SLEEP_STATUS, WAK_STS)
    assert machine.requests == []
    machine.write(SLEEP_CONTROL, 0x34)
    assert machine.requests == [("shutdown", 0)]


@pytest.mark.parametrize("value", [0x00, 0x14, 0x1C, 0x94])
def test_nothing_happens_without_slp_en(machine: Machine, value: int) -> None:
    machine.write(SLEEP_CONTROL, value)
    assert machine.requests == []
    assert machine.read(SLEEP_STATUS) == 0


def test_reserved_bits_of_the_sleep_control_are_ignored(machine: Machine) -> None:
    machine.write(SLEEP_CONTROL, 0xF7)
    assert machine.requests == [("shutdown", 0)]


@pytest.mark.parametrize("sleep_type", [0, 1, 2, 3, 4, 6, 7])
def test_an_undeclared_sleep_type_wakes_at_once(machine: Machine, sleep_type: int) -> None:
    machine.write(SLEEP_CONTROL, 0x20 | sleep_type << 2)
    assert machine.requests == []
    assert machine.read(SLEEP_STATUS) == WAK_STS
    machine.write(SLEEP_STATUS, WAK_STS)
    assert machine.read(SLEEP_STATUS) == 0


def test_the_reset_register_takes_its_value_only(machine: Machine) -> None:
    machine.write(RESET_REGISTER, 0)
    machine.write(RESET_REGISTER, 6)
    assert machine.requests == []
    machine.write(RESET_REGISTER, 1)
    assert machine.requests == [("reset", 0)]


# -- the PC's ways to reset -----------------------------------------------------------------------------


def test_linux_resets_through_the_keyboard_controller(machine: Machine) -> None:
    """kb_wait, then the command."""
    assert machine.read(0x64) & 0x02 == 0, "the input buffer must look empty, or kb_wait reads 65,536 times"
    machine.write(0x64, 0xFE)
    assert machine.requests == [("reset", 0)]


def test_linux_finds_no_keyboard_controller(machine: Machine) -> None:
    """i8042_flush reads data while the output buffer is full, and gives up after a few."""
    assert all(machine.read(0x64) & 0x01 for _ in range(20))
    assert machine.read(0x60) == 0xFF
    for command in (0x20, 0x60, 0xA7, 0xAA, 0xAD, 0xD0, 0xD1):
        machine.write(0x64, command)
    assert machine.requests == []


@pytest.mark.parametrize("code", [0x06, 0x0E])
def test_linux_resets_through_the_reset_control_register(machine: Machine, code: int) -> None:
    """native_machine_emergency_restart, BOOT_CF9_FORCE."""
    value = machine.read(0xCF9) & ~code
    machine.write(0xCF9, value | 2)
    assert machine.requests == []
    machine.write(0xCF9, value | code)
    assert machine.requests == [("reset", 0)]


def test_only_a_rising_bit_resets(machine: Machine) -> None:
    machine.write(0xCF9, 0x06)
    machine.write(0xCF9, 0x06)
    assert machine.requests == [("reset", 0)]
    machine.write(0xCF9, 0x02)
    machine.write(0xCF9, 0x06)
    assert machine.requests == [("reset", 0)] * 2


def test_a_pci_address_is_no_reset_though_it_covers_the_port(machine: Machine) -> None:
    machine.write(0xCF8, 0x80000604, 4)
    assert machine.requests == []


# -- the guest's own status -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size", "status"),
    [(0, 1, 0), (42, 1, 42), (255, 1, 255), (7, 4, 7), (256, 4, 255), (1 << 31, 4, 255)],
)
def test_guest_status(machine: Machine, value: int, size: int, status: int) -> None:
    machine.write(0xF4, value, size)
    assert machine.requests == [("exit", status)]


# -- what is not there ----------------------------------------------------------------------------------


def test_linux_finds_no_pci(machine: Machine) -> None:
    """pci_check_type1 and pci_check_type2."""
    machine.write(0xCFB, 0x01)
    saved = machine.read(0xCF8, 4)
    machine.write(0xCF8, 0x80000000, 4)
    assert machine.read(0xCF8, 4) != 0x80000000
    machine.write(0xCF8, saved, 4)
    for port in (0xCFB, 0xCF8, 0xCFA):
        machine.write(port, 0)
    assert machine.read(0xCF8) != 0 or machine.read(0xCFA) != 0
    assert machine.requests == []


def test_no_device_on_any_pci_bus(machine: Machine) -> None:
    """read_pci_config, early in the boot: the vendor of an empty slot is all ones."""
    for port, size, ones in ((0xCFC, 4, 0xFFFFFFFF), (0xCFE, 2, 0xFFFF), (0xCFF, 1, 0xFF)):
        assert machine.read(port, size) == ones
    assert machine.bus.counts() == {"pci": 3}


def test_linux_finds_no_other_uart(machine: Machine) -> None:
    """autoconfig: the interrupt enable register must keep what is written."""
    machine.write(0x2F9, 0)
    assert machine.read(0x2F9) & 0x0F != 0
    machine.write(0x3E9, 0)
    assert machine.read(0x3E9) & 0x0F != 0
    assert machine.bus.counts() == {"absent uarts": 4}


def test_absent_hardware_yields_to_a_device() -> None:
    bus = Bus()
    bus.add_pio_bytes("reset", 0xCF9, [lambda: 5], [])
    add_absent(bus, [("pci", 0xCF8, 8)])
    assert bus.pio_in[0xCF9].device == "reset"
    assert bus.pio_out[0xCF9].device == "pci"
    assert bus.pio_in[0xCFA].access(4) == 0xFFFFFFFF


# -- the clock ------------------------------------------------------------------------------------------


def decimal(value: int) -> int:
    assert value & 0x0F < 10
    return (value >> 4) * 10 + (value & 0x0F)


def test_linux_reads_the_time(machine: Machine) -> None:
    """mc146818_get_time: no update in progress, BCD, 24 hours."""
    seconds = machine.cmos(0)
    assert machine.cmos(0x0A) & 0x80 == 0
    assert machine.cmos(0x0B) & 0x06 == 0x02
    assert machine.cmos(0x0D) & 0x80
    fields = [decimal(machine.cmos(index)) for index in (9, 8, 7, 4, 2)]
    assert [*fields, decimal(seconds)] == [24, 2, 29, 23, 58, 59]
    assert decimal(machine.cmos(0x32)) == 20
    assert machine.cmos(6) == 5, "a Thursday, Sunday being 1"


def test_the_clock_goes(machine: Machine) -> None:
    machine.now += 61
    assert [machine.cmos(index) for index in (8, 7, 4, 2, 0)] == [3, 1, 0, 0, 0]


def test_the_default_is_the_time_of_the_host() -> None:
    cmos = Cmos()
    cmos.write_index(9)
    assert decimal(cmos.read_data()) in {time.gmtime().tm_year % 100, (time.gmtime().tm_year - 1) % 100}


def test_cmos_memory_keeps_a_byte(machine: Machine) -> None:
    """Linux leaves the reason of a restart at 0x0f, with the NMI masked by bit 7 of the index."""
    machine.write(0x70, 0x8F)
    machine.write(0x71, 0x0A)
    assert machine.cmos(0x0F) == 0x0A
    assert machine.cmos(0x10) == 0


def test_the_clock_cannot_be_set(machine: Machine) -> None:
    for index in (0, 9, 0x0A, 0x0D):
        before = machine.cmos(index)
        machine.write(0x71, 0x80 | 0x55)
        assert machine.cmos(index) == before
