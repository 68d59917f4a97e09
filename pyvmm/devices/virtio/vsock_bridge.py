"""A Unix socket that leads to a guest's vsock ports, for programs that do not speak AF_VSOCK.

A program connects to PATH, sends ``CONNECT <port>\\n``, and after ``OK <port>\\n`` has a stream to the guest's port;
where nobody listens there it is hung up on.  A guest that connects to the host (CID 2) at one of the ``ports``
reaches the Unix socket PATH_<port>.  These are the conventions of Firecracker (its ``docs/vsock.md``).
Ports of AF_VSOCK belong to the whole host: two guests cannot both have the same one bridged.

One thread copies for all connections (``vsock_stream``).
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import stat
import threading
import time
from functools import partial

from pyvmm.devices.virtio.vsock_stream import Stream
from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOST_CID = 2  # VMADDR_CID_HOST
_MOST = 512  # connections at a time, with two descriptors each, ...
_SHARE = 4  # ... and no more than this part of the descriptors that the process may have
_REST = 1.0  # seconds without new connections, when no descriptors are left
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Bridge:
    """The bridge at Unix socket ``path`` to the guest ``cid``; for each of ``ports`` guest connections reach path_port.

    ``dial(port)`` gives a socket whose non-blocking connection to the guest has begun, ``listen(port)`` one that
    listens for it; both are AF_VSOCK unless given.  Raises HostError.
    """

    def __init__(
        self,
        path: str,
        cid: int,
        ports: Sequence[int] = (),
        *,
        dial: Callable[[int], socket.socket] | None = None,
        listen: Callable[[int], socket.socket] | None = None,
    ) -> None:
        self.path = path
        self.cid = cid
        self._dial = dial or self._vsock_dial
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._open: set[Stream] = set()
        self._most = min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE)
        self._listeners: list[tuple[socket.socket, Callable[[int], None]]] = []
        self._rest_until: float | None = None  # nobody is let in until then
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._mine: tuple[int, int] | None = None  # device and inode of the socket's name
        self._thread = threading.Thread(target=self._run, name="vsock bridge", daemon=True)
        try:
            for port in ports:
                listener = (listen or self._vsock_listen)(port)
                self._add_listener(listener, partial(self._from_guest, listener, port))
            own = self._bind()
            self._add_listener(own, partial(self._from_host, own))
        except BaseException:
            self.close()
            raise
        self.watch(self._wake, select.POLLIN, _nothing)
        self._thread.start()

    # --- listening -----------------------------------------------------------------------------------------
    def _add_listener(self, listener: socket.socket, accept: Callable[[int], None]) -> None:
        listener.setblocking(False)
        self._listeners.append((listener, accept))
        self.watch(listener.fileno(), select.POLLIN, accept)

    def _bind(self) -> socket.socket:
        """The Unix socket, for the user alone; one that a killed process left is replaced."""
        own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            try:
                own.bind(self.path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _is_stale(self.path):
                    raise
                os.unlink(self.path)
                own.bind(self.path)
            own.listen(64)
        except OSError as error:
            own.close()
            hint = (
                "is another machine using it? choose another path" if error.errno == errno.EADDRINUSE else ""
            )
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise HostError(f"cannot listen on the Unix socket {self.path}: {reason}", hint) from None
        finally:
            os.umask(before)
        status = os.stat(self.path)
        self._mine = status.st_dev, status.st_ino
        return own

    def _vsock_listen(self, port: int) -> socket.socket:
        try:
            listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        except OSError as error:
            raise _no_vsock(error) from None
        try:
            listener.bind((socket.VMADDR_CID_ANY, port))
            listener.listen(64)
        except OSError as error:
            listener.close()
            hint = (
                "only one guest of this host can have a port bridged"
                if error.errno == errno.EADDRINUSE
                else ""
            )
            raise HostError(
                f"cannot listen on vsock port {port}: {os.strerror(error.errno or 0)}", hint
            ) from None
        return listener

    def _vsock_dial(self, port: int) -> socket.socket:
        dialled = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        dialled.setblocking(False)
        _connect(dialled, (self.cid, port))
        return dialled

    # --- the thread ----------------------------------------------------------------------------------------
    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call ``handler(events)`` in the bridge's thread when ``fd`` is ready."""
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _run(self) -> None:
        while self._mine is not None:
            for fd, events in self._poll.poll(None if self._rest_until is None else _REST * 1000):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
            if self._rest_until is not None and time.monotonic() >= self._rest_until:
                self._rest_until = None
                for listener, accept in self._listeners:
                    self.watch(listener.fileno(), select.POLLIN, accept)

    def _rest(self, error: OSError) -> None:
        """Let nobody in for a moment if ``error`` says that there is no room: who waits would wake us for ever."""
        if error.errno in _SCARCE:
            self._rest_until = time.monotonic() + _REST
            for listener, _ in self._listeners:
                self.unwatch(listener.fileno())

    def _accept(self, listener: socket.socket) -> tuple[socket.socket, tuple[int, int]] | None:
        try:
            accepted, peer = listener.accept()
        except OSError as error:  # it is gone again, or there are no descriptors left
            self._rest(error)
            return None
        if len(self._open) >= self._most:
            accepted.close()
            return None
        accepted.setblocking(False)
        return accepted, peer

    def _from_host(self, listener: socket.socket, _: int) -> None:
        found = self._accept(listener)
        if found is not None:
            self._open.add(Stream(self, found[0]))

    def _from_guest(self, listener: socket.socket, port: int, _: int) -> None:
        found = self._accept(listener)
        if found is None:
            return
        guest, peer = found
        if listener.family == socket.AF_VSOCK and peer[0] != self.cid:
            guest.close()  # another guest of this host
            return
        try:
            program = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            guest.close()
            self._rest(error)
            return
        program.setblocking(False)
        try:
            _connect(program, f"{self.path}_{port}")
        except OSError:
            guest.close()
            program.close()
            return
        self._open.add(Stream(self, guest, program))

    def dial(self, port: int) -> socket.socket:
        """A connection to the guest's ``port`` that has begun; OSError."""
        return self._dial(port)

    def forget(self, stream: Stream) -> None:
        """``stream`` is closed."""
        self._open.discard(stream)

    def close(self) -> None:
        """Hang up on everybody and take the socket's name away.  Closing twice is no error."""
        mine, self._mine = self._mine, None
        if mine is not None:
            os.eventfd_write(self._wake, 1)
            if self._thread.ident is not None:
                self._thread.join()
            try:
                status = os.stat(self.path)
                if (status.st_dev, status.st_ino) == mine:
                    os.unlink(self.path)
            except OSError:
                pass
        for stream in list(self._open):
            stream.close()
        for listener, _ in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1


def _connect(sock: socket.socket, address: object) -> None:
    code = sock.connect_ex(address)  # type: ignore[arg-type]
    if code not in (0, errno.EINPROGRESS):  # EAGAIN of a Unix socket: its backlog is full
        raise OSError(code, os.strerror(code))


def _nothing(_: int) -> None:
    """The handler of what only wakes."""


def _is_stale(path: str) -> bool:
    """Whether ``path`` is a Unix socket at which nobody listens."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _no_vsock(error: OSError) -> HostError:
    return HostError(
        f"this host has no AF_VSOCK: {os.strerror(error.errno or 0)}",
        "load the kernel's module: modprobe vsock",
    )
