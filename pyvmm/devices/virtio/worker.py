"""A thread for one device: it sleeps in poll(2) until the driver kicks, a descriptor is ready, or somebody calls."""

from __future__ import annotations

import os
import select
import threading

from pyvmm.devices.virtio.queue import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.device import Link


class Worker:
    """The thread ``name`` of the device behind ``link``.

    A QueueError in a callback marks the device NEEDS_RESET, and so does any other exception ("internal error").
    After that, and after anything else that has made ``link.failed`` true, the thread only waits for stop().
    """

    __slots__ = (
        "_callbacks",
        "_calls",
        "_lock",
        "_poll",
        "_queues",
        "_stopping",
        "_thread",
        "_wake",
        "link",
        "name",
    )

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self.link = link
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._queues: list[Callable[[], None]] = []
        self._calls: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._stopping = False
        self._wake = -1
        self._thread: threading.Thread | None = None

    def watch(self, fd: int, callback: Callable[[], None], events: int = select.POLLIN) -> None:
        """Call ``callback`` whenever ``fd`` is ready for ``events`` (or has hung up).  Before start(), or in the
        thread.  Watching it again replaces both."""
        self._callbacks[fd] = callback
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``, if it is watched.  Before start(), or in the thread."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watch_queue(self, index: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the driver kicks queue ``index``, the kick taken, and once when the thread starts:
        what was made available before the device was ready may have been kicked before, too."""
        kick = self.link.kicks[index]

        def kicked() -> None:
            try:
                os.eventfd_read(kick)
            except BlockingIOError:
                return
            callback()

        self.watch(kick, kicked)
        self._queues.append(callback)

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the thread soon; never, if it has been stopped or the device has failed.  Any thread."""
        with self._lock:
            if self.link.failed:
                return
            self._calls.append(function)
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def start(self) -> None:
        """Start the thread."""
        self._wake = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.POLLIN)
        thread = threading.Thread(target=self._main, name=self.name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the host has no room for another
            self._poll.unregister(self._wake)
            os.close(self._wake)
            self._wake = -1
            raise
        self._thread = thread

    def stop(self) -> None:
        """End the thread and wait for it; not from within it.  May be called again."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        thread.join()
        with self._lock:
            os.close(self._wake)
            self._wake = -1

    def _main(self) -> None:
        link = self.link
        try:
            for callback in self._queues:
                callback()
            while not (self._stopping or link.failed):
                self._once()
        except QueueError as error:
            link.fail(f"the guest broke {error.message}")
        except Exception as error:
            link.fail(f"internal error: {type(error).__name__}: {error}")
            if os.environ.get("PYVMM_DEBUG"):
                import traceback

                traceback.print_exc()

    def _once(self) -> None:
        for fd, _ in self._poll.poll():
            if self._stopping or self.link.failed:
                return
            if fd == self._wake:
                os.eventfd_read(fd)
                with self._lock:
                    calls, self._calls = self._calls, []
                for function in calls:
                    function()
            elif fd in self._callbacks:  # unless a callback before it has just stopped watching it
                self._callbacks[fd]()
