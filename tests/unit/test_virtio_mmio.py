"""The registers of virtio-mmio: what a driver finds, what it may do, and what a malicious guest cannot."""

from __future__ import annotations

import ctypes
import os
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtio_driver import Driver

from pyvmm.devices.virtio import features as f
from pyvmm.devices.virtio import mmio
from pyvmm.devices.virtio import mmio_registers as reg
from pyvmm.devices.virtio.device import Link, VirtioDevice
from pyvmm.devices.virtio.rng import RngDevice
from pyvmm.errors import UsageError
from pyvmm.memory import GuestMemory


class Plain(VirtioDevice):
    """A device that remembers what happens to it."""

    DEVICE_ID = 42

    def __init__(
        self, features: int = 1 << 3 | 1 << 40, config: bytes = b"configuration", **attributes
    ) -> None:
        super().__init__("plain0", features=features, queue_sizes=(8, 16), config=config)
        self.link: Link | None = None
        self.events: list[object] = []
        self.error: Exception | None = None
        for name, value in attributes.items():
            setattr(self, name, value)

    def activate(self, link: Link) -> None:
        self.events.append("activate")
        if self.error is not None:
            raise self.error
        self.link = link

    def reset(self) -> None:
        self.events.append("reset")
        self.link = None

    def write_config(self, offset: int, data: bytes) -> None:
        self.events.append((offset, data))
        if offset == 4:
            self.config[offset : offset + len(data)] = data

    def close(self) -> None:
        self.events.append("close")


@pytest.fixture
def driver():
    with Driver(Plain(), start=False) as driver:
        yield driver


# -- what a driver finds ---------------------------------------------------------------------------------


def test_identity(driver):
    assert driver.read(reg.MAGIC_VALUE).to_bytes(4, "little") == b"virt"
    assert driver.read(reg.VERSION) == 2
    assert driver.read(reg.DEVICE_ID) == 42
    assert driver.read(reg.STATUS) == 0
    assert driver.read(reg.INTERRUPT_STATUS) == 0


def test_the_page_is_what_reads_give(driver):
    """KVM shows the page itself to the guest."""
    driver.negotiate()
    page = ctypes.string_at(driver.transport.page, reg.PAGE_SIZE)
    for offset in range(0, reg.PAGE_SIZE, 4):
        assert int.from_bytes(page[offset : offset + 4], "little") == driver.transport.read(offset, 4), hex(
            offset
        )
    assert page[:4] == b"virt" and page[0x100:0x10D] == b"configuration"
    assert not any(page[0x10D:])


def test_features(driver):
    assert driver.offered() == 1 << 3 | 1 << 40 | f.VERSION_1 | f.INDIRECT_DESC | f.EVENT_IDX
    driver.write(reg.DEVICE_FEATURES_SEL, 2)
    assert driver.read(reg.DEVICE_FEATURES) == 0
    driver.write(reg.DEVICE_FEATURES_SEL, 0xFFFFFFFF)
    assert driver.read(reg.DEVICE_FEATURES) == 0


def test_a_device_with_its_own_idea_of_rings():
    with Driver(Plain(features=1 << 5, own_ring_features=True), start=False) as driver:
        assert driver.offered() == 1 << 5 | f.VERSION_1


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        (f.VERSION_1, True),
        (f.VERSION_1 | 1 << 3 | 1 << 40 | f.RING_FEATURES, True),
        (0, False),
        (f.RING_FEATURES, False),
        (f.VERSION_1 | 1 << 4, False),
        (f.VERSION_1 | f.RING_PACKED, False),
    ],
)
def test_features_ok_only_for_what_was_offered(driver, accepted, taken):
    driver.reset()
    assert driver.accept(accepted) is taken
    assert driver.status == (0xB if taken else 3)


def test_features_beyond_64_are_not_offered(driver):
    driver.reset()
    driver.write(reg.DRIVER_FEATURES_SEL, 2)
    driver.write(reg.DRIVER_FEATURES, 1)
    assert driver.accept(f.VERSION_1) is False


def test_features_are_settled_by_features_ok(driver):
    driver.reset()
    assert driver.accept(f.VERSION_1)
    driver.write(reg.DRIVER_FEATURES_SEL, 0)
    driver.write(reg.DRIVER_FEATURES, 1 << 3)
    driver._queues = [driver.set_up_queue(0)]
    driver.driver_ok()
    assert driver.device.link.features == f.VERSION_1


def test_negotiated(driver):
    driver.negotiate(features=1 << 3 | f.EVENT_IDX)
    link = driver.device.link
    assert link.features == f.VERSION_1 | 1 << 3 | f.EVENT_IDX
    assert [queue.size for queue in link.queues] == [8, 16]
    for queue, side in zip(link.queues, driver._queues, strict=True):
        assert (queue.desc, queue.driver, queue.device) == (side.desc, side.avail, side.used)
    assert link.kicks == driver.kick_fds and link.interrupt_fd == driver.interrupt_fd
    assert link.memory is driver.memory
    assert driver.status == 0xF
    assert driver.read(reg.INTERRUPT_STATUS) == 1, "for good: acknowledging it makes no exit"
    assert driver.device.events == ["activate"]


# -- queues ----------------------------------------------------------------------------------------------


def test_selecting_queues(driver):
    for index, size in ((0, 8), (1, 16), (2, 0), (0xFFFFFFFF, 0), (1, 16)):
        driver.write(reg.QUEUE_SEL, index)
        assert driver.read(reg.QUEUE_NUM_MAX) == size
        assert driver.read(reg.QUEUE_READY) == 0
    driver.write(reg.QUEUE_READY, 1)
    assert driver.read(reg.QUEUE_READY) == 1
    driver.write(reg.QUEUE_SEL, 0)
    assert driver.read(reg.QUEUE_READY) == 0
    driver.write(reg.QUEUE_SEL, 9)
    driver.write(reg.QUEUE_READY, 1)
    driver.write(reg.QUEUE_NUM, 1)
    assert driver.read(reg.QUEUE_READY) == 0, "there is no such queue"


def test_a_ready_queue_stays_where_it_is(driver):
    driver.reset()
    driver.accept(f.VERSION_1)
    driver._queues = [driver.set_up_queue(0)]
    for register in (reg.QUEUE_NUM, reg.QUEUE_DESC_LOW, reg.QUEUE_DRIVER_HIGH, reg.QUEUE_DEVICE_LOW):
        driver.write(register, 0xBAD)
    driver.driver_ok()
    queue = driver.device.link.queues[0]
    assert (queue.size, queue.desc, queue.driver, queue.device) == (
        8, driver.queue(0).desc, driver.queue(0).avail, driver.queue(0).used,
    )  # fmt: skip


def test_taking_a_queue_back_stops_the_device(driver):
    """Once QueueReady reads 0, the driver may use the queue's memory for something else (4.2.2.1, 4.2.2.2)."""
    driver.negotiate()
    driver.write(reg.QUEUE_SEL, 2)  # there is none
    driver.write(reg.QUEUE_READY, 0)
    assert driver.device.events == ["activate"] and not driver.needs_reset
    driver.write(reg.QUEUE_SEL, 1)
    driver.write(reg.QUEUE_READY, 1)
    assert driver.read(reg.QUEUE_READY) == 1 and driver.device.events == ["activate"]
    driver.write(reg.QUEUE_READY, 0)
    assert driver.device.events == ["activate", "reset"], "before the driver reads it"
    assert driver.read(reg.QUEUE_READY) == 0
    assert driver.needs_reset and driver.interrupts()
    assert driver.notes == ["plain0: the guest took virtqueue 1 back, which was in use"]
    driver.write(reg.QUEUE_READY, 0)
    driver.write(reg.QUEUE_READY, 1)
    assert driver.read(reg.QUEUE_READY) == 0, "it is not used again before the reset"
    driver.negotiate()
    assert driver.device.events[-1] == "activate" and not driver.needs_reset


def test_a_queue_taken_back_is_left_alone():
    with Driver(RngDevice("rng0")) as driver:
        token = driver.queue(0).add([], [16])
        driver.kick(0)
        assert driver.wait(0) == [(token, 16)]
        driver.write(reg.QUEUE_READY, 0)
        used = driver.memory.read(driver.queue(0).used, 64)
        driver.queue(0).add([], [16])
        driver.kick(0, force=True)
        assert driver.wait(0, timeout=0.1) == []
        assert driver.memory.read(driver.queue(0).used, 64) == used


def test_a_queue_that_is_not_ready_can_move(driver):
    driver.reset()
    driver.accept(f.VERSION_1)
    driver._queues = [driver.set_up_queue(0)]
    driver.write(reg.QUEUE_READY, 0)
    assert driver.read(reg.QUEUE_READY) == 0
    driver._queues = [driver.set_up_queue(0, 4)]
    driver.driver_ok()
    assert driver.device.link.queues[0].size == 4
    assert driver.device.link.queues[1].ready is False


@pytest.mark.parametrize(
    ("size", "desc", "avail", "used", "words"),
    [
        (16, 0x1000, 0x2000, 0x3000, "virtqueue 0: 16 descriptors are more than 8"),
        (3, 0x1000, 0x2000, 0x3000, "virtqueue 0: 3 descriptors are not a power of two"),
        (0, 0x1000, 0x2000, 0x3000, "virtqueue 0: 0 descriptors are not a power of two"),
        (8, 0x1001, 0x2000, 0x3000, "descriptor table at 0x1001 is not aligned"),
        (8, 0x1000, 0x2001, 0x3000, "available ring at 0x2001 is not aligned"),
        (8, 0x1000, 0x2000, 0x3002, "used ring at 0x3002 is not aligned"),
        (8, 0xFFFFFFFFFFFFFFF0, 0x2000, 0x3000, "not in guest RAM"),
        (8, 0x1000, 16 << 20, 0x3000, "not in guest RAM"),
        (8, 0x1000, 0x2000, (16 << 20) - 64, "not in guest RAM"),
    ],
)
def test_wrong_queues_make_the_device_need_a_reset(driver, size, desc, avail, used, words):
    driver.reset()
    driver.accept(f.VERSION_1)
    driver.place_queue(0, size, desc, avail, used)
    driver.driver_ok()
    assert driver.needs_reset and driver.transport.needs_reset
    assert driver.device.events == [], "it was not started"
    assert len(driver.notes) == 1 and words in driver.notes[0], driver.notes
    assert driver.notes[0].startswith("plain0: the guest broke virtqueue 0: ")
    assert driver.interrupts() == 1 and driver.acknowledge() == 3
    driver.negotiate()
    assert driver.status == 0xF and driver.device.link is not None


# -- status ----------------------------------------------------------------------------------------------


def test_status_bits_are_only_added(driver):
    driver.write(reg.STATUS, 1)
    driver.write(reg.STATUS, 2)
    assert driver.status == 3
    driver.write(reg.STATUS, 128)
    assert driver.status == 131
    driver.write(reg.STATUS, f.NEEDS_RESET | 16 | 32)
    assert driver.status == 131, "those are not the driver's"
    driver.write(reg.STATUS, 0)
    assert driver.status == 0


def test_starting_without_features(driver):
    driver.reset()
    driver.write(reg.STATUS, 7)
    assert driver.needs_reset
    assert driver.notes == ["plain0: the guest's driver started it without agreeing on features"]
    assert driver.device.events == []


def test_a_device_that_cannot_start(driver):
    driver.device.error = UsageError("there is no /dev/vhost-net", "load the module vhost_net")
    driver.negotiate()
    assert driver.needs_reset
    assert driver.notes == ["plain0: there is no /dev/vhost-net (load the module vhost_net)"]
    driver.device.error = RuntimeError("bug")
    driver.negotiate()
    assert driver.notes[1:] == ["plain0: internal error: RuntimeError: bug"]
    driver.device.error = None
    driver.negotiate()
    assert not driver.needs_reset


def test_reset(driver):
    driver.negotiate()
    driver.write(reg.QUEUE_SEL, 1)
    driver.write(reg.STATUS, 0)
    assert driver.device.events == ["activate", "reset"]
    assert driver.status == 0 and driver.read(reg.INTERRUPT_STATUS) == 0
    assert driver.read(reg.QUEUE_NUM_MAX) == 8 and driver.read(reg.QUEUE_READY) == 0
    driver.write(reg.STATUS, 0)
    assert driver.device.events == ["activate", "reset"], "it was stopped already"
    assert driver.accept(f.VERSION_1)
    driver.driver_ok()
    assert [queue.ready for queue in driver.device.link.queues] == [False, False]


def test_close_stops_the_device_once():
    driver = Driver(Plain())
    events = driver.device.events
    driver.transport.close()
    driver.transport.close()
    assert events == ["activate", "reset", "close"]
    driver.write(reg.STATUS, 0xF)
    driver.write_config(0, b"x")
    assert events == ["activate", "reset", "close"], "a closed device is not woken"
    driver.close()


# -- notifications and interrupts ------------------------------------------------------------------------


def test_a_notification_that_was_not_taken_by_the_kernel(driver):
    driver.write(reg.QUEUE_NOTIFY, 0)
    driver.negotiate()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(driver.kick_fds[0])  # what came before the start counts for nothing
    driver.write(reg.QUEUE_NOTIFY, 1)
    assert os.eventfd_read(driver.kick_fds[1]) == 1
    driver.write(reg.QUEUE_NOTIFY, 2)
    driver.write(reg.QUEUE_NOTIFY, 0xFFFFFFFF)


def test_a_changed_configuration(driver):
    driver.negotiate()
    generation = driver.read(reg.CONFIG_GENERATION)
    driver.device.link.config_changed(b"new values")
    assert driver.read(reg.CONFIG_GENERATION) != generation
    assert driver.config(0, 10) == b"new values"
    assert driver.interrupts() == 1
    assert driver.read(reg.INTERRUPT_STATUS) == 3
    driver.write(reg.INTERRUPT_ACK, 1)
    assert driver.read(reg.INTERRUPT_STATUS) == 3
    assert driver.acknowledge() == 3
    assert driver.read(reg.INTERRUPT_STATUS) == 1
    driver.device.link.config_changed()
    assert driver.read(reg.INTERRUPT_STATUS) == 3


def test_a_configuration_changed_by_a_stopped_device_is_shown_after_the_reset(driver):
    driver.negotiate()
    link = driver.device.link
    driver.reset()
    driver.interrupts()
    link.config_changed(b"late")
    link.fail("late, too")
    link.interrupt()
    assert driver.interrupts() == 1
    assert not driver.needs_reset and driver.notes == []
    driver.negotiate()
    assert driver.config(0, 4) == b"late"


def test_failing_is_said_once(driver):
    driver.negotiate()
    link = driver.device.link
    link.fail("first")
    link.fail("second")
    assert driver.notes == ["plain0: first"] and link.failed
    assert driver.needs_reset and driver.interrupts() == 1
    driver.queue(0).add([b"x"], [])
    assert link.queues[0].pop() is None


def test_a_failure_is_said_before_it_is_seen(driver):
    seen = []
    driver.transport._print = lambda text: seen.append((text, driver.needs_reset, driver.interrupts()))
    driver.negotiate()
    driver.device.link.fail("broken")
    assert seen == [("plain0: broken", False, 0)] and driver.needs_reset and driver.interrupts() == 1


def test_a_failure_during_which_the_driver_resets_is_none_of_the_next_driver(driver):
    driver.transport._print = lambda text: driver.reset()
    driver.negotiate()
    driver.device.link.fail("broken")
    assert not driver.needs_reset and driver.read(reg.INTERRUPT_STATUS) == 0


def test_failing_for_ever_is_not_said_for_ever(driver):
    for number in range(mmio.MOST_NOTES + 5):
        driver.negotiate()
        driver.device.link.fail(f"number {number}")
    assert len(driver.notes) == mmio.MOST_NOTES
    assert driver.notes[-1] == "plain0: number 9; what follows is not said any more"


def test_an_interrupt_counter_that_is_full(driver):
    driver.negotiate()
    os.eventfd_write(driver.interrupt_fd, (1 << 64) - 2)
    driver.device.link.interrupt()
    os.eventfd_write(driver.kick_fds[0], (1 << 64) - 2)
    driver.write(reg.QUEUE_NOTIFY, 0)


# -- configuration space and odd accesses ----------------------------------------------------------------


def test_configuration_space(driver):
    for size in (1, 2, 4, 8):
        assert driver.transport.read(reg.CONFIG, size) == int.from_bytes(b"configuration"[:size], "little")
    assert driver.transport.read(reg.CONFIG + 9, 8) == int.from_bytes(b"tion", "little")
    driver.write_config(4, b"XY")
    driver.write_config(0, b"lost")
    driver.write_config(11, b"toolong!")
    assert driver.device.events == [(4, b"XY"), (0, b"lost")]
    assert driver.config(0, 13) == b"confXYuration"


def test_a_device_that_stumbles_over_its_configuration(driver):
    def write_config(offset: int, data: bytes) -> None:
        raise ValueError("bug")

    driver.device.write_config = write_config
    driver.write_config(0, b"x")
    assert driver.notes == ["plain0: internal error: ValueError: bug"]
    driver.negotiate()
    driver.write_config(0, b"x")
    assert driver.needs_reset


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (0, 8), (2, 4), (0x6E, 4), (0x70, 1)])
def test_registers_are_read_in_words(driver, offset, size):
    assert driver.transport.read(offset, size) == 0


@pytest.mark.parametrize(("offset", "size"), [(0x70, 1), (0x70, 2), (0x70, 8), (0x6E, 4), (0x72, 2)])
def test_registers_are_written_in_words(driver, offset, size):
    driver.transport.write(offset, 1, size)
    assert driver.status == 0


def test_no_shared_memory_regions(driver):
    for selected in (0, 1):
        driver.write(reg.SHM_SEL, selected)
        assert {driver.read(register) for register in (0xB0, 0xB4, 0xB8, 0xBC)} == {0xFFFFFFFF}


def test_read_only_registers_stay(driver):
    driver.negotiate()
    before = [driver.read(offset) for offset in range(0, 0x100, 4)]
    for offset in (
        reg.MAGIC_VALUE,
        reg.DEVICE_ID,
        reg.QUEUE_NUM_MAX,
        reg.INTERRUPT_STATUS,
        0xFC,
        0xB0,
        0x10,
    ):
        driver.write(offset, 0xFFFFFFFF)
    assert [driver.read(offset) for offset in range(0, 0x100, 4)] == before


# -- several threads, and whatever a guest writes --------------------------------------------------------


def test_resets_and_starts_on_several_processors():
    """Two vCPUs that reset and start a device at the same time harm nobody but themselves."""
    driver = Driver(RngDevice("rng0"))
    failures: list[BaseException] = []

    def hammer() -> None:
        try:
            for number in range(150):
                for value in (0, 1, 3):
                    driver.write(reg.STATUS, value)
                driver.write(reg.DRIVER_FEATURES_SEL, 1)
                driver.write(reg.DRIVER_FEATURES, 1)
                driver.write(reg.STATUS, 0xB)
                driver.place_queue(0, 8, 0x1000, 0x2000, 0x3000)
                driver.write(reg.STATUS, 0xF)
                driver.write(reg.QUEUE_NOTIFY, number & 1)
        except BaseException as error:
            failures.append(error)

    hammers = [threading.Thread(target=hammer) for _ in range(3)]
    for each in hammers:
        each.start()
    for each in hammers:
        each.join(30)
        assert not each.is_alive()
    assert failures == []
    assert not [note for note in driver.notes if "internal" in note], driver.notes
    driver.negotiate()
    assert len(driver.request(0, [], [8])[0]) == 8
    driver.close()
    assert "rng0" not in [thread.name for thread in threading.enumerate()]


registers = st.one_of(
    st.sampled_from(
        [value for name, value in vars(reg).items() if name.isupper() and isinstance(value, int)]
    ),
    st.integers(0, reg.PAGE_SIZE - 8),
)
values = st.one_of(st.sampled_from([0, 1, 2, 3, 8, 0xB, 0xF]), st.integers(0, (1 << 64) - 1))


@settings(max_examples=60, deadline=None)
@given(
    writes=st.lists(st.tuples(registers, values, st.sampled_from([4, 4, 4, 1, 2, 8])), max_size=60),
    garbage=st.binary(min_size=64, max_size=512),
    place=st.sampled_from([0, 0x1000, 0x10000 - 64]),
)
def test_any_writes_harm_nothing(writes, garbage, place):
    """Started or not, with rings full of anything: no exception, and the device works after a reset."""
    with Driver(RngDevice("rng0"), 1 << 16, start=False) as driver:
        memory: GuestMemory = driver.memory
        memory.write(place, garbage[:64])
        memory.write(0x1000, garbage)
        driver.reset()
        driver.accept(f.VERSION_1 | f.RING_FEATURES)
        driver.place_queue(0, 16, 0x1000, 0x1000, 0x2000)
        driver.driver_ok()
        driver.write(reg.QUEUE_NOTIFY, 0)
        for offset, value, size in writes:
            driver.transport.write(offset, value & ((1 << 8 * size) - 1), size)
            driver.transport.read(offset, size)
        assert not [note for note in driver.notes if "internal" in note], driver.notes
        assert all(note.startswith("rng0: the guest") for note in driver.notes), driver.notes
        assert struct.unpack("<4s", ctypes.string_at(driver.transport.page, 4)) == (b"virt",)
        driver.negotiate()
        assert len(driver.request(0, [], [32])[0]) == 32
