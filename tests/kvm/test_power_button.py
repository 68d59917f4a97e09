"""Ctrl-A s as a person presses it: an interrupt for a guest that waits for it, and the end of one that does not."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.usefixtures("kvm")

PRESS = b"\x01s"


class OnTerminal:
    """A pyvmm on a terminal of its own."""

    def __init__(self, image: Path, result: Path, *options: str) -> None:
        self._result = result
        self.output = b""
        self._fd, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "pyvmm", "boot", str(image), "--memory", "32M", "--timeout", "40",
                "--result", str(result), *options,
            ],
            stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        os.close(theirs)

    def until(self, text: bytes) -> None:
        deadline = time.monotonic() + 30
        while text not in self.output:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; so far: {self.output!r}"
            self.output += os.read(self._fd, 4096)

    def send(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def wait(self) -> tuple[int, dict[str, object]]:
        """The exit code, and the result file."""
        try:
            while data := os.read(self._fd, 4096):
                self.output += data
        except OSError:
            pass  # the terminal's other end was closed
        code = self._process.wait(20)
        os.close(self._fd)
        return code, json.loads(self._result.read_text())


def test_a_guest_is_told_by_an_interrupt(guests: Path, tmp_path: Path) -> None:
    terminal = OnTerminal(guests / "button.elf", tmp_path / "r.json")
    terminal.until(b"press the button")
    terminal.send(PRESS)
    code, result = terminal.wait()
    assert code == 0, terminal.output
    assert (result["outcome"], result["guest_status"]) == ("exit", 0)
    assert b"pressed\n" in terminal.output.replace(b"\r", b"")
    assert b"power button was pressed" in terminal.output


def test_nobody_presses_it_otherwise(guests: Path, tmp_path: Path) -> None:
    terminal = OnTerminal(guests / "button.elf", tmp_path / "r.json", "--timeout", "3")
    terminal.until(b"press the button")
    terminal.send(b"s\x01\x01s\n")  # keys for the guest, a Ctrl-A among them
    code, result = terminal.wait()
    assert (code, result["outcome"]) == (124, "timeout"), terminal.output


def test_a_guest_that_does_not_heed_it_is_stopped_by_the_second(guests: Path, tmp_path: Path) -> None:
    terminal = OnTerminal(guests / "spin.elf", tmp_path / "r.json")
    terminal.until(b"spinning")
    terminal.send(PRESS)
    terminal.until(b"once more stops it by force")
    terminal.send(PRESS)
    code, result = terminal.wait()
    assert code == 130, terminal.output
    assert (result["outcome"], result["detail"]) == ("interrupted", "stopped by Ctrl-A s twice")
