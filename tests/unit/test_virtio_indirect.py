"""Long indirect tables read in one go: the same buffers as descriptor by descriptor, and the same refusals."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.virtio import queue as queue_module
from pyvmm.devices.virtio.features import INDIRECT_DESC
from pyvmm.devices.virtio.indirect import FEWEST, usual
from pyvmm.devices.virtio.queue import Queue, QueueError
from pyvmm.memory import GuestMemory

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 1 << 20
DESC, AVAIL, USED, TABLE = 0x1000, 0x3000, 0x4000, 0x8000
QUEUE_SIZE = 64

Descriptor = tuple[int, int, int, int]  # address, length, flags, next


def request(buffers: int, write: int) -> list[Descriptor]:
    """A disk's request as Linux writes it: a header, ``buffers`` of data, a status."""
    data = [(0x10000 + 0x1000 * (at ^ 1), 0x1000, NEXT | write, at + 2) for at in range(buffers)]
    return [(0x5000, 16, NEXT, 1), *data, (0x6000, 1, WRITE, buffers + 2)]


def packed(table: list[Descriptor]) -> bytes:
    return b"".join(struct.pack("<QIHH", *each) for each in table)


@pytest.fixture(scope="module")
def memory():
    made = GuestMemory([(0, SIZE)])
    yield made
    made.close()


def popped(memory: GuestMemory, table: list[Descriptor]) -> tuple | str:
    """What comes out of a queue whose only request is ``table``, or what is wrong with it."""
    memory.write(TABLE, packed(table))
    memory.write(DESC, struct.pack("<QIHH", TABLE, 16 * len(table), INDIRECT, 0))
    memory.write(AVAIL, struct.pack("<HHH", 0, 1, 0))
    queue = Queue(
        memory, 0, QUEUE_SIZE, DESC, AVAIL, USED, features=INDIRECT_DESC, interrupt=lambda: None
    )  # fmt: skip
    try:
        chain = queue.pop()
    except QueueError as error:
        return error.message
    assert chain is not None
    return chain.readable, chain.writable, chain.readable_size, chain.writable_size


def followed(memory: GuestMemory, table: list[Descriptor]) -> tuple | str:
    """The same, descriptor by descriptor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue_module, "usual", lambda table, start, end: None)
        return popped(memory, table)


@pytest.mark.parametrize("write", [0, WRITE])
def test_a_disks_request(memory, write):
    table = request(20, write)
    found = usual(memoryview(bytearray(packed(table))), 0, SIZE)
    buffers = [(address, length) for address, length, _, _ in table]
    first = 1 if write else 21
    assert found == (
        buffers[:first], buffers[first:], 16 + (0 if write else 20 << 12), 1 + (20 << 12 if write else 0)
    )  # fmt: skip
    assert popped(memory, table) == found


def test_its_buffers_may_end_where_memory_ends(memory):
    table = request(10, WRITE)
    table[3] = (SIZE - 0x1000, 0x1000, *table[3][2:])
    assert usual(memoryview(bytearray(packed(table))), 0, SIZE) is not None
    table[3] = (SIZE - 0x1000, 0x1001, *table[3][2:])
    assert usual(memoryview(bytearray(packed(table))), 0, SIZE) is None
    assert "not in guest RAM" in popped(memory, table)


NUMBERS = [0, 1, 2, 3, 5, 16, 0x1000, SIZE - 1, SIZE, 0xFFFF, 0xFFFF_FFFF, (1 << 64) - 1]
CHANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.sampled_from(NUMBERS)), max_size=4)


def changed(table: list[Descriptor], position: int, field: int, number: int) -> None:
    """Put ``number``, as far as it fits, into a field of a descriptor."""
    descriptor = list(table[position % len(table)])
    descriptor[field] = number & (1 << (64, 32, 16, 16)[field]) - 1
    table[position % len(table)] = tuple(descriptor)


@pytest.mark.parametrize("write", [0, WRITE])
def test_each_change_is_seen(memory, write):
    for position in range(FEWEST + 2):
        for field in range(4):
            for number in NUMBERS:
                table = request(FEWEST, write)
                changed(table, position, field, number)
                assert popped(memory, table) == followed(memory, table), (position, field, number)


@settings(deadline=None)
@given(buffers=st.integers(FEWEST - 4, 60), write=st.sampled_from([0, WRITE]), changes=CHANGES)
def test_the_same_as_one_by_one(memory, buffers, write, changes):
    """Whatever is wrong with a table, or unusual."""
    table = request(buffers, write)
    for change in changes:
        changed(table, *change)
    assert popped(memory, table) == followed(memory, table)
