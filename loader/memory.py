"""The memory a loader writes to: the few operations it needs, as a protocol any VMM can satisfy.

Imported for type checking only: nothing here is needed at run time.  A plain implementation over
``bytearray`` stands in :mod:`loader.buffer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Memory(Protocol):
    """Guest-physical memory: regions of RAM with holes between them.  Addresses and sizes are in bytes."""

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """The RAM as (start, size), ascending, not overlapping."""

    def contains(self, addr: int, size: int, /) -> bool:
        """Whether ``size`` bytes from ``addr`` lie in one region."""

    def read(self, addr: int, size: int, /) -> bytes:
        """A copy of ``size`` bytes."""

    def write(self, addr: int, data: bytes, /) -> None:
        """Copy ``data`` to ``addr``; all of it within one region."""

    def slice(self, addr: int, size: int, /) -> memoryview:
        """A writable view of ``size`` bytes ('B' format), for ``os.preadv`` to fill without a copy."""


class MappingMemory(Memory, Protocol):
    """Memory that can also put pages of a file in place of its own, without a copy.

    Optional: the loader asks for ``map_file`` by name, and reads where it is missing or declines.
    """

    def map_file(self, addr: int, size: int, fd: int, offset: int, /) -> bool:
        """Put ``size`` bytes of file ``fd`` from ``offset`` at ``addr``, privately; False: nothing changed."""
