"""Running machines asked and steered by ``pyvmm ps`` and ``pyvmm ctl``, with tiny guests on any KVM."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from pyvmm import arch
from pyvmm.control.client import Client
from pyvmm.control.server import SocketControl
from pyvmm.errors import PyvmmError
from pyvmm.kvm import System
from pyvmm.machine.build import build
from pyvmm.machine.outcome import Outcome
from pyvmm.machine.spec import MachineSpec

pytestmark = pytest.mark.usefixtures("kvm")

Command = Callable[..., Any]


class Running:
    """A ``pyvmm boot`` under way."""

    def __init__(self, folder: Path, guest: Path, *options: str) -> None:
        self._out, self._result = folder / "out", folder / "result.json"
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "pyvmm", "boot", str(guest), "--memory", "32M", "--timeout", "60",
                    "--result", str(self._result), *options,
                ],
                stdin=subprocess.PIPE, stdout=out, stderr=out,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._out.read_text(errors="replace")

    def until(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.output:
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def wait(self) -> tuple[int, dict[str, Any]]:
        code = self.process.wait(30)
        return code, json.loads(self._result.read_text())


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "pyvmm"


@pytest.fixture
def start(guests: Path, tmp_path: Path, runtime: Path) -> Iterator[Callable[..., Running]]:
    """Boots a guest by name; whatever still runs at the end is ended."""
    started: list[Running] = []

    def start(guest: str, text: str, *options: str) -> Running:
        running = Running(tmp_path, guests / f"{guest}.elf", *options)
        started.append(running)
        running.until(text)
        return running

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def ctl(pyvmm: Command) -> Command:
    """Runs ``pyvmm ctl box`` and returns what it says, as data."""

    def ctl(*words: object) -> Any:
        done = pyvmm("ctl", "box", *words, "--json")
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    return ctl


def test_a_machine_with_a_name_is_listed_and_steered(
    start: Callable[..., Running], pyvmm: Command, ctl: Command, runtime: Path
) -> None:
    running = start("spin", "spinning", "--name", "box")
    assert stat.S_IMODE((runtime / "box.sock").stat().st_mode) == 0o600
    (listed,) = json.loads(pyvmm("ps", "--json").stdout)
    assert (listed["name"], listed["pid"], listed["state"]) == ("box", running.process.pid, "running")
    table = pyvmm("ps").stdout.decode().splitlines()
    assert len(table) == 2 and table[1].split()[:3] == ["box", str(running.process.pid), "running"]
    assert ctl("console")["data"] == "spinning\n"
    assert pyvmm("ctl", "box", "console").stdout == b"spinning\n"
    assert ctl("exits")["by_device"]["com1"] == len("spinning\n")
    assert pyvmm("ctl", "box", "exits").stdout.decode().splitlines()[-1].split()[1] == "total"
    assert ctl("devices") == {}
    assert ctl("stop", "--force", "--wait", "20")["outcome"] == "interrupted"
    code, result = running.wait()
    assert (code, result["detail"]) == (130, "stopped by pyvmm ctl")
    assert not (runtime / "box.sock").exists()
    assert pyvmm("ps").stdout == b""


def test_nothing_moves_in_a_paused_machine(start: Callable[..., Running], ctl: Command) -> None:
    """A guest that prints what it is typed: while paused neither its exits nor its console move."""
    running = start("echo", "ready", "--name", "box", "--timeout", "10")
    assert running.process.stdin is not None
    running.process.stdin.write(b"one\n")
    running.process.stdin.flush()
    running.until("one")
    assert ctl("pause") == {"state": "paused"}
    running.process.stdin.write(b"two\n")
    running.process.stdin.flush()
    before = ctl("exits")
    time.sleep(10)  # the time would be over
    status = ctl("status")
    assert status["state"] == "paused" and status["paused_s"] >= 10
    assert ctl("exits") == before and "two" not in running.output
    ctl("resume")
    running.until("two")
    assert ctl("status")["state"] == "running"
    running.process.stdin.write(b"quit\n")
    running.process.stdin.flush()
    assert running.wait()[0] == 0


def test_the_time_goes_on_after_a_pause(start: Callable[..., Running], ctl: Command) -> None:
    running = start("spin", "spinning", "--name", "box", "--timeout", "4")
    ctl("pause")
    time.sleep(4)
    ctl("resume")
    code, result = running.wait()
    assert (code, result["outcome"]) == (124, "timeout") and result["elapsed_s"] >= 8


def test_several_vcpus_pause_and_go_on(start: Callable[..., Running], ctl: Command) -> None:
    running = start("spin", "spinning", "--name", "box", "--cpus", "4")
    for _ in range(3):
        assert ctl("pause") == {"state": "paused"}
        ctl("resume")
    assert ctl("status")["vcpus"] == 4
    ctl("stop", "--force")
    assert running.wait()[0] == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_paused_machine(
    number: int, code: int, start: Callable[..., Running], ctl: Command
) -> None:
    running = start("spin", "spinning", "--name", "box", "--cpus", "2")
    ctl("pause")
    running.process.send_signal(number)
    assert running.wait()[0] == code


def test_stop_by_force_ends_a_paused_machine(
    start: Callable[..., Running], ctl: Command, pyvmm: Command
) -> None:
    running = start("spin", "spinning", "--name", "box")
    ctl("pause")
    done = pyvmm("ctl", "box", "stop")
    assert done.returncode == 125 and "paused guest" in done.stderr and "hint: resume it" in done.stderr, done
    ctl("stop", "--force")
    assert running.wait()[0] == 130


def test_the_power_button(start: Callable[..., Running], ctl: Command) -> None:
    running = start("button", "press the button", "--name", "box")
    assert ctl("stop", "--wait", "20")["outcome"] == "exit"
    assert running.wait()[0] == 0 and "pressed\n" in running.output


def test_a_guest_that_does_not_heed_the_button(
    start: Callable[..., Running], ctl: Command, pyvmm: Command
) -> None:
    running = start("spin", "spinning", "--name", "box")
    done = pyvmm("ctl", "box", "stop", "--wait", "0.5")
    assert done.returncode == 125 and "not ended within 0.5 s" in done.stderr and "--force" in done.stderr, (
        done
    )
    assert ctl("status")["stopping"] is True
    assert ctl("stop") == {"forced": True}
    code, result = running.wait()
    assert code == 130 and "twice" in result["detail"]


def test_following_the_console_and_waiting(start: Callable[..., Running], pyvmm: Command) -> None:
    running = start("echo", "ready", "--name", "box")
    done: dict[str, Any] = {}

    def run(key: str, *words: str) -> None:
        done[key] = pyvmm("ctl", "box", *words)

    threads = [
        threading.Thread(target=run, args=("console", "console", "--follow")),
        threading.Thread(target=run, args=("wait", "wait")),
    ]
    for thread in threads:
        thread.start()
    time.sleep(3)
    assert running.process.stdin is not None
    running.process.stdin.write(b"hello\nquit\n")
    running.process.stdin.flush()
    assert running.wait()[0] == 0
    for thread in threads:
        thread.join(20)
    assert done["console"].returncode == 0 and "hello" in done["console"].stdout.decode(), done
    assert done["wait"].returncode == 0 and done["wait"].stdout == b"exit (exit code 0)\n", done


def test_a_path_of_its_own(
    start: Callable[..., Running], pyvmm: Command, tmp_path: Path, guests: Path
) -> None:
    path = tmp_path / "my.sock"
    running = start("spin", "spinning", "--control", str(path))
    status = json.loads(pyvmm("ctl", path, "status", "--json").stdout)
    assert status["name"] == "my"
    assert pyvmm("ps").stdout == b"", "only machines with a name are listed"
    done = pyvmm("boot", guests / "four.elf", "--control", path)
    assert done.returncode == 125 and "a running machine" in done.stderr and "hint: " in done.stderr, done
    running.process.kill()
    running.process.wait()
    assert path.exists(), "it could not remove its socket"
    done = pyvmm("ctl", path, "status")
    assert done.returncode == 125 and "no machine listens" in done.stderr
    assert pyvmm("boot", guests / "four.elf", "--control", path).returncode == 0
    assert not path.exists()


def test_what_cannot_be(pyvmm: Command, guests: Path, tmp_path: Path, runtime: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for arguments, message in (
        (("--control", tmp_path / "file"), "is no socket"),
        (("--name", "a/b"), "no name for a machine"),
        (("--name", "box", "--lab"), "reach no machine in the lab"),
    ):
        done = pyvmm("boot", guests / "four.elf", *arguments)
        assert done.returncode == 125 and message in done.stderr and "hint: " in done.stderr, done
        assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
    for arguments, message in (
        (("box", "status"), "no machine 'box'"),
        (("box", "puase"), "is 'pause' meant?"),
        (("box", "status", "--force"), "takes no --force"),
        (("box", "pause", "64M"), "takes no '64M'"),
        (("box", "balloon", "big"), "'big' is not a size"),
        (("box", "stop", "--wait", "soon"), "--wait soon"),
    ):
        done = pyvmm("ctl", *arguments)
        assert done.returncode == 125 and message in done.stderr and "Traceback" not in done.stderr, done


def test_a_machine_that_is_not_built_leaves_no_socket(pyvmm: Command, tmp_path: Path, runtime: Path) -> None:
    (tmp_path / "bad").write_bytes(b"no kernel")
    done = pyvmm("boot", tmp_path / "bad", "--name", "box")
    assert done.returncode == 125 and os.listdir(runtime) == [], done


def test_kvmclock_stands_still(guests: Path) -> None:
    """The clocks of a machine paused and resumed a few times: none of the time in between is in them."""
    host = arch.host()
    with System() as system, system.create_vm() as vm:
        host.prepare_vm(vm)
        vcpus = [vm.create_vcpu(index) for index in range(2)]
        started = time.monotonic()
        stopped = 0.0
        first = vm.get_clock().clock
        for _ in range(3):
            noted = host.pause_clock(vm, vcpus)
            since = time.monotonic()
            time.sleep(0.3)
            stopped += time.monotonic() - since
            host.resume_clock(vm, vcpus, noted)
        ran = (vm.get_clock().clock - first) / 1e9
        whole = time.monotonic() - started
    assert stopped >= 0.9
    assert 0 <= ran <= whole - stopped + 0.05


def test_the_counters_stand_still(guests: Path) -> None:
    """The time-stamp counters too, and all by the same amount."""
    host = arch.host()
    with System() as system, system.create_vm() as vm:
        host.prepare_vm(vm)
        vcpus = [vm.create_vcpu(index) for index in range(2)]
        before = vcpus[0].get_tsc_offset()
        if before is None:
            pytest.skip("this KVM does not tell the counters' offsets")
        vcpus[0].set_tsc_offset(before - 1000)
        if vcpus[0].get_tsc_offset() == before:
            pytest.skip("this KVM is a software one: it has no offsets, the counter is the host's")
        vcpus[0].set_tsc_offset(before)
        difference = (vcpus[1].get_tsc_offset() or 0) - before
        began = vcpus[0].get_msrs([0x10])[0x10]
        noted = host.pause_clock(vm, vcpus)
        time.sleep(0.5)
        host.resume_clock(vm, vcpus, noted)
        ran = vcpus[0].get_msrs([0x10])[0x10] - began
        after = vcpus[0].get_tsc_offset()
        assert after is not None and (vcpus[1].get_tsc_offset() or 0) - after == difference
        assert 0 <= ran < 0.3 * vcpus[0].get_tsc_khz() * 1000


def test_pauses_while_the_guest_prints_and_ends(guests: Path, tmp_path: Path) -> None:
    """Pauses without end, of a guest that prints a mebibyte: nothing of it is lost, and the end comes all the same."""
    control = SocketControl(str(tmp_path / "box.sock"), "box")
    pauses = 0

    def press() -> None:
        nonlocal pauses
        with Client(control.path) as client:
            try:
                while True:
                    client.call("pause")
                    pauses += 1
                    client.call("resume")
            except PyvmmError:
                pass  # it ended

    spec = MachineSpec(str(guests / "flood.elf"), memory=32 << 20, interactive=False, timeout=60.0)
    thread = threading.Thread(target=press)
    with build(spec) as machine:
        control.attach(machine)
        thread.start()
        assert machine.run().outcome is Outcome.EXIT
        control.finish()
        control.close()
        thread.join(20)
        assert machine.console.total >= 1 << 20
    assert pauses > 3
