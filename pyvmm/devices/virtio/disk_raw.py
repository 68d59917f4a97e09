"""A raw image: the file's bytes are the disk's."""

from __future__ import annotations

import os

from pyvmm.devices.virtio.disk_io import punch_hole, read_all, write_all, write_zeroes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.devices.virtio.disk_file import DiskFile


class RawDisk:
    """The disk in ``file``, which it owns from now on.  See :class:`~pyvmm.devices.virtio.disk_file.Disk`.

    ``synchronous``: flush() brings the data to the storage; without, only to the host's page cache, which a loss of
    power empties.  A flush that failed leaves nobody knowing what the host has thrown away, so none succeeds after it.
    """

    __slots__ = ("_fd", "_file", "_lost", "granularity", "read_only", "size", "synchronous")

    def __init__(self, file: DiskFile, *, synchronous: bool = True) -> None:
        self._file = file
        self._fd = file.fd
        self._lost: OSError | None = None
        self.size = file.size
        self.read_only = file.read_only
        self.granularity = 4096
        self.synchronous = synchronous

    def read(self, views: Sequence[memoryview], offset: int, size: int) -> None:
        """Fill ``views``, ``size`` bytes together, from ``offset``."""
        read_all(self._fd, views, offset, size)

    def write(self, views: Sequence[memoryview], offset: int, size: int) -> None:
        """Write ``views``, ``size`` bytes together, to ``offset``."""
        write_all(self._fd, views, offset, size)

    def flush(self) -> None:
        """fdatasync(2), unless not ``synchronous``."""
        if self._lost is not None:
            raise OSError(self._lost.errno, self._lost.strerror)
        if self.synchronous and not self.read_only:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._lost = error
                raise

    def discard(self, offset: int, size: int) -> None:
        """Punch a hole, where the file system can."""
        punch_hole(self._fd, offset, size)

    def write_zeroes(self, offset: int, size: int, unmap: bool) -> None:
        """A hole if ``unmap``, zeroes otherwise."""
        if not (unmap and punch_hole(self._fd, offset, size)):
            write_zeroes(self._fd, offset, size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
