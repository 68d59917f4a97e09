"""A region of guest RAM: one mapping of this process, private or shared with other processes.

mmap(2), madvise(2), memfd_create(2).  :class:`pyvmm.memory.GuestMemory` holds the regions and checks every access.
"""

from __future__ import annotations

import mmap
import os
from ctypes import CDLL, addressof, c_char, c_int, c_int64, c_size_t, c_void_p, get_errno, memset
from os import strerror

from pyvmm.errors import HostError

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
_FEWEST_BYTES = 64 << 10  # that are worth a mapping of their own
_MAP_NORESERVE = 0x4000  # asm-generic/mman.h; mmap.MAP_NORESERVE only from Python 3.13
_MAP_FIXED = 0x10
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2  # linux/mman.h
_F_ADD_SEALS = 1033  # linux/fcntl.h
_SEAL, _SHRINK, _GROW = 1, 2, 4
_MAP_FAILED = c_void_p(-1).value


class Region:
    """A contiguous range of guest RAM from ``start`` to ``end``, at ``host_address`` in this process.

    ``view`` is all of it, writable.  Files may be mapped over pages of it (:meth:`GuestMemory.map_file`).
    ``fd`` is the memfd of a shared region, whose byte ``fd_offset`` is the region's first; None where it is private.
    """

    __slots__ = ("_files", "_mapping", "end", "fd", "fd_offset", "host_address", "size", "start", "view")

    def __init__(self, start: int, size: int, *, shared: bool = False) -> None:
        self.start = start
        self.size = size
        self.end = start + size
        self.fd: int | None = None
        self.fd_offset = 0
        self._files: list[tuple[int, int]] = []  # host addresses: what map_file replaced
        # Huge pages need guest and host addresses that agree in their low 21 bits, and mmap() of the
        # standard library takes no address: map more, and use the part that fits.
        spare = HUGE_PAGE if size >= HUGE_PAGE else 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._mapping = mmap.mmap(-1, size + spare, flags)
        except (OSError, OverflowError, ValueError) as error:
            reason = strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
            raise HostError(
                f"the host cannot reserve {size:#x} bytes of guest RAM: {reason}",
                "give the guest less memory",
            ) from None
        base = addressof(c_char.from_buffer(self._mapping))
        offset = (start - base) % HUGE_PAGE if spare else 0
        self.host_address = base + offset
        self.view = memoryview(self._mapping)[offset : offset + size]
        if shared:
            try:
                self._share()
            except BaseException:
                self.close()
                raise

    def _share(self) -> None:
        """Put a memfd in the place of the anonymous pages.  It cannot be cut short, which would be SIGBUS here."""
        from fcntl import fcntl

        try:
            self.fd = os.memfd_create("pyvmm-guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, self.size)
            fcntl(self.fd, _F_ADD_SEALS, _SEAL | _SHRINK | _GROW)
        except OSError as error:
            raise HostError(
                f"the host cannot make {self.size:#x} bytes of shared guest RAM: {strerror(error.errno or 0)}",
                "give the guest less memory, or leave out the devices that need shared memory (--share)",
            ) from None
        flags = mmap.MAP_SHARED | _MAP_FIXED | _MAP_NORESERVE
        _map(self.host_address, self.size, flags, self.fd, 0, "shared guest RAM")

    def map_file(self, address: int, size: int, fd: int, offset: int) -> bool:
        """See :meth:`GuestMemory.map_file`."""
        if self.fd is not None or size == 0 or (address | size | offset) % PAGE:
            return False
        target = self.host_address + address - self.start
        libc = _libc()
        both = mmap.PROT_READ | mmap.PROT_WRITE
        # Elsewhere first: a file that cannot be mapped must not take the RAM away, as MAP_FIXED would.
        where = libc.mmap(None, size, both, mmap.MAP_PRIVATE | _MAP_NORESERVE, fd, offset)
        if where == _MAP_FAILED:
            return False
        if libc.mremap(where, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, target) != target:
            libc.munmap(where, size)
            raise HostError(
                f"the host cannot map {size:#x} bytes of a file over guest address {address:#x}",
                "free some of the host's memory, or raise vm.max_map_count",
            )
        self._files.append((target, target + size))
        return True

    def discard(self, address: int, size: int) -> None:
        """See :meth:`GuestMemory.discard`; whole pages of the region."""
        target = self.host_address + address - self.start
        for start, end in self._files:
            if target < end and start < target + size:
                # Given back, the pages of a private file mapping would show the file again.  A mapping for each page
                # that a guest names would be more than the host lets a process have.
                if size < _FEWEST_BYTES:
                    memset(target, 0, size)
                    return
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
                _map(target, size, flags, -1, 0, "guest RAM")
                return
        self._advise(mmap.MADV_DONTNEED if self.fd is None else mmap.MADV_REMOVE, target, size)

    def _advise(self, advice: int, where: int, size: int) -> None:
        self._mapping.madvise(advice, where - addressof(c_char.from_buffer(self._mapping)), size)

    def prefer_huge_pages(self, address: int, size: int) -> None:
        """See :meth:`GuestMemory.prefer_huge_pages`."""
        first = (address - self.start) // PAGE * PAGE
        last = min(-(-(address + size - self.start) // PAGE) * PAGE, self.size)
        try:
            self._advise(mmap.MADV_HUGEPAGE, self.host_address + first, last - first)
        except OSError:
            pass

    def advise_huge_pages(self) -> None:
        """Ask the kernel for transparent huge pages (MADV_HUGEPAGE)."""
        try:
            self._advise(mmap.MADV_HUGEPAGE, self.host_address, self.size)
        except OSError as error:
            raise HostError(
                f"this host has no transparent huge pages: {strerror(error.errno or 0)}",
                "boot without huge pages",
            ) from None

    def close(self) -> None:
        """Unmap.  While slices are still in use elsewhere, the memory goes with the last of them instead."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)
        self.view.release()
        try:
            self._mapping.close()
        except BufferError:
            del self._mapping

    def __repr__(self) -> str:
        return f"<Region {self.start:#x}-{self.end:#x}>"


def _map(where: int, size: int, flags: int, fd: int, offset: int, what: str) -> None:
    """mmap() over pages that are mapped already.  Where it fails they stay as they are; HostError."""
    libc = _libc()
    if libc.mmap(where, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset) != where:
        raise HostError(
            f"the host cannot map {size:#x} bytes of {what}: {strerror(get_errno())}",
            "free some of the host's memory, or raise vm.max_map_count",
        )


def _libc() -> CDLL:
    """The C library with the prototypes of the calls that the mmap module does not offer."""
    libc = CDLL(None, use_errno=True)
    libc.mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_int64)
    libc.mremap.argtypes = (c_void_p, c_size_t, c_size_t, c_int, c_void_p)
    libc.munmap.argtypes = (c_void_p, c_size_t)
    libc.mmap.restype = libc.mremap.restype = c_void_p
    return libc
