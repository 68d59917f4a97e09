"""Guest memory in plain bytearrays: for tests, tools and examples; a VMM brings its own."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class BufferMemory:
    """The memory protocol over one ``bytearray`` per region.

    ``ranges`` are (start, size) pairs; ``fill`` is the byte the memory holds at first.  An access outside
    a region raises IndexError: the loader checks before it writes, so it never comes to that.
    """

    __slots__ = ("_regions", "ranges")

    def __init__(self, ranges: Iterable[tuple[int, int]], fill: int = 0) -> None:
        self.ranges: list[tuple[int, int]] = sorted(ranges)
        pattern = bytes((fill,))
        self._regions = [(start, memoryview(bytearray(pattern) * size)) for start, size in self.ranges]

    def contains(self, addr: int, size: int) -> bool:
        """Whether ``size`` bytes from ``addr`` lie in one region."""
        return any(start <= addr and addr + size <= start + length for start, length in self.ranges)

    def slice(self, addr: int, size: int) -> memoryview:
        """A writable view of ``size`` bytes from ``addr``."""
        for start, view in self._regions:
            if start <= addr and addr + size <= start + len(view):
                return view[addr - start : addr - start + size]
        raise IndexError(f"{addr:#x}..{addr + size:#x} is not RAM")

    def read(self, addr: int, size: int) -> bytes:
        """A copy of ``size`` bytes from ``addr``."""
        return bytes(self.slice(addr, size))

    def write(self, addr: int, data: bytes) -> None:
        """Copy ``data`` to ``addr``."""
        self.slice(addr, len(data))[:] = data
