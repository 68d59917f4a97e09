"""The block device: requests of the driver become transfers between guest RAM and a disk, without a copy.

virtio 1.2, section 5.2; Linux drivers/virtio/virtio_blk.c.  One queue, one thread.  A request that fails is a status
for the guest, never an exception; one without a header or without room for a status breaks the device.

The driver sees a volatile write cache (FLUSH), which is the host's page cache: a flush that is acknowledged is on the
storage.  A driver that does not know flushes, or switches the cache off (CONFIG_WCE), has each write synchronised.
"""

from __future__ import annotations

import errno
from os import strerror
from struct import Struct, pack_into

from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.disk_io import part
from pyvmm.devices.virtio.features import BLOCK
from pyvmm.devices.virtio.queue import QueueError
from pyvmm.devices.virtio.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm.devices.virtio.device import Link
    from pyvmm.devices.virtio.disk_file import Disk
    from pyvmm.devices.virtio.queue import Chain, Queue

# Feature bits (section 5.2.3).  SIZE_MAX is not offered: a buffer may have any size.
F_SIZE_MAX = 1 << 1
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

# Request types and statuses (section 5.2.6).
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2

QUEUE_SIZE = 512
#: Buffers of data in one request: what the queue holds, less header and status.  Linux asks for up to 1280 KiB at a
#: time, in pages wherever they are: 320 buffers.
SEGMENTS = QUEUE_SIZE - 2
ID_BYTES = 20
SECTOR = 512

#: What one discard or write-zeroes request may ask for.
RANGES, RANGE_SECTORS = 64, (1 << 30) // SECTOR
_UNMAP = 1

#: The driver hears of what is done after that many bytes, though more requests are waiting.
_INTERRUPT_AFTER = 256 << 10

_header = Struct("<IxxxxQ").unpack_from  # type, reserved, sector
_HEADER = 16
_range = Struct("<QII").iter_unpack  # sector, number of sectors, flags
_RANGE = 16
_WRITEBACK = 32  # offset of that byte in the configuration space
_FAILED_TYPES = {
    IN: "read",
    OUT: "write",
    FLUSH: "flush",
    DISCARD: "discard",
    WRITE_ZEROES: "write of zeroes",
}


def configuration(size: int, granularity: int) -> bytes:
    """The configuration space (section 5.2.4) of a disk of ``size`` bytes, whose ``granularity`` is in bytes."""
    config = bytearray(60)
    unit = granularity // SECTOR
    pack_into("<QII", config, 0, size // SECTOR, 0, SEGMENTS)
    pack_into("<I", config, 20, SECTOR)
    # Topology: sectors in a physical block (logarithm), alignment, smallest and best transfer in sectors.
    pack_into("<BBHI", config, 24, min(unit, 8).bit_length() - 1, 0, min(unit, 0x8000), 0)
    config[_WRITEBACK] = 1
    pack_into("<III", config, 36, RANGE_SECTORS, RANGES, unit)
    pack_into("<IIB", config, 48, RANGE_SECTORS, RANGES, 1)
    return bytes(config)


class BlockDevice(VirtioDevice):
    """A block device with the content of ``disk``, which it closes.

    ``serial`` is what the guest's udev knows it by, at most 20 bytes of ASCII.  ``say`` gets a line for the first
    failure of each sort.
    """

    DEVICE_ID = BLOCK

    def __init__(self, name: str, disk: Disk, *, serial: str = "", say: Callable[[str], None]) -> None:
        features = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY
        features |= F_RO if disk.read_only else F_FLUSH | F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES
        super().__init__(
            name,
            features=features,
            queue_sizes=(QUEUE_SIZE,),
            config=configuration(disk.size, disk.granularity),
        )
        self._disk = disk
        self._size = disk.size
        self._read_only = disk.read_only
        self._id = serial.encode("ascii", "replace")[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self._say = say
        self._said: set[tuple[int, int | None]] = set()
        self._link: Link | None = None
        self._worker: Worker | None = None
        self._can_flush = False
        self._reads = self._writes = self._flushes = self._discards = self._zeroes = self._errors = 0
        self._bytes_read = self._bytes_written = 0

    # -- for the transport ------------------------------------------------------------------------------

    def agreed(self, features: int) -> None:
        """Without flushes there is no cache, and the driver is told so (section 5.2.5.2)."""
        self._can_flush = bool(features & F_FLUSH)
        self.config[_WRITEBACK] = self._can_flush

    def activate(self, link: Link) -> None:
        """Start the thread that serves the queue."""
        queue = link.queues[0]
        self._link = link
        self._queue: Queue = queue
        self._slice = link.memory.slice
        self._push = queue.push
        self._since = 0  # bytes moved since the driver was last told
        self._through = not self.config[_WRITEBACK]
        self._worker = worker = Worker(self.name, link)
        worker.watch_queue(0, self._serve)
        worker.start()

    def reset(self) -> None:
        """Finish the request that is under way, and take no other."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self._queue.broken = True
            worker.stop()
        self._link = None
        self.config[_WRITEBACK] = 1

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver switches the write cache: the only thing that it may write."""
        if offset == _WRITEBACK and len(data) == 1 and self._can_flush:
            self.config[_WRITEBACK] = data[0] & 1
            self._through = not data[0] & 1

    def close(self) -> None:
        """Close the disk, keeping what it has not yet written."""
        try:
            self._disk.close()
        except OSError as error:
            self._say(f"{self.name}: the last changes may be lost: {strerror(error.errno or 0)}")

    def statistics(self) -> dict[str, int]:
        """How many requests of each type, how many failed, and bytes."""
        return {
            "reads": self._reads,
            "writes": self._writes,
            "flushes": self._flushes,
            "discards": self._discards,
            "write_zeroes": self._zeroes,
            "errors": self._errors,
            "bytes_read": self._bytes_read,
            "bytes_written": self._bytes_written,
        }

    # -- the thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._queue.drain(self._request)

    def _request(self, chain: Chain) -> None:
        """Do what ``chain`` asks for, give it back, and tell the driver if much has been done since."""
        slice = self._slice
        readable, writable = chain.readable, chain.writable
        if not writable or chain.readable_size < _HEADER:
            what = "room for a status" if not writable else "a whole header"
            raise QueueError(f"virtqueue {self._queue.index}: a request without {what}")
        address, length = writable[-1]
        status = slice(address + length - 1, 1)
        size = written = 0
        result = OK
        kind = -1
        try:
            if readable[0][1] == _HEADER:
                kind, sector = _header(slice(readable[0][0], _HEADER))
            else:
                kind, sector = _header(chain.read(_HEADER))
            if kind == IN:
                size = chain.writable_size - 1
                if size & 511 or (sector << 9) + size > self._size:
                    result = IOERR
                elif size:
                    if length == 1:
                        views = chain.views(writable[:-1])
                    else:
                        views = part(chain.write_views(), 0, size)
                    self._disk.read(views, sector << 9, size)
                    self._bytes_read += size
                self._reads += 1
            elif kind == OUT:
                size = chain.readable_size - _HEADER
                self._writes += 1
                if self._read_only or size & 511 or (sector << 9) + size > self._size:
                    result = IOERR
                elif size:
                    if readable[0][1] == _HEADER:
                        views = chain.views(readable[1:])
                    else:
                        views = part(chain.read_views(), _HEADER, size)
                    self._disk.write(views, sector << 9, size)
                    if self._through:
                        self._disk.flush()
                    self._bytes_written += size
            else:
                result = self._rare(kind, chain)
            written = chain.writable_size
            if written > 1 and kind != IN:  # never more than what was written from the start on (2.7.8.2)
                id_and_status = kind == GET_ID and written == ID_BYTES + 1
                written = ID_BYTES + id_and_status if kind == GET_ID else 0
        except OSError as error:
            result = IOERR
            self._failed(kind, sector << 9, size, error)
        if result:
            self._errors += 1
            written = 1 if chain.writable_size == 1 else 0
        status[0] = result
        self._push(chain, written)
        self._since += size
        if self._since > _INTERRUPT_AFTER:
            self._since = 0
            if self._queue.should_interrupt() and self._link is not None:
                self._link.interrupt()

    def _rare(self, kind: int, chain: Chain) -> int:
        """A request that moves no data of the disk: its status."""
        if kind == GET_ID:
            room = min(chain.writable_size - 1, ID_BYTES)
            chain.write(self._id[:room])
            return OK if room == ID_BYTES else IOERR
        if kind == FLUSH:
            self._flushes += 1
            self._disk.flush()
            return OK
        if kind in (DISCARD, WRITE_ZEROES):
            return self._ranges(kind, chain)
        return UNSUPP

    def _ranges(self, kind: int, chain: Chain) -> int:
        """Discard or zero the ranges that ``chain`` lists: all of them are checked before the first is touched."""
        size = chain.readable_size - _HEADER
        if kind == DISCARD:
            self._discards += 1
        else:
            self._zeroes += 1
        if self._read_only or not size or size % _RANGE or size > RANGES * _RANGE:
            return IOERR
        ranges: Sequence[tuple[int, int, int]] = list(_range(chain.read(size, _HEADER)))
        for _sector, _count, flags in ranges:
            if flags & ~_UNMAP or (kind == DISCARD and flags):
                return UNSUPP
        for sector, count, _flags in ranges:
            if count > RANGE_SECTORS or (sector + count) * SECTOR > self._size:
                return IOERR
        for sector, count, flags in ranges:
            if self._queue.broken:  # a reset: 64 GiB of zeroes can take an hour
                return IOERR
            if not count:
                continue
            if kind == DISCARD:
                self._disk.discard(sector * SECTOR, count * SECTOR)
            else:
                self._disk.write_zeroes(sector * SECTOR, count * SECTOR, bool(flags & _UNMAP))
        if self._through and kind == WRITE_ZEROES:
            self._disk.flush()
        return OK

    def _failed(self, kind: int, offset: int, size: int, error: OSError) -> None:
        """Say it once for each type of request and sort of failure: the guest is told each time."""
        if (kind, error.errno) in self._said:
            return
        self._said.add((kind, error.errno))
        what = _FAILED_TYPES.get(kind, "request")
        where = f" of {size} bytes at {offset:#x}" if kind in (IN, OUT) else ""
        self._say(
            f"{self.name}: {what}{where}: {strerror(error.errno or errno.EIO)}: the guest gets an I/O error"
        )
