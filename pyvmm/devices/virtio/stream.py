"""Ethernet frames over a Unix stream socket: each behind its length as four bytes, most significant first.

The framing of QEMU's stream sockets (``-netdev stream``), which passt(1) speaks.  The other end knows nothing of
virtio: frames cross without their virtio-net headers, and without offloads.
"""

from __future__ import annotations

import errno
import socket

from pyvmm.devices.virtio import net_features as feature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LENGTH = 4
#: Bytes of the smallest frame, an Ethernet header, and of the largest.
_SMALLEST = 14
_LARGEST = feature.LARGEST_FRAME - feature.HEADER_SIZE
#: Room for several of the largest frames, so that one system call brings many.
_BUFFER = 256 * 1024
_VECTORS = 1000  # of the 1024 that one system call takes (IOV_MAX)
_HEADER = bytes(feature.HEADER_SIZE)


class Stream:
    """Frames through the connected stream socket ``connection``, which this takes over.

    ``fd`` never blocks; ``features`` are the offloads that it offers: none.
    """

    label = "stream"
    features = 0

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self.fd = connection.fileno()
        self.backlog = False
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0  # what has been received and not been passed on
        self._unsent = b""  # the end of a frame of which the start is sent

    def start(self, features: int) -> None:
        """A driver is there."""

    def stop(self) -> None:
        """The driver has gone."""

    def receive(self, views: Sequence[memoryview]) -> int:
        """The next frame into ``views``, behind a header of zeroes; their size, 0 if there is none.

        What does not fit is lost.  :raises OSError: the other end has closed, or breaks the rules
        """
        length = self._next()
        if length is None:
            if not self._fill():
                return 0
            length = self._next()
            if length is None:
                return 0
        position = self._start + _LENGTH
        self._start = end = position + length
        frame = self._buffer[position:end]
        size = length + feature.HEADER_SIZE
        first = views[0]
        if len(first) >= size:
            first[: feature.HEADER_SIZE] = _HEADER
            first[feature.HEADER_SIZE : size] = frame
        else:
            _scatter(views, frame)
        return size

    def _next(self) -> int | None:
        """The length of the next frame, if it is complete."""
        start, available = self._start, self._end - self._start
        if available < _LENGTH:
            return None
        length = int.from_bytes(self._buffer[start : start + _LENGTH], "big")
        if not _SMALLEST <= length <= _LARGEST:
            raise OSError(errno.EPROTO, f"a frame of {length} bytes")
        return length if available >= _LENGTH + length else None

    def _fill(self) -> bool:
        """Receive what is there; False if there is nothing."""
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = end = 0
        elif start and _BUFFER - end < _LARGEST + _LENGTH:
            self._buffer[: end - start] = self._buffer[start:end]  # memmove: they may overlap
            self._start, self._end = 0, end - start
            end -= start
        try:
            count = self._socket.recv_into(self._buffer[end:])
        except BlockingIOError:
            return False
        except ConnectionResetError:
            count = 0
        if not count:
            raise OSError(errno.ECONNRESET, self._why_closed())
        self._end = end + count
        return True

    def _why_closed(self) -> str:
        return "it has closed the connection"

    def send(self, frames: Sequence[Sequence[memoryview]]) -> tuple[int, int]:
        """Send frames that start with headers: how many were taken, and how many of those were dropped.

        If it did not take all, or not all of the last, ``backlog`` is true until ``fd`` is writable; then call
        again, with the rest or with no frame.
        """
        self.backlog = False
        if self._unsent and not self._send_rest():
            return 0, 0
        taken = dropped = 0
        while taken < len(frames) and not self.backlog:
            vectors: list[memoryview | bytes] = []
            ends: list[int] = []  # where each frame ends in all the bytes of this batch
            total = 0
            for frame in frames[taken:]:
                size = sum(map(len, frame)) - feature.HEADER_SIZE
                if _SMALLEST <= size <= _LARGEST and len(frame) < _VECTORS:
                    if len(vectors) + len(frame) + 1 > _VECTORS:
                        break
                    vectors.append(size.to_bytes(_LENGTH, "big"))
                    vectors += _without_header(frame)
                    total += _LENGTH + size
                else:
                    dropped += 1
                ends.append(total)
            sent = self._send(vectors)
            if sent < 0:  # the other end is gone, which receive() tells
                return len(frames), dropped + len(frames) - taken
            if sent == total:
                taken += len(ends)
                continue
            self.backlog = True
            whole = sum(end <= sent for end in ends)
            taken += whole
            begun = sent - (ends[whole - 1] if whole else 0)
            if begun:
                self._unsent = b"".join(vectors)[sent : ends[whole]]
                taken += 1
        return taken, dropped

    def _send_rest(self) -> bool:
        """Send the end of the frame that was begun; whether that is done."""
        sent = self._send([self._unsent])
        self._unsent = self._unsent[sent:] if sent >= 0 else b""
        self.backlog = bool(self._unsent)
        return not self.backlog

    def _send(self, vectors: Sequence[memoryview | bytes]) -> int:
        """How many bytes were sent, -1 if the other end is gone."""
        if not vectors:
            return 0
        try:
            return self._socket.sendmsg(vectors, (), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return 0
            return -1

    def statistics(self) -> dict[str, int]:
        """Nothing: who uses it counts."""
        return {}

    def close(self) -> None:
        """Close the connection.  May be called again."""
        self._socket.close()


def _scatter(views: Sequence[memoryview], frame: memoryview) -> None:
    """Fill ``views`` with a header of zeroes and ``frame``."""
    header = feature.HEADER_SIZE
    position = 0
    for view in views:
        room = len(view)
        if header:
            part = min(room, header)
            view[:part] = _HEADER[:part]
            header -= part
            view = view[part:]
            room -= part
        part = min(room, len(frame) - position)
        view[:part] = frame[position : position + part]
        position += part
        if position == len(frame):
            return


def _without_header(frame: Sequence[memoryview]) -> Sequence[memoryview]:
    """The views of a frame, without the header that it starts with."""
    if len(frame[0]) == feature.HEADER_SIZE:
        return frame[1:]
    rest = feature.HEADER_SIZE
    for index, view in enumerate(frame):
        if len(view) > rest:
            return [view[rest:], *frame[index + 1 :]]
        rest -= len(view)
    return ()
