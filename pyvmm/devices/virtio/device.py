"""What a virtio device is to its transport, and what an active device has of its driver.

virtio 1.2, sections 2.1 (status), 2.2 (features), 2.5 (configuration space) and 3.1 (initialization).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.queue import Queue
    from pyvmm.memory import GuestMemory


class Link:
    """What a device has from DRIVER_OK until its reset: guest memory, queues, and ways to be heard.

    ``features`` are the negotiated bits, all of them.  ``kicks[i]`` is an eventfd that is readable when the driver
    has kicked queue ``i``; ``interrupt_fd`` one that raises the used-buffer interrupt when it is written (what vhost
    calls "call").  A queue that the driver left alone is in ``queues`` as well, with ``ready`` False and size 0.
    ``failed``: the device is marked NEEDS_RESET, and its queues give nothing any more.
    """

    __slots__ = ("_on_config", "_on_fail", "failed", "features", "interrupt_fd", "kicks", "memory", "queues")

    def __init__(
        self,
        memory: GuestMemory,
        features: int,
        queues: list[Queue],
        kicks: list[int],
        interrupt_fd: int,
        on_config: Callable[[Link, bytes | None], None],
        on_fail: Callable[[Link, str], None],
    ) -> None:
        self.memory = memory
        self.features = features
        self.queues = queues
        self.kicks = kicks
        self.interrupt_fd = interrupt_fd
        self.failed = False
        self._on_config = on_config
        self._on_fail = on_fail

    def interrupt(self) -> None:
        """Raise the used-buffer interrupt.  Any thread."""
        try:
            os.eventfd_write(self.interrupt_fd, 1)
        except BlockingIOError:
            pass  # it is raised already

    def config_changed(self, config: bytes | None = None) -> None:
        """Tell the driver that the configuration space has changed; ``config`` replaces the device's.  Any thread."""
        self._on_config(self, config)

    def fail(self, reason: str) -> None:
        """Mark the device NEEDS_RESET and say why, once; nothing is processed until the driver's reset.  Any thread."""
        self._on_fail(self, reason)


class VirtioDevice:
    """Base of all devices.  The transport calls these; a vCPU's thread is waiting meanwhile, so be quick.

    ``name`` stands in exit counts and messages ("disk0").  ``features`` are the device's own bits; VERSION_1 is always
    offered, and the ring's features too unless ``own_ring_features`` is true, when ``features`` says all.
    ``queue_sizes`` has the largest size of each queue, a power of two.  ``config`` is the configuration space as it
    is now, at most 0xf00 bytes; the transport shows it to the driver.
    """

    DEVICE_ID = 0
    own_ring_features = False
    #: Another process has the kicks' eventfds as well, and could make them block whoever reads them.
    kicks_are_shared = False
    name: str
    features: int
    queue_sizes: tuple[int, ...]
    config: bytearray

    def __init__(
        self, name: str, *, features: int = 0, queue_sizes: tuple[int, ...] = (256,), config: bytes = b""
    ) -> None:
        self.name = name
        self.features = features
        self.queue_sizes = queue_sizes
        self.config = bytearray(config)

    def agreed(self, features: int) -> None:
        """The driver has settled on ``features``, all of them.  What ``config`` holds after this is what it reads."""

    def activate(self, link: Link) -> None:
        """The driver is ready: start.  A PyvmmError marks the device NEEDS_RESET and is said on standard error."""
        raise NotImplementedError

    def reset(self) -> None:
        """Stop; returns when nothing of the device touches guest memory any more.  It may be activated again."""
        raise NotImplementedError

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote ``data`` into the configuration space at ``offset``.  It is lost unless this takes it;
        what this leaves in ``config`` is what the driver reads from then on."""

    def close(self) -> None:
        """Give everything back, for good; called after reset()."""

    def statistics(self) -> dict[str, int]:
        """What the device has done so far, in numbers with names: requests, bytes_read ..."""
        return {}
