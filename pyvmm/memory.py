"""Guest memory: RAM as anonymous mappings, with checked access and a record of who wrote what.

KVM maps these pages into the guest ("KVM_SET_USER_MEMORY_REGION", Linux ``Documentation/virt/kvm/api.rst``).
Nothing here touches a page before it is asked to, so a guest costs the host only the memory it uses.
Addresses are guest physical addresses; sizes are bytes; ends are exclusive.
"""

from __future__ import annotations

import mmap
from ctypes import CDLL, addressof, c_char, c_int, c_int64, c_size_t, c_void_p, memset
from os import strerror

from pyvmm.errors import GuestMemoryError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
_MAP_NORESERVE = 0x4000  # asm-generic/mman.h; mmap.MAP_NORESERVE only from Python 3.13
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2  # linux/mman.h
_MAP_FAILED = c_void_p(-1).value
_ADDRESS_SPACE = 1 << 64


class Region:
    """A contiguous range of guest RAM from ``start`` to ``end``, at ``host_address`` in this process.

    ``view`` is all of it, writable.  Files may be mapped over pages of it (:meth:`GuestMemory.map_file`).
    """

    __slots__ = ("_mapping", "end", "host_address", "size", "start", "view")

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self.end = start + size
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

    def advise_huge_pages(self) -> None:
        """Ask the kernel for transparent huge pages (MADV_HUGEPAGE)."""
        offset = self.host_address - addressof(c_char.from_buffer(self._mapping))
        try:
            self._mapping.madvise(mmap.MADV_HUGEPAGE, offset, self.size)
        except OSError as error:
            raise HostError(
                f"this host has no transparent huge pages: {strerror(error.errno or 0)}",
                "boot without huge pages",
            ) from None

    def close(self) -> None:
        """Unmap.  While slices are still in use elsewhere, the memory goes with the last of them instead."""
        self.view.release()
        try:
            self._mapping.close()
        except BufferError:
            del self._mapping

    def __repr__(self) -> str:
        return f"<Region {self.start:#x}-{self.end:#x}>"


class Claim:
    """A part of guest RAM that something was placed in: ``start``, ``size``, ``end``, ``name``."""

    __slots__ = ("end", "name", "size", "start")

    def __init__(self, start: int, size: int, name: str) -> None:
        self.start = start
        self.size = size
        self.end = start + size
        self.name = name

    def __repr__(self) -> str:
        return f"<Claim {self.start:#x}-{self.end:#x} {self.name}>"


class GuestMemory:
    """All RAM of a guest: a mapping for each ``(start, size)`` of ``ranges``; a context manager.

    ``huge_pages`` asks for transparent huge pages.  ``poison`` fills all of RAM with that byte, which touches
    every page, so that a reliance on zeroes shows.  Raises GuestMemoryError unless
    the ranges are page aligned and apart.
    An access lies within one region, even where another adjoins.
    """

    __slots__ = ("claims", "ranges", "regions", "size")

    def __init__(
        self, ranges: Sequence[tuple[int, int]], *, huge_pages: bool = False, poison: int | None = None
    ) -> None:
        self.ranges = sorted(ranges)
        self.claims: list[Claim] = []
        self.regions: tuple[Region, ...] = ()
        self.size = 0
        _check_ranges(self.ranges)
        try:
            for start, size in self.ranges:
                region = Region(start, size)
                self.regions += (region,)
                self.size += size
                if huge_pages:
                    region.advise_huge_pages()
        except HostError:
            self.close()
            raise
        if poison is not None:
            for region in self.regions:
                memset(region.host_address, poison, region.size)

    def _region(self, address: int, size: int) -> Region:
        """The region that holds ``size`` bytes at ``address``, or GuestMemoryError."""
        for region in self.regions:
            if region.start <= address and address + size <= region.end and size >= 0:
                return region
        raise self._outside(address, size)

    def _outside(self, address: int, size: int) -> GuestMemoryError:
        what = f"{size:#x} bytes at guest address {address:#x}"
        if size < 0 or address < 0:
            return GuestMemoryError(f"{what}: neither may be negative")
        if address + size > _ADDRESS_SPACE:
            return GuestMemoryError(f"{what}: they would end beyond 2**64")
        if not self.regions:
            return GuestMemoryError(f"{what}: there is no guest RAM")
        nearest = min(self.regions, key=lambda region: max(region.start - address, address - region.end, 0))
        return GuestMemoryError(
            f"{what} are not in guest RAM: the nearest region is {nearest.start:#x}-{nearest.end:#x}",
            "give the guest more memory, or place it lower",
        )

    def contains(self, address: int, size: int) -> bool:
        """Whether ``size`` bytes at ``address`` lie in one region."""
        return size >= 0 and any(
            region.start <= address and address + size <= region.end for region in self.regions
        )

    def host_address(self, address: int, size: int = 1) -> int:
        """Where ``size`` bytes at ``address`` are in this process."""
        region = self._region(address, size)
        return region.host_address + address - region.start

    def slice(self, address: int, size: int) -> memoryview:
        """``size`` bytes at ``address`` as a writable view of guest RAM itself; os.preadv can fill it."""
        region = self._region(address, size)
        return region.view[address - region.start : address - region.start + size]

    def read(self, address: int, size: int) -> bytes:
        """A copy of ``size`` bytes at ``address``."""
        return bytes(self.slice(address, size))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to ``address``."""
        source = memoryview(data).cast("B")
        self.slice(address, len(source))[:] = source

    def fill(self, address: int, size: int, byte: int = 0) -> None:
        """Set ``size`` bytes at ``address`` to ``byte``."""
        memset(self.host_address(address, size), byte, size)

    def map_file(self, address: int, size: int, fd: int, offset: int) -> bool:
        """Replace ``size`` bytes at ``address`` by those of file ``fd`` from ``offset``, without a copy.

        The mapping is private: what the guest writes stays its own.  Whole pages only, by the host's page
        size: False, and nothing has changed, where one of the three numbers is not aligned, or the file
        cannot be mapped: then read it.  The file must reach to ``offset + size`` and must stay as it is until
        the memory is closed: what is written to it later may show in the guest, and pages that are cut off
        it are lost (SIGBUS here, EFAULT from KVM_RUN).  Map what nobody writes in place, as a file of a
        cache that is only ever replaced by rename(2).

        No page is touched (no MAP_POPULATE): a guest reads part of its image only, and each page populated
        for reading would fault again on the first write.
        """
        target = self.host_address(address, size)
        if size == 0 or (address | size | offset) % PAGE:
            return False
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
        return True

    def read_u16(self, address: int) -> int:
        """The little-endian 16-bit number at ``address``."""
        return int.from_bytes(self.slice(address, 2), "little")

    def read_u32(self, address: int) -> int:
        """The little-endian 32-bit number at ``address``."""
        return int.from_bytes(self.slice(address, 4), "little")

    def read_u64(self, address: int) -> int:
        """The little-endian 64-bit number at ``address``."""
        return int.from_bytes(self.slice(address, 8), "little")

    def write_u16(self, address: int, value: int) -> None:
        """Write ``value`` as a little-endian 16-bit number."""
        self._write_number(address, value, 2)

    def write_u32(self, address: int, value: int) -> None:
        """Write ``value`` as a little-endian 32-bit number."""
        self._write_number(address, value, 4)

    def write_u64(self, address: int, value: int) -> None:
        """Write ``value`` as a little-endian 64-bit number."""
        self._write_number(address, value, 8)

    def _write_number(self, address: int, value: int, size: int) -> None:
        if not 0 <= value < 1 << 8 * size:
            raise GuestMemoryError(f"{value:#x} does not fit the {size} bytes at guest address {address:#x}")
        self.slice(address, size)[:] = value.to_bytes(size, "little")

    # --- who wrote what ------------------------------------------------------------------------------------
    def claim(self, start: int, size: int, name: str) -> None:
        """Record that ``name`` was placed in ``size`` bytes at ``start``.

        Raises GuestMemoryError if they are not all RAM, or if something else was placed there, naming both.
        """
        self._region(start, size)
        if size == 0:
            raise GuestMemoryError(f"{name} at guest address {start:#x} has no size")
        claim = Claim(start, size, name)
        for other in self.claims:
            if claim.start < other.end and other.start < claim.end:
                raise GuestMemoryError(
                    f"{name} at {claim.start:#x}-{claim.end:#x} overlaps {other.name} at "
                    f"{other.start:#x}-{other.end:#x}",
                    "give the guest more memory, or use a smaller kernel or initrd",
                )
        self.claims.append(claim)
        self.claims.sort(key=lambda claim: claim.start)

    def owner(self, address: int) -> Claim | None:
        """What was placed at ``address``, if anything."""
        for claim in self.claims:
            if claim.start <= address < claim.end:
                return claim
        return None

    def close(self) -> None:
        """Unmap all of it.  Never fails: memory that slices still refer to goes with the last of them."""
        regions, self.regions = self.regions, ()
        for region in regions:
            region.close()

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_ranges(ranges: list[tuple[int, int]]) -> None:
    """Raise GuestMemoryError unless the sorted ranges are aligned, apart and within 64 bits."""
    if not ranges:
        raise GuestMemoryError("a guest needs RAM: no range was given")
    end = 0
    for start, size in ranges:
        what = f"a RAM range of {size:#x} bytes at guest address {start:#x}"
        if start < 0 or size <= 0:
            raise GuestMemoryError(f"{what} makes no sense: the size must be positive")
        if start % PAGE or size % PAGE:
            raise GuestMemoryError(f"{what} is not aligned to pages of {PAGE:#x} bytes")
        if start + size > _ADDRESS_SPACE:
            raise GuestMemoryError(f"{what} would end beyond 2**64")
        if start < end:
            raise GuestMemoryError(f"{what} overlaps the one that ends at {end:#x}")
        end = start + size


def _libc() -> CDLL:
    """The C library with the prototypes of the calls that the mmap module does not offer."""
    libc = CDLL(None)
    libc.mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_int64)
    libc.mremap.argtypes = (c_void_p, c_size_t, c_size_t, c_int, c_void_p)
    libc.munmap.argtypes = (c_void_p, c_size_t)
    libc.mmap.restype = libc.mremap.restype = c_void_p
    return libc
