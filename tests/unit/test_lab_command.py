"""The host's side of a command, against a thread that plays the agent."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pyvmm.lab import command as module
from pyvmm.lab.client import Client
from pyvmm.lab.command import Command, Run, Stopped
from pyvmm.lab.protocol import COUNT, WINDOW, Decoder, Kind, frame, message
from pyvmm.lab.qemu import LabError

pytestmark = pytest.mark.timeout(60)


class FakeQemu:
    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel

    def failure(self, what: str, hint: str = "") -> LabError:
        return LabError(what, hint)


class Agent:
    """The lab's end: what was received, and a function that answers."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.decoder = Decoder()
        self.pending: list[tuple[int, bytes]] = []

    def receive(self, wanted: int) -> bytes:
        while True:
            while self.pending:
                kind, payload = self.pending.pop(0)
                if kind == wanted:
                    return payload
            data = self.connection.recv(65536)
            if not data:
                raise ConnectionError
            self.pending += self.decoder.feed(data)

    def end(self, status: int) -> None:
        self.connection.sendall(message(Kind.EXIT, {"status": status, "error": ""}))


@pytest.fixture
def play() -> Iterator[Callable[..., Client]]:
    """Start a thread that plays the agent; gives the client that talks to it."""
    threads, sockets, failures = [], [], []

    def start(script: Callable[[Agent], None]) -> Client:
        ours, theirs = socket.socketpair()
        sockets.extend((ours, theirs))

        def run() -> None:
            try:
                script(Agent(theirs))
            except BaseException as error:
                failures.append(error)
                theirs.close()

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        return Client(FakeQemu(ours))  # type: ignore[arg-type]

    yield start
    for thread in threads:
        thread.join(20)
    for each in sockets:
        each.close()
    assert failures == []


def a_command(
    stdin: int | None = None, timeout: float | None = None, signals: bool = False
) -> tuple[Command, int]:
    """A command whose output goes to a memory file, and that file."""
    out = os.memfd_create("out")
    return Command(["x"], {}, "/", stdin, out, out, timeout, signals), out


def test_output_is_written_and_acknowledged(play: Callable[..., Client]) -> None:
    def script(agent: Agent) -> None:
        assert json.loads(agent.receive(Kind.RUN))["argv"] == ["x"]
        assert agent.receive(Kind.STDIN) == b""
        agent.connection.sendall(frame(Kind.STDOUT, b"hello"))
        assert agent.receive(Kind.ACK) == COUNT.pack(5)
        agent.end(3)

    command, out = a_command()
    assert Run(play(script), command).serve() == (3, "")
    assert os.pread(out, 100, 0) == b"hello"


def test_input_stops_at_the_window(play: Callable[..., Client]) -> None:
    got = []

    def script(agent: Agent) -> None:
        agent.receive(Kind.RUN)
        while sum(got) < WINDOW:
            got.append(len(agent.receive(Kind.STDIN)))
        agent.connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            agent.receive(Kind.STDIN)
        agent.connection.settimeout(None)
        agent.connection.sendall(frame(Kind.ACK, COUNT.pack(sum(got))))
        while (size := len(agent.receive(Kind.STDIN))) > 0:
            got.append(size)
            agent.connection.sendall(frame(Kind.ACK, COUNT.pack(size)))
        agent.end(0)

    source = os.memfd_create("in")
    os.write(source, bytes(3 * WINDOW + 5))
    os.lseek(source, 0, os.SEEK_SET)
    command, _ = a_command(stdin=source)
    assert Run(play(script), command).serve() == (0, "")
    assert sum(got) == 3 * WINDOW + 5


def test_a_timeout_asks_first_and_gives_124(play: Callable[..., Client]) -> None:
    def script(agent: Agent) -> None:
        assert json.loads(agent.receive(Kind.SIGNAL)) == {"signal": signal.SIGTERM}
        agent.end(143)

    command, _ = a_command(timeout=0.2)
    assert Run(play(script), command).serve() == (124, "")
    assert command.timed_out


def test_a_command_that_outlives_its_timeout_is_stopped(
    play: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.3)

    def script(agent: Agent) -> None:
        agent.receive(Kind.SIGNAL)

    command, _ = a_command(timeout=0.1)
    with pytest.raises(Stopped) as caught:
        Run(play(script), command).serve()
    assert (caught.value.status, caught.value.timed_out) == (124, True)


def test_a_signal_is_forwarded_and_the_commands_status_counts(play: Callable[..., Client]) -> None:
    def script(agent: Agent) -> None:
        agent.receive(Kind.RUN)
        os.kill(os.getpid(), signal.SIGTERM)
        assert json.loads(agent.receive(Kind.SIGNAL)) == {"signal": signal.SIGTERM}
        agent.end(9)

    before = signal.getsignal(signal.SIGTERM)
    command, _ = a_command(signals=True)
    assert Run(play(script), command).serve() == (9, "")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("second", [signal.SIGINT, None])
def test_a_second_signal_or_patience_stops_it(
    second: int | None, play: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.3 if second is None else 30)

    def script(agent: Agent) -> None:
        agent.receive(Kind.RUN)
        os.kill(os.getpid(), signal.SIGINT)
        agent.receive(Kind.SIGNAL)
        if second is not None:
            os.kill(os.getpid(), second)

    command, _ = a_command(signals=True)
    started = time.monotonic()
    with pytest.raises(Stopped) as caught:
        Run(play(script), command).serve()
    assert caught.value.status == 130
    assert time.monotonic() - started < 10


def test_a_lab_that_ends_is_an_error(play: Callable[..., Client]) -> None:
    def script(agent: Agent) -> None:
        agent.receive(Kind.RUN)
        agent.connection.close()

    command, _ = a_command()
    with pytest.raises(LabError, match="ended unexpectedly"):
        Run(play(script), command).serve()


def test_files_that_were_not_asked_for_are_refused(play: Callable[..., Client], tmp_path: object) -> None:
    victim = f"{tmp_path}/victim"

    def script(agent: Agent) -> None:
        agent.receive(Kind.GET)
        agent.connection.sendall(message(Kind.FILES, [["f", victim, 0o644, 4]]))

    with pytest.raises(LabError, match="not asked for"):
        play(script).get([f"{tmp_path}/wanted"], lambda path: path == f"{tmp_path}/wanted")
    assert not os.path.exists(victim)
