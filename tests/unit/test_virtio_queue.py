"""The device's side of a split virtqueue: what honest drivers rely on, and what no guest can do to it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from virtio_driver import INDIRECT, NEXT, UNWRITTEN, WRITE, Driver

from pyvmm.devices.virtio import features as f
from pyvmm.devices.virtio.device import Link, VirtioDevice
from pyvmm.devices.virtio.queue import Chain, Queue, QueueError
from pyvmm.memory import GuestMemory

SIZE = 8
DESC, AVAIL, USED, DATA, TABLE = 0x1000, 0x2000, 0x3000, 0x4000, 0x8000
RAM = 0x10000
#: A second region, after a hole of a page; the third adjoins it.
SECOND, THIRD, END = 0x11000, 0x12000, 0x13000
ALL = f.VERSION_1 | f.RING_FEATURES


class Idle(VirtioDevice):
    """A device whose queue the test serves itself."""

    link: Link | None = None

    def __init__(self, *sizes: int) -> None:
        super().__init__("idle0", queue_sizes=sizes or (SIZE,))

    def activate(self, link: Link) -> None:
        self.link = link

    def reset(self) -> None:
        self.link = None


class Ring:
    """A queue and the memory it stands in, written by hand."""

    def __init__(self, features: int = ALL, size: int = SIZE, **places: int) -> None:
        self.memory = GuestMemory([(0, RAM), (SECOND, 0x1000), (THIRD, 0x1000)])
        self.interrupts = 0
        self.published = 0
        self.size = size
        where = {"desc": DESC, "driver": AVAIL, "device": USED, **places}
        self.queue = Queue(self.memory, 3, size, **where, features=features, interrupt=self._interrupt)

    def _interrupt(self) -> None:
        self.interrupts += 1

    def describe(self, index: int, address: int, length: int, flags: int = 0, follower: int = 0) -> None:
        self.memory.write(DESC + 16 * index, struct.pack("<QIHH", address, length, flags, follower))

    def table(self, *entries: tuple[int, int, int, int], address: int = TABLE) -> None:
        self.memory.write(address, b"".join(struct.pack("<QIHH", *entry) for entry in entries))

    def publish(self, head: int) -> None:
        self.memory.write(AVAIL + 4 + 2 * (self.published % self.size), struct.pack("<H", head))
        self.published = (self.published + 1) & 0xFFFF
        self.memory.write(AVAIL + 2, struct.pack("<H", self.published))

    def used(self) -> list[tuple[int, int]]:
        count = self.memory.read_u16(USED + 2)
        return [
            struct.unpack("<II", self.memory.read(USED + 4 + 8 * (n % self.size), 8)) for n in range(count)
        ]

    def refused(self, words: str) -> None:
        """The next pop is refused, in these words and with the queue's number; nothing comes out afterwards."""
        with pytest.raises(QueueError, match=words) as caught:
            self.queue.pop()
        assert caught.value.message.startswith("virtqueue 3: ")
        self.describe(0, DATA, 16)
        self.publish(0)
        assert self.queue.pop() is None
        assert self.queue.enable_kicks() is False


# -- chains ----------------------------------------------------------------------------------------------


def test_nothing_is_available_at_first():
    ring = Ring()
    assert ring.queue.pop() is None
    assert ring.queue.should_interrupt() is False


def test_a_chain_in_its_order():
    ring = Ring()
    ring.describe(5, DATA, 3, NEXT, 2)
    ring.describe(2, DATA + 0x100, 2, NEXT, 7)
    ring.describe(7, DATA + 0x200, 4, NEXT | WRITE, 0)
    ring.describe(0, DATA + 0x300, 6, WRITE)
    ring.memory.write(DATA, b"abc")
    ring.memory.write(DATA + 0x100, b"de")
    ring.publish(5)
    chain = ring.queue.pop()
    assert chain is not None and chain.head == 5
    assert chain.readable == [(DATA, 3), (DATA + 0x100, 2)]
    assert chain.writable == [(DATA + 0x200, 4), (DATA + 0x300, 6)]
    assert (chain.readable_size, chain.writable_size) == (5, 10)
    assert chain.read() == b"abcde" == b"".join(chain.read_views())
    assert chain.read(2) == b"ab" and chain.read(3, 2) == b"cde" and chain.read(9, 4) == b"e"
    assert chain.read(1, 5) == chain.read(0) == chain.read(-1, 7) == b""
    assert chain.write(b"0123456789AB") == 10, "what does not fit is left"
    assert ring.memory.read(DATA + 0x200, 5) == b"0123\0"
    assert ring.memory.read(DATA + 0x300, 7) == b"456789\0"
    assert chain.write(b"xy", 3) == 2
    assert ring.memory.read(DATA + 0x203, 1) + ring.memory.read(DATA + 0x300, 2) == b"xy5"
    assert chain.write(b"z", 10) == 0
    assert [len(view) for view in chain.write_views()] == [4, 6]
    chain.write_views()[1][:2] = b"!!"
    assert ring.memory.read(DATA + 0x300, 3) == b"!!6"
    ring.queue.push(chain, 10)
    assert ring.used() == [(5, 10)]


def test_an_indirect_table_after_direct_descriptors():
    ring = Ring()
    ring.describe(1, DATA, 1, NEXT, 4)
    ring.describe(4, TABLE, 3 * 16, INDIRECT | WRITE)  # the device must ignore WRITE there (2.7.5.3.2)
    ring.table((DATA + 8, 2, NEXT, 2), (0, 0, 0, 0), (DATA + 16, 3, WRITE, 9))
    ring.publish(1)
    chain = ring.queue.pop()
    assert chain is not None and chain.head == 1
    assert (chain.readable, chain.writable) == ([(DATA, 1), (DATA + 8, 2)], [(DATA + 16, 3)])


def test_buffers_at_the_very_ends_of_ram():
    ring = Ring()
    ring.describe(0, 0, 1, NEXT, 1)
    ring.describe(1, RAM - 1, 1, NEXT, 2)
    ring.describe(2, SECOND, 0x1000, NEXT, 3)
    ring.describe(3, END - 1, 1)
    ring.publish(0)
    chain = ring.queue.pop()
    assert chain is not None and chain.readable_size == 0x1003


def test_indices_wrap():
    ring = Ring()
    ring.describe(0, DATA, 1)
    for number in range(0x1_0000 + 3):
        ring.publish(0)
        chain = ring.queue.pop()
        assert chain is not None
        ring.queue.push(chain, number & 0xFF)
    assert ring.queue.next_avail == 3 == ring.memory.read_u16(USED + 2)
    assert ring.queue.pop() is None


# -- what no guest may do --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "length", "words"),
    [
        (DATA, 0, "empty buffer"),
        (RAM - 1, 2, "not in guest RAM"),
        (RAM, 1, "not in guest RAM"),
        (SECOND - 1, 1, "not in guest RAM"),
        (SECOND - 1, 0x100, "not in guest RAM"),
        (THIRD - 1, 2, "not in guest RAM"),  # one region, even where another adjoins
        (END, 1, "not in guest RAM"),
        (0, 0xFFFFFFFF, "not in guest RAM"),
        (1 << 63, 16, "not in guest RAM"),
        ((1 << 64) - 1, 1, "not in guest RAM"),
        ((1 << 64) - 8, 16, "not in guest RAM"),
        ((1 << 64) - 0x1000, 0x2000, "not in guest RAM"),
    ],
)
@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize("indirect", [False, True])
def test_a_buffer_outside_ram(address, length, words, flags, indirect):
    ring = Ring()
    if indirect:
        ring.table((address, length, flags, 0))
        ring.describe(0, TABLE, 16, INDIRECT)
    else:
        ring.describe(0, address, length, flags)
    ring.publish(0)
    ring.refused(words)


def test_a_loop():
    ring = Ring()
    ring.describe(0, DATA, 1, NEXT, 1)
    ring.describe(1, DATA, 1, NEXT, 0)
    ring.publish(0)
    ring.refused("loop, or more than 8 descriptors")


def test_a_loop_within_a_table():
    ring = Ring()
    ring.table((DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0))
    ring.describe(0, TABLE, 32, INDIRECT)
    ring.publish(0)
    ring.refused("loop, or more than 8 descriptors")


def test_as_many_descriptors_as_the_queue_has_and_one_more():
    ring = Ring()
    entries = [(DATA, 1, NEXT, number + 1) for number in range(SIZE - 1)] + [(DATA, 1, 0, 0)]
    ring.table(*entries)
    ring.describe(0, TABLE, 16 * SIZE, INDIRECT)
    ring.publish(0)
    chain = ring.queue.pop()
    assert chain is not None and chain.readable_size == SIZE
    ring.describe(1, DATA, 1, NEXT, 0)
    ring.publish(1)
    ring.refused("loop, or more than 8 descriptors")


@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize("count", [SIZE + 1, 256, 1024])
def test_a_table_longer_than_the_queue(count, flags):
    """Linux makes them: 2.7.5.3.1 forbids it, and no other device minds."""
    ring = Ring()
    entries = [(DATA + number, 1, NEXT | flags, number + 1) for number in range(count - 1)]
    ring.table(*entries, (DATA, 1, flags, 0))
    ring.describe(0, TABLE, 16 * count, INDIRECT)
    ring.publish(0)
    chain = ring.queue.pop()
    assert chain is not None and chain.readable_size + chain.writable_size == count
    assert (chain.writable if flags else chain.readable)[-2:] == [(DATA + count - 2, 1), (DATA, 1)]
    ring.table(*entries, (DATA, 1, NEXT | flags, 0))
    ring.publish(0)
    ring.refused(f"loop, or more than {count} descriptors")


@pytest.mark.parametrize(
    ("length", "flags", "words"),
    [
        (0, INDIRECT, "indirect table of 0x0 bytes"),
        (15, INDIRECT, "indirect table of 0xf bytes"),
        (24, INDIRECT, "indirect table of 0x18 bytes"),
        (16 * 1025, INDIRECT, "indirect table of 0x4010 bytes"),
        (0xFFFFFFF0, INDIRECT, "indirect table of 0xfffffff0 bytes"),
        (16, INDIRECT | NEXT, "indirect descriptor with a next one"),
    ],
)
def test_a_wrong_indirect_table(length, flags, words):
    ring = Ring()
    ring.table((DATA, 1, 0, 0))
    ring.describe(0, TABLE, length, flags)
    ring.publish(0)
    ring.refused(words)


@pytest.mark.parametrize("address", [RAM - 16, RAM, SECOND - 16, END - 16, (1 << 64) - 16])
def test_an_indirect_table_outside_ram(address):
    ring = Ring()
    ring.describe(0, address, 32, INDIRECT)
    ring.publish(0)
    ring.refused("not in guest RAM")


def test_a_table_within_a_table():
    ring = Ring()
    ring.table((TABLE, 16, INDIRECT, 0))
    ring.describe(0, TABLE, 16, INDIRECT)
    ring.publish(0)
    ring.refused("within a table")


def test_indirect_without_having_been_negotiated():
    ring = Ring(f.VERSION_1)
    ring.table((DATA, 1, 0, 0))
    ring.describe(0, TABLE, 16, INDIRECT)
    ring.publish(0)
    ring.refused("not negotiated")


def test_a_readable_buffer_after_a_writable_one():
    ring = Ring()
    ring.describe(0, DATA, 1, NEXT | WRITE, 1)
    ring.describe(1, DATA, 1)
    ring.publish(0)
    ring.refused("readable buffer after a writable one")


def test_a_head_beyond_the_table():
    ring = Ring()
    ring.publish(SIZE)
    ring.refused("available descriptor 8 of 8")


def test_a_follower_beyond_the_table():
    ring = Ring()
    ring.describe(0, DATA, 1, NEXT, SIZE)
    ring.publish(0)
    ring.refused("descriptor 8 of 8")


def test_a_follower_beyond_an_indirect_table():
    ring = Ring()
    ring.table((DATA, 1, NEXT, 1), (DATA, 1, 0, 0))
    ring.describe(0, TABLE, 16, INDIRECT)
    ring.publish(0)
    ring.refused("descriptor 1 of 1")


def test_an_available_index_that_runs_ahead():
    ring = Ring()
    ring.describe(0, DATA, 1)
    ring.published = SIZE
    ring.publish(0)
    ring.refused("9 ahead, in a queue of 8")


def test_an_available_index_that_goes_back():
    ring = Ring()
    ring.describe(0, DATA, 1)
    ring.publish(0)
    assert ring.queue.pop() is not None
    ring.published = 0xFFFF
    ring.publish(0)
    ring.refused("65535 ahead")


def test_a_chain_of_more_than_4_gib():
    """Each buffer is in RAM, many times the same one; a used element could not say how much was written."""
    size = 32
    ring = Ring(size=size)
    ring.memory.close()
    ring.memory = GuestMemory([(0, 1 << 28)])
    ring.queue = Queue(
        ring.memory, 3, size, DESC, AVAIL, USED, features=ALL, interrupt=lambda: None
    )  # fmt: skip
    for number in range(16):
        ring.describe(number, 0, 1 << 28, WRITE | (NEXT if number < 15 else 0), number + 1)
    ring.publish(0)
    ring.refused("holds 0x100000000 bytes")


# -- where rings may stand -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"desc": DESC + 8}, "descriptor table at 0x1008 is not aligned to 16"),
        ({"driver": AVAIL + 1}, "available ring at 0x2001 is not aligned to 2"),
        ({"device": USED + 2}, "used ring at 0x3002 is not aligned to 4"),
        ({"desc": RAM - 16 * SIZE + 16}, "descriptor table .* not in guest RAM"),
        ({"driver": RAM - 6 - 2 * SIZE + 2}, "available ring .* not in guest RAM"),
        ({"device": RAM - 4 - 8 * SIZE}, "used ring .* not in guest RAM"),
        ({"desc": THIRD - 16}, "descriptor table .* not in guest RAM"),
        ({"device": (1 << 64) - 16}, "used ring .* not in guest RAM"),
        ({"size": 0}, "0 descriptors are not a power of two"),
        ({"size": 6}, "6 descriptors are not a power of two"),
        ({"size": 1 << 16}, "65536 descriptors are not a power of two"),
    ],
)
def test_a_wrong_place(places, words):
    with pytest.raises(QueueError, match=words):
        Ring(**places)


def test_rings_at_the_very_end_of_ram():
    ring = Ring(desc=RAM - 16 * SIZE, driver=SECOND + 0x1000 - 6 - 2 * SIZE, device=END - 8 - 8 * SIZE)
    assert ring.queue.pop() is None
    assert ring.queue.enable_kicks() is False


def test_an_unused_queue_gives_nothing():
    queue = Queue.unused(4)
    assert (queue.ready, queue.size, queue.pop()) == (False, 0, None)
    assert not queue.should_interrupt() and not queue.enable_kicks()
    queue.disable_kicks()
    queue.drain(lambda chain: 0)


# -- kicks and interrupts --------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [ALL, f.VERSION_1], ids=["event idx", "flags"])
def test_kicks_are_asked_for_before_the_device_sleeps(features):
    with Driver(Idle(), features=features) as driver:
        queue = driver.device.link.queues[0]
        assert queue.enable_kicks() is False
        driver.queue(0).add([b"x"], [])
        assert driver.queue(0).wants_kick()
        driver.queue(0).add([b"x"], [])
        assert queue.enable_kicks() is True, "something is there already"
        assert queue.pop() and queue.pop()
        assert queue.enable_kicks() is False


def test_no_kicks_while_the_device_is_awake():
    with Driver(Idle(), features=f.VERSION_1) as driver:
        driver.device.link.queues[0].disable_kicks()
        driver.queue(0).add([b"x"], [])
        assert not driver.queue(0).wants_kick()
    with Driver(Idle()) as driver:
        queue = driver.device.link.queues[0]
        assert queue.enable_kicks() is False
        driver.queue(0).add([b"x"], [])
        assert driver.queue(0).wants_kick()
        driver.queue(0).add([b"x"], [])
        assert not driver.queue(0).wants_kick(), "one is enough"


@pytest.mark.parametrize("features", [ALL, f.VERSION_1], ids=["event idx", "flags"])
def test_interrupts_only_where_they_are_wanted(features):
    with Driver(Idle(), features=features) as driver:
        queue, side = driver.device.link.queues[0], driver.queue(0)
        for wanted in (True, False, False, True, True):
            side.ask_for_interrupt() if wanted else side.no_interrupts()
            side.add([b"x"], [])
            chain = queue.pop()
            assert chain is not None
            queue.push(chain, 0)
            assert queue.should_interrupt() is wanted
            assert queue.should_interrupt() is False, "once for each push"
            side.collect()


def test_one_interrupt_for_a_batch_that_crosses_the_event():
    with Driver(Idle()) as driver:
        queue, side = driver.device.link.queues[0], driver.queue(0)
        side.ask_for_interrupt()
        for _ in range(3):
            side.add([b"x"], [])
        for _ in range(3):
            queue.push(queue.pop(), 0)
        assert queue.should_interrupt() is True
        assert driver.memory.read_u16(side.used + 2) == 3


def test_drain_serves_keeps_and_interrupts():
    with Driver(Idle()) as driver:
        queue, side = driver.device.link.queues[0], driver.queue(0)
        tokens = [side.add([bytes([number])], [1]) for number in range(4)]
        side.ask_for_interrupt()
        kept: list[Chain] = []

        def handler(chain: Chain) -> int | None:
            if chain.read() == b"\2":
                kept.append(chain)
                return None
            return chain.write(b"+")

        queue.drain(handler)
        assert driver.interrupts() == 1
        assert side.collect() == [(tokens[number], 1) for number in (0, 1, 3)]
        side.ask_for_interrupt()
        kept[0].write(b"-")
        queue.push(kept[0], 1)
        assert queue.should_interrupt()
        assert side.collect() == [(tokens[2], 1)]
        assert driver.written(tokens[2]) == [b"-"]


def test_drain_sees_what_arrives_at_the_last_moment():
    with Driver(Idle()) as driver:
        queue, side = driver.device.link.queues[0], driver.queue(0)
        late = [side.add([b"first"], [])]

        class Late(Queue):
            __slots__ = ()

            def enable_kicks(self) -> bool:
                if len(late) == 1:
                    late.append(side.add([b"second"], []))
                return super().enable_kicks()

        queue.__class__ = Late
        queue.drain(lambda chain: 0)
        assert [token for token, _ in side.collect()] == late


def test_drain_interrupts_for_what_came_before_a_broken_chain():
    with Driver(Idle()) as driver:
        queue, side = driver.device.link.queues[0], driver.queue(0)
        side.ask_for_interrupt()
        token = side.add([b"good"], [])
        side.publish(999)
        with pytest.raises(QueueError):
            queue.drain(lambda chain: 0)
        assert side.collect() == [(token, 0)]
        assert driver.interrupts() == 1


def test_a_driver_that_fills_as_fast_as_we_empty_is_told_meanwhile():
    ring = Ring(f.VERSION_1)
    ring.describe(0, DATA, 1)
    ring.publish(0)
    served = 0

    def handler(chain: Chain) -> int:
        nonlocal served
        served += 1
        if ring.interrupts == 0 and served < 100:
            ring.publish(0)
        return 0

    ring.queue.drain(handler)
    assert served <= 2 * SIZE
    assert ring.interrupts >= 1


# -- whatever a guest writes -----------------------------------------------------------------------------

addresses = st.one_of(
    st.integers(0, END + 0x1000),
    st.sampled_from([0, RAM - 1, RAM, SECOND, THIRD - 1, END - 1, DESC, TABLE, (1 << 64) - 1, 1 << 32]),
    st.integers(0, (1 << 64) - 1),
)
lengths = st.one_of(
    st.integers(0, 64), st.sampled_from([16, 32, 128, 0x1000, 0xFFFFFFFF]), st.integers(0, 1 << 32)
)
entries = st.tuples(
    addresses,
    lengths.map(lambda length: length & 0xFFFFFFFF),
    st.one_of(st.sampled_from([0, NEXT, WRITE, NEXT | WRITE, INDIRECT]), st.integers(0, 0xFFFF)),
    st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)),
)
tables = st.lists(entries, min_size=SIZE, max_size=SIZE)


@settings(max_examples=150, deadline=None)
@given(
    direct=tables,
    indirect=tables,
    heads=st.lists(st.integers(0, SIZE), min_size=SIZE, max_size=SIZE),
    available=st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)),
    features=st.sampled_from([ALL, f.VERSION_1, f.VERSION_1 | f.INDIRECT_DESC]),
)
def test_any_table_gives_chains_in_ram_or_a_queue_error(direct, indirect, heads, available, features):
    ring = Ring(features)
    ring.table(*direct, address=DESC)
    ring.table(*indirect)
    ring.memory.write(AVAIL, struct.pack(f"<HH{SIZE}H", 0, available, *heads))
    try:
        for _ in range(SIZE + 1):
            chain = ring.queue.pop()
            if chain is None:
                break
            buffers = chain.readable + chain.writable
            assert 1 <= len(buffers) <= SIZE
            assert all(length and ring.memory.contains(address, length) for address, length in buffers)
            assert chain.readable_size == sum(length for _, length in chain.readable) == len(chain.read())
            assert chain.writable_size == sum(length for _, length in chain.writable)
            assert sum(map(len, chain.write_views())) == chain.writable_size <= 0xFFFFFFFF
            ring.queue.push(chain, 0)
        else:
            raise AssertionError("more chains than can be available")
    except QueueError as error:
        assert ring.queue.broken
        assert "\n" not in error.message
        assert ring.queue.pop() is None


# -- both sides, in any order ----------------------------------------------------------------------------


class BothSides(RuleBasedStateMachine):
    """A driver and a device that take turns; nobody waits for what has already happened."""

    features = ALL

    def __init__(self) -> None:
        super().__init__()
        self.device = Idle(16)
        self.driver = Driver(self.device, 1 << 20, features=self.features)
        self._started()

    def _started(self) -> None:
        assert self.device.link is not None
        self.queue = self.device.link.queues[0]
        self.side = self.driver.queue(0)
        self.expected: dict[int, tuple[bytes, int]] = {}
        self.order: list[int] = []  # tokens that are available and were not popped
        self.held: list[tuple[int, Chain]] = []
        self.asleep = False  # the device waits for a kick
        self.driver_waits = False  # the driver waits for an interrupt
        self.wants_kick_checked = True
        self.driver.interrupts()

    @rule(
        readable=st.lists(st.binary(min_size=1, max_size=40), max_size=3),
        writable=st.lists(st.integers(1, 50), max_size=3),
        indirect=st.booleans(),
        kick=st.booleans(),
    )
    def add(self, readable, writable, indirect, kick):
        count = len(readable) + len(writable)
        if not count or len(self.side.free) < count:
            return
        indirect = indirect and bool(self.features & f.INDIRECT_DESC)
        token = self.side.add(readable, writable, indirect)
        self.expected[token] = (b"".join(readable), sum(writable))
        self.order.append(token)
        if kick or self.asleep:
            wanted = self.side.wants_kick()
            assert wanted or not self.asleep, "the device sleeps, and would not be woken"
            if wanted:
                self.asleep = False

    @precondition(lambda self: not self.asleep)
    @rule()
    def pop(self):
        chain = self.queue.pop()
        if not self.order:
            assert chain is None
            return
        assert chain is not None
        token = self.order.pop(0)
        readable, writable = self.expected[token]
        assert chain.read() == readable
        assert chain.writable_size == writable
        self.held.append((token, chain))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def push(self, data):
        token, chain = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        reply = (b"%d" % token * 100)[: data.draw(st.integers(0, chain.writable_size))]
        assert chain.write(reply) == len(reply)
        self.expected[token] = (reply, chain.writable_size)
        self.queue.push(chain, len(reply))
        interrupted = self.queue.should_interrupt()
        assert interrupted or not self.driver_waits, "the driver waits, and would not be told"
        if interrupted:
            self.driver_waits = False

    @precondition(lambda self: not self.asleep)
    @rule()
    def sleep(self):
        self.queue.disable_kicks()
        more = self.queue.enable_kicks()
        assert more == bool(self.order)
        self.asleep = not more

    @rule()
    def collect(self):
        for token, written in self.side.collect():
            reply, size = self.expected.pop(token)
            assert written == len(reply)
            assert b"".join(self.driver.written(token)) == reply + bytes([UNWRITTEN]) * (size - written)

    @rule()
    def wait(self):
        self.collect()
        self.side.ask_for_interrupt()
        self.driver_waits = self.side.used_idx == self.side.last_used

    @precondition(lambda self: not self.driver_waits)
    @rule()
    def poll(self):
        self.side.no_interrupts()

    @precondition(lambda self: len(self.order) < 16)
    @rule(head=st.integers(16, 0xFFFF))
    def misbehave(self, head):
        """A broken chain after all that is available: the good ones still come out; then a reset mends it."""
        self.side.publish(head)
        while self.order:
            self.asleep = False
            self.pop()
        with pytest.raises(QueueError):
            self.queue.pop()
        assert self.queue.pop() is None
        assert self.device.link is not None
        self.device.link.fail("as a worker does")
        assert self.driver.needs_reset
        self.driver.negotiate(self.features)
        assert not self.driver.needs_reset
        self._started()

    @invariant()
    def nothing_is_lost(self):
        waiting = len(self.order) + len(self.held)
        assert waiting + ((self.side.used_idx - self.side.last_used) & 0xFFFF) == len(self.expected)

    def teardown(self) -> None:
        self.driver.close()


class BothSidesWithFlags(BothSides):
    features = f.VERSION_1


TestBothSides = BothSides.TestCase
TestBothSides.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestBothSidesWithFlags = BothSidesWithFlags.TestCase
TestBothSidesWithFlags.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
