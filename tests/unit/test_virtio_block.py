"""The block device, driven as a guest's driver drives it."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import threading

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtio_driver import UNWRITTEN, Driver

from pyvmm.devices.virtio import block as b
from pyvmm.devices.virtio.block import BlockDevice
from pyvmm.devices.virtio.disk_file import DiskFile
from pyvmm.devices.virtio.disk_overlay_file import temporary_overlay
from pyvmm.devices.virtio.disk_raw import RawDisk
from pyvmm.devices.virtio.features import EVENT_IDX, VERSION_1

SIZE = 1 << 20


class Disk:
    """A block device over a file of a megabyte, and its driver."""

    def __init__(self, path, *, read_only=False, overlay=False, serial="", features=None, memory=8 << 20):
        self.path = path
        file = DiskFile(str(path), read_only or overlay)
        self.notes = []
        self.disk = temporary_overlay(file) if overlay else RawDisk(file)
        self.device = BlockDevice("disk0", self.disk, serial=serial, say=self.notes.append)
        self.driver = Driver(self.device, memory, features=features)

    def request(self, kind, sector=0, readable=(), writable=(), indirect=True):
        """The buffers that the device filled, and the status."""
        *buffers, status = self.driver.request(0, [header(kind, sector), *readable], [*writable, 1], indirect)
        return buffers, status[0]

    def read(self, sector, size):
        (data,), status = self.request(b.IN, sector, writable=[size])
        assert status == b.OK
        return data

    def write(self, sector, data):
        return self.request(b.OUT, sector, [data])[1]

    def ranges(self, kind, *ranges):
        data = b"".join(struct.pack("<QII", *each) for each in ranges)
        return self.request(kind, 0, [data])[1]


def header(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def make(image):
    made = []

    def make(**how):
        made.append(Disk(image, **how))
        return made[-1]

    yield make
    for disk in made:
        disk.driver.close()


def test_configuration_space(make):
    disk = make()
    capacity, size_max, seg_max = struct.unpack("<QII", disk.driver.config(0, 16))
    assert (capacity, size_max, seg_max) == (SIZE // 512, 0, 510)
    assert struct.unpack("<I", disk.driver.config(20, 4)) == (512,)
    assert struct.unpack("<BBHI", disk.driver.config(24, 8)) == (3, 0, 8, 0), "physical blocks of 4 KiB"
    assert disk.driver.config(32, 1) == b"\1", "there is a write cache"
    discard = struct.unpack("<III", disk.driver.config(36, 12))
    zeroes = struct.unpack("<IIB", disk.driver.config(48, 9))
    assert discard == (1 << 21, 64, 8) and zeroes == (1 << 21, 64, 1)
    offered = disk.driver.offered()
    for bit in (
        b.F_SEG_MAX,
        b.F_BLK_SIZE,
        b.F_TOPOLOGY,
        b.F_FLUSH,
        b.F_CONFIG_WCE,
        b.F_DISCARD,
        b.F_WRITE_ZEROES,
    ):
        assert offered & bit
    assert not offered & (b.F_RO | b.F_SIZE_MAX)


@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
def test_reads_and_writes(make, image, overlay, indirect):
    disk = make(overlay=overlay)
    content = bytearray(image.read_bytes())
    new = [os.urandom(512), os.urandom(4096), os.urandom(1024)]
    _, status = disk.request(b.OUT, 7, new, indirect=indirect)
    assert status == b.OK
    content[7 * 512 : 18 * 512] = b"".join(new)
    parts, status = disk.request(b.IN, 5, writable=[1024, 4096, 512, 2048], indirect=indirect)
    assert (b"".join(parts), status) == (content[5 * 512 : 20 * 512], b.OK)
    if overlay:
        assert image.read_bytes() != content
    else:
        assert image.read_bytes() == content
    statistics = disk.device.statistics()
    assert (statistics["reads"], statistics["writes"], statistics["errors"]) == (1, 1, 0)
    assert (statistics["bytes_read"], statistics["bytes_written"]) == (7680, 5632)


def test_how_much_was_written_is_said(make):
    disk = make()
    token = disk.driver.queue(0).add([header(b.IN)], [4096, 1])
    disk.driver.kick(0)
    assert disk.driver.wait(0) == [(token, 4097)]
    token = disk.driver.queue(0).add([header(b.OUT), bytes(4096)], [1])
    disk.driver.kick(0)
    assert disk.driver.wait(0) == [(token, 1)]


@pytest.mark.parametrize("last", [0, 1, 511])
def test_any_framing_of_a_request(make, image, last):
    """virtio 1.2, 2.7.4: the layout of buffers says nothing; header, data and status may share them."""
    disk = make()
    content = image.read_bytes()
    assert disk.driver.request(0, [header(b.IN, 3)[:5], header(b.IN, 3)[5:]], [512 - last, last + 1]) == [
        content[1536 : 2048 - last],
        content[2048 - last : 2048] + b"\0",
    ]
    new = os.urandom(1024)
    assert disk.driver.request(0, [header(b.OUT, 4) + new[:100], new[100:]], [1]) == [b"\0"]
    assert image.read_bytes() == content[:2048] + new + content[3072:]


def test_many_requests_one_interrupt(make, image):
    disk = make()
    content = image.read_bytes()
    queue = disk.driver.queue(0)
    gate = threading.Event()
    real = disk.disk.read

    def held(*arguments):
        gate.wait(5)
        real(*arguments)

    disk.device._disk = type("Held", (), {"read": staticmethod(held), "close": disk.disk.close})()
    tokens = [queue.add([header(b.IN, sector)], [512, 1], indirect=True) for sector in range(200)]
    disk.driver.kick(0)
    gate.set()
    done = disk.driver.wait_all(0, 200)
    assert [token for token, _ in done] == tokens
    for sector, token in enumerate(tokens):
        assert disk.driver.written(token) == [content[512 * sector : 512 * sector + 512], b"\0"]


@pytest.mark.parametrize(("size", "expected"), [(512, 1), (32 << 10, 12)])
def test_a_batch_interrupts_once_or_now_and_then_if_it_is_large(make, size, expected):
    """Without EVENT_IDX, when the device alone decides: at the end, and whenever more than 256 KiB were moved, for a
    driver that could already be making its next requests."""
    disk = make(features=~EVENT_IDX)
    queue = disk.driver.queue(0)
    started, gate = threading.Event(), threading.Event()

    def held(views, offset, size):
        started.set()
        gate.wait(5)

    disk.device._disk = type("Held", (), {"read": staticmethod(held), "close": disk.disk.close})()
    queue.add([header(b.IN)], [size, 1], indirect=True)
    disk.driver.kick(0)
    assert started.wait(5)
    for _ in range(99):
        queue.add([header(b.IN)], [size, 1], indirect=True)
    assert disk.driver.interrupts() == 0
    gate.set()
    for _ in range(1000):
        if queue.used_idx == 100:
            break
        threading.Event().wait(0.01)
    disk.driver.transport.close()  # the thread has ended: no more interrupts can come
    assert (queue.used_idx, disk.driver.interrupts()) == (100, expected)


def test_identity(make):
    disk = make(serial="pyvmm-disk")
    assert disk.request(b.GET_ID, writable=[20]) == ([b"pyvmm-disk".ljust(20, b"\0")], b.OK)
    (short,), status = disk.request(b.GET_ID, writable=[8])
    assert (short, status) == (b"pyvmm-di", b.IOERR)


@pytest.mark.parametrize(
    ("kind", "readable", "writable", "used"),
    [
        (b.GET_ID, [], [20, 1], 21), (b.GET_ID, [], [100, 1], 20), (b.FLUSH, [], [1], 1), (b.FLUSH, [], [20, 1], 0),
        (b.OUT, [bytes(512)], [1], 1), (b.OUT, [bytes(512)], [4096, 1], 0), (b.IN, [], [512, 1], 513),
    ],
)  # fmt: skip
def test_no_more_is_said_to_be_written_than_was(make, kind, readable, writable, used):
    """From the first buffer on, all of what the used length covers was written (2.7.8.2)."""
    disk = make(serial="pyvmm-disk")
    token = disk.driver.queue(0).add([header(kind), *readable], writable)
    disk.driver.kick(0)
    assert disk.driver.wait(0) == [(token, used)]
    *buffers, status = disk.driver.written(token)
    assert status == bytes((b.OK,))
    covered = b"".join(buffers)[:used]
    assert kind == b.IN or bytes((UNWRITTEN,)) not in covered


@pytest.mark.parametrize(
    ("kind", "sector", "size"),
    [
        (b.IN, SIZE // 512, 512), (b.IN, SIZE // 512 - 1, 1024), (b.IN, (1 << 64) - 1, 512), (b.IN, 1 << 55, 512),
        (b.IN, 0, 511), (b.IN, 0, 513), (b.OUT, SIZE // 512, 512), (b.OUT, SIZE // 512 - 1, 1024),
        (b.OUT, (1 << 64) - 1, 512), (b.OUT, 0, 100),
    ],
)  # fmt: skip
def test_beyond_the_end_or_not_in_sectors_is_an_error(make, image, kind, sector, size):
    before = image.read_bytes()
    disk = make()
    if kind == b.IN:
        (data,), status = disk.request(kind, sector, writable=[size])
        assert data == bytes([UNWRITTEN]) * size
    else:
        status = disk.write(sector, os.urandom(size))
    assert status == b.IOERR
    assert image.read_bytes() == before
    assert disk.device.statistics()["errors"] == 1
    assert disk.notes == [], "that is the guest's mistake, and it is told"
    assert disk.write(SIZE // 512 - 1, bytes(512)) == b.OK


@pytest.mark.parametrize("kind", [2, 3, 5, 7, 9, 10, 12, 14, 16, 0xFFFFFFFF])
def test_unknown_types_are_unsupported(make, kind):
    disk = make()
    assert disk.request(kind, writable=[512]) == ([bytes([UNWRITTEN]) * 512], b.UNSUPP)


@pytest.mark.parametrize(
    "shape", [([header(0)], []), ([header(0)[:15]], [1]), ([], [513]), ([header(0), b"x"], [])]
)
def test_a_request_that_cannot_be_answered_breaks_the_device(make, shape):
    disk = make()
    disk.driver.queue(0).add(*shape)
    disk.driver.kick(0)
    for _ in range(500):
        if disk.driver.needs_reset:
            break
        threading.Event().wait(0.01)
    assert disk.driver.needs_reset
    assert len(disk.driver.notes) == 1 and "virtqueue 0: a request without" in disk.driver.notes[0]
    disk.driver.negotiate()
    assert disk.write(0, bytes(512)) == b.OK, "as good as new after a reset"


def test_a_read_only_disk_is_not_written(make, image):
    before = image.read_bytes()
    disk = make(read_only=True)
    assert disk.driver.offered() & (b.F_RO | b.F_FLUSH | b.F_DISCARD | b.F_WRITE_ZEROES) == b.F_RO
    assert disk.write(0, bytes(512)) == b.IOERR
    assert disk.ranges(b.DISCARD, (0, 8, 0)) == b.IOERR
    assert disk.ranges(b.WRITE_ZEROES, (0, 8, 0)) == b.IOERR
    assert disk.request(b.FLUSH)[1] == b.OK
    assert disk.read(0, SIZE // 2) == before[: SIZE // 2] == image.read_bytes()[: SIZE // 2]
    assert disk.notes == [], "the file was not even tried"


# -- discard and zeroes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("flags", [0, 1])
def test_write_zeroes(make, image, overlay, flags):
    content = bytearray(image.read_bytes())
    disk = make(overlay=overlay)
    assert disk.ranges(b.WRITE_ZEROES, (3, 30, flags), (100, 0, flags), (200, 8, flags)) == b.OK
    content[3 * 512 : 33 * 512] = bytes(30 * 512)
    content[200 * 512 : 208 * 512] = bytes(8 * 512)
    assert disk.read(0, SIZE // 2) == content[: SIZE // 2]
    assert (image.read_bytes() == content) is not overlay
    assert disk.device.statistics()["write_zeroes"] == 1


@pytest.mark.parametrize("overlay", [False, True])
def test_discard(make, image, overlay):
    content = bytearray(image.read_bytes())
    disk = make(overlay=overlay)
    assert disk.ranges(b.DISCARD, (8, 16, 0), (SIZE // 512 - 8, 8, 0)) == b.OK
    content[4096 : 3 * 4096] = bytes(8192)
    content[-4096:] = bytes(4096)
    assert disk.read(0, SIZE // 2) == content[: SIZE // 2]
    assert disk.read(SIZE // 1024, SIZE // 2) == content[SIZE // 2 :]
    assert disk.device.statistics()["discards"] == 1


@pytest.mark.parametrize(
    ("kind", "ranges", "status"),
    [
        (b.DISCARD, [(0, 8, 1)], b.UNSUPP),
        (b.DISCARD, [(0, 8, 2)], b.UNSUPP),
        (b.WRITE_ZEROES, [(0, 8, 2)], b.UNSUPP),
        (b.WRITE_ZEROES, [(0, 8, 0), (0, 8, 4)], b.UNSUPP),
        (b.DISCARD, [(SIZE // 512, 1, 0)], b.IOERR),
        (b.WRITE_ZEROES, [(SIZE // 512 - 1, 2, 0)], b.IOERR),
        (b.WRITE_ZEROES, [(0, 8, 0), ((1 << 64) - 1, 8, 0)], b.IOERR),
        (b.DISCARD, [(0, 0xFFFFFFFF, 0)], b.IOERR),
        (b.DISCARD, [(0, 8, 0)] * 65, b.IOERR),
    ],
)
def test_ranges_that_cannot_be_are_refused_before_anything_is_done(make, image, kind, ranges, status):
    before = image.read_bytes()
    disk = make()
    assert disk.ranges(kind, *ranges) == status
    assert image.read_bytes() == before


def test_a_range_has_a_largest_size(make, image):
    os.truncate(image, 4 << 30)
    disk = make()
    for kind in (b.DISCARD, b.WRITE_ZEROES):
        flags = int(kind == b.WRITE_ZEROES)  # else a file system without ZERO_RANGE has them all written
        assert disk.ranges(kind, (8, 1 << 21, flags)) == b.OK
        assert disk.ranges(kind, (8, (1 << 21) + 1, flags)) == b.IOERR


@pytest.mark.parametrize("size", [8, 17, 31])
def test_half_a_range(make, size):
    disk = make()
    assert disk.request(b.DISCARD, 0, [bytes(size)])[1] == b.IOERR
    assert disk.request(b.DISCARD, 0, [])[1] == b.IOERR


# -- errors of the host ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_errors_of_the_host_reach_the_guest(make, monkeypatch, number):
    disk = make()

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail)
        patch.setattr(os, "preadv", fail)
        assert [disk.write(sector, bytes(512)) for sector in range(3)] == [b.IOERR] * 3
        assert disk.request(b.IN, 0, writable=[512])[1] == b.IOERR
    assert len(disk.notes) == 2, "each sort of failure is said once"
    assert (
        disk.notes[0].startswith("disk0: write of 512 bytes at 0x0: ")
        and os.strerror(number) in disk.notes[0]
    )
    assert disk.write(0, bytes(512)) == b.OK
    assert not disk.driver.needs_reset


def test_a_full_host_is_an_error_for_the_guest(image):
    """A file system with no room, for real: /dev/full."""
    disk = Disk(image)
    full = os.open("/dev/full", os.O_RDWR)
    try:
        disk.disk._fd = full
        assert disk.write(0, bytes(512)) == b.IOERR
        assert "No space left" in disk.notes[0]
    finally:
        disk.driver.close()
        os.close(full)


def test_a_file_cut_short_under_the_disk(make, image):
    disk = make()
    os.truncate(image, 4096)
    assert disk.read(0, 4096)
    assert disk.request(b.IN, 8, writable=[512])[1] == b.IOERR


# -- flush: what is acknowledged is on the storage --------------------------------------------------------


def watch_synchronising(disk, monkeypatch):
    """What the ring and the status showed when fdatasync was called."""
    seen = []
    real = os.fdatasync

    def synchronise(fd):
        real(fd)
        seen.append(disk.driver.queue(0).used_idx)

    monkeypatch.setattr(os, "fdatasync", synchronise)
    return seen


def test_a_flush_is_acknowledged_after_it_is_done(make, monkeypatch):
    disk = make()
    assert disk.write(0, bytes(512)) == b.OK
    used = disk.driver.queue(0).used_idx
    seen = watch_synchronising(disk, monkeypatch)
    assert disk.request(b.FLUSH)[1] == b.OK
    assert seen == [used], "once, before the request was given back"


def test_a_write_alone_is_not_synchronised(make, monkeypatch):
    disk = make()
    seen = watch_synchronising(disk, monkeypatch)
    assert disk.write(0, bytes(512)) == b.OK
    assert seen == []


def test_a_flush_that_fails_is_an_error_for_good(make, monkeypatch):
    disk = make()

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        assert disk.request(b.FLUSH)[1] == b.IOERR
    assert disk.request(b.FLUSH)[1] == b.IOERR
    assert len(disk.notes) == 1


def test_a_driver_without_flush_has_every_write_synchronised(make, monkeypatch):
    disk = make(features=~(b.F_FLUSH | b.F_CONFIG_WCE))
    used = disk.driver.queue(0).used_idx
    seen = watch_synchronising(disk, monkeypatch)
    assert disk.write(0, bytes(512)) == b.OK
    assert disk.ranges(b.WRITE_ZEROES, (0, 8, 1)) == b.OK
    assert seen == [used, used + 1]


def test_without_flushes_there_is_no_cache_to_switch(make, monkeypatch):
    """CONFIG_WCE without FLUSH: the device says "writethrough" before the driver may look (5.2.5.2)."""
    disk = make(features=~b.F_FLUSH)
    assert disk.driver.config(32, 1) == b"\0"
    disk.driver.write_config(32, b"\1")
    assert disk.driver.config(32, 1) == b"\0"
    seen = watch_synchronising(disk, monkeypatch)
    assert disk.write(0, bytes(512)) == b.OK
    assert len(seen) == 1
    disk.driver.reset()
    assert disk.driver.accept(b.F_CONFIG_WCE | VERSION_1) and disk.driver.config(32, 1) == b"\0"
    disk.driver.negotiate()
    assert disk.driver.config(32, 1) == b"\1", "a driver that flushes has its cache"


def test_the_driver_switches_the_cache_off_and_on(make, monkeypatch):
    disk = make()
    seen = watch_synchronising(disk, monkeypatch)
    disk.driver.write_config(32, b"\0")
    assert disk.driver.config(32, 1) == b"\0"
    assert disk.write(0, bytes(512)) == b.OK
    assert len(seen) == 1
    disk.driver.write_config(32, b"\1")
    assert disk.write(0, bytes(512)) == b.OK
    assert len(seen) == 1
    disk.driver.write_config(32, b"\0")
    disk.driver.negotiate()
    assert disk.driver.config(32, 1) == b"\1", "a reset brings the cache back"
    disk.driver.write_config(0, b"\7" * 8)
    assert disk.driver.config(0, 8) == struct.pack("<Q", SIZE // 512), "nothing else can be written"


KILLED = """
import os, struct, sys
sys.path[:0] = {path!r}
from test_virtio_block import Disk, b
from pyvmm.devices.virtio.disk_file import DiskFile
from pyvmm.devices.virtio.disk_overlay_file import kept_overlay
disk = Disk.__new__(Disk)
disk.notes = []
file = DiskFile({image!r}, {overlay!r} is not None)
from pyvmm.devices.virtio.disk_raw import RawDisk
disk.disk = kept_overlay({overlay!r}, file, print) if {overlay!r} else RawDisk(file)
from virtio_driver import Driver
disk.device = b.BlockDevice("disk0", disk.disk, say=print)
disk.driver = Driver(disk.device, 8 << 20)
number = 0
while True:
    number += 1
    for sector in range(0, 1024, 37):
        assert disk.write(sector, struct.pack("<Q", number) * 64) == b.OK
    assert disk.request(b.FLUSH)[1] == b.OK
    os.write(1, b"%d\\n" % number)
"""


@pytest.mark.parametrize("overlay", [False, True])
def test_killed_in_the_middle_nothing_acknowledged_is_lost(image, tmp_path, overlay):
    """Each round writes its number all over the disk and flushes; after the kill, no sector is older than the last
    round whose flush was acknowledged."""
    kept = str(tmp_path / "overlay") if overlay else None
    script = KILLED.format(
        path=[str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/unit")], image=str(image), overlay=kept
    )
    acknowledged = 0
    for rounds in (2, 7, 13):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        try:
            for _ in range(rounds):
                line = process.stdout.readline()
                assert line, "the writer ended"
        finally:
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
            process.wait()
        acknowledged = int(rest[-1] if rest else line)
        assert acknowledged >= rounds
        file = DiskFile(str(image), overlay)
        from pyvmm.devices.virtio.disk_overlay_file import kept_overlay

        disk = kept_overlay(kept, file, print) if kept else RawDisk(file)
        for sector in range(0, 1024, 37):
            data = memoryview(bytearray(512))
            disk.read([data], sector * 512, 512)
            numbers = set(struct.unpack("<64Q", data))
            assert len(numbers) == 1 and acknowledged <= min(numbers) <= acknowledged + 1, (sector, numbers)
        disk.close()


# -- anything a guest can send ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b.IN, b.OUT, b.FLUSH, b.GET_ID, b.DISCARD, b.WRITE_ZEROES, 2, 99]),
            st.integers(0, 2100) | st.integers(0, (1 << 64) - 1),
            st.lists(st.sampled_from([1, 8, 16, 48, 512, 1024, 4096]), max_size=4),
            st.lists(st.sampled_from([1, 2, 20, 512, 513, 4096]), min_size=1, max_size=4),
            st.booleans(),
            st.randoms(use_true_random=False),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_request_with_header_and_status_is_answered(tmp_path_factory, requests):
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(bytes(SIZE))
    disk = Disk(path, memory=4 << 20)
    try:
        for kind, sector, readable, writable, indirect, random in requests:
            buffers = [random.randbytes(size) for size in readable]
            answer = disk.driver.request(0, [header(kind, sector), *buffers], writable, indirect)
            assert answer[-1][-1] in (b.OK, b.IOERR, b.UNSUPP)
        assert not disk.driver.needs_reset and disk.driver.notes == []
        assert path.stat().st_size == SIZE
    finally:
        disk.driver.close()
