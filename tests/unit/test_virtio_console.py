"""The virtio console, driven as a guest's driver does: control messages, both directions, and who waits for whom."""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from virtio_driver import Driver

from pyvmm.console import FULL_BYTES, Console, Watch
from pyvmm.devices.virtio.console import (
    CONSOLE_PORT,
    DEVICE_READY,
    F_MULTIPORT,
    MESSAGES_WAITING,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    TURN,
    ConsoleDevice,
    Port,
    queues_of,
)
from pyvmm.devices.virtio.console_files import FileEndpoint, SocketEndpoint
from pyvmm.devices.virtio.console_ports import CHUNK, Channel
from pyvmm.devices.virtio.features import INDIRECT_DESC
from pyvmm.errors import HostError, UsageError
from pyvmm.machine.attachments import attachment
from pyvmm.machine.attachments.base import Host
from pyvmm.machine.attachments.console import INPUT_LIMIT, ConsoleAttachment
from pyvmm.machine.guest_input import INPUT_WAITING, GuestInput
from pyvmm.machine.terminal_input import TerminalInput

SECONDS = 5.0


def until(condition: Callable[[], object], seconds: float = SECONDS) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.002)
    return True


class Guest:
    """A guest's driver with the control queues served."""

    def __init__(self, device: ConsoleDevice, features: int | None = None) -> None:
        self.driver = Driver(device, features=features)
        if features is None:
            for _ in range(8):
                self.driver.queue(2).add([], [64])
            self.driver.kick(2)

    def say(self, number: int, event: int, value: int) -> None:
        self.driver.queue(3).add([struct.pack("<IHH", number, event, value)], [])
        self.driver.kick(3)
        assert self.driver.wait(3)

    def hear(self, count: int) -> list[tuple[int, int, int, bytes]]:
        """The next ``count`` messages."""
        heard = []
        while len(heard) < count:
            done = self.driver.wait(2)
            assert done, f"only {heard} came"
            for token, written in done:
                data = self.driver.written(token)[0][:written]
                heard.append((*struct.unpack_from("<IHH", data), data[8:]))
                self.driver.queue(2).add([], [64])
            self.driver.kick(2)
        return heard

    def quiet(self, queue: int = 2) -> bool:
        """Whether nothing comes for a moment."""
        return self.driver.wait(queue, 0.05) == []

    def write(self, data: bytes, number: int = 0, pieces: int = 1, indirect: bool = False) -> int:
        size = -(-len(data) // pieces)
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        queue = queues_of(number)[1]
        token = self.driver.queue(queue).add(parts, [], indirect)
        self.driver.kick(queue)
        return token

    def done(self, number: int = 0, timeout: float = SECONDS) -> list[int]:
        return [token for token, _ in self.driver.wait(queues_of(number)[1], timeout)]

    def offer(self, *sizes: int, number: int = 0) -> int:
        queue = queues_of(number)[0]
        token = self.driver.queue(queue).add([], list(sizes))
        self.driver.kick(queue)
        return token

    def read(self, number: int = 0, timeout: float = SECONDS) -> bytes:
        data = b""
        for token, written in self.driver.wait(queues_of(number)[0], timeout):
            data += b"".join(self.driver.written(token))[:written]
        return data

    def open(self, number: int = 0) -> None:
        self.say(number, PORT_READY, 1)
        self.say(number, PORT_OPEN, 1)

    def close(self) -> None:
        self.driver.close()


@pytest.fixture
def guest_of():
    guests: list[Guest] = []

    def make(device: ConsoleDevice, features: int | None = None) -> Guest:
        guests.append(Guest(device, features))
        return guests[-1]

    yield make
    for guest in guests:
        assert guest.driver.notes == []
        guest.close()
    assert threading.active_count() == 1, "a device's thread is left"


class Collector:
    """What a channel's ``on_output`` got."""

    def __init__(self) -> None:
        self.data = b""
        self.pieces: list[int] = []

    def __call__(self, data: bytes) -> None:
        self.data += data
        self.pieces.append(len(data))


# -- what is offered, and control messages ------------------------------------------------------------------


def test_what_is_offered():
    device = ConsoleDevice(
        "console0", [Port(Channel(), "a"), Port(Channel(), "b"), Port(Channel(), console=True)]
    )
    assert (device.DEVICE_ID, device.features, len(device.queue_sizes)) == (3, F_MULTIPORT, 8)
    assert struct.unpack("<HHII", device.config) == (0, 0, 3, 0)
    assert [queues_of(number) for number in range(3)] == [(0, 1), (4, 5), (6, 7)]


def test_ports_are_announced_as_the_driver_asks(guest_of):
    listening = SocketEndpoint(socket.socket(socket.AF_UNIX))  # nobody there
    device = ConsoleDevice("console0", [Port(Channel(), "org.example.agent"), Port(listening, "b"),
                                        Port(Channel(), console=True)])  # fmt: skip
    guest = guest_of(device)
    assert guest.quiet(), "nothing is said before DEVICE_READY"
    guest.say(0xFFFFFFFF, DEVICE_READY, 1)
    assert guest.hear(3) == [(number, PORT_ADD, 1, b"") for number in range(3)]
    guest.say(0, PORT_READY, 1)
    assert guest.hear(2) == [(0, PORT_NAME, 1, b"org.example.agent"), (0, PORT_OPEN, 1, b"")]
    guest.say(1, PORT_READY, 1)
    assert guest.hear(2) == [(1, PORT_NAME, 1, b"b"), (1, PORT_OPEN, 0, b"")]
    guest.say(2, PORT_READY, 1)
    assert guest.hear(2) == [(2, CONSOLE_PORT, 1, b""), (2, PORT_OPEN, 1, b"")]
    listening._listener.close()


def test_messages_that_make_no_sense_are_ignored(guest_of):
    guest = guest_of(ConsoleDevice("console0", [Port(Channel(), "a")]))
    for number, event, value in (
        (7, PORT_READY, 1),
        (0xFFFFFFFF, PORT_OPEN, 1),
        (0, 77, 1),
        (0, PORT_READY, 0),
    ):
        guest.say(number, event, value)
    guest.driver.queue(3).add([b"short"], [])
    guest.driver.kick(3)
    assert guest.driver.wait(3)
    assert guest.quiet()
    guest.say(0, DEVICE_READY, 1)
    assert guest.hear(1) == [(0, PORT_ADD, 1, b"")]
    assert not guest.driver.needs_reset


def test_a_driver_that_asks_without_listening_is_not_listened_to(guest_of):
    device = ConsoleDevice("console0", [Port(Channel(), str(number)) for number in range(30)])
    driver = Driver(device)
    ready = struct.pack("<IHH", 0, DEVICE_READY, 1)
    served = 0
    for _ in range(MESSAGES_WAITING):
        driver.queue(3).add([ready], [])
        driver.kick(3)
        if not driver.wait(3, 0.2):
            break
        served += 1
    assert served == -(-MESSAGES_WAITING // 30)
    assert len(device._messages) < MESSAGES_WAITING + 30
    heard = 0
    while heard < (served + 1) * 30:  # listening, it gets them all, and is heard again
        driver.queue(2).add([], [8])
        driver.kick(2)
        done = driver.wait(2)
        assert done
        heard += len(done)
    assert driver.wait(3), "the request that waited was answered"
    driver.close()


def test_without_multiport_the_first_port_is_open_from_the_start(guest_of):
    channel = Channel()
    guest = guest_of(ConsoleDevice("console0", [Port(channel, "a"), Port(Channel(), "b")]), features=0)
    assert until(lambda: channel.is_open)
    channel.send(b"hello")
    guest.offer(16)
    assert guest.read() == b"hello"


# -- a channel for Python code ------------------------------------------------------------------------------


@pytest.mark.parametrize("indirect", [False, True])
def test_output_arrives_whole_and_in_order(guest_of, indirect):
    collector = Collector()
    guest = guest_of(ConsoleDevice("console0", [Port(Channel(collector), console=True)]))
    sent = b""
    for number in range(50):
        data = bytes([number]) * (1 + number * 97)
        guest.write(data, pieces=1 + number % 4, indirect=indirect)
        sent += data
        assert guest.done()
    assert until(lambda: len(collector.data) >= len(sent))
    assert collector.data == sent
    assert guest.driver.device.statistics() == {"bytes_in": 0, "bytes_out": len(sent)}


def test_a_large_request_comes_in_pieces(guest_of):
    collector = Collector()
    guest = guest_of(ConsoleDevice("console0", [Port(Channel(collector), console=True)]))
    data = os.urandom(5 * CHUNK + 17)
    token = guest.write(data, pieces=3)
    assert guest.done() == [token]
    assert collector.data == data
    assert max(collector.pieces) <= CHUNK


def test_held_output_stays_in_the_guest_and_other_ports_go_on(guest_of):
    one, two = Collector(), Collector()
    held = Channel(one)
    guest = guest_of(ConsoleDevice("console0", [Port(held, "one"), Port(Channel(two), "two")]))
    held.hold()
    tokens = [guest.write(b"first", 0), guest.write(b"second", 0)]
    assert guest.done(0, 0.1) == []
    other = guest.write(b"other", 1)
    assert guest.done(1) == [other]
    assert (one.data, two.data) == (b"", b"other")
    held.release()
    done: list[int] = []
    while len(done) < 2:
        done += guest.done(0) or pytest.fail("it was not taken after all")
    assert (done, one.data) == (tokens, b"firstsecond")


def test_a_port_that_is_never_done_leaves_others_their_turn(guest_of):
    """A guest that refills one port's queue as fast as it is emptied does not keep another port's request waiting."""
    flooded: list[bytes] = []
    quick = Collector()

    def flood(data: bytes) -> None:  # in the device's thread, while the test only waits
        flooded.append(data)
        if len(flooded) == 1:
            guest.write(b"quick", 1)
        if not quick.data and len(flooded) < 50 * TURN:
            guest.driver.queue(1).collect()
            guest.write(b"x", 0)

    guest = guest_of(
        ConsoleDevice("console0", [Port(Channel(flood), "flood"), Port(Channel(quick), "quick")])
    )
    guest.write(b"x", 0)
    assert until(lambda: quick.data)
    assert len(flooded) <= 5 * TURN


def test_input_waits_for_the_guest_to_open_the_port(guest_of):
    channel = Channel()
    guest = guest_of(ConsoleDevice("console0", [Port(channel, "a")]))
    guest.offer(64)
    channel.send(b"early")
    assert guest.quiet(0)
    assert channel.pending == 5
    guest.open()
    assert guest.read() == b"early"
    guest.say(0, PORT_OPEN, 0)
    assert not channel.is_open
    channel.send(b"again")
    guest.offer(64)
    assert guest.quiet(0)
    guest.say(0, PORT_OPEN, 1)
    assert guest.read() == b"again"


def test_input_that_the_guest_has_no_buffer_for_stays_and_is_bounded_by_its_sender(guest_of):
    room = threading.Event()
    channel = Channel(on_room=room.set, limit=1000)
    guest = guest_of(ConsoleDevice("console0", [Port(channel, console=True)]))
    guest.open()
    data = os.urandom(1500)
    channel.send(data[:900])
    channel.send(data[900:])
    assert channel.pending == 1500
    guest.offer(500, 100)  # two buffers of one request
    got = guest.read()
    assert (len(got), channel.pending) == (600, 900)
    assert not room.is_set(), "still more than half"
    guest.offer(400)
    got += guest.read()
    assert room.wait(SECONDS)
    guest.offer(4096)
    got += guest.read()
    assert got == data
    room.clear()
    channel.send(b"x")
    guest.offer(1)
    assert guest.read() == b"x"
    assert not room.is_set(), "room is told of only after the limit was reached"


def test_both_directions_at_once_from_other_threads(guest_of):
    collector = Collector()
    channel = Channel(collector)
    guest = guest_of(ConsoleDevice("console0", [Port(channel, console=True)]))
    guest.open()
    data = os.urandom(200_000)

    def send() -> None:
        for at in range(0, len(data), 997):
            channel.send(data[at : at + 997])

    sender = threading.Thread(target=send)
    sender.start()
    got, sent = b"", b""
    for _ in range(32):
        guest.offer(4096)
    while len(got) < len(data):
        guest.write(bytes([len(got) & 0xFF]) * 100)
        sent += bytes([len(got) & 0xFF]) * 100
        piece = guest.read()
        assert piece, "no more input came"
        got += piece
        while len(guest.driver.queue(0).free) > 32:
            guest.offer(4096)
        guest.done(0, 1)
    sender.join()
    assert got == data
    assert until(lambda: len(collector.data) >= len(sent)) and collector.data == sent


def test_what_was_written_before_the_reset_is_passed_on():
    """A guest that writes and powers off at once, before the device's thread had a chance."""
    collector = Collector()
    channel = Channel(collector)
    device = ConsoleDevice("console0", [Port(channel, console=True)])
    guest = Guest(device)
    guest.open()
    worker = device._worker
    entered, go_on = threading.Event(), threading.Event()
    worker.call(lambda: (entered.set(), go_on.wait(SECONDS)))
    assert entered.wait(SECONDS)
    for number in range(10):
        guest.write(b"last words %d " % number)
    threading.Timer(0.1, go_on.set).start()
    guest.close()
    assert collector.data == b"".join(b"last words %d " % number for number in range(10))
    assert not channel.is_open


def test_reset_and_again(guest_of):
    collector = Collector()
    channel = Channel(collector)
    guest = guest_of(ConsoleDevice("console0", [Port(channel, "a")]))
    guest.open()
    guest.offer(64)
    channel.send(b"1")
    assert guest.read() == b"1"
    guest.driver.negotiate()
    assert not channel.is_open
    guest.offer(64)
    channel.send(b"2")
    assert guest.quiet(0), "the port is closed after a reset"
    for _ in range(4):
        guest.driver.queue(2).add([], [64])
    guest.open()
    assert guest.read() == b"2"
    token = guest.write(b"3")
    assert guest.done() == [token]
    assert collector.data == b"3"


def test_a_broken_chain_needs_a_reset():
    device = ConsoleDevice("console0", [Port(Channel(), console=True)])
    driver = Driver(device)
    queue = driver.queue(1)
    queue.set_descriptor(0, driver.memory.size - 4, 64)
    queue.publish(0)
    driver.kick(1)
    assert until(lambda: driver.needs_reset)
    driver.close()
    assert len(driver.notes) == 1 and "virtqueue 1" in driver.notes[0]


# -- a file, and a socket -----------------------------------------------------------------------------------


def test_a_file_gets_the_output(guest_of, tmp_path):
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    guest = guest_of(ConsoleDevice("console0", [Port(FileEndpoint(fd, str(path), print), "a")]))
    data = os.urandom(300_000)
    token = guest.write(data, pieces=9)
    assert guest.done() == [token]
    assert path.read_bytes() == data


def test_a_slow_pipe_holds_the_guest(guest_of):
    read, write = os.pipe2(os.O_NONBLOCK)
    guest = guest_of(ConsoleDevice("console0", [Port(FileEndpoint(write, "a pipe", print), "a")]))
    data = os.urandom(400_000)
    token = guest.write(data)
    assert guest.done(0, 0.1) == []
    got = b""
    while len(got) < len(data):
        select.select([read], [], [], SECONDS)
        got += os.read(read, 1 << 20)
    assert guest.done() == [token]
    assert got == data
    os.close(read)


def test_a_disk_that_is_full_is_said_once(guest_of):
    said: list[str] = []
    endpoint = FileEndpoint(os.open("/dev/full", os.O_WRONLY), "/dev/full", said.append)
    guest = guest_of(ConsoleDevice("console0", [Port(endpoint, "a")]))
    for _ in range(3):
        guest.write(b"12345")
        assert guest.done()
    assert said == ["/dev/full takes no more output: No space left on device"]
    assert endpoint.lost == 15


@pytest.fixture
def joined(guest_of, tmp_path):
    """A guest with one named port, and a way to connect to its socket."""
    closers: list = []
    path = tmp_path / "port.sock"
    wanted = ConsoleAttachment.parse(f"port=org.example.a,socket={path}")
    wanted.check()
    host = Host("console0", None, None, closers, print)
    guest = guest_of(wanted.create(host))
    guest.path = path
    clients: list[socket.socket] = []

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(SECONDS)
        client.connect(str(path))
        clients.append(client)
        return client

    guest.connect = connect
    guest.say(0, PORT_READY, 1)
    assert guest.hear(2)[1] == (0, PORT_OPEN, 0, b"")
    yield guest
    for client in clients:
        client.close()
    guest.close()
    for closer in closers:
        closer.close()
    assert not path.exists()


def test_a_client_comes_and_goes_and_another_comes(joined):
    assert stat.S_IMODE(os.stat(joined.path).st_mode) == 0o600
    joined.say(0, PORT_OPEN, 1)
    for text in (b"one", b"two", b"three"):
        client = joined.connect()
        assert joined.hear(1) == [(0, PORT_OPEN, 1, b"")]
        joined.offer(64)
        client.sendall(text)
        assert joined.read() == text
        joined.write(text + b"!")
        assert joined.done()
        assert client.recv(64) == text + b"!"
        client.close()
        assert joined.hear(1) == [(0, PORT_OPEN, 0, b"")]


def test_one_client_at_a_time(joined):
    joined.say(0, PORT_OPEN, 1)
    first, second = joined.connect(), joined.connect()
    assert joined.hear(1) == [(0, PORT_OPEN, 1, b"")]
    second.sendall(b"second")
    joined.offer(64)
    assert joined.quiet(0) and joined.quiet(2)
    first.sendall(b"first")
    assert joined.read() == b"first"
    first.close()
    assert joined.hear(2) == [(0, PORT_OPEN, 0, b""), (0, PORT_OPEN, 1, b"")]
    joined.offer(64)
    assert joined.read() == b"second"


def test_what_a_client_sent_before_it_went_away_reaches_the_guest(joined):
    data = os.urandom(100_000)
    client = joined.connect()
    assert joined.hear(1)[0][1:3] == (PORT_OPEN, 1)
    client.sendall(data)
    client.close()
    assert joined.quiet(), "the client is there until it has been read"
    joined.say(0, PORT_OPEN, 1)
    got = b""
    while len(got) < len(data):
        joined.offer(4096)
        got += joined.read()
    assert got == data
    joined.offer(64)
    assert joined.hear(1) == [(0, PORT_OPEN, 0, b"")]


def test_a_client_that_only_listens_still_gets_output(joined):
    joined.say(0, PORT_OPEN, 1)
    joined.offer(64)
    client = joined.connect()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert joined.read() == b"question"
    joined.offer(64)
    assert joined.hear(1)[0][2] == 1 and joined.quiet(), "it has not gone"
    joined.write(b"answer")
    assert joined.done()
    assert client.recv(64) == b"answer"
    client.close()
    assert joined.hear(1) == [(0, PORT_OPEN, 0, b"")]


def test_a_slow_client_holds_the_guest_and_costs_no_time(joined):
    client = joined.connect()
    data = os.urandom(1 << 20)
    token = joined.write(data)
    assert joined.done(0, 0.1) == []
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1, "the device's thread spins"
    got = b""
    while len(got) < len(data):
        got += client.recv(1 << 20)
    assert joined.done() == [token]
    assert got == data


def test_a_source_is_not_read_while_the_guest_has_no_room(joined):
    joined.say(0, PORT_OPEN, 1)
    client = joined.connect()
    client.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += client.send(bytes(65536))
    before = time.process_time()
    time.sleep(0.2)
    with pytest.raises(BlockingIOError):
        client.send(b"more")
    assert time.process_time() - before < 0.1, "the device's thread spins"
    got = 0
    while got < sent:
        joined.offer(16384)
        got += len(joined.read())
    client.send(b"more")


def test_output_that_nobody_hears_is_dropped(joined):
    joined.write(b"nobody")
    assert joined.done()
    client = joined.connect()
    assert joined.hear(1)[0][1:3] == (PORT_OPEN, 1)
    joined.write(b"somebody")
    assert joined.done()
    assert client.recv(64) == b"somebody"


# -- hvc0 and the console -----------------------------------------------------------------------------------


@pytest.fixture
def terminal(guest_of):
    console = Console(watches=[Watch("expect", b"login: ")])
    device = ConsoleAttachment.parse("hvc").create(Host("console0", None, console, [], print))
    yield guest_of(device), console
    console.close()


def test_hvc_prints_on_the_console_and_is_watched(terminal):
    guest, console = terminal
    guest.write(b"host lo")
    guest.write(b"gin: ", pieces=2)
    assert guest.done()
    assert os.eventfd_read(console.wake_fd)
    assert until(lambda: (console.collect(), console.watches[0].seen)[1])
    assert console.tail() == "host login: "


def test_hvc_waits_for_the_consoles_reader(terminal):
    guest, console = terminal
    data = os.urandom(FULL_BYTES)
    assert guest.write(data) and guest.done()
    guest.write(b"x")
    assert guest.done(), "there was room when it came"
    token = guest.write(b"y")
    assert console.full
    assert guest.done(0, 0.1) == [], "now it has to wait"
    console.collect()
    console.flush()
    assert guest.done() == [token]
    console.collect()
    assert console.total == FULL_BYTES + 2


def test_what_is_typed_goes_to_hvc_when_it_is_open(terminal):
    guest, console = terminal
    assert not console.input.is_open, "what came now would be lost"
    guest.open()
    assert console.input.is_open
    assert os.eventfd_read(console.wake_fd), "the loop has to hear of it"
    console.input.receive(b"ls\r")
    assert console.input.pending == 3
    guest.offer(16)
    assert guest.read() == b"ls\r"
    assert console.input.pending == 0
    console.input.receive(b"x" * INPUT_LIMIT)
    guest.offer(INPUT_LIMIT)
    assert len(guest.read()) == INPUT_LIMIT
    assert os.eventfd_read(console.wake_fd), "and that it has taken its input"


class Uart:
    """The serial port, which keeps all it is given."""

    def __init__(self) -> None:
        self.taken = b""
        self.pending = 0

    def receive(self, data: bytes) -> None:
        self.taken += data
        self.pending += len(data)


@pytest.fixture
def typing(terminal):
    """A function that types on a machine with a serial port and hvc0, its ``machine``."""
    read, write = os.pipe()
    uart = Uart()
    machine = SimpleNamespace(serial=uart, input=GuestInput(terminal[1], uart))

    host = SimpleNamespace(interactive=True, input_fd=read, decode=lambda data: (data, []))
    reader = TerminalInput(machine, host)

    def type_(data):
        os.write(write, data)
        reader.read(read)

    type_.machine = machine
    yield type_
    os.close(read)
    os.close(write)


def test_what_is_piped_waits_for_hvc(terminal):
    guest, console = terminal
    uart = Uart()
    input = GuestInput(console, uart)
    assert not input.room(), "the serial port would swallow it"
    guest.open()
    assert input.room()
    input.give(b"x" * INPUT_LIMIT)
    assert not input.room(), "the guest takes nothing at present"
    assert uart.taken == b""
    guest.offer(2 * INPUT_LIMIT)
    assert len(guest.read()) == INPUT_LIMIT
    assert input.room()
    console.input = None
    assert input.room(), "without hvc it is the serial port's"
    input.give(b"to the port")
    assert uart.taken == b"to the port"


def test_what_is_typed_goes_to_the_serial_port_until_hvc_is_open(typing, terminal, capsys):
    guest, console = terminal
    uart = typing.machine.serial
    typing(b"early")
    assert (uart.taken, console.input.pending) == (b"early", 0)
    guest.open()
    typing(b"late")
    assert (uart.taken, console.input.pending) == (b"early", 4)
    for _ in range(3):
        typing(b"x" * INPUT_WAITING)
    assert console.input.pending == 4 + INPUT_WAITING, "what nobody reads is not kept without end"
    assert capsys.readouterr().err.count("what is typed now is lost") == 1


# -- the option ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "hvc,port=a,socket=/tmp/x", "hvc,file=x", "port=a", "port=a,socket=x,file=y", "port=,file=x",
     "port=a/b,file=x", f"port={'a' * 65},file=x", "port=a\n,file=x", "port=a,socket=/nowhere/at/all"],
)  # fmt: skip
def test_options_that_make_no_sense(text):
    with pytest.raises(UsageError):
        ConsoleAttachment.parse(text).check()


def test_the_option_is_found():
    assert attachment("console") is ConsoleAttachment
    assert ConsoleAttachment.parse("port=a,file=b").to_table() == {"port": "a", "file": "b"}
    assert ConsoleAttachment.parse("port=a,file=b").changed_files() == ["b"]
    assert ConsoleAttachment.parse("hvc").changed_files() == []


def test_only_one_hvc():
    console = Console()
    host = Host("console0", None, console, [], print)
    ConsoleAttachment.parse("hvc").create(host)
    with pytest.raises(UsageError, match="only one"):
        ConsoleAttachment.parse("hvc").create(host)
    console.close()


def test_a_socket_that_is_left_behind_is_replaced_and_nothing_else_is(tmp_path):
    path = tmp_path / "s"
    wanted = ConsoleAttachment.parse(f"port=a,socket={path}")
    with socket.socket(socket.AF_UNIX) as somebody:
        somebody.bind(str(path))
        somebody.listen()
        with pytest.raises(HostError, match="listens"):
            wanted.check()
    wanted.check()
    closers: list = []
    device = wanted.create(Host("console0", None, None, closers, print))
    with pytest.raises(HostError, match="listens"):
        wanted.check()
    device.close()
    closers.pop().close()
    path.write_text("precious")
    with pytest.raises(UsageError, match="no socket"):
        wanted.check()
    assert path.read_text() == "precious"


def test_a_path_that_somebody_else_took_over_is_left_alone(tmp_path):
    path = tmp_path / "s"
    closers: list = []
    ConsoleAttachment.parse(f"port=a,socket={path}").create(Host("console0", None, None, closers, print))
    path.unlink()
    path.write_text("precious")
    closers.pop().close()
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket(tmp_path):
    path = tmp_path / ("x" * 120)
    with pytest.raises(HostError, match="cannot listen"):
        ConsoleAttachment.parse(f"port=a,socket={path}").create(Host("console0", None, None, [], print))


def test_indirect_descriptors_are_offered(guest_of):
    guest = guest_of(ConsoleDevice("console0", [Port(Channel(), "a")]))
    assert guest.driver.features & INDIRECT_DESC
