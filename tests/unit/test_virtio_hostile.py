"""Guests, back-ends and local users that wish no good: nothing of theirs holds the machine up, or outlasts a reset."""

from __future__ import annotations

import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from test_vhost import Kernel
from test_vhost_user import (
    CONFIG,
    GET_PROTOCOL_FEATURES,
    REPLY_ACK,
    SET_CONFIG,
    SET_VRING_KICK,
    Backend,
    device,
)
from test_vsock import Guest, connect_to, greeted
from virtio_driver import Driver

from pyvmm.console import Console
from pyvmm.devices.virtio import block, disk_overlay, vhost
from pyvmm.devices.virtio.balloon import BalloonDevice
from pyvmm.devices.virtio.block import BlockDevice
from pyvmm.devices.virtio.console import (
    MESSAGES_WAITING,
    PORT_OPEN,
    PORT_READY,
    ConsoleDevice,
    Port,
)
from pyvmm.devices.virtio.console_files import FileEndpoint
from pyvmm.devices.virtio.console_ports import Channel, Endpoint
from pyvmm.devices.virtio.daemon import Daemon
from pyvmm.devices.virtio.disk_overlay import BASE, DATA, OverlayDisk
from pyvmm.devices.virtio.features import NEEDS_RESET
from pyvmm.devices.virtio.net import NetDevice
from pyvmm.devices.virtio.rng import RngDevice
from pyvmm.devices.virtio.vsock import Vsock
from pyvmm.devices.virtio.vsock_bridge import Bridge
from pyvmm.errors import HostError
from pyvmm.machine.attachments.base import Host
from pyvmm.machine.attachments.console import ConsoleAttachment
from pyvmm.memory import GuestMemory


def until(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.005)
    return True


# --- a reset, and the machine's end, do not wait for what a guest has asked for -----------------------------


class Slow(Endpoint):
    """A reader that takes 4 KiB in 5 ms, and is always ready for more."""

    taken = 0

    def take(self, views: list[memoryview]) -> int:
        time.sleep(0.005)
        size = min(4096, sum(map(len, views)))
        self.taken += size
        return size

    def last_wait(self) -> bool:
        return True


@pytest.mark.parametrize("running", [True, False])
def test_output_without_end_is_given_up_at_the_reset(running: bool) -> None:
    """A request of a port may have gigabytes, all of them the same few pages of the guest."""
    endpoint = Slow()
    console = ConsoleDevice("console0", [Port(endpoint, "a")])
    with Driver(console) as driver:
        queue = driver.queue(1)
        if not running:  # it is only found at the reset
            entered, go_on = threading.Event(), threading.Event()
            assert console._worker is not None

            def busy() -> None:
                entered.set()
                go_on.wait(1)

            console._worker.call(busy)
            assert entered.wait(5)
        for head in range(8):
            queue.set_descriptor(head, 0x100000, 8 << 20)
            queue.publish(head)
        driver.kick(1, force=True)
        if running:
            assert until(lambda: endpoint.taken)
        started = time.monotonic()
        driver.reset()
        assert time.monotonic() - started < 4  # all of it would take eighty seconds


class Zeroes:
    """A disk of 1 TiB on which zeroes take their time."""

    size = 1 << 40
    read_only = False
    granularity = 4096
    ranges = 0

    def write_zeroes(self, offset: int, size: int, unmap: bool) -> None:
        self.ranges += 1
        time.sleep(0.1)

    def discard(self, offset: int, size: int) -> None:
        self.write_zeroes(offset, size, True)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("kind", [block.DISCARD, block.WRITE_ZEROES])
def test_ranges_end_with_the_reset(kind: int) -> None:
    disk = Zeroes()
    with Driver(BlockDevice("disk0", disk, say=print)) as driver:  # type: ignore[arg-type]
        ranges = struct.pack("<QII", 0, block.RANGE_SECTORS, 0) * block.RANGES
        driver.queue(0).add([struct.pack("<IIQ", kind, 0, 0), ranges], [1])
        driver.kick(0)
        assert until(lambda: disk.ranges)
        started = time.monotonic()
        driver.reset()
        assert time.monotonic() - started < 2
        assert disk.ranges < block.RANGES // 2


def test_the_time_a_patchwork_takes_grows_with_its_size_only() -> None:
    """Every other cluster written: as many runs as there are clusters."""

    class Base:
        size = 8 << 30
        reads = 0

    clusters = Base.size >> 12
    disk = OverlayDisk(
        Base(),  # type: ignore[arg-type]
        -1,
        bytearray(bytes((BASE, DATA)) * (clusters // 2)),
        shift=12,
        map_offset=None,
        data_offset=0,
    )
    started = time.process_time()
    runs = list(disk._runs(1, 1 << 19))
    assert time.process_time() - started < 4  # a copy of what is left for each run takes a minute
    assert len(runs) == 1 << 19 and runs[0] == (DATA, 1, 2) and runs[-1] == (BASE, 1 << 19, (1 << 19) + 1)


def test_a_patchwork_is_read_into_many_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_overlay, "read_all", lambda fd, views, offset, size: None)

    class Base:
        size = 2 << 30

        def read(self, views: Sequence[memoryview], offset: int, size: int) -> None:
            assert sum(map(len, views)) == size

    clusters = Base.size >> 12
    map_ = bytearray(bytes((BASE, DATA)) * (clusters // 2))
    disk = OverlayDisk(Base(), -1, map_, shift=12, map_offset=None, data_offset=0)  # type: ignore[arg-type]
    views = [memoryview(bytearray(4 << 20))] * 512
    started = time.process_time()
    disk.read(views, 0, Base.size)
    assert (
        time.process_time() - started < 6
    )  # looking for each piece from the first buffer on takes three times as long


def test_a_file_gets_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may be as large as guest RAM, and a write of that cannot be interrupted."""
    sizes: list[int] = []
    writev = os.writev

    def noted(fd: int, views: Sequence[memoryview]) -> int:
        sizes.append(sum(map(len, views)))
        return writev(fd, views)

    monkeypatch.setattr(os, "writev", noted)
    endpoint = FileEndpoint(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT), "out", print)
    views = [memoryview(bytes(3 << 20)), memoryview(b"end")]
    done = 0
    while done < (3 << 20) + 3:
        taken = endpoint.take([views[0][done:], views[1]] if done < 3 << 20 else [views[1]])
        done += taken
    endpoint.close()
    assert (tmp_path / "out").read_bytes() == bytes(3 << 20) + b"end"
    assert max(sizes) <= 1 << 20


# --- nothing grows ------------------------------------------------------------------------------------------


def test_clients_that_come_and_go_while_the_guest_does_not_listen() -> None:
    endpoint = Channel()
    port = Port(endpoint, "a")
    console = ConsoleDevice("console0", [port])
    with Driver(console) as driver:
        driver.queue(3).add([struct.pack("<IHH", 0, PORT_READY, 1)], [])
        driver.kick(3)
        assert driver.wait(3)
        worker = console._worker
        assert worker is not None
        done = threading.Event()
        for _ in range(4 * MESSAGES_WAITING):
            endpoint.connected = not endpoint.connected
            worker.call(port.host_changed)
        endpoint.connected = False
        worker.call(port.host_changed)
        worker.call(done.set)
        assert done.wait(5)
        assert len(console._messages) <= MESSAGES_WAITING + 8
        heard: list[bytes] = []
        while not heard or console._messages:
            driver.queue(2).add([], [64])
            driver.kick(2)
            heard += [driver.written(token)[0][:size] for token, size in driver.wait(2)]
        assert heard[-1] == struct.pack("<IHH", 0, PORT_OPEN, 0), "the last of it is true"


def test_a_program_that_talks_without_an_end_of_line() -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo ready >&2; exec sleep 1000"
    daemon = Daemon("talker", lambda _: ["sh", "-c", script])
    try:
        assert until(lambda: "ready" in daemon._stderr)
        assert sum(map(len, daemon._stderr)) < 200_000
    finally:
        daemon.close()


DEVICES: dict[str, Callable[[], object]] = {
    "rng": lambda: RngDevice("rng0"),
    "balloon": lambda: BalloonDevice("balloon0"),
    "console": lambda: ConsoleDevice("console0", [Port(Channel(), "a"), Port(Channel(), "b")]),
    "block": lambda: BlockDevice("disk0", Zeroes(), say=print),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", DEVICES)
def test_resets_from_everywhere_leave_nothing(name: str) -> None:
    """Several vCPUs at once: one starts the device and resets it, others write whatever registers there are."""
    before = len(os.listdir("/proc/self/fd"))
    driver = Driver(DEVICES[name](), start=False)  # type: ignore[arg-type]
    stop = threading.Event()
    errors: list[BaseException] = []

    def write(seed: int) -> None:
        number = seed
        try:
            while not stop.is_set():
                number = (number * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
                register = (number >> 33) % 0x48 * 4
                value = (0, 1, 15, 64, 0x2000, 0xFFFFFFFF, number >> 20 & 0xFFFF, number >> 30 & 0xFFFFFFFF)
                driver.transport.write(register, value[number >> 60 & 7], 4 if number >> 50 & 3 else 1)
                driver.transport.read(register, 4)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        try:
            driver.negotiate()
        except AssertionError:
            pass  # another vCPU has been in the way
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not [line for line in driver.notes if "internal error" in line]
    driver.negotiate()
    assert not driver.status & NEEDS_RESET, "a driver that keeps to the rules gets a device"
    driver.close()
    assert threading.active_count() == 1
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(vhost, "ioctl", made.ioctl)
    return made


# --- back-ends ----------------------------------------------------------------------------------------------


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    yield made
    made.close()


def test_a_backend_that_does_not_answer_holds_a_vcpu_up_once(backend: Backend) -> None:
    """Its late answers would be taken for those to other requests, as well."""
    backend.values[GET_PROTOCOL_FEATURES] = REPLY_ACK | CONFIG
    backend.answers[SET_CONFIG] = b""
    with Driver(device(backend, config_size=16, timeout=0.3), shared=True) as driver:
        started = time.monotonic()
        for _ in range(20):
            driver.write_config(8, b"\x77")
        assert time.monotonic() - started < 3
        assert driver.needs_reset and "did not answer VHOST_USER_SET_CONFIG" in driver.notes[0]


def test_a_backend_that_makes_the_kicks_block(backend: Backend) -> None:
    """O_NONBLOCK belongs to what two descriptors share."""
    driver = Driver(device(backend), shared=True)
    kicks = [fds[0] for request, _, _, fds in list(backend.seen) if request == SET_VRING_KICK]
    assert len(kicks) == 2
    for fd in kicks:
        os.set_blocking(fd, True)
    resetting = threading.Thread(target=driver.reset, daemon=True)
    resetting.start()
    resetting.join(3)
    stuck = resetting.is_alive()
    for fd in kicks:
        os.set_blocking(fd, False)
        os.eventfd_write(fd, 1)
    resetting.join(5)
    driver.close()
    assert not stuck


def test_a_socket_of_somebody_else_s_in_our_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "port"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(place))

    def sticky(path: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", sticky)
    console = ConsoleAttachment.parse(f"port=a,socket={place}")
    with pytest.raises(HostError, match="cannot replace .*port: Operation not permitted"):
        console.create(Host("console0", None, None, [], print))  # type: ignore[arg-type]


# --- the vsock bridge, when descriptors run out -------------------------------------------------------------


@pytest.fixture
def scarce() -> Iterator[Callable[[int], None]]:
    """Leave so many descriptors."""
    former = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count: int) -> None:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, former[1]))

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, former)


def fill(most: int) -> Sequence[int]:
    """Take all descriptors but the highest."""
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        return taken


@pytest.mark.parametrize("left", [0, 1, 2])
def test_the_bridge_outlives_a_want_of_descriptors(
    tmp_path: Path, scarce: Callable[[int], None], left: int
) -> None:
    guest = Guest(tmp_path)
    bridge = Bridge(str(tmp_path / "vm"), 3, (7,), dial=guest.dial, listen=guest.host_port)
    try:
        with guest.listen(1):
            with socket.socket(socket.AF_UNIX) as caller, socket.socket(socket.AF_UNIX) as inside:
                scarce(16)
                taken = list(fill(16))
                for _ in range(left):
                    os.close(taken.pop())
                inside.connect(str(tmp_path / "host-7"))  # the guest's, which needs two here
                caller.connect(str(tmp_path / "vm"))
                caller.send(b"CONNECT 1\n")
                time.sleep(0.1)
                used = time.process_time()
                time.sleep(0.3)
                assert time.process_time() - used < 0.15, "nobody spins"
                for fd in taken:
                    os.close(fd)
            assert bridge._thread.is_alive()
            with connect_to(tmp_path / "vm") as caller:
                caller.settimeout(5)
                caller.sendall(b"CONNECT 1\n")
                assert greeted(caller)
    finally:
        bridge.close()


# --- what outlasted a reset, and what grew with each kick ---------------------------------------------------


def test_kicks_while_the_consoles_reader_is_behind() -> None:
    console = Console()
    device_ = ConsoleAttachment.parse("hvc").create(Host("console0", None, console, [], print))  # type: ignore[arg-type]
    with Driver(device_) as driver:
        console.full = True
        driver.queue(1).add([b"x"], [])
        for _ in range(300):
            driver.kick(1, force=True)
            time.sleep(0.001)
        assert until(lambda: console._waiting)
        assert len(console._waiting) == 1
        console.flush()
        assert driver.wait(1), "it goes on when there is room"
        console.collect()
        assert console.total == 1
    console.close()


def test_errors_of_the_kernel_s_vhost_end_with_the_reset(kernel: Kernel, tmp_path: Path) -> None:
    """A ring that is kicked again and again is found broken again and again."""
    node = tmp_path / "vhost-vsock"
    node.touch()
    with Driver(Vsock("vsock0", 42, path=str(node))) as driver:
        (_, fd), _ = kernel.all("SET_VRING_ERR", "<Ii")
        os.eventfd_write(fd, 1)
        assert until(lambda: driver.needs_reset)
        os.eventfd_write(fd, 5)
        driver.negotiate()
        time.sleep(0.2)
        assert not driver.needs_reset


@pytest.mark.parametrize("request_", ["VSOCK_SET_RUNNING", "GET_VRING_BASE", "SET_VRING_KICK"])
def test_a_refusal_does_not_leave_the_other_queues_running(
    kernel: Kernel, tmp_path: Path, request_: str
) -> None:
    node = tmp_path / "vhost-vsock"
    node.touch()
    with Driver(Vsock("vsock0", 42, path=str(node))) as driver:
        kernel.calls.clear()
        kernel.errors[f"VHOST_{request_}"] = 5
        driver.reset()
        assert kernel.all("SET_VRING_CALL", "<Ii") == [(0, -1), (1, -1)]
        assert request_ in driver.notes[0]


def test_a_device_that_cannot_be_closed_does_not_keep_others_open() -> None:
    class Stubborn(RngDevice):
        def close(self) -> None:
            raise OSError(5, "Input/output error")

    driver = Driver(Stubborn("rng0"))
    driver.close()
    assert driver.notes == ["rng0: internal error: OSError: [Errno 5] Input/output error"]


def test_no_room_for_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with Driver(RngDevice("rng0"), start=False) as driver:

        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for _ in range(5):
                driver.negotiate()
                assert driver.needs_reset
                driver.reset()
        assert len(os.listdir("/proc/self/fd")) == before
        assert not [line for line in driver.notes if "join" in line]
        driver.negotiate()
        assert len(driver.request(0, [], [16])[0]) == 16


def test_calls_of_a_device_that_failed_are_not_kept() -> None:
    balloon = BalloonDevice("balloon0")
    with Driver(balloon) as driver:
        queue = driver.queue(0)
        queue.set_descriptor(0, driver.memory.size, 64)
        queue.publish(0)
        driver.kick(0)
        assert until(lambda: driver.needs_reset)
        for _ in range(100):
            balloon.ask()
        assert balloon._worker is not None and len(balloon._worker._calls) < 10


class Packets:
    """A backend as a TAP interface is: what does not fit is lost, and a system call takes 1024 pieces."""

    label = "packets"
    features = 0
    backlog = False

    def __init__(self) -> None:
        self.other, self._socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()

    def start(self, features: int) -> None:
        pass

    stop = close = lambda self: None

    def receive(self, views: Sequence[memoryview]) -> int:
        try:
            return os.readv(self.fd, views)
        except BlockingIOError:
            return 0

    def send(self, frames: Sequence[Sequence[memoryview]]) -> tuple[int, int]:
        return len(frames), 0

    def statistics(self) -> dict[str, int]:
        return {}


def test_a_card_whose_buffers_were_crumbs_works_after_a_reset() -> None:
    backend = Packets()
    with Driver(NetDevice("net0", backend, b"\x52\x54\0\0\0\1")) as driver, backend.other, backend._socket:
        for _ in range(12):
            driver.queue(0).add([], [1] * 200, indirect=True)
        driver.kick(0, force=True)
        for _ in range(3):
            backend.other.send(bytes(12) + b"x" * 9000)
        assert until(lambda: driver.needs_reset)
        assert "hold no frame" in driver.notes[0]
        driver.negotiate()
        assert driver.config(6, 2) == b"\1\0", "the link is up"
        for _ in range(12):
            driver.queue(0).add([], [2048])
        driver.kick(0, force=True)
        assert len(driver.wait_all(0, 10)) == 10, "the two frames that are left, in five buffers each"


def test_pages_that_a_guest_gives_back_one_by_one(tmp_path: Path) -> None:
    """Of a file that is mapped: a mapping for each would soon be all that the host lets a process have."""
    size = 2 << 20
    path = tmp_path / "image"
    path.write_bytes(b"\xaa" * size)
    with GuestMemory([(0, 4 << 20)]) as memory:
        with path.open("rb") as file:
            assert memory.map_file(1 << 20, size, file.fileno(), 0)
        before = len(Path("/proc/self/maps").read_text().splitlines())
        for page in range(1 << 20, 3 << 20, 8192):
            memory.discard(page, 4096)
        assert len(Path("/proc/self/maps").read_text().splitlines()) < before + 20
        assert memory.read(1 << 20, 8192) == bytes(4096) + b"\xaa" * 4096
        memory.discard(2 << 20, 1 << 18)
        assert memory.read(2 << 20, 1 << 18) == bytes(1 << 18)
