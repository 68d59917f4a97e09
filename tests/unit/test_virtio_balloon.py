"""The balloon, driven as a guest's driver does: what it gives away is given back to the host, and nothing else."""

from __future__ import annotations

import struct
import threading
import time

import pytest
from virtio_driver import UNWRITTEN, Driver

from pyvmm.devices.virtio.balloon import (
    DEFLATE,
    F_DEFLATE_ON_OOM,
    F_REPORTING,
    F_STATS_VQ,
    INFLATE,
    PAGE,
    STATISTICS,
    BalloonDevice,
    _ranges,
)
from pyvmm.errors import HostError, UsageError
from pyvmm.machine.attachments import attachment
from pyvmm.machine.attachments.balloon import Balloon
from pyvmm.machine.attachments.base import Host
from pyvmm.machine.resident import resident

MIB = 1 << 20
SIZE = 64 * MIB
#: Guest RAM that the driver's own rings and buffers do not use.
FREE, FREE_SIZE = 16 * MIB, 32 * MIB
SECONDS = 5.0


@pytest.fixture
def balloon():
    """A driver whose guest RAM from FREE on holds 0xAB everywhere."""
    driver = Driver(BalloonDevice("balloon0", 8 * MIB), SIZE)
    driver.memory.fill(FREE, FREE_SIZE, 0xAB)
    yield driver
    driver.close()
    assert driver.notes == []
    assert threading.active_count() == 1


def kib(driver: Driver) -> int:
    """Guest RAM that the host has in memory, in KiB."""
    size = resident(driver.memory)["guest_kib"]
    assert size is not None
    return size


def numbers(*pages: int) -> bytes:
    return struct.pack(f"<{len(pages)}I", *pages)


def report(driver: Driver, *ranges: tuple[int, int], queue: int = 3) -> None:
    """Report free memory at these (address, size)."""
    ring = driver.queue(queue)
    heads, ring.free = ring.free[: len(ranges)], ring.free[len(ranges) :]
    for place, (head, (address, size)) in enumerate(zip(heads, ranges, strict=True)):
        last = place + 1 == len(ranges)
        ring.set_descriptor(head, address, size, 2 if last else 3, 0 if last else heads[place + 1])
    ring._tokens_by_head[heads[0]] = 0
    ring._held[0] = (heads, [], [])
    ring.publish(heads[0])
    driver.kick(queue)
    assert driver.wait(queue) == [(0, 0)]


def test_what_is_offered(balloon):
    device = balloon.device
    assert device.DEVICE_ID == 5
    assert device.features == F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING
    assert struct.unpack("<II", balloon.config(0, 8)) == (8 * MIB // PAGE, 0)


def test_inflating_gives_memory_back_to_the_host(balloon):
    before = kib(balloon)
    first = FREE // PAGE
    pages = list(range(first, first + 4096))
    for at in range(0, len(pages), 256):
        balloon.request(INFLATE, [numbers(*reversed(pages[at : at + 256]))], [])
    assert before - kib(balloon) >= 15 * 1024
    assert balloon.memory.read(FREE, 16 * MIB) == bytes(16 * MIB)
    assert balloon.memory.read(FREE + 16 * MIB, PAGE) == b"\xab" * PAGE, "the next page is still the guest's"
    assert balloon.memory.read(FREE + FREE_SIZE - 1, 1) == b"\xab"
    balloon.request(DEFLATE, [numbers(*pages[:256])], [])
    statistics = balloon.device.statistics()
    assert (statistics["inflated"], statistics["deflated"]) == (16 * MIB, MIB)
    assert statistics["ignored"] == 0


def test_single_pages_are_taken_and_their_neighbours_are_not(balloon):
    first = FREE // PAGE
    balloon.request(INFLATE, [numbers(first + 7, first + 1, first + 3), numbers(first + 1, first + 5)], [])
    held = [balloon.memory.read(FREE + number * PAGE, PAGE) for number in range(9)]
    assert [number for number, data in enumerate(held) if data == bytes(PAGE)] == [1, 3, 5, 7]
    assert all(held[number] == b"\xab" * PAGE for number in (0, 2, 4, 6, 8))
    assert balloon.device.statistics()["inflated"] == 4 * PAGE


def test_pages_outside_ram_are_ignored(balloon):
    last = SIZE // PAGE - 1
    balloon.request(INFLATE, [numbers(last, last + 1, 0xFFFF_FFFF, FREE // PAGE) + b"\1\2"], [])
    statistics = balloon.device.statistics()
    assert (statistics["inflated"], statistics["ignored"]) == (2 * PAGE, 2 * PAGE)
    assert balloon.memory.read(FREE, PAGE) == bytes(PAGE)
    assert not balloon.needs_reset


@pytest.mark.parametrize("queue", [3, 4])
def test_reported_memory_goes_back_to_the_host(balloon, queue):
    """Queue 4 by the specification, queue 3 as Linux counts where hinting is not offered."""
    before = kib(balloon)
    report(balloon, (FREE, 4 * MIB), (FREE + 8 * MIB, 2 * MIB), (FREE + 20 * MIB, 4 * MIB), queue=queue)
    assert before - kib(balloon) >= 9 * 1024
    for at, size, what in ((0, 4, 0), (4, 4, 0xAB), (8, 2, 0), (10, 10, 0xAB), (20, 4, 0), (24, 8, 0xAB)):
        assert balloon.memory.read(FREE + at * MIB, size * MIB) == bytes([what]) * (size * MIB), (at, size)
    assert balloon.device.statistics()["reported"] == 10 * MIB


def test_without_statistics_linux_reports_on_the_third_queue():
    with Driver(BalloonDevice("balloon0"), SIZE, features=F_REPORTING) as driver:
        driver.memory.fill(FREE, MIB, 0xAB)
        report(driver, (FREE, MIB), queue=2)
        assert driver.memory.read(FREE, MIB) == bytes(MIB)


def test_without_reporting_nothing_is_taken():
    with Driver(BalloonDevice("balloon0"), SIZE, features=F_STATS_VQ) as driver:
        driver.memory.fill(FREE, MIB, 0xAB)
        driver.queue(3).add([], [PAGE])
        driver.kick(3, force=True)
        assert driver.wait(3, 0.1) == []


def test_a_report_that_reaches_beyond_ram_needs_a_reset():
    with Driver(BalloonDevice("balloon0"), SIZE) as driver:
        ring = driver.queue(3)
        ring.set_descriptor(0, SIZE - PAGE, 2 * PAGE, 2)
        ring.publish(0)
        driver.memory.fill(SIZE - PAGE, PAGE, 0xAB)
        driver.kick(3)
        limit = time.monotonic() + SECONDS
        while not driver.needs_reset and time.monotonic() < limit:
            time.sleep(0.002)
        assert driver.needs_reset
        assert driver.memory.read(SIZE - PAGE, PAGE) == b"\xab" * PAGE


def test_memory_that_the_host_does_not_take_back(balloon, monkeypatch):
    def refuse(address: int, size: int) -> None:
        raise HostError("no")

    class Locked:
        regions = balloon.memory.regions
        discard = staticmethod(refuse)

    balloon.device._link.memory = Locked()
    balloon.request(INFLATE, [numbers(FREE // PAGE)], [])
    statistics = balloon.device.statistics()
    assert (statistics["inflated"], statistics["ignored"]) == (0, PAGE)


def test_the_target_is_set_and_the_driver_answers(balloon):
    device = balloon.device
    balloon.acknowledge()
    balloon.interrupts()
    device.set_target(24 * MIB + 5)
    assert balloon.interrupts() and balloon.acknowledge() & 2, "a configuration change"
    assert struct.unpack("<I", balloon.config(0, 4)) == (24 * MIB // PAGE,)
    balloon.write_config(4, struct.pack("<I", 100))
    assert (device.target, device.actual) == (24 * MIB, 100 * PAGE)
    balloon.write_config(0, struct.pack("<I", 7))  # not the driver's to write
    assert struct.unpack("<II", balloon.config(0, 8)) == (24 * MIB // PAGE, 100)
    balloon.negotiate()
    assert (device.target, device.actual) == (24 * MIB, 0), "the target outlives the driver"


def test_a_target_before_there_is_a_driver():
    device = BalloonDevice("balloon0")
    device.set_target(4 * MIB)
    with Driver(device) as driver:
        assert struct.unpack("<I", driver.config(0, 4)) == (1024,)


def answer(driver: Driver, *statistics: tuple[int, int], junk: bytes = b"") -> int:
    """Give the device a buffer of statistics, as pairs of tag and value."""
    token = driver.queue(STATISTICS).add(
        [b"".join(struct.pack("<HQ", *each) for each in statistics) + junk], []
    )
    driver.kick(STATISTICS)
    return token


def test_statistics_of_the_guest(balloon):
    device = balloon.device
    assert not device.ask(0.05), "the driver has given no buffer yet"
    first = answer(balloon, (4, 123 * MIB), (5, 456 * MIB), (999, 1))
    assert balloon.wait(STATISTICS, 0.1) == [], "the device keeps the buffer"
    statistics = device.statistics()
    assert (statistics["guest_free"], statistics["guest_total"]) == (123 * MIB, 456 * MIB)
    assert sum(name.startswith("guest_") for name in statistics) == 2

    asked: list[bool] = []
    asking = threading.Thread(target=lambda: asked.append(device.ask(SECONDS)))
    asking.start()
    assert balloon.wait(STATISTICS) == [(first, 0)]
    answer(balloon, (4, 99 * MIB), junk=b"abc")
    asking.join()
    assert asked == [True]
    assert device.statistics()["guest_free"] == 99 * MIB
    assert "guest_total" not in device.statistics()


def test_a_second_buffer_of_statistics_gives_the_first_back(balloon):
    first = answer(balloon, (0, 1))
    answer(balloon, (0, 2))
    assert balloon.wait(STATISTICS) == [(first, 0)]
    assert balloon.device.statistics()["guest_swap_in"] == 2


def test_reset_forgets_the_buffer(balloon):
    answer(balloon, (0, 1))
    assert balloon.wait(STATISTICS, 0.05) == []
    balloon.negotiate()
    assert not balloon.device.ask(0.05)
    token = balloon.queue(STATISTICS).add([], [64])
    balloon.kick(STATISTICS)
    assert not balloon.wait(STATISTICS, 0.05)
    balloon.device.ask()
    assert balloon.wait(STATISTICS) == [(token, 0)]
    assert balloon.written(token) == [bytes([UNWRITTEN]) * 64]


def test_page_numbers_become_ranges():
    assert _ranges(b"") == []
    assert _ranges(numbers(5)) == [(5 * PAGE, PAGE)]
    assert _ranges(numbers(9, 5, 6, 5, 7, 11)) == [(5 * PAGE, 3 * PAGE), (9 * PAGE, PAGE), (11 * PAGE, PAGE)]
    assert _ranges(numbers(0, 1)) == [(0, 2 * PAGE)]
    assert _ranges(b"\1\0\0\0\2") == [(PAGE, PAGE)]


def test_the_option():
    assert attachment("balloon") is Balloon
    for text, target in (("", 0), ("64M", 64 * MIB), ("target=1G", 1024 * MIB), ("0", 0)):
        assert Balloon.parse(text).target == target
    with Driver(BalloonDevice("x"), SIZE) as driver:
        host = Host("balloon0", driver.memory, None, [], print)
        assert Balloon.parse("64M").create(host).target == 64 * MIB
        with pytest.raises(UsageError, match="larger"):
            Balloon.parse("65M").create(host)
