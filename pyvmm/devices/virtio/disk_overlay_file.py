"""The files of copy-on-write overlays: temporary ones without a name, and kept ones, whose format this is.

A kept overlay is a sparse file, its numbers little-endian:

======  ===========================================================================================
offset  content
======  ===========================================================================================
0       magic ``PYVMMOVL``
8       version, 32 bits: 1
12      logarithm of the cluster size, 32 bits
16      length of the base in bytes, 64 bits
24      the base's time of modification in nanoseconds since 1970, 64 bits; 0 for a block device
32      offset of the map, 64 bits: 4096
40      offset of the data, 64 bits, a multiple of the cluster size
48      length of the base's path, 16 bits, and the absolute path: for messages only
map     a byte for each cluster: 0 it is in the base, 1 in the data, 2 it is zeroes
data    cluster n at n times the cluster size
======  ===========================================================================================

It holds for the base that it was made for, as that was: one that has changed since is refused.
"""

from __future__ import annotations

import errno
import os
import struct

from pyvmm.devices.virtio.disk_file import DiskFile
from pyvmm.devices.virtio.disk_overlay import ZERO, OverlayDisk, cluster_shift
from pyvmm.devices.virtio.disk_raw import RawDisk
from pyvmm.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"PYVMMOVL"
VERSION = 1

_HEADER = struct.Struct("<8sIIQqQQH")
_HEADER_SIZE = 4096
_READ_SIZE = 16 << 20


def temporary_overlay(base: DiskFile) -> OverlayDisk:
    """An overlay of ``base`` that goes with its disk: in $TMPDIR, else /var/tmp, else /tmp, else in memory.

    Raises HostError.
    """
    shift = cluster_shift(base.size)
    clusters = -(-base.size // (1 << shift))
    file = nameless_file()
    try:
        os.ftruncate(file, clusters << shift)
    except OSError as error:
        os.close(file)
        raise HostError(
            f"cannot make a temporary overlay of {base.size} bytes: {error.strerror}",
            "set TMPDIR to a directory that takes large files",
        ) from None
    return OverlayDisk(RawDisk(base), file, bytearray(clusters), shift=shift, map_offset=None, data_offset=0)


def nameless_file() -> int:
    """An open file without a name, in the first of $TMPDIR, /var/tmp and /tmp that takes one, else in memory."""
    for directory in (os.environ.get("TMPDIR"), "/var/tmp", "/tmp"):
        if not directory:
            continue
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                continue
        path = os.path.join(directory, f"pyvmm-overlay-{os.getpid()}-{os.urandom(8).hex()}")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            continue
        os.unlink(path)
        return descriptor
    return os.memfd_create("pyvmm-overlay", os.MFD_CLOEXEC)


def kept_overlay(
    path: str, base: DiskFile, say: Callable[[str], None], *, synchronous: bool = True
) -> OverlayDisk:
    """The overlay of ``base`` in the file ``path``, made if there is none; locked against double use.

    Without ``synchronous`` the map is written when the disk is closed, and nothing survives a loss of power.
    Raises UsageError or HostError: the file is something else, damaged, or of another base or version.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise HostError(
            f"cannot make the overlay {path}: {error.strerror}", "choose a place where you may write"
        ) from None
    file = DiskFile(path, read_only=False)
    try:
        file.lock(say)
        # The length counts from here on, as whoever had the lock may have made it grow.
        length = os.fstat(file.fd).st_size
        if length == 0:
            _make(file, base)
            length = _HEADER_SIZE
        shift, map_offset, data_offset = _check(file, base, length)
        clusters = -(-base.size // (1 << shift))
        end = data_offset + (clusters << shift)
        if length == _HEADER_SIZE:  # just made, now or by one that came no further
            os.ftruncate(file.fd, end)
        elif length < end:
            raise _unusable(path, f"is damaged: it has {length} bytes and should have {end}")
        map = _read(file.fd, map_offset, clusters)
        if len(map) < clusters or map.translate(None, bytes(range(ZERO + 1))):
            raise _unusable(path, "is damaged: its map makes no sense")
    except OSError as error:
        file.close()
        raise HostError(f"cannot use the overlay {path}: {error.strerror}") from None
    except (HostError, UsageError):
        file.close()
        raise
    return OverlayDisk(
        RawDisk(base),
        file,
        map,
        shift=shift,
        map_offset=map_offset,
        data_offset=data_offset,
        synchronous=synchronous,
    )


def _make(file: DiskFile, base: DiskFile) -> None:
    """Write the header, all at once: a file is either empty or has one."""
    shift = cluster_shift(base.size)
    clusters = -(-base.size // (1 << shift))
    alignment = max(1 << shift, _HEADER_SIZE)
    data = -(-(_HEADER_SIZE + clusters) // alignment) * alignment
    name = os.fsencode(os.path.abspath(base.path))[: _HEADER_SIZE - _HEADER.size]
    header = (
        _HEADER.pack(MAGIC, VERSION, shift, base.length, base.mtime, _HEADER_SIZE, data, len(name)) + name
    )
    os.pwrite(file.fd, header.ljust(_HEADER_SIZE, b"\0"), 0)
    os.fsync(file.fd)
    directory = os.open(
        os.path.dirname(os.path.abspath(file.path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    )
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check(file: DiskFile, base: DiskFile, length: int) -> tuple[int, int, int]:
    """The logarithm of the cluster size and the offsets of map and data, if the header fits ``base``."""
    header = os.pread(file.fd, _HEADER_SIZE, 0)
    if len(header) < _HEADER_SIZE or not header.startswith(MAGIC):
        raise UsageError(
            f"{file.path} is not an overlay of pyvmm, and is left as it is", "name a file that does not exist"
        )
    _, version, shift, size, mtime, map_offset, data_offset, name_length = _HEADER.unpack_from(header)
    if version != VERSION:
        raise _unusable(file.path, f"has version {version} of the format; this pyvmm knows {VERSION}")
    clusters = -(-base.size // (1 << min(shift, 63)))
    if not (9 <= shift <= 40 and map_offset >= _HEADER_SIZE and data_offset % (1 << shift) == 0):
        raise _unusable(file.path, "is damaged: its header makes no sense")
    name = os.fsdecode(header[_HEADER.size : _HEADER.size + name_length])
    if size != base.length:
        raise _unusable(
            file.path, f"was made for {name} with {size} bytes, and {base.path} has {base.length}"
        )
    if mtime != base.mtime:
        raise _unusable(file.path, f"was made for {name}, and {base.path} has been written to since")
    if data_offset < map_offset + clusters:
        raise _unusable(file.path, "is damaged: its header makes no sense")
    return shift, map_offset, data_offset


def _read(fd: int, offset: int, size: int) -> bytearray:
    content = bytearray()
    while len(content) < size:
        piece = os.pread(fd, min(size - len(content), _READ_SIZE), offset + len(content))
        if not piece:
            break
        content += piece
    return content


def _unusable(path: str, why: str) -> UsageError:
    return UsageError(f"the overlay {path} {why}", f"bring the base back, or start anew: rm {path}")
