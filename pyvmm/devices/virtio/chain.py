"""A request that came out of a virtqueue: buffers in guest memory to read from, and to write to.

virtio 1.2, section 2.7.4 ("Message Framing"): how a request is cut into buffers means nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.memory import GuestMemory


class Chain:
    """One request: buffers of the driver, in order, all checked to lie in guest RAM.

    ``readable`` and ``writable`` are (guest address, length in bytes); ``readable_size`` and ``writable_size`` their
    sums.
    """

    __slots__ = ("_memory", "head", "readable", "readable_size", "writable", "writable_size")

    def __init__(
        self,
        memory: GuestMemory,
        head: int,
        readable: list[tuple[int, int]],
        writable: list[tuple[int, int]],
        readable_size: int,
        writable_size: int,
    ) -> None:
        self._memory = memory
        self.head = head
        self.readable = readable
        self.writable = writable
        self.readable_size = readable_size
        self.writable_size = writable_size

    def read_views(self) -> list[memoryview]:
        """The buffers the driver wrote, as views of guest RAM: for os.pwritev and sendmsg."""
        return self.views(self.readable)

    def write_views(self) -> list[memoryview]:
        """The buffers for the device to fill, as views of guest RAM: for os.preadv and recvmsg_into."""
        return self.views(self.writable)

    def views(self, buffers: Sequence[tuple[int, int]]) -> list[memoryview]:
        """These ``buffers`` of the request as views of guest RAM."""
        if not buffers:
            return []
        for region in self._memory.regions:
            start, end, view = region.start, region.end, region.view
            if start <= buffers[0][0] < end:
                break
        slice = self._memory.slice
        return [
            view[address - start : address - start + length]
            if start <= address and address + length <= end
            else slice(address, length)
            for address, length in buffers
        ]

    def read(self, size: int = -1, offset: int = 0) -> bytes:
        """A copy of at most ``size`` bytes (all: -1) of what the driver wrote, from ``offset``, across descriptors."""
        left = self.readable_size - offset if size < 0 else size
        parts = []
        for address, length in self.readable:
            if offset >= length:
                offset -= length
                continue
            take = min(length - offset, left)
            if take <= 0:
                break
            parts.append(self._memory.read(address + offset, take))
            left -= take
            offset = 0
        return b"".join(parts)

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Copy ``data`` to the writable buffers from ``offset``, across descriptors; how many bytes fitted."""
        source = memoryview(data).cast("B")
        done = 0
        for address, length in self.writable:
            if offset >= length:
                offset -= length
                continue
            take = min(length - offset, len(source) - done)
            if take <= 0:
                break
            self._memory.slice(address + offset, take)[:] = source[done : done + take]
            done += take
            offset = 0
        return done

    def __repr__(self) -> str:
        return f"<Chain {self.head}: {self.readable_size} bytes to read, {self.writable_size} to write>"
