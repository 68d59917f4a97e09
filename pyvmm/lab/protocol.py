"""The wire between pyvmm and its agent in the lab: frames on one byte stream.

A frame is an 8-byte header, :data:`HEADER` (kind, length, little endian), and ``length`` bytes of payload.
Structured payloads are JSON.  The contents of files go by the mailbox, a small disk that both sides write
and read in turn: the port gets a page at a time and manages 15 MB/s, the disk over 100.  What streams is
bounded by a window: a sender of ``STDIN``, or of ``STDOUT`` and ``STDERR`` together, may have
:data:`WINDOW` bytes on the way that the other side has not acknowledged (``ACK``); so neither side ever
blocks for long in a write, and signals get through whatever the command or the user's terminal does.

This module, :mod:`pyvmm.lab.transfer` and :mod:`pyvmm.lab.agent` run inside the lab too, on their own.
"""

from __future__ import annotations

import enum
import json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
PORT = "pyvmm.lab"
"""The name of the virtio-serial port that carries the stream."""

HEADER = struct.Struct("<II")
COUNT = struct.Struct("<I")
MAILBOX_SIZE = 32 * 1024 * 1024
WINDOW = 512 * 1024
CHUNK = 64 * 1024
"""The largest payload of a streaming frame."""
LARGEST = 64 * 1024 * 1024
"""No frame is longer; a header that says so means the stream is out of step."""


class Kind(enum.IntEnum):
    """What a frame is."""

    # To the lab.
    HELLO = 1  # JSON: version, time_ns (the host's clock), entropy (hex)
    PUT = 2  # JSON: entries of a transfer; their contents follow in CONTENT frames
    CONTENT = 3  # COUNT of bytes in the mailbox: the next piece of a transfer's contents; both ways
    RUN = 4  # JSON: argv, env, cwd, tty, rows, columns
    STDIN = 5  # bytes for the command; an empty frame is the end of its input
    SIGNAL = 6  # JSON: signal number for the command's process group
    RESIZE = 7  # JSON: rows, columns
    GET = 8  # JSON: paths
    ACK = 9  # COUNT of bytes consumed; both ways
    TAKEN = 10  # the mailbox is free again; both ways
    # From the lab.
    READY = 20  # JSON: version, python; the answer to HELLO
    STDOUT = 21
    STDERR = 22
    EXIT = 23  # JSON: status (128 + signal for a signal), error (empty, or why it could not be started)
    FILES = 24  # JSON: entries of a transfer, the answer to GET; CONTENT frames follow
    STORED = 25  # the transfer that PUT began is complete
    FAILED = 26  # JSON: message; the request before it could not be carried out


class ProtocolError(Exception):
    """The stream does not hold what it should."""


def frame(kind: int, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(kind, len(payload)) + payload


def message(kind: int, value: Any) -> bytes:
    """One frame with a JSON payload."""
    return frame(kind, json.dumps(value, separators=(",", ":")).encode())


class Decoder:
    """Cuts a byte stream into frames, however it was received."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames, as (kind, payload), that ``data`` completes.

        :raises ProtocolError: a header announces more than :data:`LARGEST` bytes
        """
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= HEADER.size:
            kind, length = HEADER.unpack_from(buffer, start)
            if length > LARGEST:
                raise ProtocolError(f"a frame of kind {kind} announces {length} bytes")
            end = start + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append((kind, bytes(memoryview(buffer)[start + HEADER.size : end])))
            start = end
        if start:
            del buffer[:start]
        return frames
