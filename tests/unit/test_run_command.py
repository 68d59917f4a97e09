"""``pyvmm run`` with a machine that is made up: what it is asked for, and what each end of a command means."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyvmm
from pyvmm import cli
from pyvmm.agent import CannotRun
from pyvmm.api.command import Command, arguments_of
from pyvmm.api.console import Console
from pyvmm.cli import run_options


class Running:
    """A command that ends when it is told to."""

    def __init__(self, vm: FakeMachine) -> None:
        self.vm = vm
        self.signals: list[int] = []
        self.input = bytearray()
        self.ended = threading.Event()
        self.status = 0

    def write(self, data: bytes, timeout: float | None = None) -> None:
        self.input += data

    def close_stdin(self) -> None:
        if self.vm.until_input_ends:
            self.ended.set()

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if self.vm.obeys:
            self.status = -number
            self.ended.set()

    def kill(self) -> None:
        self.ended.set()

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(20 if timeout is None else timeout):
            raise TimeoutError("it did not end")
        if self.vm.ends is not None:
            raise self.vm.ends
        return self.status


class FakeMachine:
    """Takes the place of pyvmm.Machine; what is to happen is set on the class by the fixture."""

    made: FakeMachine
    status: int | None = 0  # of the command; None: it goes on
    output: tuple[bytes, bytes] = (b"", b"")
    console_text: bytes = b""
    console_goes_on: tuple[bytes, ...] = ()  # while the command runs
    starts: BaseException | None = None  # raised by start
    ready: Exception | None = None  # raised by wait_ready
    popen_error: Exception | None = None
    ends: Exception | None = None  # raised by whoever waits for the command
    obeys = True  # the command ends by a signal
    until_input_ends = False
    guest_writes = False

    def __init__(self, kernel: str, **arguments: object) -> None:
        type(self).made = self
        self.kernel, self.arguments = kernel, arguments
        self.console = Console(lambda data: 0, lambda what: pyvmm.UnexpectedExit(what), None)
        self.console.feed(self.console_text)
        self.end = None
        self.asked: list[str] = []

    def __enter__(self) -> FakeMachine:
        if self.starts is not None:
            raise self.starts
        return self

    def __exit__(self, *error: object) -> None:
        self.asked.append("close")

    def wait_ready(self, timeout: float | None = None) -> None:
        self.ready_timeout = timeout
        if self.ready is not None:
            raise self.ready

    def popen(self, command, *, env, cwd, pty, on_stdout, on_stderr, timeout) -> Command:
        for piece in self.console_goes_on:
            self.console.feed(piece)
        if self.popen_error is not None:
            raise self.popen_error
        self.command = {"argv": command, "env": env, "cwd": cwd, "pty": pty}
        self.running = Running(self)
        out, error = self.output
        if out:
            on_stdout(out)
        if error:
            on_stderr(error)
        if self.ends is not None:
            self.running.ended.set()
        if self.status is not None:
            self.running.status = self.status
            if not self.until_input_ends:
                self.running.ended.set()
        return Command(arguments_of(command))._attach(self.running)

    def shut_down(self, timeout: float | None) -> None:
        self.asked.append("shut_down")

    def kill(self) -> None:
        self.asked.append("kill")
        type(self).ends = pyvmm.UnexpectedExit("the command did not end: it was stopped")
        self.running.ended.set()


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd, guests: Path
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """``run(*options, command=[...], **what)``: exit code, standard output, standard error.

    In a directory that the guest has too, wherever the tests are.
    """
    monkeypatch.chdir("/usr")

    def run(
        *options: object, command: tuple[str, ...] | list[str] = ("cmd",), **what: object
    ) -> tuple[int, str, str]:
        fake = type("Machine", (FakeMachine,), what)
        monkeypatch.setattr("pyvmm.api.machine.Machine", fake)
        run.machine = fake  # type: ignore[attr-defined]
        code = cli.main(["run", "-k", str(guests / "hello.elf"), *map(str, options), "--", *command])
        return code, *capfd.readouterr()

    null, saved = os.open(os.devnull, os.O_RDONLY), os.dup(0)
    os.dup2(null, 0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield run
    os.dup2(saved, 0)
    os.close(null)
    os.close(saved)
    assert {number: signal.getsignal(number) for number in handlers} == handlers


class TestExitCodes:
    @pytest.mark.parametrize(
        ("status", "code", "said"),
        [(0, 0, ""), (1, 1, ""), (118, 118, ""), (119, 119, ""), (126, 126, ""), (127, 127, ""),
         (120, 119, "ended with 120 (given as 119"), (125, 119, "ended with 125"), (255, 119, "ended with 255"),
         (-15, 119, "ended by SIGTERM (exit code 119)"), (-9, 119, "ended by SIGKILL"),
         (-40, 119, "ended by signal 40")],
    )  # fmt: skip
    def test_of_a_command(self, run, status: int, code: int, said: str) -> None:
        found, out, error = run(status=status, output=(b"out\xff", b"err"))
        assert found == code
        assert error.startswith("err") and (said in error if said else error == "err")
        assert out.startswith("out")
        assert run.machine.made.asked == ["close"]

    @pytest.mark.parametrize(("status", "code"), [(0, 125), (3, 3)])
    def test_of_output_that_cannot_be_written(self, run, status: int, code: int) -> None:
        """A full disk is no success, and does not hide the command's own failure."""
        full, saved = os.open("/dev/full", os.O_WRONLY), os.dup(1)
        os.dup2(full, 1)
        try:
            found, _, error = run(status=status, output=(b"out", b"err"))
        finally:
            os.dup2(saved, 1)
            os.close(saved)
            os.close(full)
        assert found == code
        assert "pyvmm: the command's output could not be written: No space left on device\nhint: " in error

    @pytest.mark.parametrize(
        ("number", "code"), [(errno.ENOENT, 127), (errno.EACCES, 126), (errno.ENOTDIR, 127)]
    )
    def test_of_one_that_cannot_be_executed(self, run, number: int, code: int) -> None:
        found, _, error = run(popen_error=CannotRun("cannot run 'cmd'", "is it there?", number))
        assert (found, error) == (code, "pyvmm: cannot run 'cmd'\nhint: is it there?\n")

    @pytest.mark.parametrize(
        ("kind", "code"),
        [
            (pyvmm.GuestPanic, 120),
            (pyvmm.TripleFault, 122),
            (pyvmm.ExpectTimeout, 124),
            (pyvmm.UnexpectedExit, 125),
        ],
    )
    @pytest.mark.parametrize("when", ["ready", "ends"])
    def test_of_a_machine_that_ends(self, run, kind: type[pyvmm.GuestError], code: int, when: str) -> None:
        lines = "".join(f"line {number}\n" for number in range(50)).encode()
        found, _, error = run(console_text=lines, **{when: kind("it went", "so it is")})
        assert found == code
        told = error.splitlines()
        assert (told[0], told[-1]) == ("pyvmm: it went", "hint: so it is")
        assert told[1:-1] == [f"  line {number}" for number in range(20, 50)]
        assert run.machine.made.asked == ["close"]

    def test_of_a_time_limit(self, run) -> None:
        started = time.monotonic()
        code, _, error = run("--timeout", "0.3", status=None, console_text=b"last line\n")
        assert (code, error) == (124, "pyvmm: the time was up after 0.3 s (--timeout)\n  last line\n")
        assert 0.25 < time.monotonic() - started < 10
        assert 0 < run.machine.made.ready_timeout <= 0.3

    def test_of_a_splat(self, run) -> None:
        text = b"[    1.000000] WARNING: CPU: 0 PID: 1 at x.c:1 f\n"
        code, _, error = run(console_text=text)
        assert code == 120 and "the kernel complained: " in error and "x.c:1" in error
        assert run("--allow-splat", r"x\.c", console_text=text)[0] == 0
        assert run(console_text=text, status=3)[0] == 3, "the command's own failure says more"
        assert run(console_text=text, console_goes_on=(b"y" * (20 << 20),) * 3)[0] == code, (
            "much came after it"
        )

    def test_of_a_machine_that_does_not_start(self, run, tmp_path: Path) -> None:
        result = tmp_path / "r.json"
        code, _, error = run("--result", result, starts=pyvmm.HostError("no KVM", "get some"))
        assert (code, error) == (125, "pyvmm: no KVM\nhint: get some\n")
        found = json.loads(result.read_text())
        assert (found["outcome"], found["detail"], found["exit_code"]) == ("error", "no KVM", 125)


def test_files_that_were_written_are_written_out(run) -> None:
    assert run(guest_writes=True)[0] == 0
    assert run.machine.made.asked == ["shut_down", "close"]


def test_the_result_file(run, tmp_path: Path) -> None:
    result = tmp_path / "r.json"
    assert run("--result", result, status=200, console_text=b"text")[0] == 119
    found = json.loads(result.read_text())
    assert (found["outcome"], found["exit_code"], found["guest_status"]) == ("exit", 119, 200)
    assert found["console_tail"] == "text"


class TestArguments:
    def test_the_default(self, run) -> None:
        assert run(command=["a", "b c"])[0] == 0
        vm = run.machine.made
        assert vm.command == {"argv": ["a", "b c"], "env": {}, "cwd": os.getcwd(), "pty": None}
        root = vm.arguments["root"]
        assert root.is_host and not root.writable
        assert vm.arguments["cmdline"] == "console=ttyS0 loglevel=5 panic=-1", "warnings are to be seen"

    def test_one_word_with_blanks_is_for_a_shell(self, run) -> None:
        run(command=["a | b"])
        assert run.machine.made.command["argv"] == "a | b"

    def test_all_that_is_handed_on(self, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OURS", "passed on")
        run(
            "--root", tmp_path, "--rw", "--rodir", "/a", "--rwdir", "/b", "--module", "m", "--cpus", "3",
            "--memory", "2G",
            "--env", "X=1=2", "--env", "OURS", "--env", "EMPTY=", "--cwd", "/c", "--device", "rng", "--cmdline", "more",
            "--verbose",
        )  # fmt: skip
        vm = run.machine.made
        assert vm.command["env"] == {"X": "1=2", "OURS": "passed on", "EMPTY": ""}
        assert vm.command["cwd"] == "/c"
        given = vm.arguments
        assert given["root"].path == str(tmp_path) and given["root"].writable
        assert (given["rodirs"], given["rwdirs"], given["drivers"]) == (["/a"], ["/b"], ["m"])
        assert (given["cpus"], given["memory"], given["devices"]) == (3, "2G", ["rng"])
        assert given["cmdline"] == "console=ttyS0 panic=-1 more"

    def test_a_directory_that_the_guest_does_not_have(
        self, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The guest's /tmp is its own, but for what is shared there."""
        below = tmp_path / "below"
        below.mkdir()
        monkeypatch.setattr("os.getcwd", lambda: str(below))
        monkeypatch.setattr(run_options, "OWN_FOLDERS", [str(tmp_path)])
        code, _, error = run()
        assert (code, run.machine.made.command["cwd"]) == (0, None)
        assert f"note: the command runs in /: {below} is not in the guest" in error and "--rwdir" in error
        for options in (["--rodir", tmp_path], ["--rwdir", f"/usr:{below}"]):
            assert run(*options)[2] == ""
            assert run.machine.made.command["cwd"] == str(below)
        assert run("--cwd", "/tmp/x")[2] == "" and run.machine.made.command["cwd"] == "/tmp/x"

    def test_no_directory_of_ours_in_another_root(self, run, tmp_path: Path) -> None:
        run("--root", tmp_path)
        assert run.machine.made.command["cwd"] is None

    @pytest.mark.parametrize(
        ("options", "said"),
        [(["--root", "/no/such"], "the root /no/such"), (["--root", ""], "empty"),
         (["--env", "=x"], "there is no name"), (["--env", "PYVMM_NOT_SET"], "no such variable"),
         (["--cpus", "many"], "--cpus"), (["--allow-splat", "("], "no regular expression"),
         (["--device", "disc=x"], "perhaps you mean 'disk'"),
         (["--timeout", "0"], "--timeout 0"), (["--timeout", "nan"], "--timeout nan"),
         (["--nonsense"], "nonsense"), (["ls", "-l"], "come after --"),
         (["--result", "/no/such/r.json"], "/no/such"), (["-k", "/tmp"], "/tmp")],
    )  # fmt: skip
    def test_refusals(self, run, options: list[str], said: str) -> None:
        code, out, error = run(*options)
        assert (code, out) == (125, "")
        assert (
            error.startswith("pyvmm: ") and said in error and "hint: " in error and "Traceback" not in error
        )

    def test_nothing_to_run(self, run) -> None:
        code, _, error = run(command=[])
        assert code == 125 and "there is no command to run" in error


class TestStreams:
    def test_standard_input(self, run, tmp_path: Path) -> None:
        data = bytes(range(256)) * 1000
        (tmp_path / "input").write_bytes(data)
        with open(tmp_path / "input", "rb") as file:
            os.dup2(file.fileno(), 0)
        assert run(until_input_ends=True)[0] == 0
        assert run.machine.made.running.input == data


class TestInterruptions:
    @staticmethod
    def send(*numbers: int) -> threading.Thread:
        """The signals to this process, shortly after each other, once the command runs."""

        def send() -> None:
            for number in numbers:
                time.sleep(0.3)
                os.kill(os.getpid(), number)

        thread = threading.Thread(target=send)
        thread.start()
        return thread

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_goes_to_the_command(self, run, number: int) -> None:
        sender = self.send(number)
        code, _, error = run(status=None)
        sender.join()
        vm = run.machine.made
        assert vm.running.signals == [number]
        assert code == 128 + number and signal.Signals(number).name in error
        assert vm.asked == ["close"]

    def test_the_third_ends_the_machine(self, run, tmp_path: Path) -> None:
        sender = self.send(*[signal.SIGINT] * 3)
        code, _, error = run("--result", tmp_path / "r.json", status=None, obeys=False)
        sender.join()
        vm = run.machine.made
        assert vm.running.signals == [signal.SIGINT] * 2
        assert vm.asked == ["kill", "close"]
        assert (code, error) == (130, "")
        assert json.loads((tmp_path / "r.json").read_text())["outcome"] != "exit"

    def test_before_the_guest_is_ready(self, run) -> None:
        sender = self.send(signal.SIGINT)

        def wait_ready(self: FakeMachine, timeout: float | None = None) -> None:
            time.sleep(20)

        code, _, _ = run(wait_ready=wait_ready)
        sender.join()
        assert code == 130
        assert run.machine.made.asked == ["close"]
