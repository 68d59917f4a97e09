"""The vsock option and the Unix socket bridge; AF_VSOCK is played by Unix sockets here."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.devices.virtio.vsock_bridge import Bridge
from pyvmm.errors import HostError, UsageError
from pyvmm.machine.attachments.vsock import Vsock

# --- the option -----------------------------------------------------------------------------------------


def test_the_option_and_the_table_say_the_same() -> None:
    made = Vsock.parse("42,socket=/run/vm,port=1024,port=0x500")
    assert (made.cid, made.socket, made.port) == (42, "/run/vm", (1024, 0x500))
    assert made.to_table() == {"cid": 42, "socket": "/run/vm", "port": [1024, 0x500]}
    assert Vsock.from_table(made.to_table()).to_table() == made.to_table()
    assert Vsock.parse("3").to_table() == {"cid": 3}
    assert not made.shared_memory
    made.check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "vsock CID 2 cannot be a guest's"),
        ("3,port=1024", "port without socket"),
        ("3,socket=/run/vm,port=-1", "port=-1 is not a port"),
        ("3,socket=/run/vm,port=4294967295", "port=4294967295 is not a port"),
        ("3,socket=", "1 to 107 bytes"),
        ("3,socket=/" + "x" * 107, "1 to 107 bytes"),
        ("three", "not a number"),
        ("3,sock=x", "perhaps you mean 'socket'"),
        ("", "vsock without cid"),
    ],
)
def test_what_makes_no_sense(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Vsock.parse(text).check()


# --- the bridge -----------------------------------------------------------------------------------------


class Guest:
    """The guest's side: ports that it listens on, as Unix sockets in ``folder``, and how it dials the host's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bridge: Bridge | None = None

    def listen(self, port: int) -> socket.socket:
        return listen_at(self.folder / f"guest-{port}")

    def dial(self, port: int) -> socket.socket:
        dialled = socket.socket(socket.AF_UNIX)
        try:
            dialled.connect(str(self.folder / f"guest-{port}"))
        except OSError:
            dialled.close()
            raise
        dialled.setblocking(False)
        return dialled

    def host_port(self, port: int) -> socket.socket:
        return listen_at(self.folder / f"host-{port}")

    def connect_to_host(self, port: int) -> socket.socket:
        return connect_to(self.folder / f"host-{port}")


def listen_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    listener.settimeout(5)
    return listener


def connect_to(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    client.connect(str(path))
    return client


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.fixture
def path(tmp_path: Path, guest: Guest) -> Iterator[Path]:
    """A bridge's socket; it leads to ``guest``, whose connections to ports 7 and 8 it takes."""
    where = tmp_path / "vm"
    guest.bridge = Bridge(str(where), 3, (7, 8), dial=guest.dial, listen=guest.host_port)
    yield where
    guest.bridge.close()


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.005)


def greeted(client: socket.socket) -> bool:
    line = b""
    while not line.endswith(b"\n"):
        part = client.recv(1)
        if not part:
            return False
        line += part
    return line.startswith(b"OK ") and line[3:-1].isdigit()


def test_connect_leads_to_the_guest(path: Path, guest: Guest) -> None:
    with guest.listen(1024) as port, connect_to(path) as client:
        client.sendall(b"CONNECT 1024\nand more at once")
        inside, _ = port.accept()
        with inside:
            inside.settimeout(5)
            assert greeted(client)
            assert inside.recv(100) == b"and more at once"
            inside.sendall(b"answer")
            assert client.recv(100) == b"answer"


def test_the_line_may_come_in_pieces(path: Path, guest: Guest) -> None:
    with guest.listen(1024) as port, connect_to(path) as client:
        for byte in b"CONNECT 1024\n":
            client.sendall(bytes([byte]))
            time.sleep(0.002)
        assert greeted(client)
        port.accept()[0].close()
        assert client.recv(1) == b"", "the guest hung up"


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT 9999\n",
        b"CONNECT\n",
        b"CONNECT x\n",
        b"HELLO 1\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"x" * 40,
    ],
)
def test_nobody_there_or_nonsense_is_hung_up_on(path: Path, line: bytes) -> None:
    with connect_to(path) as client:
        client.sendall(line)
        try:
            assert client.recv(100) == b""
        except ConnectionResetError:
            pass  # it had more of ours unread


def test_a_guest_reaches_a_program_of_the_host(path: Path, guest: Guest) -> None:
    with listen_at(Path(f"{path}_7")) as program, guest.connect_to_host(7) as inside:
        outside, _ = program.accept()
        with outside:
            inside.sendall(b"from the guest")
            assert outside.recv(100) == b"from the guest", "and no greeting"
            outside.sendall(b"from the host")
            assert inside.recv(100) == b"from the host"


def test_a_guest_that_finds_no_program_is_hung_up_on(path: Path, guest: Guest) -> None:
    with guest.connect_to_host(8) as inside:
        assert inside.recv(1) == b""


def test_much_data_both_ways_at_once_and_each_end_by_itself(path: Path, guest: Guest) -> None:
    data = os.urandom(8 << 20)
    received: dict[str, bytes] = {}

    def send(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    def receive(sock: socket.socket, name: str) -> None:
        parts = []
        while part := sock.recv(1 << 16):
            parts.append(part)
        received[name] = b"".join(parts)

    with guest.listen(1) as port, connect_to(path) as client:
        client.sendall(b"CONNECT 1\n")
        assert greeted(client)
        inside, _ = port.accept()
        with inside:
            inside.settimeout(20)
            threads = [
                threading.Thread(target=send, args=(client,)),
                threading.Thread(target=send, args=(inside,)),
                threading.Thread(target=receive, args=(client, "client")),
                threading.Thread(target=receive, args=(inside, "inside")),
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
    assert received == {"client": data, "inside": data}


def test_half_a_connection_stays_open(path: Path, guest: Guest) -> None:
    with guest.listen(1) as port, connect_to(path) as client:
        client.sendall(b"CONNECT 1\nquestion")
        client.shutdown(socket.SHUT_WR)
        inside, _ = port.accept()
        with inside:
            inside.settimeout(5)
            assert inside.recv(100) == b"question" and inside.recv(100) == b""
            inside.sendall(b"answer")
            assert greeted(client) and client.recv(100) == b"answer"


def test_a_slow_reader_holds_up_its_own_peer_only(path: Path, guest: Guest) -> None:
    with guest.listen(1) as port, connect_to(path) as slow, connect_to(path) as quick:
        slow.sendall(b"CONNECT 1\n")
        assert greeted(slow)
        inside, _ = port.accept()
        inside.setblocking(False)
        sent = 0
        stuck = time.monotonic() + 5
        quiet = 0
        while quiet < 20 and time.monotonic() < stuck:
            try:
                sent += inside.send(bytes(1 << 16))
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.01)
        assert quiet == 20 and sent < 4 << 20, "the guest's end is full"
        quick.sendall(b"CONNECT 1\n")
        assert greeted(quick)
        used = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - used < 0.1, "nobody spins"
        left = sent
        while left:
            left -= len(slow.recv(1 << 16))
        inside.close()


def test_a_reset_of_one_end_closes_the_other(path: Path, guest: Guest) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with guest.listen(1) as port:
        client = connect_to(path)
        client.sendall(b"CONNECT 1\n")
        assert greeted(client)
        inside, _ = port.accept()
        inside.settimeout(5)
        client.close()
        assert inside.recv(1) == b""
        inside.close()
    wait_for(lambda: len(os.listdir("/proc/self/fd")) == before)


def test_the_socket_is_the_user_s_alone_and_goes_with_the_bridge(path: Path, guest: Guest) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert guest.bridge is not None
    with connect_to(path) as client:
        wait_for(lambda: guest.bridge is not None and bool(guest.bridge._open))
        guest.bridge.close()
        assert client.recv(1) == b""
    assert not path.exists()
    guest.bridge.close()


def test_a_socket_in_use_is_refused_and_a_stale_one_replaced(
    path: Path, guest: Guest, tmp_path: Path
) -> None:
    with pytest.raises(HostError, match="Address already in use") as caught:
        Bridge(str(path), 4, dial=guest.dial)
    assert "another machine" in caught.value.hint
    assert path.exists(), "the other one's stays"
    stale = tmp_path / "stale"
    listen_at(stale).close()
    second = Bridge(str(stale), 4, dial=guest.dial)
    with guest.listen(5), connect_to(stale) as client:
        client.sendall(b"CONNECT 5\n")
        assert greeted(client)
    second.close()


def test_a_file_that_is_no_socket_stays(tmp_path: Path, guest: Guest) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(HostError, match="Address already in use"):
        Bridge(str(file), 4, dial=guest.dial)
    assert file.read_text() == "precious"


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="cannot listen on the Unix socket .*No such file"):
        Bridge(str(tmp_path / "none" / "socket"), 4)
    assert len(os.listdir("/proc/self/fd")) == before
