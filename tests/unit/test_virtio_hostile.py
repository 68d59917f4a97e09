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
from test_vhost_user import CONFIG, GET_PROTOCOL_FEATURES, REPLY_ACK, SET_CONFIG, Backend, device
from test_vsock import Guest, connect_to, greeted
from virtio_driver import Driver

from pyvmm.devices.virtio import block
from pyvmm.devices.virtio.balloon import BalloonDevice
from pyvmm.devices.virtio.block import BlockDevice
from pyvmm.devices.virtio.console import (
    MESSAGES_WAITING,
    PORT_OPEN,
    PORT_READY,
    ConsoleDevice,
    Port,
)
from pyvmm.devices.virtio.console_ports import Channel, Endpoint
from pyvmm.devices.virtio.daemon import Daemon
from pyvmm.devices.virtio.disk_overlay import BASE, DATA, OverlayDisk
from pyvmm.devices.virtio.features import NEEDS_RESET
from pyvmm.devices.virtio.rng import RngDevice
from pyvmm.devices.virtio.vsock_bridge import Bridge


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
            console._worker.call(lambda: (entered.set(), go_on.wait(1))[0])
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
        heard = []
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
