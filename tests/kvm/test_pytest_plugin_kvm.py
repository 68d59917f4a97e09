"""The pytest plugin with small guests: what a test sees, what a report says, and that nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import ROOT

pytest_plugins = "pytester"
pytestmark = pytest.mark.usefixtures("kvm")


@pytest.fixture
def run(pytester: pytest.Pytester, guests: Path, monkeypatch: pytest.MonkeyPatch):
    """Run pytest, as a process of its own, on a test file in which G is the directory of the guests."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(body: str, *options: object) -> pytest.RunResult:
        indented = "\n".join(line.removeprefix("        ") for line in body.splitlines())
        pytester.makepyfile(f"import pytest, pyvmm\nG = {str(guests)!r}\n{indented}")
        return pytester.runpytest_subprocess("--vmm-log-dir=logs", "--vmm-timeout=30", *map(str, options))

    return run


def test_passes_and_leaves_nothing(run, pytester, guests) -> None:
    done = run(
        """
        @pytest.mark.vm(memory="64M")
        def test_echo(vm, kernel):
            assert kernel.name == "echo.elf"
            vm.console.expect("ready")
            vm.console.sendline("hi")
            vm.console.expect("echo: hi")
            assert vm.read(64 << 20 >> 1, 4) == bytes(4)
            with pytest.raises(pyvmm.UsageError):
                vm.read(64 << 20, 1)

        def test_two_at_once(vmm):
            first, second = vmm(f"{G}/echo.elf"), vmm(f"{G}/status.elf", cmdline="42")
            assert second.wait(30).status == 42
            assert first.end is None

        def test_a_file_that_is_none(vmm):
            with pytest.raises(pyvmm.ImageError):
                vmm(f"{G}/none")

        @pytest.mark.vm(kernel=f"{G}/panic.elf", allow_splat=["not syncing: test"])
        def test_panic(vm):
            with pytest.raises(pyvmm.GuestPanic):
                vm.console.expect("login:")
        """,
        "--vmm-kernel", guests / "echo.elf", "-s",
    )  # fmt: skip
    done.assert_outcomes(passed=4)
    assert not list((pytester.path / "logs").glob("*"))


def test_failures_say_what_the_guest_did(run, pytester, guests) -> None:
    done = run(
        """
        def test_expect(vm):
            vm.console.expect("login:")

        @pytest.mark.vm(kernel=f"{G}/panic.elf")
        def test_panic(vm):
            vm.wait(30)

        @pytest.mark.vm(kernel=f"{G}/triple.elf")
        def test_triple(vm):
            assert vm.wait(30).ok

        @pytest.mark.vm(kernel=f"{G}/spin.elf", timeout=1)
        def test_time(vm):
            assert vm.wait(30).ok

        @pytest.mark.vm(kernel=f"{G}/echo.elf", memory="lots")
        def test_nonsense(vm):
            pass
        """,
        "--vmm-kernel", guests / "hello.elf",
    )  # fmt: skip
    done.assert_outcomes(failed=4, errors=1)
    done.stdout.fnmatch_lines([
        "pyvmm.errors.UsageError: 'lots' is not a size",
        ">*vm.console.expect(*", "E *UnexpectedExit: the console never showed 'login:': *",
        "*- console of hello.elf -*", "hello from a guest of pyvmm", "outcome: exit (*", "log: *test_expect*.log",
        "panic.elf printed a splat (panic):", "*- console of panic.elf -*", "outcome: panic (*",
        "*- console of triple.elf -*", "outcome: triple-fault (*",
        "*- console of spin.elf -*", "outcome: timeout (*",
    ])  # fmt: skip
    assert "pyvmm/api" not in done.stdout.str()
    kept = sorted(path.name.partition("--")[2] for path in (pytester.path / "logs").glob("*"))
    assert [name.partition(".")[0].partition("_")[2].partition("_")[0] for name in kept] == [
        "expect", "panic", "time", "triple",
    ]  # fmt: skip


def test_with_xdist(run, pytester, guests) -> None:
    done = run(
        """
        @pytest.mark.parametrize("number", range(6))
        def test(vm, number):
            vm.console.expect("ready")
            vm.console.sendline(f"number {number}")
            assert vm.console.expect(r"echo: number (\\d)").group(1) == str(number)
            assert number != 3
        """,
        "--vmm-kernel", guests / "echo.elf", "-n", "2",
    )  # fmt: skip
    done.assert_outcomes(passed=5, failed=1)
    done.stdout.fnmatch_lines(["*- console of echo.elf -*", "ready", "echo: number 3"])
    (log,) = (pytester.path / "logs").glob("*")
    assert log.read_bytes().startswith(b"ready\necho: number 3")


def test_a_session_that_is_ended_leaves_no_machine(run, pytester) -> None:
    done = run(
        """
        def test(vmm):
            machines = [vmm(f"{G}/spin.elf") for _ in range(2)]
            open("pids", "w").write(" ".join(str(vm.status()["pid"]) for vm in machines))
            raise KeyboardInterrupt
        """
    )
    assert done.ret == pytest.ExitCode.INTERRUPTED
    pids = (pytester.path / "pids").read_text().split()
    assert len(pids) == 2
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []


def test_collection_boots_nothing(run, pytester, guests) -> None:
    done = run("def test(vm): pass", "--vmm-kernel", guests / "echo.elf", "--collect-only", "-q")
    done.stdout.fnmatch_lines([f"*::test[[]{guests}/echo.elf]"])
    assert not (pytester.path / "logs").exists()
