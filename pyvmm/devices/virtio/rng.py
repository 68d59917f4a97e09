"""The entropy device: buffers of the driver are filled with the host's random numbers.

virtio 1.2, section 5.4; Linux drivers/char/hw_random/virtio-rng.c.
"""

from __future__ import annotations

import os

from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.features import ENTROPY
from pyvmm.devices.virtio.queue import QueueError
from pyvmm.devices.virtio.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.device import Link
    from pyvmm.devices.virtio.queue import Chain

#: A request is answered with at most so many bytes: a guest that asks for a gigabyte gets a part of it, as it may.
MOST_BYTES = 64 << 10


class RngDevice(VirtioDevice):
    """An entropy device."""

    DEVICE_ID = ENTROPY

    def __init__(self, name: str) -> None:
        super().__init__(name, queue_sizes=(64,))
        self._worker: Worker | None = None
        self._requests = 0
        self._bytes = 0

    def activate(self, link: Link) -> None:
        """Start the worker."""
        queue = link.queues[0]
        self._worker = worker = Worker(self.name, link)
        worker.watch_queue(0, lambda: queue.drain(self._fill))
        worker.start()

    def _fill(self, chain: Chain) -> int:
        if not chain.writable_size:
            raise QueueError("virtqueue 0: a request for entropy without a buffer to fill")
        written = chain.write(os.urandom(min(chain.writable_size, MOST_BYTES)))
        self._requests += 1
        self._bytes += written
        return written

    def reset(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def statistics(self) -> dict[str, int]:
        """Requests answered, and bytes given."""
        return {"requests": self._requests, "bytes": self._bytes}
