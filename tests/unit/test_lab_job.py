"""The agent's side of a command, run here on a socket instead of a virtio port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time

import pytest

from pyvmm.lab.agent.channel import Channel
from pyvmm.lab.agent.job import Job
from pyvmm.lab.protocol import COUNT, WINDOW, Decoder, Kind, frame, message

pytestmark = pytest.mark.timeout(60)


class Conversation:
    """A job in a process of its own (it forks, and wants to be told of its children), and the host's end."""

    def __init__(self, *argv: str, tty: bool = False, cwd: str = "/", early: bytes = b"") -> None:
        self.socket, theirs = socket.socketpair()
        self.decoder = Decoder()
        self.received: list[tuple[int, bytes]] = []
        self.acknowledge = True
        request = {
            "argv": argv,
            "env": {"PATH": "/usr/bin:/bin"},
            "cwd": cwd,
            "tty": tty,
            "rows": 30,
            "columns": 100,
        }
        self.pid = os.fork()
        if not self.pid:
            try:
                self.socket.close()
                serve(theirs, request, early)
            finally:
                os._exit(1)
        theirs.close()

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.socket.sendall(frame(kind, payload))

    def until_exit(self) -> tuple[int, str]:
        """Receive up to the exit status; acknowledges output."""
        while True:
            data = self.socket.recv(65536)
            assert data, "the job went away"
            for kind, payload in self.decoder.feed(data):
                self.received.append((kind, payload))
                if kind in (Kind.STDOUT, Kind.STDERR) and self.acknowledge:
                    with contextlib.suppress(BrokenPipeError):  # it had nothing more to say
                        self.send(Kind.ACK, COUNT.pack(len(payload)))
                if kind == Kind.EXIT:
                    os.waitpid(self.pid, 0)
                    status = json.loads(payload)
                    return status["status"], status["failure"]

    def wait_for(self, text: bytes) -> None:
        """Receive until the output contains ``text``."""
        while text not in self.output(Kind.STDOUT):
            data = self.socket.recv(65536)
            assert data, "the job went away"
            for kind, payload in self.decoder.feed(data):
                self.received.append((kind, payload))

    def output(self, kind: int) -> bytes:
        return b"".join(payload for received, payload in self.received if received == kind)


def serve(connection: socket.socket, request: dict[str, object], early: bytes) -> None:
    connection.setblocking(False)
    channel = Channel(connection.fileno())
    channel.received.extend(Decoder().feed(early))
    wakeup, write_end = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write_end)
    job = Job(channel, wakeup, request)
    status = job.run()
    channel.send(message(Kind.EXIT, {"status": status, "failure": job.failure}))
    channel.flush()
    os._exit(0)


def python(text: str, *arguments: str, tty: bool = False) -> Conversation:
    return Conversation(sys.executable, "-c", text, *arguments, tty=tty)


def test_output_and_errors_stay_apart_and_the_status_comes_through() -> None:
    job = Conversation("sh", "-c", "echo out; echo err >&2; exit 7", cwd="/tmp")
    assert job.until_exit() == (7, "")
    assert job.output(Kind.STDOUT) == b"out\n"
    assert job.output(Kind.STDERR) == b"err\n"


def test_death_by_a_signal_is_128_and_its_number() -> None:
    assert Conversation("sh", "-c", "kill -TERM $$").until_exit() == (143, "")


def test_a_command_that_does_not_exist_says_why() -> None:
    status, failure = Conversation("no-such-command").until_exit()
    assert (status, failure.partition(":")[0]) == (127, "2")


def test_input_arrives_whole_and_ends() -> None:
    data = os.urandom(300_000)
    job = python("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())")
    sender = threading.Thread(target=lambda: (job.send(Kind.STDIN, data), job.send(Kind.STDIN)))
    sender.start()
    assert job.until_exit() == (0, "")
    sender.join()
    assert job.output(Kind.STDOUT) == data
    assert sum(COUNT.unpack(payload)[0] for kind, payload in job.received if kind == Kind.ACK) == len(data)


def test_input_that_came_together_with_the_request_is_not_forgotten() -> None:
    job = Conversation("cat", early=frame(Kind.STDIN, b"early") + frame(Kind.STDIN))
    assert job.until_exit() == (0, "")
    assert job.output(Kind.STDOUT) == b"early"


def test_input_that_nobody_reads_is_acknowledged_once_it_is_closed() -> None:
    job = Conversation("sh", "-c", "exec <&-; sleep 0.3; echo done")
    job.send(Kind.STDIN, bytes(200_000))
    assert job.until_exit() == (0, "")
    assert sum(COUNT.unpack(payload)[0] for kind, payload in job.received if kind == Kind.ACK) == 200_000


def test_output_stops_at_the_window_and_signals_get_through_all_the_same() -> None:
    job = Conversation("sh", "-c", "exec cat /dev/zero")
    job.acknowledge = False
    deadline = time.monotonic() + 20
    while len(job.output(Kind.STDOUT)) < WINDOW:
        assert time.monotonic() < deadline
        job.received += job.decoder.feed(job.socket.recv(65536))
    job.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        while len(job.output(Kind.STDOUT)) < 2 * WINDOW:
            job.received += job.decoder.feed(job.socket.recv(65536))
    job.socket.settimeout(None)
    job.socket.sendall(message(Kind.SIGNAL, {"signal": signal.SIGINT}))
    job.acknowledge = True
    job.send(Kind.ACK, COUNT.pack(len(job.output(Kind.STDOUT))))
    assert job.until_exit() == (130, "")


def test_output_that_is_left_in_the_pipe_still_comes() -> None:
    job = python("import sys; sys.stdout.write('x' * 60000)")
    assert job.until_exit() == (0, "")
    assert job.output(Kind.STDOUT) == b"x" * 60000


def test_a_signal_reaches_the_whole_group() -> None:
    job = Conversation(
        "sh", "-c", "sh -c 'trap \"echo inner; exit\" TERM; echo ready; while :; do sleep 0.1; done'; exit 3"
    )
    job.wait_for(b"ready")
    job.socket.sendall(message(Kind.SIGNAL, {"signal": signal.SIGTERM}))
    status, _ = job.until_exit()
    assert b"inner" in job.output(Kind.STDOUT)
    assert status == 143


def test_a_terminal_has_its_size_and_changes_it() -> None:
    text = (
        "import os, signal, sys\n"
        "assert os.isatty(0) and os.isatty(1) and os.isatty(2)\n"
        "def show(): os.write(1, b'%d %d\\n' % tuple(os.get_terminal_size()))\n"
        "signal.signal(signal.SIGWINCH, lambda *_: (show(), os._exit(5)))\n"
        "show()\n"
        "while True: signal.pause()\n"
    )
    job = python(text, tty=True)
    job.wait_for(b"100 30\r\n")
    job.socket.sendall(message(Kind.RESIZE, {"rows": 40, "columns": 120}))
    assert job.until_exit() == (5, "")
    assert job.output(Kind.STDOUT) == b"100 30\r\n120 40\r\n"


def test_a_terminal_passes_control_c_on() -> None:
    job = Conversation("sh", "-c", "echo ready; exec sleep 60", tty=True)
    job.wait_for(b"ready")
    job.send(Kind.STDIN, b"\x03")
    assert job.until_exit() == (130, "")
