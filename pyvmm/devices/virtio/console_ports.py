"""What a port of a virtio console is joined to on the host: Python code, a file, or a Unix socket's client.

The port asks: :meth:`Endpoint.take` for output of the guest, :meth:`Endpoint.fill` for input to it, both with
views of guest RAM, so that a descriptor's data moves by one writev or readv.  An endpoint that takes or gives
nothing now calls :meth:`Port.pump_output` or :meth:`Port.pump_input` when that changes.  So either side waits for the
other: output that nobody takes stays in the guest, input that the guest does not read stays at its source.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Pump(Protocol):
        """What an endpoint sees of its port (:class:`pyvmm.devices.virtio.console.Port`)."""

        def pump_output(self) -> None: ...
        def pump_input(self) -> None: ...
        def host_changed(self) -> None: ...

    class Thread(Protocol):
        """What an endpoint sees of the device's thread (:class:`pyvmm.devices.virtio.worker.Worker`)."""

        def watch(self, fd: int, callback: Callable[[], None], events: int = ...) -> None: ...
        def unwatch(self, fd: int) -> None: ...
        def call(self, function: Callable[[], None]) -> None: ...


#: Bytes of output that Python code gets at a time.
CHUNK = 64 * 1024
#: Bytes of input that may wait in a :class:`Channel` before its user is to send no more.
CHANNEL_LIMIT = 256 * 1024
#: Seconds that a slow reader has to take what the guest had written before the device stopped.
LAST_SECONDS = 1.0


class Endpoint:
    """The host's side of a port.  Its methods are called in the device's thread; between stop and start, by nobody.

    ``connected``: somebody is there.  While it is False, output is dropped (Linux sends none then, it waits).
    """

    connected = True
    _port: Pump | None = None
    _thread: Thread | None = None

    def start(self, port: Pump, thread: Thread) -> None:
        """The device is active: from now on ``port`` may be pumped, in ``thread``."""
        self._port, self._thread = port, thread

    def stop(self) -> None:
        """The device is not active any more, and its thread is gone."""
        self._port = self._thread = None

    def take(self, views: list[memoryview]) -> int:
        """Take some of the guest's output: how many bytes; 0 if it has to wait until pump_output() is called."""
        raise NotImplementedError

    def fill(self, views: list[memoryview]) -> int:
        """Fill ``views`` with input: how many bytes; 0 if there is none until pump_input() is called."""
        return 0

    def guest_opened(self, is_open: bool) -> None:
        """The guest has opened or closed the port."""

    def last_wait(self) -> bool:
        """The device stops and output is left: wait until it can be taken; False to give it up."""
        return False

    def close(self) -> None:
        """Give everything back, for good.  Any thread, after stop()."""


class Channel(Endpoint):
    """A port for Python code: bytes in, bytes out.

    ``on_output(data)`` gets what the guest writes, at most :data:`CHUNK` bytes at a time; ``on_open(is_open)`` hears of
    the guest opening and closing the port; ``on_room()`` is called when :attr:`pending` has sunk to half of ``limit``
    after having reached it.  All three are called in the device's thread and must not block.
    :meth:`send`, :meth:`hold` and :meth:`release` are for any thread.
    """

    def __init__(
        self,
        on_output: Callable[[bytes], None] | None = None,
        *,
        on_open: Callable[[bool], None] | None = None,
        on_room: Callable[[], None] | None = None,
        limit: int = CHANNEL_LIMIT,
    ) -> None:
        self.limit = limit
        self.is_open = False
        self._on_output = on_output
        self._on_open = on_open
        self._on_room = on_room
        self._pending = bytearray()
        self._was_full = False
        self._held = False
        self._asked = False  # a pump_input() is on its way
        self._lock = threading.Lock()

    @property
    def pending(self) -> int:
        """Bytes of input that the guest has not taken yet."""
        return len(self._pending)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Input for the guest.  All of it is accepted; send no more while :attr:`pending` is ``limit`` or more."""
        with self._lock:
            self._pending += data
            if len(self._pending) >= self.limit:
                self._was_full = True
            thread, port = self._thread, self._port
            if self._asked or thread is None or port is None:
                return
            self._asked = True
        thread.call(port.pump_input)

    def hold(self) -> None:
        """Let the guest's output wait in the guest until :meth:`release`."""
        self._held = True

    def release(self) -> None:
        """Take output again."""
        self._held = False
        thread, port = self._thread, self._port
        if thread is not None and port is not None:
            thread.call(port.pump_output)

    def stop(self) -> None:
        with self._lock:
            super().stop()
            self._asked = False

    def take(self, views: list[memoryview]) -> int:
        if self._held:
            return 0
        data = gather(views, CHUNK)
        if self._on_output is not None:
            self._on_output(data)
        return len(data)

    def fill(self, views: list[memoryview]) -> int:
        with self._lock:
            self._asked = False
            pending, done = self._pending, 0
            for view in views:
                piece = pending[done : done + len(view)]
                view[: len(piece)] = piece
                done += len(piece)
                if done == len(pending):
                    break
            del pending[:done]
            room = self._was_full and len(pending) <= self.limit // 2
            if room:
                self._was_full = False
        if room and self._on_room is not None:
            self._on_room()
        return done

    def guest_opened(self, is_open: bool) -> None:
        self.is_open = is_open
        if self._on_open is not None:
            self._on_open(is_open)


def gather(views: list[memoryview], most: int) -> bytes:
    """A copy of the first bytes of ``views``, at most ``most``."""
    if len(views) == 1:
        return bytes(views[0][:most])
    data = bytearray()
    for view in views:
        data += view[: most - len(data)]
        if len(data) == most:
            break
    return bytes(data)
