"""A thread for one device: it sleeps in poll(2) until the driver kicks, a descriptor is ready, or somebody calls."""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.device import Link


class Worker:
    """The thread ``name`` of the device behind ``link``.

    A QueueError in a callback marks the device NEEDS_RESET, and so does any other exception ("internal error").
    """

    def __init__(self, name: str, link: Link) -> None: ...

    def watch(self, fd: int, callback: Callable[[], None], events: int = select.POLLIN) -> None:
        """Call ``callback`` whenever ``fd`` is ready for ``events``.  Before start(), or in the thread."""
        raise NotImplementedError

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``.  Before start(), or in the thread."""
        raise NotImplementedError

    def watch_queue(self, index: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the driver kicks queue ``index``, the kick taken, and once when the thread starts."""
        raise NotImplementedError

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the thread soon.  Any thread."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the thread and wait for it; not from within it.  May be called again."""
        raise NotImplementedError
