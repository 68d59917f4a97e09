"""The power button on a PL061, driven as Linux's drivers drive it (drivers/gpio/gpio-pl061.c, gpio_keys.c)."""

from __future__ import annotations

import pytest

from pyvmm.devices.pl061 import DIR, IBE, IC, IE, IEV, IS, MIS, PERIPHERAL_ID, POWER_BUTTON, RIS, Pl061

BUTTON = 1 << POWER_BUTTON


class Line:
    """An interrupt line that remembers its level."""

    up = False

    def set(self, level: bool) -> None:
        assert level is not self.up, "it was so already"
        self.up = level


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def gpio(line: Line) -> Pl061:
    return Pl061(line)


def both_edges(gpio: Pl061) -> None:
    """pl061_probe and pl061_irq_type, for IRQ_TYPE_EDGE_BOTH."""
    for register in (IE, IS, IEV):
        gpio.write(register, 0, 1)
    gpio.write(IC, 0xFF, 1)
    gpio.write(IBE, BUTTON, 1)
    gpio.write(IE, BUTTON, 1)


def value(gpio: Pl061) -> int:
    """pl061_get_value."""
    return gpio.read(BUTTON << 2, 1) >> POWER_BUTTON


def test_a_press_is_seen_and_so_is_its_end(gpio: Pl061, line: Line) -> None:
    both_edges(gpio)
    assert value(gpio) == 0 and not line.up
    for press in (1, 2):
        gpio.press_power_button()
        assert line.up and gpio.read(MIS, 1) == BUTTON
        gpio.write(IC, BUTTON, 1)
        assert not line.up, "an edge is over once it has been acknowledged"
        assert value(gpio) == 1
        assert line.up, "it was let go: the other edge"
        gpio.write(IC, BUTTON, 1)
        assert value(gpio) == 0 and not line.up
        assert gpio.presses == press


def test_nothing_is_raised_for_a_guest_that_asked_for_nothing(gpio: Pl061, line: Line) -> None:
    gpio.press_power_button()
    assert not line.up and gpio.read(MIS, 1) == 0


def test_one_edge_alone(gpio: Pl061, line: Line) -> None:
    gpio.write(IEV, 0, 1)
    gpio.write(IE, BUTTON, 1)
    gpio.press_power_button()
    assert not line.up, "falling edges were asked for"
    assert value(gpio) == 1 and line.up


def test_a_level(gpio: Pl061, line: Line) -> None:
    gpio.write(IS, BUTTON, 1)
    gpio.write(IEV, BUTTON, 1)
    gpio.write(IE, BUTTON, 1)
    gpio.press_power_button()
    gpio.write(IC, BUTTON, 1)
    assert line.up and gpio.read(RIS, 1) == BUTTON, "as long as the line is high"
    assert value(gpio) == 1 and not line.up


def test_lines_are_chosen_by_the_address(gpio: Pl061) -> None:
    gpio.write(DIR, 0xF0, 1)
    gpio.write(0x30 << 2, 0xFF, 1)
    assert gpio.read(0xFF << 2, 1) == 0x30
    gpio.write(0x10 << 2, 0, 1)
    assert gpio.read(0xFF << 2, 1) == 0x20
    gpio.press_power_button()
    assert gpio.read(0x20 << 2, 1) == 0x20
    assert gpio.read(0xFF << 2, 1) == 0x20 | BUTTON


def test_identification(gpio: Pl061) -> None:
    found = bytes(gpio.read(0xFE0 + 4 * index, 4) for index in range(4))
    assert int.from_bytes(found, "little") == PERIPHERAL_ID == 0x0004_1061
