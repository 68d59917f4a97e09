"""The frames' way between a network card's virtqueues and the host, where this process moves them.

virtio 1.2, sections 5.1.6.2 (transmission) and 5.1.6.4 (reception).  Frames go straight between guest RAM and the
backend's descriptor; what is processed in one go is answered with at most one interrupt, and while there is work the
driver is asked for no kicks.  Nothing here waits: a backend that is full, and a driver without buffers, are left
alone until poll(2) or a kick says that it goes on.
"""

from __future__ import annotations

import select
from collections import deque

from pyvmm.devices.virtio import net_features as feature
from pyvmm.devices.virtio.queue import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from pyvmm.devices.virtio.device import Link
    from pyvmm.devices.virtio.queue import Chain
    from pyvmm.devices.virtio.worker import Worker

    class Backend(Protocol):
        """What carries frames on the host: :class:`pyvmm.devices.virtio.tap.Tap`, :class:`~.stream.Stream`."""

        label: str
        fd: int

        @property
        def features(self) -> int: ...
        @property
        def backlog(self) -> bool: ...
        def start(self, features: int) -> None: ...
        def stop(self) -> None: ...
        def receive(self, views: Sequence[memoryview]) -> int: ...
        def send(self, frames: Sequence[Sequence[memoryview]]) -> tuple[int, int]: ...
        def statistics(self) -> dict[str, int]: ...
        def close(self) -> None: ...


#: Frames received, and batches of frames sent, before others have their turn.
_TURN = 64
_BATCH = 32
#: With so many buffers at hand no more are taken: one system call can fill 1024.
_VIEWS = 512
_MOST_VIEWS = 1024  # IOV_MAX
_ONE_BUFFER = (1).to_bytes(2, "little")


class Counts:
    """What a card has done: frames and bytes (without headers) each way, and the frames that were lost."""

    __slots__ = ("rx_bytes", "rx_dropped", "rx_packets", "tx_bytes", "tx_dropped", "tx_packets")

    def __init__(self) -> None:
        self.rx_packets = self.rx_bytes = self.rx_dropped = 0
        self.tx_packets = self.tx_bytes = self.tx_dropped = 0


class Interest:
    """What poll(2) is to say of the backend's descriptor: whether there are frames, whether there is room."""

    __slots__ = ("_callback", "_events", "_fd", "_worker")

    def __init__(self, worker: Worker, fd: int, callback: Callable[[], None]) -> None:
        self._worker = worker
        self._fd = fd
        self._callback = callback
        self._events = 0

    def __contains__(self, event: int) -> bool:
        return bool(self._events & event)

    def set(self, event: int, wanted: bool) -> None:
        """Ask for ``event`` (POLLIN or POLLOUT), or no more."""
        events = self._events | event if wanted else self._events & ~event
        if events == self._events:
            return
        self._events = events
        if events:
            self._worker.watch(self._fd, self._callback, events)
        else:
            self._worker.unwatch(self._fd)


class Receiver:
    """Frames from the backend into the driver's buffers.

    Buffers are taken ahead, enough for the largest frame where frames may take several, because the size of a
    frame is known only when it is there.  What exceeds them lands in ``_spill``, and waits for more of them.
    """

    __slots__ = (
        "_backend", "_base", "_counts", "_held", "_interest", "_link", "_lost", "_mergeable", "_queue", "_room",
        "_spill", "_staged", "_views", "_wanted", "_worker",
    )  # fmt: skip

    def __init__(
        self, link: Link, backend: Backend, worker: Worker, interest: Interest, counts: Counts,
        lost: Callable[[OSError], None],
    ) -> None:  # fmt: skip
        self._link = link
        self._queue = link.queues[feature.RECEIVE]
        self._backend = backend
        self._worker = worker
        self._interest = interest
        self._counts = counts
        self._lost = lost
        self._mergeable = bool(link.features & feature.MRG_RXBUF)
        self._wanted = feature.LARGEST_FRAME if self._mergeable else 1
        self._spill = memoryview(bytearray(feature.LARGEST_FRAME))
        self._staged: deque[tuple[Chain, int]] = (
            deque()
        )  # buffers that were taken, and how many views each has
        self._views: list[memoryview] = [self._spill]  # theirs, and at the end the spill
        self._room = 0  # bytes in them
        self._held = 0  # the size of a frame that they hold the start of, and the spill the rest
        self._base = 0  # how much of it they hold

    def kicked(self) -> None:
        """The driver has added buffers: go on if they were what was missing."""
        if select.POLLIN not in self._interest:
            self._queue.disable_kicks()
            self._interest.set(select.POLLIN, True)
            self.run()

    def run(self) -> None:
        """Receive until nothing is left, or no buffers are, or it is another's turn."""
        if select.POLLIN not in self._interest:
            return
        delivered = False
        for _ in range(_TURN):
            if (self._held or self._room < self._wanted) and not self._stock():
                self._interest.set(select.POLLIN, False)  # until the kick
                break
            size = self._held
            if not size:
                try:
                    size = self._backend.receive(self._views)
                except OSError as error:
                    self._interest.set(select.POLLIN, False)
                    self._lost(error)
                    break
                if not size:
                    break
            if size <= self._room:
                self._held = 0
                self._deliver(size)
                delivered = True
            elif self._mergeable:
                self._held, self._base = size, self._room
            else:
                self._counts.rx_dropped += 1
        else:
            self._worker.call(self.run)
        if delivered and self._queue.should_interrupt():
            self._link.interrupt()

    def _stock(self) -> bool:
        """Take buffers until there are enough; False, and kicks are enabled, if it takes more to go on."""
        queue = self._queue
        while self._room < (self._held or self._wanted):
            if not self._held and len(self._views) > _VIEWS:
                return True
            chain = queue.pop()
            if chain is None:
                if self._held and len(self._views) > queue.size:  # the driver has no more to give
                    self._held = 0
                    self._counts.rx_dropped += 1
                    if len(self._views) > _MOST_VIEWS:
                        raise QueueError(
                            f"virtqueue 0: buffers in {len(self._views)} pieces that hold no frame"
                        )
                if self._staged and not self._held:
                    return True  # whatever comes may fit
                if not queue.enable_kicks():
                    return False
                queue.disable_kicks()
                continue
            size = chain.writable_size
            if size < feature.HEADER_SIZE:
                raise QueueError(f"virtqueue 0: a buffer of {size} bytes cannot hold a frame's header")
            if len(chain.writable) > _VIEWS:
                raise QueueError(f"virtqueue 0: {len(chain.writable)} descriptors for a frame, over {_VIEWS}")
            if self._held:
                start = self._room - self._base
                chain.write(self._spill[start : self._held - self._base], 0)
            views = chain.write_views()
            self._staged.append((chain, len(views)))
            self._views[-1:-1] = views
            self._room += size
        return True

    def _deliver(self, size: int) -> None:
        """Give the driver the buffers that a frame of ``size`` bytes, with its header, takes."""
        chain, views = self._staged.popleft()
        room = chain.writable_size
        used = [(chain, min(size, room))]
        while room < size:
            chain, count = self._staged.popleft()
            used.append((chain, min(size - room, chain.writable_size)))
            room += chain.writable_size
            views += count
        first = self._views[0]
        number = _ONE_BUFFER if len(used) == 1 else len(used).to_bytes(2, "little")
        if len(first) >= feature.HEADER_SIZE:
            first[feature.NUM_BUFFERS : feature.HEADER_SIZE] = number
        else:
            used[0][0].write(number, feature.NUM_BUFFERS)
        del self._views[:views]
        self._room -= room
        for chain, written in used:
            self._queue.push(chain, written)
        counts = self._counts
        counts.rx_packets += 1
        counts.rx_bytes += size - feature.HEADER_SIZE


class Transmitter:
    """Frames from the driver to the backend."""

    __slots__ = ("_backend", "_counts", "_interest", "_link", "_queue", "_waiting", "_worker")

    def __init__(
        self, link: Link, backend: Backend, worker: Worker, interest: Interest, counts: Counts
    ) -> None:
        self._link = link
        self._queue = link.queues[feature.TRANSMIT]
        self._backend = backend
        self._worker = worker
        self._interest = interest
        self._counts = counts
        self._waiting: list[Chain] = []  # taken from the queue, not yet by the backend

    def run(self) -> None:
        """Send until nothing is left, or the backend is full, or it is another's turn."""
        queue, backend = self._queue, self._backend
        pushed = False
        for _ in range(_TURN):
            if not self._waiting and not backend.backlog and not self._take():
                if not queue.enable_kicks():
                    break
                continue
            frames = [chain.read_views() for chain in self._waiting]
            taken, dropped = backend.send(frames)
            counts = self._counts
            counts.tx_dropped += dropped
            counts.tx_packets += taken - dropped
            for chain in self._waiting[:taken]:
                counts.tx_bytes += max(chain.readable_size - feature.HEADER_SIZE, 0)
                queue.push(chain, 0)
                pushed = True
            del self._waiting[:taken]
            if backend.backlog:
                break
        else:
            self._worker.call(self.run)
        self._interest.set(select.POLLOUT, backend.backlog)
        if pushed and queue.should_interrupt():
            self._link.interrupt()

    def resume(self) -> None:
        """The backend may have room again."""
        if select.POLLOUT in self._interest:
            self.run()

    def _take(self) -> bool:
        """Take a batch of frames from the driver, if there are any."""
        queue, waiting = self._queue, self._waiting
        queue.disable_kicks()
        while len(waiting) < _BATCH and (chain := queue.pop()) is not None:
            waiting.append(chain)
        return bool(waiting)
