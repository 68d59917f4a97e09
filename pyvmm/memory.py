"""Guest memory: RAM as anonymous mappings, with checked access and a record of who wrote what.

KVM maps these pages into the guest ("KVM_SET_USER_MEMORY_REGION", Linux ``Documentation/virt/kvm/api.rst``).
Nothing here touches a page before it is asked to, so a guest costs the host only the memory it uses.
Another process that serves a device (vhost-user) maps the same pages: then each region is a memfd.
Addresses are guest physical addresses; sizes are bytes; ends are exclusive.
"""

from __future__ import annotations

from ctypes import memset
from os import strerror

from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.memory_region import PAGE, Region

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_ADDRESS_SPACE = 1 << 64


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

    ``huge_pages`` asks for transparent huge pages.  ``shared`` makes each region a memfd, which a process that
    serves a device can map as well (:attr:`Region.fd`).  ``poison`` fills all of RAM with that byte, which touches
    every page, so that a reliance on zeroes shows.  Raises GuestMemoryError unless
    the ranges are page aligned and apart.
    An access lies within one region, even where another adjoins.
    """

    __slots__ = ("claims", "ranges", "regions", "size")

    def __init__(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        huge_pages: bool = False,
        poison: int | None = None,
        shared: bool = False,
    ) -> None:
        self.ranges = sorted(ranges)
        self.claims: list[Claim] = []
        self.regions: tuple[Region, ...] = ()
        self.size = 0
        _check_ranges(self.ranges)
        try:
            for start, size in self.ranges:
                region = Region(start, size, shared=shared)
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
        size: False, and nothing has changed, where one of the three numbers is not aligned, where the memory
        is shared (no other process would see the file), or where the file cannot be mapped: then read it.
        The file must reach to ``offset + size`` and must stay as it is until
        the memory is closed: what is written to it later may show in the guest, and pages that are cut off
        it are lost (SIGBUS here, EFAULT from KVM_RUN).  Map what nobody writes in place, as a file of a
        cache that is only ever replaced by rename(2).

        No page is touched (no MAP_POPULATE): a guest reads part of its image only, and each page populated
        for reading would fault again on the first write.
        """
        return self._region(address, size).map_file(address, size, fd, offset)

    def prefer_huge_pages(self, address: int, size: int) -> None:
        """Back these bytes with huge pages where the host has them and gives them to who asks; else nothing happens.

        For what is written as a whole.  A guest enters faster what is in few large pages: each that it touches for
        the first time is a fault in KVM.
        """
        self._region(address, size).prefer_huge_pages(address, size)

    def discard(self, address: int, size: int) -> None:
        """Give the host back the pages that lie wholly in ``size`` bytes at ``address``; they read as zeroes then.

        For a shared region they are gone from the memfd, and so for every process that maps it.
        Raises GuestMemoryError outside RAM, HostError where the kernel refuses.
        """
        region = self._region(address, size)
        start, end = -(-address // PAGE) * PAGE, (address + size) // PAGE * PAGE
        if start < end:
            try:
                region.discard(start, end - start)
            except OSError as error:
                raise HostError(
                    f"the host does not take back {end - start:#x} bytes of guest RAM at {start:#x}: "
                    f"{strerror(error.errno or 0)}"
                ) from None

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
