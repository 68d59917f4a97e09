"""The guest's agent as an ordinary process on this host, and the client that speaks to it."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, cannot

from pyvmm.agent import AgentClient, CannotRun, Mount, RootSpec, RunningCommand, agent_binary, agent_entries
from pyvmm.agent.protocol import MOST_PAYLOAD, OUTPUT_WINDOW, Decoder, ProtocolError, Type, frame
from pyvmm.errors import GuestError, HostError, UsageError

MACHINE = os.uname().machine


@pytest.fixture(scope="module")
def program() -> Path:
    done = subprocess.run(
        [ROOT / "scripts" / "build-guests", "-q"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        cannot(f"the agent could not be built: {done.stderr}")
    return ROOT / "pyvmm" / "data" / f"agent-{MACHINE}"


class Agent:
    """The agent's process, and a client that is fed by a thread."""

    def __init__(self, program: Path) -> None:
        self.socket, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [program, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "INHERITED": "yes", "CHANGED": "no"},
        )  # fmt: skip
        theirs.close()
        self.client = AgentClient(self.socket.sendall)
        self.thread = threading.Thread(target=self._feed)
        self.thread.start()

    def _feed(self) -> None:
        try:
            while data := self.socket.recv(65536):
                self.client.feed(data)
        except OSError:
            pass
        self.client.lost(GuestError("the agent is gone"))

    def start(self, *argv: str | bytes, **options) -> tuple[RunningCommand, bytearray, bytearray]:
        out, err = bytearray(), bytearray()
        return self.client.start(argv, on_stdout=out.extend, on_stderr=err.extend, **options), out, err

    def run(self, *argv: str | bytes, input: bytes = b"", **options) -> tuple[int, bytes, bytes]:
        command, out, err = self.start(*argv, **options)
        writer = threading.Thread(target=lambda: (command.write(input), command.close_stdin()))
        writer.start()
        status = command.wait(60)
        writer.join(60)
        return status, bytes(out), bytes(err)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.socket.close()
        assert self.process.wait(10) == 0


@pytest.fixture
def agent(program: Path) -> Iterator[Agent]:
    agent = Agent(program)
    yield agent
    agent.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, condition) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


def test_says_who_it_is(agent: Agent) -> None:
    info = agent.client.wait_ready(10)
    assert (info.version, info.pid, info.release) == (1, agent.process.pid, os.uname().release)
    assert info.machine == MACHINE


class TestCommands:
    def test_streams_and_status(self, agent: Agent) -> None:
        script = "cat; echo out; echo err >&2; exit 7"
        assert agent.run("sh", "-c", script, input=b"in\0\xff\n") == (7, b"in\0\xff\nout\n", b"err\n")

    def test_signals_that_end_it(self, agent: Agent) -> None:
        assert agent.run("sh", "-c", "kill -SEGV $$")[0] == -signal.SIGSEGV

    def test_statuses(self, agent: Agent) -> None:
        for status in (0, 1, 119, 127, 128, 255):
            assert agent.run("sh", "-c", f"exit {status}")[0] == status

    def test_environment(self, agent: Agent) -> None:
        status, out, _ = agent.run("env", env={"CHANGED": "a=b c", "ADDED": ""})
        assert status == 0
        found = dict(line.split("=", 1) for line in out.decode().splitlines())
        assert found == {"PATH": os.environ["PATH"], "INHERITED": "yes", "CHANGED": "a=b c", "ADDED": ""}

    def test_working_directory(self, agent: Agent, tmp_path: Path) -> None:
        assert agent.run("pwd", cwd=str(tmp_path))[1] == f"{tmp_path}\n".encode()

    def test_a_program_of_the_commands_own_path(self, agent: Agent, tmp_path: Path) -> None:
        (tmp_path / "own").write_text("#!/bin/sh\necho found $1\n")
        (tmp_path / "own").chmod(0o755)
        assert agent.run("own", "x", env={"PATH": f"/nowhere:{tmp_path}:/bin"})[1] == b"found x\n"

    def test_bytes_that_are_no_text(self, agent: Agent) -> None:
        assert agent.run("printf", "%s", b"\xff\xfe")[1] == b"\xff\xfe"

    def test_its_descriptors_are_three(self, agent: Agent) -> None:
        """Nothing of the agent's own, or of another command, is passed on; signals are as they should be."""
        other, _, _ = agent.start("sleep", "100")
        _, out, _ = agent.run("sh", "-c", "ls /proc/self/fd; grep -E 'SigBlk|SigIgn' /proc/self/status")
        assert out.split() == [b"0", b"1", b"2", b"3", b"SigBlk:", b"0" * 16, b"SigIgn:", b"0" * 16]
        other.kill()

    @pytest.mark.parametrize("size", [1, 32 * 1024, 5 << 20])
    def test_binary_data_there_and_back(self, agent: Agent, size: int) -> None:
        data = random.Random(size).randbytes(size)
        assert agent.run("cat", input=data) == (0, data, b"")

    def test_both_outputs_at_once(self, agent: Agent) -> None:
        script = "head -c 3000000 /dev/zero & head -c 3000000 /dev/zero >&2 & wait"
        status, out, err = agent.run("sh", "-c", script)
        assert (status, len(out), len(err)) == (0, 3000000, 3000000)

    def test_many_at_once(self, agent: Agent) -> None:
        started = [agent.start("sh", "-c", f"cat; echo {number}; exit {number}") for number in range(60)]
        for number, (command, _, _) in enumerate(started):
            command.write(f"to {number}\n".encode())
            command.close_stdin()
        for number, (command, out, _) in enumerate(started):
            assert command.wait(60) == number
            assert out == f"to {number}\n{number}\n".encode()

    def test_too_many(self, agent: Agent) -> None:
        started = [agent.start("sleep", "100")[0] for _ in range(64)]
        with pytest.raises(CannotRun) as caught:
            agent.start("true")
        assert caught.value.errno == errno.EMFILE and "cannot start 'true'" in caught.value.message
        for command in started:
            command.kill()
        for command in started:
            assert command.wait(10) == -signal.SIGKILL
        assert agent.run("true")[0] == 0

    def test_what_cannot_be_run(self, agent: Agent, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("x")
        for program, reason in (
            ("no-such-program", errno.ENOENT), ("/no/such", errno.ENOENT), (str(tmp_path / "data"), errno.EACCES),
            (str(tmp_path), errno.EACCES), ("", errno.ENOENT),
        ):  # fmt: skip
            with pytest.raises(CannotRun) as caught:
                agent.start(program)
            assert caught.value.errno == reason
            assert caught.value.message == f"cannot run '{program}' in the guest: {os.strerror(reason)}"
        with pytest.raises(CannotRun) as caught:
            agent.start("true", cwd="/no/such")
        assert caught.value.errno == errno.ENOENT and "directory" in caught.value.hint
        assert agent.run("true")[0] == 0, "and it goes on"

    def test_what_cannot_be_passed_on(self, agent: Agent) -> None:
        for argv, options in (
            ([], {}), (["a\0b"], {}), (["x" * MOST_PAYLOAD], {}), (["true", *["x"] * 5000], {}),
            (["true"], {"env": {"A=B": "c"}}), (["true"], {"env": {"": "c"}}), (["true"], {"cwd": "a\0"}),
        ):  # fmt: skip
            with pytest.raises(UsageError):
                agent.start(*argv, **options)
        most = ["true", *["x" * 10] * 4000]
        assert agent.run(*most)[0] == 0


class TestFlow:
    def test_a_command_that_never_reads(self, agent: Agent) -> None:
        command, _, _ = agent.start("sleep", "100")
        with pytest.raises(TimeoutError):
            command.write(bytes(1 << 20), timeout=0.3)
        assert agent.run("echo", "others go on")[1] == b"others go on\n"
        command.kill()
        command.write(bytes(1 << 20))  # dropped
        assert command.wait(10) == -signal.SIGKILL

    def test_a_command_that_closes_its_input(self, agent: Agent) -> None:
        command, out, _ = agent.start("sh", "-c", "exec 0<&-; echo closed; sleep 1; echo done")
        assert within(10, lambda: out == b"closed\n")
        command.write(bytes(1 << 20), timeout=30)
        assert command.wait(30) == 0 and out == b"closed\ndone\n"

    def test_a_host_that_takes_nothing_holds_up_that_command_alone(self, agent: Agent) -> None:
        taken = threading.Semaphore(0)
        got = bytearray()
        agent.client.send(Type.EXEC, 1 << 30, _exec("sh", "-c", "yes"))  # nobody grants it anything
        quiet = agent.run("echo", "still here")
        assert quiet == (0, b"still here\n", b"")
        command = agent.client.start(
            ["head", "-c", "1000000", "/dev/zero"], on_stdout=got.extend, on_stderr=print
        )
        assert command.wait(30) == 0 and len(got) == 1000000
        agent.client.send(Type.KILL, 1 << 30)
        taken.release()

    def test_what_is_left_behind_is_not_waited_for(self, agent: Agent) -> None:
        status, out, _ = agent.run("sh", "-c", "sleep 100 & echo $!")
        assert status == 0
        child = int(out)
        assert alive(child)
        os.kill(child, signal.SIGKILL)
        status, out, _ = agent.run("sh", "-c", "yes & echo $! >&2")
        assert status == 0


def _exec(*argv: str) -> bytes:
    from pyvmm.agent.protocol import exec_payload

    return exec_payload(argv, None, None, None)


class TestSignals:
    def test_the_whole_group(self, agent: Agent) -> None:
        command, out, _ = agent.start("sh", "-c", "trap 'echo term; exit 3' TERM; sleep 100 & echo $!; wait")
        assert within(10, lambda: out.endswith(b"\n"))
        child = int(out)
        assert within(10, lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n"), (
            "it has the shell's trap before"
        )
        command.signal(signal.SIGTERM)
        assert command.wait(10) == 3
        assert out.endswith(b"term\n")
        assert within(10, lambda: not alive(child))

    def test_kill(self, agent: Agent) -> None:
        command, out, _ = agent.start("sh", "-c", "trap '' TERM INT HUP; sleep 100 & echo $!; wait")
        assert within(10, lambda: out.endswith(b"\n"))
        command.kill()
        assert command.wait(10) == -signal.SIGKILL
        assert within(10, lambda: not alive(int(out)))

    def test_the_channels_end_ends_all(self, program: Path) -> None:
        agent = Agent(program)
        command, _, _ = agent.start("sleep", "100")
        pid = command.pid
        assert alive(pid)
        agent.close()
        assert within(10, lambda: not alive(pid))
        with pytest.raises(GuestError, match="the agent is gone"):
            command.wait(1)
        with pytest.raises(GuestError, match="the agent is gone"):
            agent.client.wait_ready(1)
        with pytest.raises(GuestError, match="the agent is gone"):
            agent.start("true")

    def test_shutdown(self, program: Path) -> None:
        agent = Agent(program)
        command, _, _ = agent.start("sleep", "100")
        agent.client.shutdown()
        assert agent.process.wait(10) == 0
        assert within(10, lambda: not alive(command.pid))
        agent.thread.join(10)
        agent.socket.close()


class TestTerminal:
    def test_is_one(self, agent: Agent) -> None:
        script = "tty; stty size; read line; echo got $line; sleep 0.5; stty size"
        command, out, _ = agent.start("sh", "-c", script, pty=(40, 100))
        assert within(10, lambda: b"40 100\r\n" in out)
        command.resize(50, 132)
        command.write(b"typed\n")
        assert command.wait(10) == 0
        lines = bytes(out).split(b"\r\n")
        assert lines[0].startswith(b"/dev/pts/")
        assert b"got typed" in lines and b"50 132" in lines

    def test_control_c(self, agent: Agent) -> None:
        command, out, _ = agent.start("sh", "-c", "echo ready; exec sleep 100", pty=(24, 80))
        assert within(10, lambda: b"ready" in out)
        command.write(b"\x03")
        assert command.wait(10) == -signal.SIGINT

    def test_the_end_of_input(self, agent: Agent) -> None:
        command, out, _ = agent.start("cat", pty=(24, 80))
        command.write(b"line\n")
        command.close_stdin()
        assert command.wait(10) == 0
        assert out.count(b"line") == 2


class TestTheGuestIsNotTrusted:
    def client(self) -> AgentClient:
        client = AgentClient(lambda data: None)
        client.feed(_frame(Type.READY, 0, struct.pack("<II", 1, 7) + b"6.1\0x86_64\0"))
        assert client.wait_ready(0).release == "6.1"
        return client

    @pytest.mark.parametrize(
        "data",
        [
            struct.pack("<BBHII", 67, 0, 0, 1, MOST_PAYLOAD + 1), struct.pack("<BBHII", 1, 0, 0, 1, 0),
            struct.pack("<BBHII", 67, 1, 0, 1, 0), struct.pack("<BBHII", 200, 0, 0, 1, 0), b"login: \r\n" * 3,
            struct.pack("<BBHIIII", 65, 0, 0, 0, 8, 2, 1), struct.pack("<BBHIIB", 65, 0, 0, 0, 1, 1),
        ],
    )  # fmt: skip
    def test_nonsense_ends_it(self, data: bytes) -> None:
        client = self.client()
        client.feed(data)
        with pytest.raises(ProtocolError):
            client.wait_ready(0)

    def test_unknown_commands_are_ignored(self) -> None:
        client = self.client()
        for type in (Type.STDOUT, Type.EXITED, Type.FAILED, Type.MORE_STDIN, Type.STARTED):
            client.feed(_frame(type, 99, b"12345678"))
        assert client.wait_ready(0)

    @pytest.mark.parametrize("attack", ["output", "credit", "short"])
    def test_more_than_was_granted(self, attack: str) -> None:
        """A guest that floods the host, or has it flood the guest, is cut off."""
        held = threading.Event()
        client = AgentClient(lambda data: held.set())
        client.feed(_frame(Type.READY, 0, struct.pack("<II", 1, 7) + b"6.1\0x86_64\0"))
        failure: list[Exception] = []

        def start() -> None:
            try:
                client.start(["x"], on_stdout=lambda data: None, on_stderr=lambda data: None)
            except GuestError as error:
                failure.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        assert held.wait(10)
        if attack == "output":
            client._send = lambda data: None
            command = client._commands[1]
            command._client = AgentClient(lambda data: None)
            command._sinks = {}
            command._owed = -(1 << 40)  # it never comes to a grant
            for _ in range(OUTPUT_WINDOW // MOST_PAYLOAD + 1):
                client.feed(_frame(Type.STDOUT, 1, bytes(MOST_PAYLOAD)))
        elif attack == "credit":
            client.feed(_frame(Type.MORE_STDIN, 1, struct.pack("<I", 1)))
        else:
            client.feed(_frame(Type.EXITED, 1, b"1"))
        thread.join(10)
        assert isinstance(failure[0], ProtocolError)

    def test_frames_cut_anywhere(self) -> None:
        whole = b"".join(_frame(Type.STDOUT, number, bytes([number]) * number) for number in range(50))
        for step in (1, 2, 3, 7, 11, 1000):
            decoder = Decoder()
            found = [
                each for at in range(0, len(whole), step) for each in decoder.feed(whole[at : at + step])
            ]
            assert found == [(Type.STDOUT, number, bytes([number]) * number) for number in range(50)]


def _frame(type: Type, id: int, payload: bytes) -> bytes:
    return frame(type, id, payload)


def test_the_agent_survives_a_broken_host(program: Path) -> None:
    """Frames of any kind and content: it ends or goes on, but never by a signal."""
    generator = random.Random(7)
    for _ in range(40):
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [program, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL
        )
        theirs.close()
        try:
            for _ in range(50):
                type = generator.choice([1, 1, 2, 3, 4, 5, 6, 8, 99, 0])
                length = generator.choice([0, 4, 8, 16, 17, 40, 3000])
                payload = generator.randbytes(length)
                if type == 1 and length >= 17:
                    payload = (
                        struct.pack("<IHHII", generator.randrange(2), 1, 1, 1, 0) + b"\0true\0" + payload
                    )
                if type == 3:
                    payload = struct.pack("<I", generator.choice([0, 9, 15, 1000]))
                ours.sendall(
                    struct.pack("<BBHII", type, 0, 0, generator.randrange(4), len(payload)) + payload
                )
        except OSError:
            pass
        select.select([ours], [], [], 0.05)
        ours.close()
        assert process.wait(10) == 0


def test_what_goes_into_an_initramfs() -> None:
    entries = agent_entries(
        MACHINE, modules=[("virtio_mmio", b"one"), ("virtio_console", b"two")],
        root=RootSpec("virtiofs", "tag", read_only=True, overlay=True),
        mounts=[Mount("t", "/a b"), Mount("u", "/c", False)],
    )  # fmt: skip
    found = {entry.path: entry for entry in entries}
    assert found["init"].mode & 0o777 == 0o755 and found["init"].data == agent_binary(MACHINE)
    assert (
        found["pyvmm/modules"].data
        == b"/pyvmm/modules.d/virtio_mmio.ko\n/pyvmm/modules.d/virtio_console.ko\n"
    )
    assert found["pyvmm/root"].data == b"type=virtiofs\nsource=tag\nfstype=\nro=1\noverlay=1\n"
    assert found["pyvmm/mounts"].data == b"ro t /a b\nrw u /c\n"
    with pytest.raises(UsageError):
        agent_entries(MACHINE, mounts=[Mount("t", "/a\nb")])
    with pytest.raises(HostError) as caught:
        agent_binary("m68k")
    assert "build-guests" in caught.value.hint


def test_a_command_that_is_never_started_is_killed() -> None:
    """The guest may get to it later; by then nobody waits for it."""
    sent: list[bytes] = []
    client = AgentClient(sent.append)
    client.feed(frame(Type.READY, 0, struct.pack("<II", 1, 1) + b"6.1\0x86_64\0"))
    with pytest.raises(TimeoutError):
        client.start(["true"], on_stdout=sent.append, on_stderr=sent.append, timeout=0.05)
    assert [data[0] for data in sent] == [Type.EXEC, Type.KILL]
