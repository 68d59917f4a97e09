"""The control socket's server as clients see it, kind ones and hostile ones, around a machine without a guest."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.console import Console
from pyvmm.control import server as server_module
from pyvmm.control.client import Client, Gone, NoAnswer
from pyvmm.control.connection import OUTPUT_MOST
from pyvmm.control.protocol import MOST_LINE
from pyvmm.control.server import MOST_CLIENTS, MOST_PENDING, SocketControl
from pyvmm.devices.virtio.balloon import BalloonDevice
from pyvmm.errors import PyvmmError
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.pause import Pause
from pyvmm.machine.spec import MachineSpec


class Vcpu:
    """A runner that stops when it is told to, or only when :attr:`willing` is set."""

    def __init__(self) -> None:
        self.vcpu = self
        self.willing = True
        self.wanted = False
        self.rare = {"KVM_EXIT_INTR": 3}

    def pause(self) -> None:
        self.wanted = True

    def resume(self) -> None:
        self.wanted = False

    @property
    def paused(self) -> bool:
        return self.wanted and self.willing


class Clock:
    """An architecture that notes when clocks are stopped and set going."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause_clock(self, vm: object, vcpus: object) -> str:
        self.calls.append("pause")
        return "noted"

    def resume_clock(self, vm: object, vcpus: object, noted: object) -> None:
        assert noted == "noted"
        self.calls.append("resume")


class Served:
    """A control socket around a machine without a guest, its event loop in a thread; ``turn`` runs in that loop."""

    def __init__(self, path: Path) -> None:
        self.vcpu, self.clock = Vcpu(), Clock()
        self.balloon = BalloonDevice("balloon0", 0)
        self.pressed = 0
        self.machine = Machine(
            spec=MachineSpec("kernel", memory=64 << 20), arch=self.clock, vm=None, memory=None,
            runners=[self.vcpu], bus=SimpleNamespace(counts=lambda: {"com1": 5}), serial=None, console=Console(),
            coalescer=None, transports=[SimpleNamespace(device=self.balloon)], ends=[], closers=[],
        )  # type: ignore[arg-type]  # fmt: skip
        self.machine.press_power_button = self._press  # type: ignore[method-assign]
        self.machine.started = time.monotonic()
        self.control = SocketControl(str(path), "box")
        self.control.attach(self.machine)
        self.turns = 0
        self.longest = 0.0
        self._stop = False
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def _press(self) -> None:
        self.pressed += 1

    def _loop(self) -> None:
        console = self.machine.console
        while not self._stop:
            poll = select.poll()
            poll.register(console.wake_fd, select.POLLIN)
            self.control.register(poll)
            events = poll.poll(0 if self.control.busy else 1000)
            started = time.monotonic()
            for fd, _ in events:
                if fd == console.wake_fd:
                    os.eventfd_read(fd)
                else:
                    self.control.ready(fd)
            console.collect()
            self.control.step()
            self.turns += 1
            self.longest = max(self.longest, time.monotonic() - started)
            if self.machine.ends:
                break
        if self.machine.ends:
            self.machine.end = self.machine.ends[0]
            self.control.finish()
        self.control.close()

    def wake(self) -> None:
        os.eventfd_write(self.machine.console.wake_fd, 1)

    def end(self, end: End) -> None:
        self.machine.ends.append(end)
        self.wake()
        self._thread.join(20)

    def close(self) -> None:
        self._stop = True
        self.wake()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.machine.console.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "box.sock")
    yield served
    served.close()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.control.path) as client:
        yield client


def connect(served: Served) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(served.control.path)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Everything until the other side hangs up."""
    data = b""
    try:
        while piece := connection.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        pass
    return data


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def test_status(served: Served, client: Client) -> None:
    status = client.call("status")
    assert (
        status["name"] == "box"
        and status["state"] == "running"
        and status["pid"] == os.getpid() == client.pid
    )
    assert (status["vcpus"], status["memory_bytes"]) == (1, 64 << 20)
    assert status["kernel"] == os.path.abspath("kernel")
    assert status["attachments"] == ["balloon0"]
    assert 0 <= status["uptime_s"] < 60 and status["paused_s"] == 0


def test_exits_devices_help_and_version(client: Client) -> None:
    assert client.call("exits") == {"total": 8, "by_device": {"com1": 5, "KVM_EXIT_INTR": 3}}
    assert client.call("devices")["balloon0"]["target"] == 0
    assert "force" in client.call("help")["stop"]["parameters"]
    assert client.call("version")["version"]


def test_balloon(served: Served, client: Client) -> None:
    assert client.call("balloon")["target"] == 0
    assert client.call("balloon", target=8 << 20)["target"] == 8 << 20 == served.balloon.target
    with pytest.raises(PyvmmError, match="larger than the guest's"):
        client.call("balloon", target=65 << 20)
    served.machine.transports.clear()
    with pytest.raises(PyvmmError, match="no balloon") as caught:
        client.call("balloon")
    assert "--balloon" in caught.value.hint


def test_pause_and_resume(served: Served, client: Client) -> None:
    with pytest.raises(PyvmmError, match="not paused, it is running"):
        client.call("resume")
    assert client.call("pause") == {"state": "paused"}
    assert served.clock.calls == ["pause"] and client.call("status")["state"] == "paused"
    assert served.machine.status_line().startswith("paused, ")
    assert client.call("pause") == {"state": "paused"}, "again"
    with pytest.raises(PyvmmError, match="does not heed") as caught:
        client.call("stop")
    assert "resume" in caught.value.hint and served.pressed == 0
    time.sleep(0.2)
    assert client.call("resume")["paused_s"] >= 0.2
    assert served.clock.calls == ["pause", "resume"] and client.call("status")["state"] == "running"
    pause = served.machine.pause
    assert isinstance(pause, Pause) and pause.take() >= 0.2 and pause.take() == 0


def test_paused_is_said_when_all_stand_still(served: Served, client: Client) -> None:
    served.vcpu.willing = False
    number = client.send("pause")
    with pytest.raises(NoAnswer):
        client.result(number, 0.3)
    assert client.call("status")["state"] == "pausing" and served.clock.calls == []
    served.vcpu.willing = True
    served.wake()
    assert client.result(number) == {"state": "paused"} and served.clock.calls == ["pause"]


def test_a_pause_that_is_taken_back(served: Served, client: Client) -> None:
    served.vcpu.willing = False
    number = client.send("pause")
    with Client(served.control.path) as other:
        while other.call("status")["state"] != "pausing":
            pass
        assert other.call("resume")["paused_s"] == 0
    with pytest.raises(PyvmmError, match="resumed before"):
        client.result(number)
    assert served.clock.calls == [] and not served.vcpu.wanted


def test_stop_presses_the_button_and_then_forces(served: Served, client: Client) -> None:
    assert client.call("stop") == {"forced": False}
    assert served.pressed == 1 and client.call("status")["stopping"] is True
    number = client.send("wait")
    assert client.call("stop") == {"forced": True}
    outcome = client.result(number)
    assert (outcome["outcome"], outcome["exit_code"]) == ("interrupted", 130) and served.pressed == 1


def test_stop_by_force(served: Served, client: Client) -> None:
    number = client.send("wait")
    assert client.call("stop", force=True) == {"forced": True}
    outcome = client.result(number)
    assert outcome == {
        "outcome": "interrupted", "detail": "stopped by pyvmm ctl", "exit_code": 130, "guest_status": None
    }  # fmt: skip
    assert served.pressed == 0


def test_wait_tells_how_it_ended(served: Served, client: Client) -> None:
    number = client.send("wait")
    client.call("status")
    served.end(End(Outcome.EXIT, status=7))
    assert client.result(number) == {"outcome": "exit", "detail": "", "exit_code": 7, "guest_status": 7}
    with pytest.raises(Gone):
        client.call("status")
    assert not os.path.lexists(served.control.path)


def test_a_pause_that_the_end_overtakes(served: Served, client: Client) -> None:
    served.vcpu.willing = False
    number = client.send("pause")
    client.call("status")
    served.end(End(Outcome.SHUTDOWN))
    with pytest.raises(PyvmmError, match="ended before"):
        client.result(number)


def test_console_tail_and_what_follows(served: Served, client: Client) -> None:
    served.machine.console.put_bytes("before ä\n".encode())
    while client.call("console", bytes=100)["total"] < 10:
        pass
    assert client.call("console", bytes=2)["data"] == "\ufffd\n"
    assert client.call("console", bytes=0)["data"] == ""
    assert client.call("console", follow=True)["data"] == "before ä\n"
    got = ""
    events = client.events()
    for piece in ("after ä\n".encode()[:7], "after ä\n".encode()[7:]):
        served.machine.console.put_bytes(piece)
        got += next(events)["data"]
    assert got == "after ä\n", "a character cut in two"
    served.end(End(Outcome.SHUTDOWN))
    last = list(events)
    assert [event["event"] for event in last] == ["ended"] and last[0]["outcome"] == "shutdown"


def test_garbage_is_refused_line_by_line(served: Served) -> None:
    connection = connect(served)
    connection.sendall(b'garbage\n\n{"id": 1, "command": "nothing"}\n{"id": 2, "command": "version"}')
    connection.shutdown(socket.SHUT_WR)  # the last line without its end, and nothing more
    answers = lines(rest(connection))
    assert [(answer["id"], answer["ok"]) for answer in answers] == [(None, False), (1, False), (2, True)]
    connection.close()


def test_a_huge_line_is_refused_and_the_client_dropped(served: Served, client: Client) -> None:
    connection = connect(served)
    line = b'{"id": 1, "command": "' + b"x" * MOST_LINE
    try:
        connection.sendall(line * 20)
    except OSError:
        pass
    answers = lines(rest(connection))
    assert len(answers) == 1 and "more than 65536 bytes" in answers[0]["error"]
    connection.close()
    assert client.call("status")["state"] == "running"


def test_a_line_in_pieces(served: Served) -> None:
    connection = connect(served)
    for byte in b'{"id":1,"command":"version"}\n':
        connection.sendall(bytes([byte]))
    assert lines(connection.recv(4096))[0]["ok"] is True
    connection.close()


def test_many_lines_take_turns_with_others(served: Served, client: Client) -> None:
    connection = connect(served)
    connection.sendall(b'{"command":"version"}\n' * 2000)
    started = served.turns
    client.call("status")
    connection.shutdown(socket.SHUT_WR)
    assert len(lines(rest(connection))) == 2000
    assert served.turns - started > 50
    connection.close()


def test_who_does_not_read_is_read_no_further(served: Served, client: Client) -> None:
    connection = connect(served)
    connection.setblocking(False)
    request = b'{"command":"help"}\n' * 500
    sent = 0
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline:
            sent += connection.send(request)
            assert sent < 20 << 20, "it goes on reading"
    except BlockingIOError:
        pass
    for _ in range(3):
        client.call("status")
    ours = next(each for each in served.control._clients.values() if each.output)
    assert len(ours.output) < OUTPUT_MOST
    while time.monotonic() < deadline + 20:
        turns = served.turns
        time.sleep(0.5)
        if served.turns - turns < 20:
            break
    else:
        pytest.fail("the loop does not sleep, though nobody takes what it could send")
    connection.close()


def test_who_follows_and_does_not_read_is_dropped(served: Served, client: Client) -> None:
    with Client(served.control.path) as slow:
        slow.call("console", follow=True)
        for _ in range(12):
            served.machine.console.put_bytes(b"x" * (1 << 20))
            client.call("status")
        assert len(served.control._clients) == 1, "only the other one is left"
        assert client.call("status")["console_bytes"] == 12 << 20
        with pytest.raises(Gone):
            while True:
                slow._read(time.monotonic() + 10)
    assert served.longest < 5


@pytest.mark.parametrize("command", ["wait", "pause", "console"])
def test_who_asks_again_and_again_is_refused(served: Served, client: Client, command: str) -> None:
    served.vcpu.willing = False
    line = (
        json.dumps({"command": command} | ({"follow": True} if command == "console" else {})).encode() + b"\n"
    )
    with connect(served) as greedy:
        greedy.sendall(line * (MOST_PENDING + 50) + b'{"id":9,"command":"version"}\n')
        data = b""
        while b'"id":9' not in data:
            data += greedy.recv(1 << 16)
        refused = [each for each in lines(data) if each.get("ok") is False]
        assert len(refused) == 50 and "are waiting already" in refused[0]["error"]
        (served_client,) = (
            each for each in served.control._clients.values() if each.pausing or each.waiting or each.followed
        )
        kept = served_client.pausing, served_client.waiting, served_client.followed
        assert sum(map(len, kept)) == MOST_PENDING
        assert client.call("status")


def test_who_goes_away_while_waiting_is_forgotten(served: Served, client: Client) -> None:
    for command in ("wait", "pause", "console"):
        served.vcpu.willing = False
        connection = connect(served)
        extra = ',"follow":true' if command == "console" else ""
        connection.sendall(f'{{"command":"{command}"{extra}}}\n'.encode())
        client.call("status")
        connection.close()
    for _ in range(200):
        client.call("status")
        if len(served.control._clients) == 1:
            break
    assert len(served.control._clients) == 1
    turns = served.turns
    time.sleep(0.5)
    assert served.turns - turns < 20, "the loop sleeps"


def test_who_has_half_closed_is_still_told_the_end(served: Served, client: Client) -> None:
    connection = connect(served)
    connection.sendall(b'{"id": 9, "command": "wait"}\n')
    connection.shutdown(socket.SHUT_WR)
    client.call("status")
    turns = served.turns
    time.sleep(0.3)
    assert served.turns - turns < 20, "the loop sleeps"
    served.end(End(Outcome.SHUTDOWN))
    assert lines(rest(connection))[0]["result"]["outcome"] == "shutdown"
    connection.close()


def test_there_is_a_limit_to_the_clients(served: Served) -> None:
    connections = [connect(served) for _ in range(MOST_CLIENTS)]
    for connection in connections:
        connection.sendall(b'{"command":"version"}\n')
        assert connection.recv(4096)
    refused = connect(served)
    assert "clients already" in lines(rest(refused))[0]["error"]
    connections.pop().close()
    for _ in range(100):
        again = connect(served)
        again.sendall(b'{"command":"version"}\n')
        if lines(again.recv(4096))[0]["ok"]:
            break
        again.close()
    else:
        pytest.fail("no room after one left")
    for connection in [*connections, refused, again]:
        connection.close()


def test_other_users_are_not_heard(served: Served, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.call("status")  # it has been let in
    monkeypatch.setattr(server_module, "peer", lambda connection: (1, os.geteuid() + 1))
    connection = connect(served)
    try:
        connection.sendall(b'{"command":"stop","force":true}\n')
    except OSError:
        pass
    assert rest(connection) == b""
    connection.close()
    assert client.call("status")["state"] == "running"


def test_a_bug_of_ours_does_not_end_the_machine(
    served: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.machine, "exits", lambda: 1 // 0)
    with pytest.raises(PyvmmError, match="internal error: ZeroDivisionError"):
        client.call("exits")
    assert client.call("status")["state"] == "running"
