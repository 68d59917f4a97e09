"""The messages of vhost-user: a Unix socket on which a device's queues are handed to another process.

QEMU's ``docs/interop/vhost-user.rst`` ("Message Specification", "Front-end message types").  We are the front-end.
Numbers are little-endian; file descriptors travel beside a message (SCM_RIGHTS).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time

from pyvmm.errors import HostError

# Requests of the front-end
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG = 21, 24, 25
_NAMES = {
    number: name
    for name, number in list(globals().items())
    if isinstance(number, int) and name.startswith(("GET_", "SET_"))
}

# Requests of the back-end, on the channel it was given
BACKEND_CONFIG_CHANGE = 2

#: Bit of GET_FEATURES: the two sides negotiate protocol features too, and rings start disabled.
F_PROTOCOL_FEATURES = 1 << 30
# Protocol features
MQ, REPLY_ACK, BACKEND_REQ, CONFIG = 1 << 0, 1 << 3, 1 << 5, 1 << 9

MAX_REGIONS = 8  # of SET_MEM_TABLE

_HEADER = struct.Struct("<III")  # request, flags, size of the payload
_VERSION, _VERSION_MASK, _REPLY, _NEED_REPLY = 1, 3, 4, 8
_MAX_PAYLOAD = 0x1000
_U64 = struct.Struct("<Q")


class VhostUserError(HostError):
    """A back-end has gone, does not answer, or says something else than the protocol lets it say."""


class RefusedError(VhostUserError):
    """A back-end says that it did not do what it was asked for; it goes on."""


class Channel:
    """One end of a vhost-user connection; requests of several threads are taken one after the other.

    Every wait ends after ``timeout`` seconds.  ``backend`` is its name in messages.
    """

    __slots__ = ("_lock", "acknowledge", "backend", "socket", "timeout")

    def __init__(self, sock: socket.socket, backend: str, timeout: float) -> None:
        self.socket = sock
        self.backend = backend
        self.timeout = timeout
        self.acknowledge = False  # REPLY_ACK was negotiated
        self._lock = threading.Lock()

    def send(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """A request without an answer; with REPLY_ACK this waits until it is done.  VhostUserError where it failed."""
        with self._lock:
            deadline = time.monotonic() + self.timeout
            self._send(request, _VERSION | (_NEED_REPLY if self.acknowledge else 0), payload, fds, deadline)
            if self.acknowledge:
                status = self._number(request, self._reply(request, deadline))
                if status:
                    raise RefusedError(f"{self.backend} refused {name(request)} (status {status:#x})")

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        """A request with an answer: its payload.  VhostUserError."""
        with self._lock:
            deadline = time.monotonic() + self.timeout
            self._send(request, _VERSION, payload, (), deadline)
            return self._reply(request, deadline)

    def ask_number(self, request: int) -> int:
        """A request that is answered by a 64-bit number."""
        return self._number(request, self.ask(request))

    def _number(self, request: int, payload: bytes) -> int:
        if len(payload) != 8:
            raise VhostUserError(
                f"{self.backend} answered {name(request)} with {len(payload)} bytes instead of 8"
            )
        number: int = _U64.unpack(payload)[0]
        return number

    def _send(self, request: int, flags: int, payload: bytes, fds: tuple[int, ...], deadline: float) -> None:
        message = _HEADER.pack(request, flags, len(payload)) + payload
        try:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            sent = socket.send_fds(self.socket, [message], list(fds)) if fds else self.socket.send(message)
            if sent < len(message):
                self.socket.sendall(message[sent:])
        except OSError as error:
            raise self._lost(request, error) from None

    def _reply(self, request: int, deadline: float) -> bytes:
        number, flags, size = _HEADER.unpack(self._receive(request, _HEADER.size, deadline))
        if (
            number != request
            or not flags & _REPLY
            or flags & _VERSION_MASK != _VERSION
            or size > _MAX_PAYLOAD
        ):
            raise VhostUserError(
                f"{self.backend} answered {name(request)} with message {number}, flags {flags:#x}, {size} bytes"
            )
        return self._receive(request, size, deadline)

    def _receive(self, request: int, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            try:
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                part = self.socket.recv(size - len(data))
            except OSError as error:
                raise self._lost(request, error) from None
            if not part:
                raise self._lost(request, ConnectionResetError("the connection was closed"))
            data += part
        return data

    def _lost(self, request: int, error: OSError) -> VhostUserError:
        if isinstance(error, TimeoutError):
            return VhostUserError(f"{self.backend} did not answer {name(request)} within {self.timeout:g} s")
        reason = os.strerror(error.errno) if error.errno else str(error)
        return VhostUserError(f"{self.backend} went away at {name(request)}: {reason}")

    def close(self) -> None:
        """Close the connection, which ends most back-ends."""
        self.socket.close()


def name(request: int) -> str:
    """The protocol's name of a front-end's request."""
    return f"VHOST_USER_{_NAMES.get(request, request)}"


def state(index: int, number: int) -> bytes:
    """The payload "a vring state description"."""
    return struct.pack("<II", index, number)


def vring_address(index: int, desc: int, used: int, avail: int) -> bytes:
    """The payload "a vring address description": addresses in our address space, no logging."""
    return struct.pack("<IIQQQQ", index, 0, desc, used, avail, 0)


def memory_table(regions: list[tuple[int, int, int, int]]) -> bytes:
    """The payload "memory regions description": (guest address, size, our address, offset in the file) of each."""
    return struct.pack("<II", len(regions), 0) + b"".join(struct.pack("<QQQQ", *region) for region in regions)


def config_space(offset: int, data: bytes) -> bytes:
    """The payload "virtio device config space"."""
    return struct.pack("<III", offset, len(data), 0) + data


def number(value: int) -> bytes:
    """The payload "a single 64-bit integer"; also the ring's index beside a kick, call or error descriptor."""
    return _U64.pack(value)


def take_backend_request(sock: socket.socket) -> int | None:
    """The next request on the back-end's channel, its answer given if it wants one; None at its end.

    What comes with it is thrown away, descriptors included: none is of use here.
    """
    try:
        data, fds, _, _ = socket.recv_fds(sock, _HEADER.size, 8)
        for fd in fds:
            os.close(fd)
        if len(data) < _HEADER.size:
            return None
        request, flags, size = _HEADER.unpack(data)
        if size > _MAX_PAYLOAD or (size and len(sock.recv(size, socket.MSG_WAITALL)) < size):
            return None
        if flags & _NEED_REPLY:
            done = 0 if request == BACKEND_CONFIG_CHANGE else 1
            sock.sendall(_HEADER.pack(request, _VERSION | _REPLY, 8) + _U64.pack(done))
    except OSError:
        return None
    found: int = request
    return found
