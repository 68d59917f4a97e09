"""A guest that wants to hurt who runs it: what it says ends no thread, holds nobody up, and reaches no terminal."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from pyvmm import Machine
from pyvmm.agent import AgentClient, RunningCommand
from pyvmm.agent.protocol import Type, frame
from pyvmm.api.console import Console
from pyvmm.cli import ctl
from pyvmm.control.connection import OUTPUT_PAUSES, Connection
from pyvmm.control.ports import MOST_PENDING, Ports, _Joined
from pyvmm.errors import GuestError, UsageError
from pyvmm.ktap import parse
from pyvmm.ktap.parser import MOST_LINES
from pyvmm.machine.attachments.console import ControlChannel
from pyvmm.pytest_plugin.machines import Booted
from pyvmm.pytest_plugin.results import report
from pyvmm.testing.reports.text import visible

WARNING = (
    b"[    1.000000] WARNING: CPU: 0 PID: 1 at kernel/x.c:12 f+0x1/0x2\n[    1.1] ---[ end trace 0 ]---\n"
)


class Client(AgentClient):
    """A client that is ready, and whose guest is this test."""

    def __init__(self) -> None:
        super().__init__(lambda data: None)
        self.feed(frame(Type.READY, 0, struct.pack("<II", 1, 1) + b"6.18\0x86_64\0"))

    def begin(self, on_stdout=lambda data: None) -> RunningCommand:
        """A command that the guest says it has started."""
        begun: list[RunningCommand] = []

        def start() -> None:
            begun.append(self.start(["true"], on_stdout=on_stdout, on_stderr=on_stdout, timeout=5))

        thread = threading.Thread(target=start)
        thread.start()
        while thread.is_alive():
            self.feed(frame(Type.STARTED, 1, struct.pack("<I", 7)))
            thread.join(0.01)
        return begun[0]


@pytest.mark.parametrize("errno", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("what", [0, 2, 0xFFFFFFFF])
def test_a_failure_with_any_number_ends_the_wait(errno: int, what: int) -> None:
    client = Client()
    command = client.begin()
    client.feed(frame(Type.FAILED, 1, struct.pack("<II", errno, what)))
    with pytest.raises(GuestError):
        command.wait(5)


@pytest.mark.parametrize("kind", [Type.EXITED, Type.FAILED, Type.MORE_STDIN, Type.STARTED])
def test_a_frame_of_a_wrong_size_ends_the_wait(kind: Type) -> None:
    client = Client()
    command = client.begin()
    client.feed(frame(kind, 1, b"123"))
    with pytest.raises(GuestError):
        command.wait(5)


def test_an_error_in_who_takes_the_output_ends_the_wait() -> None:
    def broken(data: bytes) -> None:
        raise RuntimeError("no more")

    client = Client()
    command = client.begin(broken)
    with pytest.raises(RuntimeError):
        client.feed(frame(Type.STDOUT, 1, b"x"))
    with pytest.raises(RuntimeError):
        command.wait(5)


def test_an_owner_that_does_not_take_its_answers_is_heard_nevertheless() -> None:
    """It may be busy with sending, and take nothing before that is done: if neither side read, both would wait."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for owner in (True, False):
            connection = Connection(ours, owner=owner)
            connection.output += b"x" * OUTPUT_PAUSES
            connection.input += b"{}\n"
            assert connection.takes_lines is owner


def test_a_command_that_is_never_started_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "_ready_agent", lambda self: Client())
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        Machine.popen(Machine.__new__(Machine), ["true"], timeout=0.1)
    assert time.monotonic() - begun < 5


def test_plans_of_many_suites_do_not_multiply() -> None:
    found = parse("KTAP version 1\n" + "  KTAP version 1\n  1..9999\nok 1\n" * 500)
    assert found.status == "fail"
    assert all(test.bad for test in found.tests)
    assert sum(len(test.children) for test in found.tests) < 2500


def test_results_without_end_are_no_success() -> None:
    found = parse("KTAP version 1\n1..9\n" + "ok\n" * (MOST_LINES + 5) + "not ok 9\n")
    assert found.status == "fail"
    assert len(found.tests) <= MOST_LINES + 1


@pytest.mark.parametrize(
    "line", ["selftests: x" + " " * 100_000 + "x", "RUN" + " " * 100_000 + "x" + " " * 100_000 + "x"]
)
def test_a_line_of_blanks_takes_no_time(line: str) -> None:
    begun = time.monotonic()
    parse(f"KTAP version 1\n1..2\n# {line}\n  ok 1\n# {line}\n")
    assert time.monotonic() - begun < 5


def test_line_ends_without_number_take_no_time() -> None:
    begun = time.monotonic()
    assert visible("a\r\r\nb\n\r\rc\r") == "a\nb\nc\u240d"
    assert len(visible("\n" + "x" + "\r" * 300_000 + "x")) == 300_003
    assert time.monotonic() - begun < 5


#: What a terminal obeys: clear it, set its title, reset it, and the first again as one character of C1.
ORDERS = "\x1b[2J\x1b]0;title\x07\x1bc\x9b2J\x1b\x1b[m[2J"


def obeyed(text: str) -> str:
    return "".join(c for c in text if not c.isprintable() and c not in "\n\t")


def test_errors_give_a_terminal_no_orders() -> None:
    error = GuestError(f"it said {ORDERS}", f"why: {ORDERS}", console_tail=f"a\tb {ORDERS}\r\nlast\r\n")
    assert obeyed(str(error)) == ""
    assert "    a\tb " in str(error) and str(error).endswith("\n    last")


@pytest.mark.parametrize(
    "log",
    [
        f"1..1\n# {ORDERS}\nnot ok 1 {ORDERS}\n",
        f"1..1\nBail out! {ORDERS}\n",
        f"1..2\nok 1 # SKIP {ORDERS}\nok 2 {ORDERS} # SKIP {ORDERS}",
    ],
)
def test_test_results_give_a_terminal_no_orders(log: str) -> None:
    class Request:
        def getfixturevalue(self, name: str) -> None:
            return None

    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception)) as caught:
        report(parse(log), Request())  # type: ignore[arg-type]
    assert obeyed(str(caught.value)) == ""


def test_a_port_that_is_opened_and_closed_without_end_does_not_pile_up() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        joined = _Joined("port", ControlChannel(), fd)
        for n in range(1000):
            joined.channel.guest_opened(n % 2 == 0)
        joined.channel._on_output(b"x")
        joined.channel.guest_opened(True)
        assert joined.take() == [True, False, b"x", True]
    finally:
        os.close(fd)


def test_results_at_the_beginning_of_a_long_console_are_read_from_its_log_or_not_at_all(
    tmp_path: Path,
) -> None:
    for log in (str(tmp_path / "log"), None):
        vm = Machine.__new__(Machine)
        vm._console = Console(lambda data: 0, GuestError, log)
        vm._console.feed(b"KTAP version 1\n1..1\nnot ok 1 a\n" + WARNING)
        vm._console.feed(b"y" * (40 << 20))
        vm._console.feed(b"\nKTAP version 1\n1..1\nok 1 b\n")
        assert vm.console.forgotten
        if log is not None:
            assert vm.ktap().counts()["fail"] == 1
            vm.kernel, vm.log = "k", log
            assert [splat.kind for splat in Booted(vm, False, ()).splats()] == ["WARNING"]
        else:
            with pytest.raises(UsageError):
                vm.ktap()
        vm.console.close()
    os.truncate(tmp_path / "log", 30 << 20)  # as a full disk leaves it
    vm._console._log_path = str(tmp_path / "log")
    with pytest.raises(UsageError):
        vm.ktap()


def test_results_written_down_give_a_terminal_no_orders() -> None:
    found = parse(f"KTAP version 1\n1..1\n# {ORDERS}\nnot ok 1 {ORDERS} # {ORDERS}\n")
    assert obeyed(str(found)) == ""


def test_how_it_ended_gives_a_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    ctl._show("wait", {"outcome": "panic", "detail": f"Kernel panic: {ORDERS}", "exit_code": 120}, False)
    assert obeyed(capsys.readouterr().out) == ""


def test_input_that_the_guest_does_not_read_does_not_pile_up() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        ports = Ports.__new__(Ports)
        ports._joined = {"port": _Joined("port", ControlChannel(), fd)}
        for _ in range(MOST_PENDING >> 20):
            ports.send("port", b"x" * (1 << 20))
        with pytest.raises(UsageError):
            ports.send("port", b"x")
    finally:
        os.close(fd)
