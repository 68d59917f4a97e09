"""A split virtqueue as the device sees it: chains of descriptors come out of it, used elements go back.

virtio 1.2, section 2.7; Linux drivers/virtio/virtio_ring.c is the other side.  All that the guest wrote is read once,
checked, and then used; what breaks the rules is a QueueError, after which the queue gives nothing more until it is
set up again.

Order matters between the two sides.  Where the device has to see the guest's memory as it is *after* its own store
(used index, then the driver's event index), there is a full barrier: :meth:`Queue._fence` releases and takes a lock,
which is a locked instruction on x86 and, being a release followed by an acquire, enough on arm64 as well.
"""

from __future__ import annotations

from struct import Struct
from threading import Lock

from pyvmm.devices.virtio.chain import Chain
from pyvmm.devices.virtio.features import EVENT_IDX, INDIRECT_DESC
from pyvmm.devices.virtio.indirect import FEWEST, usual
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.memory import GuestMemory
    from pyvmm.memory_region import Region

__all__ = ["Chain", "Queue", "QueueError"]

DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT = 1, 2, 4
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1
#: The largest size of a split virtqueue (2.7).
MOST_DESCRIPTORS = 1 << 15
#: The longest indirect table, if the queue is shorter.  No chain may be longer than its queue (2.7.5.3.1), but Linux
#: makes some that are: a splice from a large pipe to a console's port (virtio_console.c, port_fops_splice_write).
LONGEST_TABLE = 1024
#: A used element says in 32 bits how much was written.
MOST_BYTES = (1 << 32) - 1

_descriptor = Struct("<QIHH").unpack_from  # address, length, flags, next
_pack_used = Struct("<II").pack_into  # head of the chain, bytes written


class QueueError(PyvmmError):
    """The guest broke the rules of a virtqueue: its device needs a reset."""


class Queue:
    """The device's side of virtqueue ``index`` with ``size`` descriptors.

    ``desc``, ``driver`` and ``device`` are the guest addresses of the descriptor table, the available ring and the
    used ring.  ``next_avail`` is the index, modulo 2**16, of the next available element to be taken.  ``broken``: the
    guest broke the rules, or the device failed; nothing comes out any more.  ``features`` are the negotiated ones;
    ``interrupt`` is what :meth:`drain` calls.  Raises QueueError if the rings are not where they may be.
    """

    __slots__ = (
        "_avail", "_avail_seen", "_desc", "_end", "_event_idx", "_fenced", "_indirect", "_interrupt", "_lock", "_mask",
        "_memory", "_raw_used", "_signalled", "_start", "_used", "_used_idx", "_view", "broken", "desc", "device",
        "driver", "index", "next_avail", "ready", "size",
    )  # fmt: skip

    def __init__(
        self,
        memory: GuestMemory,
        index: int,
        size: int,
        desc: int,
        driver: int,
        device: int,
        *,
        features: int,
        interrupt: Callable[[], None],
    ) -> None:
        self.index = index
        self.size = size
        self.desc = desc
        self.driver = driver
        self.device = device
        self.ready = True
        self.broken = False
        if size < 1 or size & (size - 1) or size > MOST_DESCRIPTORS:
            raise self._error(f"{size} descriptors are not a power of two up to {MOST_DESCRIPTORS}")
        self._memory = memory
        self._desc = self._ring(desc, 16 * size, 16, "the descriptor table")
        self._avail = self._ring(driver, 6 + 2 * size, 2, "the available ring").cast("H")
        self._raw_used = self._ring(device, 6 + 8 * size, 4, "the used ring")
        self._used = self._raw_used.cast("H")
        self._mask = size - 1
        self._event_idx = bool(features & EVENT_IDX)
        self._indirect = bool(features & INDIRECT_DESC)
        self._interrupt = interrupt
        region = max(memory.regions, key=_size)
        self._start, self._end, self._view = region.start, region.end, region.view
        self.next_avail = 0
        self._avail_seen = 0
        self._used_idx = 0
        self._signalled = 0  # the used index at the last decision about an interrupt
        self._lock = Lock()
        self._fenced = Lock()
        self._fenced.acquire()

    @classmethod
    def unused(cls, index: int) -> Queue:
        """A queue that the driver has not made ready: nothing ever comes out of it."""
        queue = cls.__new__(cls)
        queue.index = index
        queue.size = queue.desc = queue.driver = queue.device = queue.next_avail = 0
        queue.ready = False
        queue.broken = True
        return queue

    def _ring(self, address: int, size: int, alignment: int, what: str) -> memoryview:
        if address % alignment:
            raise self._error(f"{what} at {address:#x} is not aligned to {alignment} bytes")
        if not self._memory.contains(address, size):
            raise self._error(f"{what} at {address:#x}, {size:#x} bytes, is not in guest RAM")
        return self._memory.slice(address, size)

    def _error(self, what: str) -> QueueError:
        self.broken = True
        return QueueError(f"virtqueue {self.index}: {what}")

    def _fence(self) -> None:
        """A full memory barrier; with ``_lock`` held."""
        self._fenced.release()
        self._fenced.acquire()

    # -- from the driver --------------------------------------------------------------------------------

    def pop(self) -> Chain | None:
        """The next request; None if there is none.  QueueError where the guest broke the rules.  One thread."""
        if self.broken:
            return None
        position = self.next_avail
        if position == self._avail_seen and not self._look():
            return None
        size = self.size
        head = index = self._avail[2 + (position & self._mask)]
        if head >= size:
            raise self._error(f"available descriptor {head} of {size}")
        table, count, left = self._desc, size, size
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        read_size = write_size = 0
        while True:
            address, length, flags, follower = _descriptor(table, index << 4)
            if flags & DESC_F_INDIRECT:
                table = self._indirect_table(address, length, flags, nested=table is not self._desc)
                count, index = length >> 4, 0
                left += max(count - size, 0)
                if count >= FEWEST and left == size and (found := usual(table, self._start, self._end)):
                    readable, writable, read_size, write_size = found
                    break
                continue
            if not left:
                raise self._error(
                    f"the chain from descriptor {head} has a loop, or more than {max(size, count)} descriptors"
                )
            left -= 1
            if not length or not (self._start <= address and address + length <= self._end):
                self._check_buffer(address, length)
            if flags & DESC_F_WRITE:
                writable.append((address, length))
                write_size += length
            elif writable:
                raise self._error(
                    f"the chain from descriptor {head} has a readable buffer after a writable one"
                )
            else:
                readable.append((address, length))
                read_size += length
            if not flags & DESC_F_NEXT:
                break
            if follower >= count:
                raise self._error(f"descriptor {follower} of {count}, in the chain from descriptor {head}")
            index = follower
        if read_size + write_size > MOST_BYTES:
            raise self._error(f"the chain from descriptor {head} holds {read_size + write_size:#x} bytes")
        self.next_avail = (position + 1) & 0xFFFF
        return Chain(self._memory, head, readable, writable, read_size, write_size)

    def _look(self) -> bool:
        """Read the driver's index; whether there is something new."""
        seen = self._avail[1]
        ahead = (seen - self.next_avail) & 0xFFFF
        if not ahead:
            return False
        if ahead > self.size:
            raise self._error(f"available index {seen} is {ahead} ahead, in a queue of {self.size}")
        with self._lock:
            self._fence()  # the index first, then what it covers
        self._avail_seen = seen
        return True

    def _indirect_table(self, address: int, length: int, flags: int, *, nested: bool) -> memoryview:
        if not self._indirect:
            raise self._error("an indirect descriptor, which was not negotiated")
        if nested or flags & DESC_F_NEXT:
            raise self._error(f"an indirect descriptor {'within a table' if nested else 'with a next one'}")
        if length % 16 or not 0 < length >> 4 <= max(self.size, LONGEST_TABLE):
            raise self._error(f"an indirect table of {length:#x} bytes, in a queue of {self.size}")
        if not self._memory.contains(address, length):
            raise self._error(
                f"an indirect table at {address:#x}, {length:#x} bytes, which is not in guest RAM"
            )
        return self._memory.slice(address, length)

    def _check_buffer(self, address: int, length: int) -> None:
        """The slow way: the buffer is empty, or not in the largest region."""
        if not length:
            raise self._error(f"an empty buffer at {address:#x}")
        if not self._memory.contains(address, length):
            raise self._error(f"a buffer at {address:#x}, {length:#x} bytes, which is not in guest RAM")

    # -- to the driver ----------------------------------------------------------------------------------

    def push(self, chain: Chain, written: int) -> None:
        """Give ``chain`` back, ``written`` bytes having been put into its writable buffers.  Any thread."""
        with self._lock:
            used = self._used_idx
            _pack_used(self._raw_used, 4 + ((used & self._mask) << 3), chain.head, written)
            self._used_idx = used = (used + 1) & 0xFFFF
            self._fence()  # the element first, then the index
            self._used[1] = used

    def should_interrupt(self) -> bool:
        """Whether the driver wants an interrupt for what was pushed since the last call.  Any thread."""
        if not self.ready:
            return False
        with self._lock:
            new, old = self._used_idx, self._signalled
            if new == old:
                return False
            self._signalled = new
            self._fence()  # the used index first, then what the driver says of it
            if self._event_idx:
                wanted = self._avail[2 + self.size]
                return (new - wanted - 1) & 0xFFFF < (new - old) & 0xFFFF
            return not self._avail[0] & AVAIL_F_NO_INTERRUPT

    def enable_kicks(self) -> bool:
        """Ask for a kick when something becomes available; True if something has already: look again."""
        if self.broken:
            return False
        with self._lock:
            if self._event_idx:
                self._used[2 + 4 * self.size] = self.next_avail
            else:
                self._used[0] = 0
            self._fence()  # the wish first, then what is there
            return self._avail[1] != self.next_avail

    def disable_kicks(self) -> None:
        """Ask for no kicks (the driver may kick nevertheless).  With EVENT_IDX, an old wish will do."""
        if not self.broken and not self._event_idx:
            self._used[0] = USED_F_NO_NOTIFY

    def drain(self, handler: Callable[[Chain], int | None]) -> None:
        """Pass all requests to ``handler``, which returns how many bytes it wrote, or None if it keeps the chain and
        pushes it later.  Kicks are enabled and nothing is available when this returns; the driver has been
        interrupted if it wants to be."""
        more = not self.broken
        while more:
            self.disable_kicks()
            try:
                # The driver is told after that many, as it may be filling the ring as fast as we empty it.
                for _ in range(self.size):
                    chain = self.pop()
                    if chain is None:
                        break
                    written = handler(chain)
                    if written is not None:
                        self.push(chain, written)
            finally:
                if self.should_interrupt():
                    self._interrupt()
            more = self.enable_kicks()

    def __repr__(self) -> str:
        return f"<Queue {self.index}: {self.size} descriptors, {self.next_avail} next>"


def _size(region: Region) -> int:
    return region.size
