"""The memory balloon: the guest gives RAM back to the host, when it is told to and whenever it has free pages.

virtio 1.2, section 5.5; Linux drivers/virtio/virtio_balloon.c.  Inflating, the driver names pages by number (4 KiB
each, whatever its page size); reporting, it passes free memory as buffers that the device may drop and never writes.
Pages that were dropped read as zeroes.

The specification numbers the queues 0 to 4, those of absent features left out.  Linux counts only those that are
there.  Free page hinting is not offered, so the third is the statistics', if negotiated, and every other is reporting.
"""

from __future__ import annotations

import struct
import threading

from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.features import BALLOON
from pyvmm.devices.virtio.worker import Worker
from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.device import Link
    from pyvmm.devices.virtio.queue import Chain, Queue

# Feature bits (section 5.5.3).
F_STATS_VQ = 1 << 1
F_DEFLATE_ON_OOM = 1 << 2
F_REPORTING = 1 << 5

INFLATE, DEFLATE, STATISTICS = 0, 1, 2
QUEUES = 5
#: Linux passes up to 32 ranges of free memory at a time, and asks for a queue that can hold them.
QUEUE_SIZE = 64

#: A page of the balloon's, whatever the guest's page size (VIRTIO_BALLOON_PFN_SHIFT).
PAGE = 4096
#: The configuration space: le32 num_pages, le32 actual, which the driver writes.
_CONFIG = struct.Struct("<II")
_ACTUAL = 4
#: A statistic: le16 tag, le64 value, packed (section 5.5.6.4).
_STATISTIC = struct.Struct("<HQ")
#: Tags, in order; sizes are bytes.
STATISTICS_NAMES = (
    "swap_in", "swap_out", "major_faults", "minor_faults", "free", "total", "available", "disk_caches",
    "hugetlb_allocations", "hugetlb_failures", "oom_kills", "allocation_stalls", "async_scans", "direct_scans",
    "async_reclaims", "direct_reclaims",
)  # fmt: skip
#: Bytes of one request that are looked at: page numbers, or statistics.
MOST_BYTES = 1 << 20


class BalloonDevice(VirtioDevice):
    """A balloon that the guest is to fill with ``target`` bytes of its RAM."""

    DEVICE_ID = BALLOON

    def __init__(self, name: str, target: int = 0) -> None:
        super().__init__(
            name,
            features=F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING,
            queue_sizes=(QUEUE_SIZE,) * QUEUES,
            config=_CONFIG.pack(_pages(target), 0),
        )
        self._link: Link | None = None
        self._worker: Worker | None = None
        self._waiting: Chain | None = None  # the statistics' buffer: giving it back asks for new ones
        self._answered = threading.Condition()
        self._guest: dict[str, int] = {}
        self._answers = 0
        self._inflated = self._deflated = self._reported = self._ignored = 0

    # -- for the machine --------------------------------------------------------------------------------

    @property
    def target(self) -> int:
        """The size in bytes that the balloon is to have."""
        pages: int = _CONFIG.unpack_from(self.config)[0]
        return pages * PAGE

    @property
    def actual(self) -> int:
        """The size in bytes that the balloon has, as the driver said last."""
        pages: int = _CONFIG.unpack_from(self.config)[1]
        return pages * PAGE

    def set_target(self, size: int) -> None:
        """Have the guest make the balloon ``size`` bytes large (rounded down to pages of 4 KiB).  Any thread.

        It takes its time, and stops short of its last free memory; :attr:`actual` tells.
        """
        struct.pack_into("<I", self.config, 0, _pages(size))
        link = self._link
        if link is not None:
            link.config_changed()

    def statistics(self) -> dict[str, int]:
        """Sizes in bytes: target, actual, inflated, deflated and reported so far, ignored (no guest RAM, or the host
        does not take it), and what the guest said of itself when it was asked last: guest_free, guest_available ..."""
        return {
            "target": self.target,
            "actual": self.actual,
            "inflated": self._inflated,
            "deflated": self._deflated,
            "reported": self._reported,
            "ignored": self._ignored,
            **{f"guest_{name}": value for name, value in self._guest.items()},
        }

    def ask(self, seconds: float = 0.0) -> bool:
        """Ask the guest for new statistics, and wait so many ``seconds`` for them; whether they came.  Any thread."""
        worker = self._worker
        if worker is None:
            return False
        with self._answered:
            before = self._answers
            worker.call(self._ask)
            return self._answered.wait_for(lambda: self._answers != before, seconds)

    # -- for the transport ------------------------------------------------------------------------------

    def activate(self, link: Link) -> None:
        """Start the thread."""
        worker = Worker(self.name, link)
        self._link, self._worker = link, worker
        for index in range(QUEUES):
            if not link.queues[index].ready:
                continue
            if index == INFLATE:
                worker.watch_queue(index, self._serve(link, index, self._inflate))
            elif index == DEFLATE:
                worker.watch_queue(index, self._serve(link, index, self._deflate))
            elif index == STATISTICS and link.features & F_STATS_VQ:
                worker.watch_queue(index, self._serve(link, index, self._told))
            elif link.features & F_REPORTING:
                worker.watch_queue(index, self._serve(link, index, self._report))
        worker.start()

    @staticmethod
    def _serve(link: Link, index: int, handler: Callable[[Chain], int | None]) -> Callable[[], None]:
        queue: Queue = link.queues[index]
        return lambda: queue.drain(handler)

    def reset(self) -> None:
        """Stop the thread.  The guest has all its RAM again."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
        self._link = self._waiting = None
        struct.pack_into("<I", self.config, _ACTUAL, 0)

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver says how large the balloon is."""
        if offset == _ACTUAL and len(data) == 4:
            self.config[_ACTUAL : _ACTUAL + 4] = data

    # -- requests, in the device's thread ---------------------------------------------------------------

    def _inflate(self, chain: Chain) -> int:
        for address, size in _ranges(chain.read(MOST_BYTES)):
            self._inflated += self._discard(address, size)
        return 0

    def _deflate(self, chain: Chain) -> int:
        self._deflated += sum(size for _, size in _ranges(chain.read(MOST_BYTES)))
        return 0

    def _report(self, chain: Chain) -> int:
        for address, size in chain.writable:
            self._reported += self._discard(address, size)
        return 0

    def _discard(self, address: int, size: int) -> int:
        """Give the pages back to the host where they are guest RAM; how many bytes they were."""
        link, done = self._link, 0
        if link is None:
            return 0
        for region in link.memory.regions:
            start, end = max(address, region.start), min(address + size, region.end)
            if start < end:
                try:
                    link.memory.discard(start, end - start)
                except HostError:
                    continue  # locked in RAM, say: the guest may give it, the host cannot take it
                done += end - start
        self._ignored += size - done
        return done

    def _told(self, chain: Chain) -> None:
        """Statistics; the buffer is kept until new ones are wanted."""
        guest = {}
        data = chain.read(MOST_BYTES)
        for tag, value in _STATISTIC.iter_unpack(data[: len(data) - len(data) % _STATISTIC.size]):
            if tag < len(STATISTICS_NAMES):
                guest[STATISTICS_NAMES[tag]] = value
        former, self._waiting = self._waiting, chain
        if former is not None and self._link is not None:  # one is enough
            self._link.queues[STATISTICS].push(former, 0)
        with self._answered:
            self._guest = guest
            self._answers += 1
            self._answered.notify_all()

    def _ask(self) -> None:
        link, chain = self._link, self._waiting
        if link is None or chain is None:
            return
        self._waiting = None
        queue = link.queues[STATISTICS]
        queue.push(chain, 0)
        if queue.should_interrupt():
            link.interrupt()


def _pages(size: int) -> int:
    """``size`` bytes in pages of the balloon's, as far as the register goes."""
    return max(0, min(size // PAGE, 0xFFFF_FFFF))


def _ranges(data: bytes) -> list[tuple[int, int]]:
    """The (address, size) ranges of the pages whose numbers ``data`` holds (le32 each), neighbours put together."""
    count = len(data) // 4
    ranges: list[tuple[int, int]] = []
    start = end = -1
    for number in sorted(set(struct.unpack_from(f"<{count}I", data))):
        if number != end:
            if end > start:
                ranges.append((start * PAGE, (end - start) * PAGE))
            start = number
        end = number + 1
    if end > start:
        ranges.append((start * PAGE, (end - start) * PAGE))
    return ranges
