"""The power button: the device, the key that presses it, and what a second press does."""

from __future__ import annotations

import inspect
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.devices.ged import GenericEventDevice
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome, exit_code
from pyvmm.machine.terminal_input import HELP, TerminalInput
from pyvmm.terminal import COMMANDS, EscapeKeys


class Line:
    """An interrupt line that counts its edges."""

    def __init__(self) -> None:
        self.edges = 0

    def trigger(self) -> None:
        self.edges += 1


def machine(line: Line) -> tuple[Machine, list[End], list[str]]:
    """A machine without a VM, its ends, and what its architecture was asked for."""
    made: list[str] = []
    ends: list[End] = []

    def event_device(vm: object, closers: list[object]) -> GenericEventDevice:
        made.append("event device")
        return GenericEventDevice(line)

    parts: dict[str, Any] = dict.fromkeys(inspect.signature(Machine).parameters)
    serial = SimpleNamespace(pending=0, on_room=lambda wake: None)
    arch = SimpleNamespace(event_device=event_device)
    parts.update(arch=arch, serial=serial, runners=[], ends=ends, closers=[])
    return Machine(**parts), ends, made


def test_a_press_is_one_edge() -> None:
    line = Line()
    device = GenericEventDevice(line)
    assert line.edges == 0
    device.press_power_button()
    assert (line.edges, device.presses) == (1, 1)
    device.press_power_button()
    assert (line.edges, device.presses) == (2, 2)


def test_the_device_is_made_at_the_first_press_and_once() -> None:
    line = Line()
    the_machine, ends, made = machine(line)
    assert made == []
    the_machine.press_power_button()
    the_machine.press_power_button()
    assert made == ["event device"]
    assert line.edges == 2
    assert ends == [], "the button alone never ends the run by force"


def test_to_stop_is_to_press_and_then_to_force() -> None:
    line = Line()
    the_machine, ends, _ = machine(line)
    assert the_machine.stop("Ctrl-A s") is False
    assert (line.edges, ends) == (1, [])
    assert the_machine.stop("Ctrl-A s") is True
    assert line.edges == 1
    (end,) = ends
    assert (end.outcome, end.status) == (Outcome.INTERRUPTED, signal.SIGINT)
    assert end.detail == "stopped by Ctrl-A s twice"
    assert exit_code(end, absent=False) == 130


def test_keys_that_stop_go_to_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line()
    the_machine, ends, _ = machine(line)
    read, write = os.pipe()
    keys = EscapeKeys()
    terminal = SimpleNamespace(interactive=True, decode=keys.feed, input_fd=read)
    typed = TerminalInput(the_machine, terminal)
    os.write(write, b"\x01s")
    typed.read(read)
    assert (line.edges, ends) == (1, [])
    said = capsys.readouterr().err
    assert "power button" in said and "once more" in said
    os.write(write, b"\x01")
    typed.read(read)
    os.write(write, b"s")
    typed.read(read)
    assert [end.detail for end in ends] == ["stopped by Ctrl-A s twice"]
    os.close(read)
    os.close(write)


def test_the_help_names_every_command() -> None:
    for key, command in COMMANDS.items():
        if command != "help":
            assert f"Ctrl-A {chr(key)}:" in HELP
