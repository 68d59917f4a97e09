"""Ports of a virtio console that are joined to a descriptor of the host's: a file, or a Unix socket's client.

A descriptor's data moves by one writev or readv between it and guest RAM; what the host does not take now stays in the
guest until poll(2) says that it can be taken.
"""

from __future__ import annotations

import os
import select

from pyvmm.devices.virtio.console_ports import LAST_SECONDS, Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pyvmm.devices.virtio.console_ports import Pump, Thread

#: Bytes of output that a file gets at a time: nothing can interrupt the write, and disks are slow.
FILE_CHUNK = 1 << 20
#: Buffers in one writev or readv; the host's limit is 1024 (IOV_MAX).
VECTOR = 256
#: linux/socket.h, without the cost of the socket module.
MSG_PEEK = 2


class FileEndpoint(Endpoint):
    """Output goes to a descriptor: a file, or a pipe or terminal that is opened with O_NONBLOCK.  There is no input.

    A descriptor that takes nothing any more (its reader is gone, the disk is full) is said once through ``say``; from
    then on output is dropped, and ``lost`` counts its bytes.
    """

    def __init__(self, fd: int, name: str, say: Callable[[str], None]) -> None:
        self.lost = 0
        self._fd = fd
        self._name = name
        self._say = say
        self._failed = False

    def take(self, views: list[memoryview]) -> int:
        if not self._failed:
            try:
                return os.writev(self._fd, _first(views, FILE_CHUNK))
            except BlockingIOError:
                if self._thread is not None:
                    self._thread.watch(self._fd, self._writable, select.POLLOUT)
                return 0
            except OSError as error:
                self._failed = True
                self._say(f"{self._name} takes no more output: {error.strerror}")
        size = sum(map(len, views))
        self.lost += size
        return size

    def _writable(self) -> None:
        if self._thread is not None:
            self._thread.unwatch(self._fd)
        if self._port is not None:
            self._port.pump_output()

    def last_wait(self) -> bool:
        return wait_for(self._fd, select.POLLOUT)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SocketEndpoint(Endpoint):
    """One client at a time of a listening Unix stream socket; the next one waits in the queue until it has gone.

    ``listener`` is non-blocking and belongs to whoever made it.  A client that has shut down only its sending side
    still gets output; what one sent before it went away still reaches the guest.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.clients = 0
        self.lost = 0
        self._listener = listener
        self._client: socket.socket | None = None
        self._want = 0  # the events waited for
        self._gone = False  # it has hung up: what is left to read is all that comes

    @property
    def connected(self) -> bool:  # type: ignore[override]
        return self._client is not None

    def start(self, port: Pump, thread: Thread) -> None:
        super().start(port, thread)
        if self._client is None:
            thread.watch(self._listener.fileno(), self._accept)
        else:
            self._arm(select.POLLIN)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # gone again
            return
        client.setblocking(False)
        if self._thread is not None:
            self._thread.unwatch(self._listener.fileno())
        self.clients += 1
        self._client, self._want, self._gone = client, 0, False
        self._arm(0)
        if self._port is not None:
            self._port.host_changed()
            self._port.pump_input()

    def _arm(self, events: int) -> None:
        """Wait for ``events`` too.  A hang-up is always waited for, until it has come."""
        self._want |= events
        if self._client is not None and self._thread is not None and not self._gone:
            self._thread.watch(self._client.fileno(), self._ready, self._want)

    def _ready(self) -> None:
        client, thread = self._client, self._thread
        if client is None or thread is None:
            return
        wanted, self._want = self._want, 0
        if wait_for(client.fileno(), 0, 0.0):
            self._gone = True
            thread.unwatch(client.fileno())
            wanted |= select.POLLIN
            if not self._left():
                self._drop()
                return
        else:
            self._arm(0)
        if self._port is not None:
            if wanted & select.POLLOUT:
                self._port.pump_output()
            if wanted & select.POLLIN:
                self._port.pump_input()

    def _left(self) -> bool:
        """Whether a client that has gone left something to read."""
        try:
            return self._client is not None and bool(self._client.recv(1, MSG_PEEK))
        except OSError:
            return False

    def take(self, views: list[memoryview]) -> int:
        client = self._client
        if client is not None:
            try:
                return client.sendmsg(views[:VECTOR])
            except BlockingIOError:
                self._arm(select.POLLOUT)
                return 0
            except OSError:
                self._gone = True
                self._drop()
        size = sum(map(len, views))
        self.lost += size
        return size

    def fill(self, views: list[memoryview]) -> int:
        client = self._client
        if client is None:
            return 0
        try:
            size = client.recvmsg_into(views[:VECTOR])[0]
        except BlockingIOError:
            self._arm(select.POLLIN)
            return 0
        except OSError:
            size, self._gone = 0, True
        if not size and self._gone:  # otherwise only its sending side is shut down
            self._drop()
        return size

    def _drop(self) -> None:
        """The client has gone: let the next one in."""
        client, self._client = self._client, None
        if client is None:
            return
        if self._thread is not None:
            self._thread.unwatch(client.fileno())
            self._thread.watch(self._listener.fileno(), self._accept)
        client.close()
        if self._port is not None:
            self._port.host_changed()

    def last_wait(self) -> bool:
        return self._client is not None and wait_for(self._client.fileno(), select.POLLOUT)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _first(views: list[memoryview], most: int) -> list[memoryview]:
    """The first bytes of ``views``, at most ``most``, in at most VECTOR pieces."""
    found = []
    for view in views[:VECTOR]:
        piece = view[:most]
        found.append(piece)
        most -= len(piece)
        if not most:
            break
    return found


def wait_for(fd: int, events: int, seconds: float = LAST_SECONDS) -> bool:
    """Whether ``fd`` becomes ready for ``events`` within ``seconds``; without events, whether it has hung up."""
    poll = select.poll()
    poll.register(fd, events)
    ready = poll.poll(seconds * 1000)
    if not ready:
        return False
    if not events:
        return bool(ready[0][1] & (select.POLLHUP | select.POLLERR))
    return bool(ready[0][1] & events)
