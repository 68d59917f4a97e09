"""Commands of a machine whose agent is made up: what is collected of their output, and what is raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

import pyvmm
from pyvmm.api.console import Console
from pyvmm.api.machine import Machine


class Running:
    """A command that prints ``pieces`` (stream, bytes) once it is started, and ends with ``status``, or when killed."""

    def __init__(self, status: int | None) -> None:
        self.status = status
        self.killed = 0
        self.written = b""
        self.closed = threading.Event()

    def write(self, data: bytes, timeout: float | None = None) -> None:
        self.written += data

    def close_stdin(self) -> None:
        self.closed.set()

    def kill(self) -> None:
        self.killed += 1
        self.status = -9

    def wait(self, timeout: float | None = None) -> int:
        if self.status is None:
            raise TimeoutError
        return self.status


class Agent:
    """Starts one command; what it prints ``early`` comes before start() returns, ``late`` when it is waited for."""

    def __init__(
        self,
        early: Sequence[tuple[int, bytes]] = (),
        late: Sequence[tuple[int, bytes]] = (),
        status: int | None = 0,
    ) -> None:
        self.early, self.late = early, late
        self.stuck = False  # the guest does not get as far as to execute it
        self.running = Running(status)
        self.started: dict[str, object] = {}

    def wait_ready(self, timeout: float | None = None) -> None:
        pass

    def start(
        self, argv: list[str], *, env: Mapping[str, str] | None, cwd: str | None, pty: object, timeout: float | None,
        on_stdout: Callable[[bytes], None], on_stderr: Callable[[bytes], None],
    ) -> Running:  # fmt: skip
        self.timeout = timeout
        if self.stuck:
            raise TimeoutError
        self.started = {"argv": argv, "env": env, "cwd": cwd, "pty": pty}
        sinks = {1: on_stdout, 2: on_stderr}
        running = self.running
        for stream, data in self.early:
            sinks[stream](data)
        plain = running.wait

        def wait(timeout: float | None = None) -> int:
            for stream, data in self.late:
                sinks[stream](data)
            return plain(timeout)

        running.wait = wait  # type: ignore[method-assign]
        return running


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    """A machine that was not started but for an agent."""

    def machine(agent: Agent) -> Machine:
        vm = Machine(tmp_path / "kernel", agent=True)
        vm._console = Console(lambda data: 0, lambda what: pyvmm.UnexpectedExit(what), None)
        vm._console.feed(b"the console\n")
        vm._agent = agent  # type: ignore[assignment]
        return vm

    return machine


def test_what_a_command_is_given_and_gives(machine) -> None:
    agent = Agent([(1, b"o\xff"), (2, b"e")], [(1, b"ut\n\n")], 3)
    done = machine(agent).run(["a", b"b"], input="text", env={"A": "1"}, cwd="/x")
    assert (done.args, done.returncode, done.stdout, done.stderr) == (["a", b"b"], 3, b"o\xffut\n\n", b"e")
    assert done.text == "o\N{REPLACEMENT CHARACTER}ut" and done.elapsed >= 0
    assert agent.started == {"argv": ["a", b"b"], "env": {"A": "1"}, "cwd": "/x", "pty": None}
    assert agent.running.closed.wait(10) and agent.running.written == b"text"
    assert not agent.running.killed


def test_a_text_is_for_the_shell(machine) -> None:
    agent = Agent()
    machine(agent).run("a | b")
    assert agent.started["argv"] == ["/bin/sh", "-c", "a | b"]


@pytest.mark.parametrize("when", ["early", "late"])
def test_more_output_than_is_collected(machine, when: str) -> None:
    """The command is killed, whether its output comes before or after it is known what to kill."""
    agent = Agent(**{when: [(1, b"x" * 60), (2, b"y" * 60), (1, b"z" * 1000)]}, status=0)
    with pytest.raises(pyvmm.CommandFailed) as caught:
        machine(agent).run(["flood"], max_output=100)
    assert agent.running.killed
    assert (caught.value.stdout, caught.value.stderr) == (b"x" * 60, b"y" * 40)
    assert caught.value.message == "'flood' printed more than 100 bytes, and was killed"
    assert "on_stdout" in caught.value.hint and caught.value.console_tail == "the console\n"


def test_as_much_output_as_is_collected(machine) -> None:
    agent = Agent([(1, b"x" * 60)], [(2, b"y" * 40)])
    done = machine(agent).run(["fits"], max_output=100)
    assert (len(done.stdout), len(done.stderr), agent.running.killed) == (60, 40, 0)


def test_output_that_is_handed_on_has_no_limit(machine) -> None:
    agent, came = Agent([(1, b"x" * 1000)], [(2, b"y")]), bytearray()
    command = machine(agent).popen(["flood"], on_stdout=came.extend)
    assert command.wait().stdout == b"" and len(came) == 1000
    assert bytes(command.stderr) == b"y"


@pytest.mark.parametrize(("status", "how"), [(2, "status 2"), (-11, "signal 11")])
def test_a_status_is_checked(machine, status: int, how: str) -> None:
    agent = Agent([(2, b"first\nlast\n"), (1, b"out")], status=status)
    with pytest.raises(pyvmm.CommandFailed) as caught:
        machine(agent).run(["prog", "x"], check=True)
    assert caught.value.message == f"'prog x' ended with {how}: last"
    assert (caught.value.returncode, caught.value.stdout) == (status, b"out")


def test_a_command_that_does_not_end(machine) -> None:
    agent = Agent([(1, b"so far")], status=None)
    with pytest.raises(pyvmm.CommandTimeout) as caught:
        machine(agent).run(["hang"], timeout=0.5)
    assert agent.running.killed == 1
    assert (caught.value.returncode, caught.value.stdout) == (None, b"so far")
    assert caught.value.message == "'hang' did not end within 0.5 s"


def test_a_command_that_does_not_start(machine) -> None:
    agent = Agent()
    agent.stuck = True
    with pytest.raises(pyvmm.CommandTimeout):
        machine(agent).run(["stuck"], timeout=7)
    assert agent.timeout == 7
