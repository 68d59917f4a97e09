"""vhost-user: our side of the protocol, against a back-end of a few lines here and against qemu-storage-daemon."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import cannot
from virtio_driver import Driver

from pyvmm.devices.virtio import features as f
from pyvmm.devices.virtio.daemon import Daemon
from pyvmm.devices.virtio.vhost_user import VhostUserDevice, connect
from pyvmm.errors import HostError, PyvmmError

(
    GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE,
    GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM,
    SET_VRING_ENABLE, SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG,
) = 1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 21, 24, 25  # fmt: skip
PROTOCOL = 1 << 30
MQ, REPLY_ACK, BACKEND_REQ, CONFIG = 1, 8, 32, 512


class Backend(threading.Thread):
    """A back-end that answers and does nothing else; ``answers`` replaces what it says to a request.

    An answer of None hangs up, one of b"" says nothing.  ``seen`` has (request, flags, payload, descriptors).
    """

    def __init__(self, features: int = f.VERSION_1 | PROTOCOL | 1 << 3, protocol: int = REPLY_ACK) -> None:
        super().__init__(daemon=True)
        self.ours, self.theirs = socket.socketpair()
        self.config = bytes(range(16))
        self.seen: list[tuple[int, int, bytes, list[int]]] = []
        self.answers: dict[int, bytes | None] = {}
        self.values = {GET_FEATURES: features, GET_PROTOCOL_FEATURES: protocol, GET_QUEUE_NUM: 2}
        self.start()

    def run(self) -> None:
        with self.ours:
            while True:
                try:
                    header, fds, _, _ = socket.recv_fds(self.ours, 12, 8)
                    if len(header) < 12:
                        return
                    request, flags, size = struct.unpack("<III", header)
                    payload = self.ours.recv(size, socket.MSG_WAITALL) if size else b""
                    self.seen.append((request, flags, payload, fds))
                    answer = self.answers.get(request, self.answer(request, flags, payload))
                    if answer is None:
                        return
                    if answer:
                        self.ours.sendall(answer)
                except OSError:
                    return

    def answer(self, request: int, flags: int, payload: bytes) -> bytes:
        if request in self.values:
            return reply(request, struct.pack("<Q", self.values[request]))
        if request == GET_CONFIG:
            offset, size, _ = struct.unpack_from("<III", payload)
            return reply(request, payload[:12] + self.config[offset : offset + size])
        if request == GET_VRING_BASE:
            return reply(request, payload[:4] + struct.pack("<I", 9))
        return reply(request, bytes(8)) if flags & 8 else b""

    def payloads(self, request: int) -> list[bytes]:
        return [payload for each, _, payload, _ in self.seen if each == request]

    def requests(self) -> list[int]:
        return [request for request, _, _, _ in self.seen]

    def close(self) -> None:
        for _, _, _, fds in self.seen:
            for fd in fds:
                os.close(fd)
        self.seen.clear()


def reply(request: int, payload: bytes, flags: int = 5) -> bytes:
    return struct.pack("<III", request, flags, len(payload)) + payload


def device(backend: Backend, **options: object) -> VhostUserDevice:
    settings: dict[str, object] = {"queue_sizes": (64, 64), "timeout": 5.0} | options
    return VhostUserDevice("disk0", f.BLOCK, backend.theirs, **settings)  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.005)


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    yield made
    made.close()


# --- what is said ---------------------------------------------------------------------------------------


def test_features_of_the_backend_are_offered_without_what_is_between_the_two(backend: Backend) -> None:
    backend.values[GET_FEATURES] |= f.EVENT_IDX | f.RING_PACKED | f.ACCESS_PLATFORM | 1 << 26 | 1 << 9
    made = device(backend, device_features=1 << 9)
    assert made.features == f.VERSION_1 | f.EVENT_IDX | 1 << 9
    assert made.DEVICE_ID == f.BLOCK
    assert backend.requests() == [GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_OWNER]
    made.close()


def test_memory_and_rings_are_handed_over(backend: Backend) -> None:
    with Driver(device(backend), shared=True) as driver:
        assert not driver.needs_reset, driver.notes
        start, size = driver.memory.regions[0].host_address, driver.memory.size
        assert backend.payloads(SET_FEATURES) == [struct.pack("<Q", driver.features | PROTOCOL)]
        assert backend.payloads(SET_MEM_TABLE) == [struct.pack("<IIQQQQ", 1, 0, 0, size, start, 0)]
        ((_, _, _, (memfd,)),) = [each for each in backend.seen if each[0] == SET_MEM_TABLE]
        driver.memory.write(0x5000, b"guest")
        assert os.pread(memfd, 5, 0x5000) == b"guest"
        for index in (0, 1):
            queue = driver.queue(index)
            assert backend.payloads(SET_VRING_NUM)[index] == struct.pack("<II", index, 64)
            assert backend.payloads(SET_VRING_BASE)[index] == struct.pack("<II", index, 0)
            assert backend.payloads(SET_VRING_ADDR)[index] == struct.pack(
                "<IIQQQQ", index, 0, start + queue.desc, start + queue.used, start + queue.avail, 0
            )
            assert backend.payloads(SET_VRING_ENABLE)[index] == struct.pack("<II", index, 1)
        acknowledged = [
            flags & 8 for request, flags, _, _ in backend.seen if request >= SET_VRING_NUM and request != 15
        ]
        assert acknowledged[1:] == [8] * (len(acknowledged) - 1), "all after SET_PROTOCOL_FEATURES"


def test_kicks_and_interrupts_go_by_the_descriptors(backend: Backend) -> None:
    with Driver(device(backend), shared=True) as driver:
        kicks = [fds[0] for request, _, _, fds in backend.seen if request == SET_VRING_KICK]
        calls = [fds[0] for request, _, _, fds in backend.seen if request == SET_VRING_CALL]
        driver.queue(1).add([b"x"], [1])
        assert driver.kick(1)
        assert os.eventfd_read(kicks[1]) == 1
        os.eventfd_write(calls[1], 1)
        assert driver.interrupts() == 1


def test_a_reset_takes_the_rings_back_and_memory_is_sent_once(backend: Backend) -> None:
    with Driver(device(backend), shared=True) as driver:
        driver.reset()
        assert backend.payloads(GET_VRING_BASE) == [struct.pack("<II", index, 0) for index in (0, 1)]
        driver.negotiate()
        assert not driver.needs_reset
        assert len(backend.payloads(SET_MEM_TABLE)) == 1
        assert len(backend.payloads(SET_VRING_KICK)) == 4


def test_a_backend_without_protocol_features_is_told_less(backend: Backend) -> None:
    backend.values[GET_FEATURES] = f.VERSION_1
    with Driver(device(backend), shared=True) as driver:
        assert not driver.needs_reset
        assert SET_VRING_ENABLE not in backend.requests() and GET_PROTOCOL_FEATURES not in backend.requests()
        assert all(flags == 1 for _, flags, _, _ in backend.seen)
        driver.reset()


def test_configuration_is_read_written_and_followed(backend: Backend) -> None:
    backend.values[GET_PROTOCOL_FEATURES] = REPLY_ACK | CONFIG | BACKEND_REQ | MQ
    with Driver(device(backend, config_size=16), shared=True) as driver:
        assert driver.config(0, 16) == bytes(range(16))
        driver.write_config(8, b"\x77")
        assert backend.payloads(SET_CONFIG) == [struct.pack("<III", 8, 1, 0) + b"\x77"]
        assert driver.config(8, 1) == b"\x77"
        # The back-end says that its configuration has changed, and wants to know that we have heard it.
        ((_, _, _, (fd,)),) = [each for each in backend.seen if each[0] == SET_BACKEND_REQ_FD]
        backend.config = bytes(16)
        with socket.socket(fileno=os.dup(fd)) as channel:
            channel.settimeout(5)
            channel.sendall(struct.pack("<III", 2, 1 | 8, 0))
            assert channel.recv(100) == struct.pack("<IIIQ", 2, 5, 8, 0)
            wait_for(lambda: driver.config(0, 16) == bytes(16))
            assert driver.acknowledge() & f.CONFIG_CHANGE
            # Anything else is refused, and what comes with it is not kept.
            before = len(os.listdir("/proc/self/fd"))
            socket.send_fds(channel, [struct.pack("<III", 3, 1 | 8, 4) + b"data"], [fd, fd])
            assert channel.recv(100) == struct.pack("<IIIQ", 3, 5, 8, 1)
            wait_for(lambda: len(os.listdir("/proc/self/fd")) == before)
            assert not driver.needs_reset


def test_a_changed_configuration_that_cannot_be_read_fails_the_device(backend: Backend) -> None:
    backend.values[GET_PROTOCOL_FEATURES] = REPLY_ACK | CONFIG | BACKEND_REQ
    with Driver(device(backend, config_size=16), shared=True) as driver:
        ((_, _, _, (fd,)),) = [each for each in backend.seen if each[0] == SET_BACKEND_REQ_FD]
        backend.answers[GET_CONFIG] = None
        os.write(fd, struct.pack("<III", 2, 1, 0))
        wait_for(lambda: driver.needs_reset)
        assert "went away at VHOST_USER_GET_CONFIG" in driver.notes[0]


def test_a_refused_configuration_write_leaves_the_old_value(backend: Backend) -> None:
    backend.values[GET_PROTOCOL_FEATURES] = REPLY_ACK | CONFIG
    backend.answers[SET_CONFIG] = reply(SET_CONFIG, struct.pack("<Q", 1))
    with Driver(device(backend, config_size=16), shared=True) as driver:
        driver.write_config(8, b"\x77")
        assert driver.config(8, 1) == b"\x08" and not driver.needs_reset


# --- what goes wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "answer", "message"),
    [
        (GET_FEATURES, None, "the vhost-user back-end went away at VHOST_USER_GET_FEATURES: "),
        (GET_FEATURES, b"", "did not answer VHOST_USER_GET_FEATURES within 0.3 s"),
        (
            GET_FEATURES,
            reply(GET_FEATURES, bytes(4)),
            "answered VHOST_USER_GET_FEATURES with 4 bytes instead of 8",
        ),
        (GET_FEATURES, reply(SET_OWNER, bytes(8)), "answered VHOST_USER_GET_FEATURES with message 3"),
        (GET_FEATURES, reply(GET_FEATURES, bytes(8), 1), "flags 0x1"),
        (GET_FEATURES, reply(GET_FEATURES, bytes(8), 6), "flags 0x6"),
        (GET_FEATURES, struct.pack("<III", 1, 5, 1 << 31), "2147483648 bytes"),
        (SET_OWNER, reply(SET_OWNER, struct.pack("<Q", 22)), r"refused VHOST_USER_SET_OWNER \(status 0x16\)"),
        (GET_QUEUE_NUM, reply(GET_QUEUE_NUM, struct.pack("<Q", 1)), "serves 1 queues, not 2"),
        (GET_CONFIG, reply(GET_CONFIG, b""), "gives 0 bytes of configuration, not 16"),
    ],
)
def test_a_backend_that_cannot_be_used(request_: int, answer: bytes | None, message: str) -> None:
    backend = Backend(protocol=REPLY_ACK | MQ | CONFIG)
    backend.answers[request_] = answer
    with pytest.raises(HostError, match=message):
        device(backend, config_size=16, timeout=0.3)
    assert backend.theirs.fileno() == -1, "closed"
    backend.close()


def test_a_backend_without_a_configuration_space(backend: Backend) -> None:
    with pytest.raises(HostError, match="offers no configuration space"):
        device(backend, config_size=16)


def test_private_memory_is_refused(backend: Backend) -> None:
    with Driver(device(backend)) as driver:
        assert driver.needs_reset
        assert "shared guest memory" in driver.notes[0]


def test_a_backend_that_dies_in_use_marks_the_device(backend: Backend) -> None:
    with Driver(device(backend), shared=True) as driver:
        backend.ours.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: driver.needs_reset)
        assert driver.notes == ["disk0: the vhost-user back-end closed the connection"]
        driver.negotiate()
        assert driver.needs_reset, "it stays dead"
        assert len(driver.notes) == 2


def test_a_backend_that_refuses_memory_marks_the_device(backend: Backend) -> None:
    backend.answers[SET_MEM_TABLE] = reply(SET_MEM_TABLE, struct.pack("<Q", 1))
    with Driver(device(backend), shared=True) as driver:
        assert driver.needs_reset
        assert driver.notes == [
            "disk0: the vhost-user back-end refused VHOST_USER_SET_MEM_TABLE (status 0x1)"
        ]


def test_a_backend_that_keeps_the_rings_is_cut_off(backend: Backend) -> None:
    backend.answers[GET_VRING_BASE] = b""
    with Driver(device(backend, timeout=0.3), shared=True) as driver:
        started = time.monotonic()
        driver.reset()
        assert time.monotonic() - started < 3
        backend.join(5)
        assert not backend.is_alive(), "the back-end saw the end of the connection"
        driver.negotiate()
        assert driver.needs_reset and "did not answer VHOST_USER_GET_VRING_BASE" in driver.notes[0]


def test_nothing_is_left_open(backend: Backend) -> None:
    backend.values[GET_PROTOCOL_FEATURES] = REPLY_ACK | CONFIG | BACKEND_REQ
    before = len(os.listdir("/proc/self/fd"))
    driver = Driver(device(backend, config_size=16), shared=True)
    driver.close()
    backend.join(5)
    backend.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2, "the two ends of the connection"


def test_connecting_to_nobody(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file or directory") as caught:
        connect(str(tmp_path / "socket"))
    assert caught.value.hint


# --- programs -------------------------------------------------------------------------------------------


def test_a_program_that_ends_says_why() -> None:
    script = "echo something else >&2; echo no image, no disk >&2; exit 3"
    with pytest.raises(HostError) as caught:
        VhostUserDevice("disk0", 2, Daemon("false", lambda _: ["sh", "-c", script]), queue_sizes=(64,))
    assert "false went away at VHOST_USER_GET_FEATURES" in caught.value.message
    assert caught.value.message.endswith("; it ended with status 3: no image, no disk")


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(HostError, match="cannot start /nowhere/prog: No such file"):
        Daemon("prog", lambda _: ["/nowhere/prog"])


def test_no_room_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(HostError, match="cannot make a socket for sleep: AF_UNIX path too long") as caught:
        Daemon("sleep", lambda _: ["sleep", "1000"])
    assert "TMPDIR" in caught.value.hint
    assert list(long.iterdir()) == []


def test_a_program_ends_with_us() -> None:
    """However we end: SIGKILL here."""
    code = (
        "import time\n"
        "from pyvmm.devices.virtio.daemon import Daemon\n"
        "print(Daemon('sleep', lambda fd: ['sleep', '1000']).pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    import sys

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x001000\0"
        parent.kill()
    wait_for(lambda: b"sleep" not in _cmdline(pid))


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_program_that_ignores_sigterm_is_ended_and_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.devices.virtio.daemon._PATIENCE", 0.2)
    daemon = Daemon(
        "stubborn", lambda _: ["sh", "-c", "trap '' TERM; echo ready >&2; while :; do sleep 0.1; done"]
    )
    wait_for(lambda: bool(daemon._stderr))
    assert daemon.running() and daemon.epitaph(0) == ""
    daemon.close()
    assert not daemon.running() and daemon.epitaph() == "ended by signal 9: ready"
    assert not Path(f"/proc/{daemon.pid}").exists()


# --- qemu-storage-daemon --------------------------------------------------------------------------------


SECTOR = 512
OUT_HEADER = struct.Struct("<IIQ")
IN, OUT, FLUSH = 0, 1, 4


def storage_daemon(image: Path, driver: str, *, options: str = "") -> Daemon:
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        cannot("qemu-storage-daemon is not installed (qemu-system-common, or qemu-utils)")

    def command(fd: int) -> list[str]:
        return [
            str(program),
            "--blockdev", f"driver=file,node-name=file,filename={image}",
            "--blockdev", f"driver={driver},node-name=disk,file=file{options}",
            "--export", f"type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=fd,addr.str={fd}",
        ]  # fmt: skip

    return Daemon("qemu-storage-daemon", command)


def block_device(daemon: Daemon) -> VhostUserDevice:
    return VhostUserDevice("disk0", f.BLOCK, daemon, queue_sizes=(128,), config_size=60)


def transfer(driver: Driver, kind: int, sector: int, data: bytes = b"", size: int = 0) -> bytes:
    """A block request (virtio 1.2, section 5.2.6): what was read; the status has to be good."""
    readable = [OUT_HEADER.pack(kind, 0, sector)] + ([data] if data else [])
    *read, status = driver.request(0, readable, ([size] if size else []) + [1])
    assert status == b"\0"
    return b"".join(read)


def test_sectors_of_a_raw_image(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    contents = os.urandom(1 << 20)
    image.write_bytes(contents)
    with Driver(block_device(storage_daemon(image, "raw")), shared=True) as driver:
        assert driver.config(0, 8) == struct.pack("<Q", len(contents) // SECTOR)
        assert transfer(driver, IN, 3, size=4096) == contents[3 * SECTOR : 3 * SECTOR + 4096]
        transfer(driver, OUT, 100, data=b"W" * 4096)
        transfer(driver, FLUSH, 0)
        assert image.read_bytes()[100 * SECTOR :][:4097] == b"W" * 4096 + contents[100 * SECTOR + 4096 :][:1]
        driver.negotiate()
        assert transfer(driver, IN, 100, size=SECTOR) == b"W" * SECTOR, "after a reset"
        # Many at once, each an indirect descriptor.
        queue = driver.queue(0)
        tokens = [
            queue.add([OUT_HEADER.pack(IN, 0, sector)], [SECTOR, 1], indirect=True) for sector in range(64)
        ]
        driver.kick(0)
        assert len(driver.wait_all(0, 64)) == 64
        for sector, token in enumerate(tokens):
            assert driver.written(token) == [contents[sector * SECTOR :][:SECTOR], b"\0"]


def test_sectors_of_a_qcow2_image(tmp_path: Path) -> None:
    """The smallest qcow2: header, an empty L1 table, a refcount table and block (QEMU docs/interop/qcow2.txt)."""
    image = tmp_path / "disk.qcow2"
    cluster, size = 1 << 16, 8 << 20
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        3,
        0,
        0,
        16,
        size,
        0,
        1,
        3 * cluster,
        cluster,
        1,
        0,
        0,
        0,
        0,
        0,
        4,
        104,
    )
    refcounts = struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0") + struct.pack(">4H", 1, 1, 1, 1)
    image.write_bytes((header.ljust(cluster, b"\0") + refcounts).ljust(4 * cluster, b"\0"))
    for found in (bytes(SECTOR), b"Q" * SECTOR):
        with Driver(block_device(storage_daemon(image, "qcow2")), shared=True) as driver:
            assert driver.config(0, 8) == struct.pack("<Q", size // SECTOR)
            assert transfer(driver, IN, 1000, size=SECTOR) == found
            transfer(driver, OUT, 1000, data=b"Q" * SECTOR)
    assert b"Q" * SECTOR in image.read_bytes()


def test_a_storage_daemon_that_is_killed(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    daemon = storage_daemon(image, "raw")
    with Driver(block_device(daemon), shared=True) as driver:
        transfer(driver, IN, 0, size=SECTOR)
        os.kill(daemon.pid, 9)
        wait_for(lambda: driver.needs_reset)
        assert driver.notes == ["disk0: qemu-storage-daemon closed the connection; it ended by signal 9"]
    assert not Path(f"/proc/{daemon.pid}").exists()


def test_an_image_that_is_none(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    image.write_bytes(b"not an image" * 100)
    with pytest.raises(PyvmmError, match=r"ended with status 1: .*not in qcow2 format"):
        block_device(storage_daemon(image, "qcow2"))
