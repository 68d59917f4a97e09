"""``boot --control -``: a control connection on standard input and output, for whoever owns the machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytestmark = pytest.mark.usefixtures("kvm")


class Owner:
    """A machine's owner over two pipes; ``console`` is what it was told that the guest printed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.console = b""

    def send(self, **request: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            read: dict[str, Any] = json.loads(line)
            if read.get("event") == "console":
                self.console += base64.b64decode(read["data"])
            else:
                yield read

    def until(self, key: str, value: object) -> dict[str, Any]:
        return next(line for line in self.lines() if line.get(key) == value)


@contextmanager
def owned(*arguments: object) -> Iterator[Owner]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pyvmm", "boot", *map(str, arguments), "--control", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with process:
        try:
            yield Owner(process)
        finally:
            process.kill()


def test_over_pipes(guests: Path) -> None:
    """Everything comes without being asked for; after the end there are answers, until the owner hangs up."""
    with owned(guests / "hello.elf") as owner:
        assert owner.until("event", "started")["arch"] == os.uname().machine
        result = owner.until("event", "ended")["result"]
        assert (result["outcome"], result["guest_status"]) == ("exit", 0)
        assert owner.console == b"hello from a guest of pyvmm\n"
        owner.send(id=1, command="regs")
        assert owner.until("id", 1)["result"]["regs"]["rip"] > 0x100000
        owner.send(id=2, command="port", name="none", data="")
        refused = owner.until("id", 2)
        assert not refused["ok"] and "there is no port 'none'" in refused["error"]
        owner.process.stdin.close()
        assert list(owner.lines()) == []
        assert owner.process.wait(10) == 0


def test_the_machine_ends_with_its_owner(guests: Path) -> None:
    with owned(guests / "spin.elf") as owner:
        owner.until("event", "started")
        owner.process.stdin.close()
        assert owner.until("event", "ended")["result"]["detail"] == "whoever started the machine went away"
        assert owner.process.wait(10) == 129


def test_a_slow_owner_makes_the_guest_wait_and_loses_nothing(guests: Path) -> None:
    with owned(guests / "flood.elf") as owner:
        owner.until("event", "started")
        pid = owner.process.pid
        before = Path(f"/proc/{pid}/statm").read_text().split()[1]
        time.sleep(2.0)  # nobody reads
        grown = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) - int(before)) * 4096
        assert grown < 16 << 20
        result = owner.until("event", "ended")["result"]
        assert len(owner.console) == result["console_bytes"] > 500_000


def test_why_there_is_no_machine(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"no kernel" * 100)
    with owned(image) as owner:
        failed = owner.until("event", "failed")
        assert failed["error"].startswith(str(image)) and failed["hint"] and failed["type"] != "PyvmmError"
        assert owner.process.wait(10) == 125


def test_a_port_for_an_owner_needs_one(pyvmm, guests: Path) -> None:
    done = pyvmm("boot", guests / "hello.elf", "--console", "port=x,control")
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == "pyvmm: a port with control is for the owner of the machine"


@pytest.mark.parametrize(
    "request_",
    [
        '{"command": "read"}',
        '{"command": "write", "address": 0, "data": "not base64!"}',
        '{"command": "regs"}',
    ],
)
def test_refusals(guests: Path, request_: str) -> None:
    with owned(guests / "spin.elf") as owner:
        owner.until("event", "started")
        owner.send(id=7, **json.loads(request_))
        answer = owner.until("id", 7)
        assert not answer["ok"] and answer["error"] and answer["hint"]
