"""The Python API with small guests: the console, every kind of end, memory and registers, many machines at once."""

from __future__ import annotations

import doctest
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

import pyvmm
from pyvmm.api import console as console_module
from pyvmm.api import inspection
from pyvmm.api import machine as machine_module

pytestmark = pytest.mark.usefixtures("kvm")


@pytest.fixture
def guest(guests: Path):
    """The path of a test guest by name."""
    return lambda name: guests / f"{name}.elf"


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("module", "examples"), [(machine_module, 1), (inspection, 2)])
def test_the_examples_in_the_docstrings(guest, module, examples: int) -> None:
    names = {"Machine": pyvmm.Machine, "hello": guest("hello")}
    done = doctest.testmod(module, extraglobs=names)
    assert (done.attempted, done.failed) == (examples, 0)


class TestConsole:
    def test_matches_in_order(self, guest) -> None:
        with pyvmm.Machine(guest("echo")) as vm:
            assert vm.console.expect("ready\n").before == b""
            for number in range(3):
                vm.console.sendline(f"line {number}")
            assert vm.console.expect([b"never", r"echo: line (\d)"]).group(1) == "0"
            found = vm.console.expect_exact("line 2")
            assert (found.index, found.after, found.text) == (0, b"line 2", "line 2")
            assert found.before == b"\necho: line 1\necho: "
            assert vm.console.log == b"ready\necho: line 0\necho: line 1\necho: line 2\n"
            assert vm.console.total == len(vm.console.log)

    def test_the_first_in_the_stream_counts_not_the_first_in_the_list(self, guest) -> None:
        with pyvmm.Machine(guest("hello")) as vm:
            vm.wait()
            assert vm.console.expect(["pyvmm", "hello"]).index == 1

    def test_fail_on_comes_first(self, guest) -> None:
        with pyvmm.Machine(guest("panic")) as vm:
            with pytest.raises(pyvmm.GuestPanic) as caught:
                vm.console.expect("login:", fail_on=pyvmm.PANICS)
            assert "Kernel panic - not syncing: test" in caught.value.message
            assert "Kernel panic" in caught.value.console_tail
        with pyvmm.Machine(guest("echo")) as vm, pytest.raises(pyvmm.GuestError) as caught:
            vm.console.expect("login:", fail_on="ready")
        assert not isinstance(caught.value, pyvmm.GuestPanic)

    def test_timeout(self, guest, tmp_path: Path) -> None:
        log = tmp_path / "console.log"
        with pyvmm.Machine(guest("echo"), log=log) as vm:
            vm.console.expect("ready")
            started = time.monotonic()
            with pytest.raises(pyvmm.ExpectTimeout) as caught:
                vm.console.expect("login:", timeout=0.2)
            assert 0.15 < time.monotonic() - started < 5
        assert caught.value.console_tail == "ready\n"
        assert caught.value.log == str(log)
        assert "the console's last lines" in str(caught.value) and str(log) in str(caught.value)
        assert log.read_bytes() == b"ready\n"

    def test_messages_call_a_text_as_it_was_given(self, guest) -> None:
        with pyvmm.Machine(guest("echo")) as vm:
            with pytest.raises(pyvmm.ExpectTimeout, match=r"did not show 'a \(b\)' or 'c' within"):
                vm.console.expect_exact(["a (b)", b"c"], timeout=0.1)
            with pytest.raises(pyvmm.ExpectTimeout, match=r"did not show 'a \\\\\(b' within"):
                vm.console.expect(r"a \(b", timeout=0.1)

    def test_bad_patterns(self, guest) -> None:
        with pyvmm.Machine(guest("echo")) as vm:
            for bad in ("(", [], b"["):
                with pytest.raises(pyvmm.UsageError):
                    vm.console.expect(bad)
            with pytest.raises(pyvmm.UsageError):
                vm.console.expect_exact("")

    def test_nobody_has_to_read(self, guest, monkeypatch: pytest.MonkeyPatch) -> None:
        """A guest that prints a mebibyte ends though nobody waits for anything; what is kept is limited."""
        monkeypatch.setattr(console_module, "MOST_KEPT", 100_000)
        with pyvmm.Machine(guest("flood"), timeout=100) as vm:
            assert vm.wait(100).outcome in ("exit", "shutdown", "reset")
            assert vm.console.total > 500_000
            assert len(vm.console.log) <= 100_000
            assert vm.console.total == vm.console.forgotten + len(vm.console.log)

    def test_a_text_cut_anywhere_is_found(self) -> None:
        console = console_module.Console(lambda data: 0, lambda what: pyvmm.UnexpectedExit(what), None)
        found = []
        waiter = threading.Thread(target=lambda: found.append(console.expect(rb"needle\d+!", timeout=20)))
        waiter.start()
        for byte in b"hay" * 1000 + b"needle12345!" + b"hay":
            console.feed(bytes([byte]))
        waiter.join(20)
        assert found[0].after == b"needle12345!" and found[0].before == b"hay" * 1000

    def test_a_line_that_is_not_all_there_yet(self) -> None:
        """What must not come is told whole, though it comes in pieces; nobody waits for ever for the rest."""
        for pieces, said in (
            ([b"Kernel panic - not syn", b"cing", b": te", b"st", b"\n"], "not syncing: test"),
            ([b"Kernel panic - not syncing: cut"], "not syncing: cut"),
        ):
            console = console_module.Console(lambda data: 0, lambda what: pyvmm.UnexpectedExit(what), None)

            def feed(console=console, pieces=pieces) -> None:
                for piece in pieces:
                    console.feed(piece)
                    time.sleep(0.05)

            feeder = threading.Thread(target=feed)
            feeder.start()
            started = time.monotonic()
            with pytest.raises(pyvmm.GuestPanic) as caught:
                console.expect("login:", 20, fail_on=pyvmm.PANICS)
            feeder.join()
            assert caught.value.message.endswith(said)
            assert time.monotonic() - started < 5


class TestEnd:
    @pytest.mark.parametrize(
        ("name", "outcome", "status", "code"),
        [("hello", "exit", 0, 0), ("status", "exit", 42, 42), ("reset", "reset", None, 0),
         ("panic", "panic", None, 120), ("triple", "triple-fault", None, 122)],
    )  # fmt: skip
    def test_outcomes(self, guest, name: str, outcome: str, status: int | None, code: int) -> None:
        with pyvmm.Machine(guest(name), cmdline="42") as vm:
            end = vm.wait(60)
            assert (end.outcome, end.status, end.exit_code) == (outcome, status, code)
            assert end.ok == (code == 0)
            assert vm.end is end and vm.wait() is end
            assert end.exits["total"] > 0 and 0 < end.elapsed < 60
            assert bool(end.panic) == (outcome == "panic")
            assert bool(end.report) == (outcome == "triple-fault")

    @pytest.mark.parametrize(
        ("name", "kind", "said"),
        [("panic", pyvmm.GuestPanic, "Kernel panic - not syncing: test"), ("triple", pyvmm.TripleFault, ""),
         ("status", pyvmm.UnexpectedExit, ", 42"), ("spin", pyvmm.ExpectTimeout, "")],
    )  # fmt: skip
    def test_a_bad_end_is_raised_if_asked(self, guest, name: str, kind: type, said: str) -> None:
        with pyvmm.Machine(guest(name), cmdline="42", timeout=1 if name == "spin" else 60) as vm:
            with pytest.raises(pyvmm.GuestError) as caught:
                vm.wait(60, check=True)
            assert type(caught.value) is kind
            assert (
                caught.value.message.startswith("the machine ended badly: ") and said in caught.value.message
            )
            assert caught.value.console_tail == vm.console.tail()
            end = vm.wait()
            assert end is vm.end and not end.ok
            assert caught.value.hint == "; ".join(end.report[:2])

    def test_a_good_end_is_not(self, guest) -> None:
        for name in ("hello", "reset"):
            with pyvmm.Machine(guest(name)) as vm:
                assert vm.wait(60, check=True).ok

    def test_what_waits_learns_of_the_end(self, guest) -> None:
        for name, kind in (
            ("hello", pyvmm.UnexpectedExit), ("panic", pyvmm.GuestPanic), ("triple", pyvmm.TripleFault),
        ):  # fmt: skip
            with pyvmm.Machine(guest(name)) as vm, pytest.raises(kind) as caught:
                vm.console.expect("login:", timeout=60)
            assert "never showed 'login:'" in caught.value.message

    def test_the_machines_own_time_limit(self, guest) -> None:
        with pyvmm.Machine(guest("spin"), timeout=0.5) as vm:
            assert vm.wait(30).outcome == "timeout"

    def test_wait_gives_up(self, guest) -> None:
        with pyvmm.Machine(guest("spin")) as vm:
            with pytest.raises(pyvmm.ExpectTimeout):
                vm.wait(0.1)
            assert vm.end is None
            vm.kill()
            assert vm.wait(20).outcome == "interrupted"
            vm.kill()

    def test_after_the_end(self, guest) -> None:
        """Registers and memory can still be looked at; nothing can be typed."""
        with pyvmm.Machine(guest("triple")) as vm:
            vm.wait()
            assert vm.regs()["rip"] > 0
            assert len(vm.read(0x100000, 64)) == 64
            assert vm.exits()["total"] > 0
            with pytest.raises(pyvmm.TripleFault):
                vm.console.send("x")
            with pytest.raises(pyvmm.UsageError):
                vm.pause()

    def test_nothing_is_left(self, guest) -> None:
        before = threading.active_count()
        descriptors = len(os.listdir("/proc/self/fd"))
        with pyvmm.Machine(guest("spin")) as vm:
            pid = vm.status()["pid"]
        assert gone(pid, 0.1), "close() waits for the process"
        vm.close()
        assert threading.active_count() == before
        assert len(os.listdir("/proc/self/fd")) == descriptors
        with pytest.raises(pyvmm.HostError):
            vm.status()

    def test_a_killed_owner_leaves_nothing(self, guest) -> None:
        code = (
            f"import pyvmm, time\nvm = pyvmm.Machine({str(guest('spin'))!r}).start()\n"
            "print(vm.status()['pid'], flush=True)\ntime.sleep(100)"
        )
        owner = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not gone(pid, 0.1)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert gone(pid)

    def test_a_killed_machine_is_told(self, guest) -> None:
        with pyvmm.Machine(guest("echo")) as vm:
            vm.console.expect("ready")
            os.kill(vm.status()["pid"], signal.SIGKILL)
            with pytest.raises(pyvmm.UnexpectedExit) as caught:
                vm.console.expect("login:", timeout=20)
            assert "process went away" in caught.value.message
            with pytest.raises(pyvmm.UnexpectedExit):
                vm.wait(20)


class TestLooking:
    def test_memory(self, guest) -> None:
        with pyvmm.Machine(guest("echo"), memory="64M") as vm:
            vm.console.expect("ready")
            data = os.urandom(200_000)
            vm.write(0x200000, data)
            assert vm.read(0x200000, len(data)) == data
            assert vm.read(0x200000, 0) == b""
            for address in (64 << 20, (64 << 20) - 1, 1 << 60):
                with pytest.raises(pyvmm.UsageError):
                    vm.read(address, 2)
                with pytest.raises(pyvmm.UsageError):
                    vm.write(address, b"xx")

    def test_registers_of_a_running_guest(self, guest) -> None:
        with pyvmm.Machine(guest("spin")) as vm:
            vm.console.expect("spinning")
            assert 0x100000 <= vm.regs()["rip"] < 0x101000
            assert vm.translate(0x123456) == 0x123456
            assert vm.status()["state"] == "running", "it goes on afterwards"
            vm.pause()
            vm.pause()
            assert vm.regs() == vm.regs()
            assert vm.status()["state"] == "paused", "it stays as it was"
            vm.resume()
            assert vm.status()["state"] == "running"
            with pytest.raises(pyvmm.UsageError):
                vm.resume()
            with pytest.raises(pyvmm.UsageError):
                vm.regs(vcpu=1)

    def test_paging(self, guest) -> None:
        with pyvmm.Machine(guest("long")) as vm:
            vm.wait()
            assert vm.regs()["efer"] & 0x500
            assert vm.translate(0x1234) == 0x1234
            assert vm.translate(0xFFFF_8000_0000_0000) is None


class TestRefusals:
    def test_errors_keep_their_class(self, guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        empty = tmp_path / "empty"
        empty.write_bytes(b"")
        with pytest.raises(pyvmm.ImageError) as image:
            pyvmm.Machine(empty).start()
        assert image.value.message == f"{empty}: the file is empty" and image.value.hint
        for arguments in ({"devices": ["nonsense"]}, {"memory": "lots"}, {"cpus": 0}, {"timeout": 0}):
            with pytest.raises(pyvmm.UsageError) as usage:
                pyvmm.Machine(guest("hello"), **arguments).start()
            assert usage.value.message and usage.value.hint
        with pytest.raises(pyvmm.ImageError):
            pyvmm.Machine(guest("hello"), initrd=tmp_path / "none").start()

    def test_not_started(self, guest) -> None:
        vm = pyvmm.Machine(guest("hello"))
        for method in (vm.status, lambda: vm.console, lambda: vm.read(0, 1), lambda: vm.run("true")):
            with pytest.raises(pyvmm.UsageError):
                method()
        with vm, pytest.raises(pyvmm.UsageError):
            vm.start()

    def test_a_log_that_cannot_be_written(self, guest) -> None:
        with pytest.raises(pyvmm.UsageError):
            pyvmm.Machine(guest("hello"), log="/nonexistent/log").start()


def test_many_machines_and_threads(guest) -> None:
    """Ten machines at once, each used by two threads."""
    machines = [pyvmm.Machine(guest("echo")) for _ in range(10)]
    problems: list[BaseException] = []

    def use(number: int) -> None:
        try:
            with machines[number] as vm:
                vm.console.expect("ready")
                looker = threading.Thread(target=lambda: [vm.status() for _ in range(20)])
                looker.start()
                for line in range(20):
                    vm.console.sendline(f"{number}:{line}")
                    assert vm.console.expect(r"echo: (\d+):(\d+)\n").match.groups() == (
                        str(number).encode(), str(line).encode(),
                    )  # fmt: skip
                looker.join()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert problems == []


def test_importing_pyvmm_costs_nothing() -> None:
    code = "import sys; before = set(sys.modules); import pyvmm; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "['pyvmm']"
    with pytest.raises(AttributeError):
        pyvmm.nonsense  # noqa: B018
    assert "Machine" in dir(pyvmm)
