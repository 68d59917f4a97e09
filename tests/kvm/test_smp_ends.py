"""Several vCPUs, started by the guest itself: whichever of them ends the run, all stop and their threads are gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from pyvmm.machine.build import build
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.spec import MachineSpec

pytestmark = pytest.mark.usefixtures("kvm")


def threads() -> set[int]:
    """The threads of this process, as the kernel counts them."""
    return {int(name) for name in os.listdir("/proc/self/task")}


def run(guests: Path, cmdline: str, cpus: int, **options: Any) -> tuple[End, int]:
    """Boot the guest here, in this process; how it ended, and its exit code.  No thread or descriptor may stay."""
    before, descriptors = threads(), len(os.listdir("/proc/self/fd"))
    spec = MachineSpec(
        str(guests / "smp.elf"), cmdline=cmdline, cpus=cpus, memory=32 << 20, interactive=False,
        timeout=options.pop("timeout", 60.0), **options,
    )  # fmt: skip
    with build(spec) as machine:
        end = machine.run()
        assert [runner.vcpu.id for runner in machine.runners] == list(range(cpus))
        assert not [runner.vcpu.id for runner in machine.runners if runner.running], "vCPUs that still run"
        code = machine.exit_code()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("vcpu")] == []
    assert threads() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    return end, code


@pytest.mark.parametrize("cpus", [2, 3, 8])
def test_every_processor_is_started_once_and_knows_its_apic_id(
    cpus: int, guests: Path, pyvmm: Callable[..., Any]
) -> None:
    done = pyvmm(
        "boot", guests / "smp.elf", "--cpus", cpus, "--memory", "32M", "--timeout", "60", "--cmdline", f"{cpus - 1}c"
    )  # fmt: skip
    assert done.returncode == 0, done
    first, *ids = done.stdout.decode().split()
    assert first == "started:"
    assert sorted(int(id, 16) for id in ids) == list(range(1, cpus))


@pytest.mark.parametrize(
    ("what", "outcome", "code"),
    [
        ("s", Outcome.SHUTDOWN, 0),
        ("r", Outcome.RESET, 0),
        ("e", Outcome.EXIT, 42),
        ("t", Outcome.TRIPLE_FAULT, 122),
        ("p", Outcome.PANIC, 120),
    ],
)
@pytest.mark.parametrize("cpus", [2, 4])
def test_another_processor_ends_the_run(
    what: str, outcome: Outcome, code: int, cpus: int, guests: Path
) -> None:
    end, exit_code = run(guests, f"{cpus - 1}{what}", cpus)
    assert (end.outcome, exit_code) == (outcome, code), (end.detail, end.report)


def test_a_triple_fault_is_explained_for_the_processor_that_had_it(guests: Path) -> None:
    end, _ = run(guests, "1t", 2)
    report = "\n".join(end.report)
    assert "vCPU 1" in report
    assert "IDT base 0x0 limit 0x0" in report
    assert "16-bit protected mode" in report


def test_all_halted_is_an_end(guests: Path) -> None:
    end, code = run(guests, "2h", 3)
    assert (end.outcome, code) == (Outcome.SHUTDOWN, 0)
    assert "nothing can wake it" in end.detail


def test_processors_that_loop_are_stopped_when_the_time_is_up(guests: Path) -> None:
    end, code = run(guests, "2l", 3, timeout=2.0)
    assert (end.outcome, code) == (Outcome.TIMEOUT, 124)
    assert [line.split(",")[0] for line in end.report] == [f"vCPU {index} was running" for index in range(3)]


def test_processors_that_were_never_started_are_stopped_too(guests: Path) -> None:
    end, _ = run(guests, "9h", 3, timeout=1.0)  # waits for a ninth that is not there
    assert end.outcome is Outcome.TIMEOUT


@pytest.mark.parametrize("expected", ["on another processor"])
def test_an_expected_text_stops_them(expected: str, guests: Path) -> None:
    end, code = run(guests, "2p", 3, expect=[expected])
    assert (end.outcome, code) == (Outcome.EXPECTED, 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_them(number: signal.Signals, code: int, guests: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "pyvmm", "boot", str(guests / "smp.elf"), "--cpus", "4", "--cmdline", "3l",
            "--memory", "32M", "--timeout", "60", "--no-input", "--result", str(result),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        names = Path(f"/proc/{process.pid}/task")
        deadline = time.monotonic() + 20
        while len(list(names.iterdir())) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.communicate()
    assert json.loads(result.read_text())["outcome"] == "interrupted"
