"""A copy-on-write overlay: what is written goes to a file of its own, and the base never changes.

The disk is cut into clusters.  A map has a byte for each, which says where the cluster is: in the base, in the
overlay's file, or nowhere, being zeroes.  A cluster that is written in part is first completed from the base.

The order that survives a crash at any point: data go to the file as they are written, the map stays in memory;
a flush brings the data to the storage, then writes the changed parts of the map, then brings these to the storage.
So the map in the file never speaks of data that are not there, and what came after the last flush is as if it had
never been written.  (Each byte of the map stands for itself, so a torn write of it does no harm.)
The file of a kept overlay is described in :mod:`pyvmm.devices.virtio.disk_overlay_file`.
"""

from __future__ import annotations

import os
import re

from pyvmm.devices.virtio.disk_io import punch_hole, read_all, write_all, write_zeroes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyvmm.devices.virtio.disk_file import Disk, DiskFile

#: Where a cluster is, as the map says it.
BASE, DATA, ZERO = 0, 1, 2

_run = re.compile(rb"(?s:(.)\1*)")
_MAP_PAGE = 4096
_SMALLEST = 12  # clusters of 4 KiB: what file systems write, so that few writes need the base
_LARGEST_MAP = 16 << 20


def cluster_shift(size: int) -> int:
    """The logarithm of the cluster size for a disk of ``size`` bytes: 4 KiB, more only beyond 64 GiB."""
    shift = _SMALLEST
    while -(-size >> shift) > _LARGEST_MAP:
        shift += 1
    return shift


class _Views:
    """Views that are taken piece by piece, in time that grows with the pieces and the views only."""

    __slots__ = ("_at", "_skip", "_views")

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self._at = self._skip = 0

    def take(self, size: int) -> list[memoryview]:
        """The next ``size`` bytes."""
        found = []
        while size:
            view = self._views[self._at]
            piece = view[self._skip : self._skip + size]
            found.append(piece)
            size -= len(piece)
            self._skip += len(piece)
            if self._skip == len(view):
                self._at += 1
                self._skip = 0
        return found


class OverlayDisk:
    """The disk that ``file`` makes of ``base``; both are closed with it.  See :class:`.disk_file.Disk`.

    ``map`` has a byte for each cluster of ``1 << shift`` bytes and stands at ``map_offset`` of the file, the data of
    cluster n at ``data_offset + (n << shift)``.  ``map_offset`` None: the map is not kept, and nothing is synchronised.
    ``synchronous`` False: a flush goes to the host's page cache only.
    """

    __slots__ = (
        "_base", "_data", "_dirty", "_fd", "_file", "_lost", "_map", "_map_offset", "_shift", "_synchronous",
        "granularity", "read_only", "size",
    )  # fmt: skip

    def __init__(
        self,
        base: Disk,
        file: DiskFile | int,
        map: bytearray,
        *,
        shift: int,
        map_offset: int | None,
        data_offset: int,
        synchronous: bool = True,
    ) -> None:
        self._base = base
        self._file = file
        self._fd = file if isinstance(file, int) else file.fd
        self._map = map
        self._map_offset = map_offset
        self._data = data_offset
        self._shift = shift
        self._synchronous = synchronous
        self._dirty: set[int] = set()
        self._lost: OSError | None = None
        self.size = base.size
        self.read_only = False
        self.granularity = 1 << shift

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(state, first cluster, cluster after) for each run of one state among ``first`` to ``last`` inclusive."""
        states = bytes(self._map[first : last + 1])  # as they are now: who asks may change them
        for run in _run.finditer(states):
            yield states[run.start()], first + run.start(), first + run.end()

    def read(self, views: Sequence[memoryview], offset: int, size: int) -> None:
        """Fill ``views``, ``size`` bytes together, from ``offset``."""
        shift = self._shift
        first, last = offset >> shift, (offset + size - 1) >> shift
        left = _Views(views)
        for state, start, end in self._runs(first, last):
            begin = max(start << shift, offset)
            length = min(end << shift, offset + size) - begin
            wanted = views if length == size else left.take(length)
            if state == DATA:
                read_all(self._fd, wanted, self._data + begin, length)
            elif state == BASE:
                self._base.read(wanted, begin, length)
            else:
                for view in wanted:
                    view[:] = bytes(len(view))

    def write(self, views: Sequence[memoryview], offset: int, size: int) -> None:
        """Write ``views``, ``size`` bytes together, to ``offset``."""
        first, last = self._complete(offset, size)
        write_all(self._fd, views, self._data + offset, size)
        self._mark(first, last + 1, DATA)

    def _complete(self, offset: int, size: int) -> tuple[int, int]:
        """Before ``size`` bytes at ``offset`` are written: complete the clusters that they fill in part only.

        The first and the last cluster of them.
        """
        shift = self._shift
        end = offset + size
        first, last = offset >> shift, (end - 1) >> shift
        start, stop = first << shift, min((last + 1) << shift, self.size)
        if start < offset and self._map[first] != DATA:
            self._copy(self._map[first], start, offset - start)
        if end < stop and self._map[last] != DATA:
            self._copy(self._map[last], end, stop - end)
        return first, last

    def _copy(self, state: int, offset: int, size: int) -> None:
        content = memoryview(bytearray(size))
        if state == BASE:
            self._base.read([content], offset, size)
        # Zeroes are written as well: the file may hold data there that a crash cut off from the map.
        write_all(self._fd, [content], self._data + offset, size)

    def _mark(self, start: int, end: int, state: int) -> None:
        """Note that clusters ``start`` to ``end`` (exclusive) are in ``state`` now."""
        count = end - start
        if self._map.count(state, start, end) != count:
            self._map[start:end] = bytes((state,)) * count
            self._dirty.update(range(start // _MAP_PAGE, (end - 1) // _MAP_PAGE + 1))

    def flush(self) -> None:
        """Bring the data, then the map, to the storage."""
        if self._lost is not None:
            raise OSError(self._lost.errno, self._lost.strerror)
        if self._map_offset is None:
            return
        try:
            self._synchronise()
            if self._dirty:
                for page in sorted(self._dirty):
                    start = page * _MAP_PAGE
                    piece = memoryview(self._map)[start : start + _MAP_PAGE]
                    write_all(self._fd, [piece], self._map_offset + start, len(piece))
                self._synchronise()
                self._dirty.clear()
        except OSError as error:
            self._lost = error
            raise

    def _synchronise(self) -> None:
        if self._synchronous:
            os.fdatasync(self._fd)

    def discard(self, offset: int, size: int) -> None:
        """Whole clusters become zeroes, and their room is given back; parts of clusters stay as they are."""
        start, end = self._whole(offset, size)
        if start < end:
            self._drop(start, end)

    def write_zeroes(self, offset: int, size: int, unmap: bool) -> None:
        """Whole clusters are noted as zeroes if ``unmap``; what is left is written."""
        if not unmap:
            first, last = self._complete(offset, size)
            write_zeroes(self._fd, self._data + offset, size)
            self._mark(first, last + 1, DATA)
            return
        start, end = self._whole(offset, size)
        if start >= end:
            self.write_zeroes(offset, size, False)
            return
        head = (start << self._shift) - offset
        tail = offset + size - min(end << self._shift, self.size)
        if head > 0:
            self.write_zeroes(offset, head, False)
        if tail > 0:
            self.write_zeroes(end << self._shift, tail, False)
        self._drop(start, end)

    def _whole(self, offset: int, size: int) -> tuple[int, int]:
        """The clusters that lie wholly in ``size`` bytes at ``offset``: the first, and the one after the last."""
        end = offset + size
        after = len(self._map) if end == self.size else end >> self._shift
        return -(-offset // (1 << self._shift)), after

    def _drop(self, start: int, end: int) -> None:
        shift = self._shift
        # The file gets holes where the map still says DATA: a crash now leaves zeroes, which is what is asked for.
        # Where holes cannot be made, the room is kept.
        for state, first, after in self._runs(start, end - 1):
            if state == DATA:
                at = self._data + (first << shift)
                size = (after - first) << shift
                if not punch_hole(self._fd, at, size):
                    write_zeroes(self._fd, at, size)
        self._mark(start, end, ZERO)

    def close(self) -> None:
        """Flush, so that nothing is lost where the guest did not, and close the files.  Raises OSError."""
        if self._fd < 0:
            return
        try:
            if self._lost is None:
                self.flush()
        finally:
            self._fd = -1
            if isinstance(self._file, int):
                os.close(self._file)
            else:
                self._file.close()
            self._base.close()
