"""Guest memory: what may be accessed, what the errors say, and what it costs the host."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.memory import GuestMemory

MIB = 1 << 20
GIB = 1 << 30
LOW = (0, 0x4000)
HIGH = (4 * GIB, 0x2000)


def rss_kib() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def test_regions_are_sorted_and_described() -> None:
    with GuestMemory([HIGH, LOW]) as memory:
        assert memory.ranges == [LOW, HIGH]
        assert memory.size == 0x6000
        assert [(r.start, r.end, r.size) for r in memory.regions] == [
            (0, 0x4000, 0x4000),
            (4 * GIB, 4 * GIB + 0x2000, 0x2000),
        ]
        assert memory.regions[1].view.nbytes == 0x2000
        assert not memory.regions[1].view.readonly


def test_fresh_memory_is_zero_and_writes_stay_where_they_were_put() -> None:
    with GuestMemory([LOW, HIGH]) as memory:
        assert memory.read(0, 0x4000) == bytes(0x4000)
        memory.write(0x10, b"abc")
        memory.write(4 * GIB, bytearray(b"high"))
        memory.write(0x3FFE, memoryview(b"xy"))
        assert memory.read(0x0F, 5) == b"\0abc\0"
        assert memory.read(4 * GIB, 5) == b"high\0"
        assert memory.read(0x3FFE, 2) == b"xy"
        assert bytes(memory.regions[1].view[:4]) == b"high"


def test_numbers_are_little_endian() -> None:
    with GuestMemory([LOW]) as memory:
        memory.write_u64(8, 0x1122334455667788)
        assert memory.read(8, 8) == bytes.fromhex("8877665544332211")
        assert memory.read_u16(8) == 0x7788
        assert memory.read_u32(8) == 0x55667788
        assert memory.read_u64(8) == 0x1122334455667788
        memory.write_u16(8, 0xAABB)
        memory.write_u32(12, 0xCCDDEEFF)
        assert memory.read_u64(8) == 0xCCDDEEFF5566AABB


@pytest.mark.parametrize("value", [-1, 1 << 16])
def test_a_number_that_does_not_fit_is_refused(value: int) -> None:
    with GuestMemory([LOW]) as memory:
        with pytest.raises(GuestMemoryError, match=r"does not fit the 2 bytes at guest address 0x8"):
            memory.write_u16(8, value)
        assert memory.read_u16(8) == 0


def test_fill_sets_exactly_its_range() -> None:
    with GuestMemory([LOW]) as memory:
        memory.fill(0x1001, 0x10, 0xEE)
        assert memory.read(0x1000, 0x12) == b"\0" + b"\xee" * 0x10 + b"\0"
        memory.fill(0x1002, 2)
        assert memory.read(0x1001, 4) == b"\xee\0\0\xee"


def test_slice_is_guest_memory_itself(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"0123456789")
    with GuestMemory([LOW, HIGH]) as memory, file.open("rb") as source:
        parts = [memory.slice(0x100, 4), memory.slice(4 * GIB, 6)]
        assert os.preadv(source.fileno(), parts, 0) == 10
        assert memory.read(0x100, 5) == b"0123\0"
        assert memory.read(4 * GIB, 7) == b"456789\0"


def test_host_address_is_where_the_bytes_are() -> None:
    with GuestMemory([LOW, HIGH]) as memory:
        memory.write(4 * GIB + 0x1234, b"here")
        assert ctypes.string_at(memory.host_address(4 * GIB + 0x1234, 4), 4) == b"here"
        assert memory.host_address(0) == memory.regions[0].host_address


def test_a_file_may_be_mapped_over_guest_memory(tmp_path: Path) -> None:
    """MAP_PRIVATE | MAP_FIXED at host_address: the guest sees the file, and its writes stay its own."""
    file = tmp_path / "image"
    file.write_bytes(b"I" * mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with GuestMemory([LOW]) as memory, file.open("rb") as source:
        where = memory.host_address(0x1000, mmap.PAGESIZE)
        fixed, private, both = 0x10, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        assert libc.mmap(where, mmap.PAGESIZE, both, private | fixed, source.fileno(), 0) == where
        assert memory.read(0xFFF, 3) == b"\0II"
        memory.write(0x1000, b"guest")
        assert file.read_bytes() == b"I" * mmap.PAGESIZE


# --- what is refused ---------------------------------------------------------------------------------

OUTSIDE = [
    (0x4000, 1, "0x1 bytes at guest address 0x4000 are not in guest RAM: the nearest region is 0x0-0x4000"),
    (0x3FFF, 2, "0x2 bytes at guest address 0x3fff are not in guest RAM: the nearest region is 0x0-0x4000"),
    (4 * GIB - 1, 2, "at guest address 0xffffffff .* nearest region is 0x100000000-0x100002000"),
    (4 * GIB + 0x2000, 1, "nearest region is 0x100000000-0x100002000"),
    (0x10_0000, 4, "nearest region is 0x0-0x4000"),
    (0, 4 * GIB + 0x10, "0x100000010 bytes at guest address 0x0"),
    (-1, 1, "guest address -0x1: neither may be negative"),
    (0x10, -4, "-0x4 bytes at guest address 0x10: neither may be negative"),
    ((1 << 64) - 1, 2, r"guest address 0xffffffffffffffff: they would end beyond 2\*\*64"),
    (1 << 70, 1, r"beyond 2\*\*64"),
]


@pytest.mark.parametrize(("address", "size", "message"), OUTSIDE)
def test_outside_is_refused_naming_address_size_and_region(address: int, size: int, message: str) -> None:
    with GuestMemory([LOW, HIGH]) as memory:
        for access in (memory.read, memory.slice, memory.fill, memory.host_address):
            with pytest.raises(GuestMemoryError, match=message):
                access(address, size)
        with pytest.raises(GuestMemoryError, match=message):
            memory.claim(address, size, "thing")
        if size > 0 and size < MIB:
            with pytest.raises(GuestMemoryError, match=message):
                memory.write(address, bytes(size))
        assert not memory.contains(address, size)
        assert memory.read(0, 0x4000) == bytes(0x4000), "a refused write must write nothing"


def test_access_never_crosses_regions_even_adjoining_ones() -> None:
    with GuestMemory([(0, 0x1000), (0x1000, 0x1000)]) as memory:
        assert memory.contains(0xFFF, 1) and memory.contains(0x1000, 1)
        assert not memory.contains(0xFFF, 2)
        with pytest.raises(GuestMemoryError, match="0x2 bytes at guest address 0xfff"):
            memory.write(0xFFF, b"ab")


def test_nothing_can_be_accessed_after_close() -> None:
    memory = GuestMemory([LOW])
    memory.close()
    with pytest.raises(GuestMemoryError, match="there is no guest RAM"):
        memory.read(0, 1)
    memory.close()


def test_a_region_kept_after_close_is_of_no_use() -> None:
    memory = GuestMemory([LOW])
    region = memory.regions[0]
    memory.close()
    with pytest.raises(ValueError, match="released"):
        region.view[0] = 1


BAD_RANGES = [
    ([], "a guest needs RAM"),
    ([(0, 0)], "the size must be positive"),
    ([(0, -0x1000)], "the size must be positive"),
    ([(-0x1000, 0x1000)], "makes no sense"),
    ([(0, 0x1800)], "0x1800 bytes at guest address 0x0 is not aligned"),
    ([(0x800, 0x1000)], "guest address 0x800 is not aligned"),
    ([(0, 0x2000), (0x1000, 0x1000)], "guest address 0x1000 overlaps the one that ends at 0x2000"),
    ([((1 << 64) - 0x1000, 0x2000)], r"beyond 2\*\*64"),
]


@pytest.mark.parametrize(("ranges", "message"), BAD_RANGES)
def test_ranges_that_make_no_sense_are_refused(ranges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(GuestMemoryError, match=message):
        GuestMemory(ranges)


@pytest.mark.parametrize("size", [1 << 50, 1 << 62, (1 << 63) - 0x1000, 1 << 63])
def test_more_than_the_host_can_reserve_is_a_host_error(size: int) -> None:
    with pytest.raises(HostError, match=f"cannot reserve {size:#x} bytes") as caught:
        GuestMemory([LOW, (4 * GIB, size)])
    assert caught.value.hint


# --- what it costs -----------------------------------------------------------------------------------


def test_reserving_touches_no_page() -> None:
    before = rss_kib()
    with GuestMemory([(0, 3 * GIB), (4 * GIB, 13 * GIB)]) as memory:
        memory.write(5 * GIB, b"one page")
        assert rss_kib() - before < 2048
    assert rss_kib() - before < 2048


@pytest.mark.parametrize("start", [0, 4 * GIB, 4 * GIB + 0x3000])
def test_guest_and_host_addresses_agree_below_2_mib(start: int) -> None:
    """Otherwise KVM could map no huge page."""
    with GuestMemory([(start, 6 * MIB)]) as memory:
        assert memory.host_address(start) % (2 * MIB) == start % (2 * MIB)
        memory.write(start + 6 * MIB - 4, b"last")
        assert memory.read(start + 6 * MIB - 4, 4) == b"last"


def smaps_of(address: int) -> str:
    """The entry of /proc/self/smaps for the mapping that holds ``address``."""
    found = False
    entry: list[str] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef" and "-" in line.split()[0]:
            if found:
                break
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            found = start <= address < end
        if found:
            entry.append(line)
    return "\n".join(entry)


@pytest.mark.parametrize("huge_pages", [False, True])
def test_huge_pages_are_advised_on_request_only(huge_pages: bool) -> None:
    try:
        memory = GuestMemory([(0, 8 * MIB)], huge_pages=huge_pages)
    except HostError as error:
        pytest.skip(error.message)
    with memory:
        flags = smaps_of(memory.host_address(4 * MIB)).split("VmFlags:")[1].split("\n")[0].split()
        assert ("hg" in flags) == huge_pages
        assert "nr" in flags, "MAP_NORESERVE"


def test_huge_pages_are_preferred_for_whole_pages_of_a_range() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this host has no transparent huge pages")
    with GuestMemory([(MIB, 8 * MIB)]) as memory:
        memory.prefer_huge_pages(3 * MIB + 1, 2 * MIB)
        told = [
            "hg" in smaps_of(memory.host_address(at)).split("VmFlags:")[1].split("\n")[0].split()
            for at in (3 * MIB - 1, 3 * MIB, 5 * MIB, 5 * MIB + 0x1000)
        ]
        assert told == [False, True, True, False]
        memory.prefer_huge_pages(9 * MIB - 5, 5)
        with pytest.raises(GuestMemoryError):
            memory.prefer_huge_pages(9 * MIB - 5, 6)


def test_a_host_without_huge_pages_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)  # EINVAL, as of a kernel built without them
    with GuestMemory([(0, 8 * MIB)]) as memory:
        memory.prefer_huge_pages(0, MIB)
        with pytest.raises(HostError):
            memory.regions[0].advise_huge_pages()


def test_poison_shows_a_reliance_on_zeroes() -> None:
    with GuestMemory([LOW, HIGH], poison=0xA5) as memory:
        assert memory.read(0, 0x4000) == b"\xa5" * 0x4000
        assert memory.read(4 * GIB, 0x2000) == b"\xa5" * 0x2000


# --- closing -----------------------------------------------------------------------------------------


def test_close_unmaps() -> None:
    memory = GuestMemory([(0, 8 * MIB)])
    where = memory.host_address(0)
    assert smaps_of(where)
    memory.close()
    assert not smaps_of(where)


def test_close_never_fails_and_a_slice_keeps_its_memory() -> None:
    memory = GuestMemory([(0, 8 * MIB)])
    memory.write(0x1000, b"kept")
    where = memory.host_address(0x1000)
    part = memory.slice(0x1000, 4)
    memory.close()
    assert bytes(part) == b"kept"
    part.release()
    assert not smaps_of(where), "unmapped with the last slice"


# --- who wrote what ----------------------------------------------------------------------------------


def test_claims_tell_who_owns_an_address() -> None:
    with GuestMemory([LOW, HIGH]) as memory:
        memory.claim(0x2000, 0x1000, "kernel")
        memory.claim(0x1000, 0x1000, "zero page")
        memory.claim(4 * GIB, 0x10, "initrd")
        assert [claim.name for claim in memory.claims] == ["zero page", "kernel", "initrd"]
        for address, name in [
            (0x1000, "zero page"),
            (0x1FFF, "zero page"),
            (0x2000, "kernel"),
            (0x2FFF, "kernel"),
        ]:
            owner = memory.owner(address)
            assert owner is not None and owner.name == name
        assert memory.owner(0xFFF) is None
        assert memory.owner(0x3000) is None


@pytest.mark.parametrize(
    ("start", "size"), [(0x1FFF, 2), (0x2FFF, 1), (0x2000, 1), (0x1000, 0x3000), (0x2400, 4)]
)
def test_overlapping_claims_are_refused_naming_both(start: int, size: int) -> None:
    with GuestMemory([LOW]) as memory:
        memory.claim(0x2000, 0x1000, "kernel")
        with pytest.raises(
            GuestMemoryError, match=f"initrd at {start:#x}-.*overlaps kernel at 0x2000-0x3000"
        ):
            memory.claim(start, size, "initrd")
        assert len(memory.claims) == 1


def test_an_empty_claim_is_refused() -> None:
    with GuestMemory([LOW]) as memory, pytest.raises(GuestMemoryError, match=r"cmdline at .* has no size"):
        memory.claim(0x1000, 0, "cmdline")


# --- properties --------------------------------------------------------------------------------------

addresses = st.one_of(
    st.integers(-2, 0x4010), st.integers(4 * GIB - 4, 4 * GIB + 0x2004), st.integers(-(1 << 65), 1 << 65)
)


@given(addresses, st.integers(-2, 0x4010))
def test_contains_and_slice_agree(address: int, size: int) -> None:
    with GuestMemory([LOW, HIGH]) as memory:
        inside = size >= 0 and any(s <= address and address + size <= s + n for s, n in (LOW, HIGH))
        assert memory.contains(address, size) == inside
        if inside:
            assert len(memory.slice(address, size)) == size
        else:
            with pytest.raises(GuestMemoryError):
                memory.slice(address, size)
