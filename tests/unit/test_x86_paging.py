"""The identity map, and the walk that explains a translation whatever the tables hold."""

import random
import struct

import pytest

from pyvmm.arch.x86_64 import layout, paging

CR0_PG, PAE, PSE, LA57, LMA, NXE = 1 << 31, 1 << 5, 1 << 4, 1 << 12, 1 << 10, 1 << 11
P, RW, US, PS, NX = 1, 2, 4, 0x80, 1 << 63


class Memory:
    """64 KiB of RAM at 0, full of a pattern, as poisoned guest memory would be."""

    def __init__(self, poison: int = 0xA5) -> None:
        self.bytes = bytearray([poison]) * 0x10000

    def contains(self, addr: int, size: int) -> bool:
        return addr >= 0 and addr + size <= len(self.bytes)

    def read(self, addr: int, size: int) -> bytes:
        assert self.contains(addr, size)
        return bytes(self.bytes[addr : addr + size])

    def write(self, addr: int, data: bytes) -> None:
        assert self.contains(addr, len(data))
        self.bytes[addr : addr + len(data)] = data

    def entry(self, addr: int, value: int, size: int = 8) -> None:
        self.write(addr, value.to_bytes(size, "little"))


def long_mode(
    memory: Memory, linear: int, *, cr3: int = 0x9000, cr4: int = PAE, efer: int = LMA
) -> paging.Walk:
    return paging.walk(memory, linear, cr0=CR0_PG, cr3=cr3, cr4=cr4, efer=efer)


@pytest.fixture
def mapped() -> Memory:
    memory = Memory()
    assert paging.write_identity_map(memory) == layout.PML4
    return memory


@pytest.mark.parametrize(
    "linear", [0, 0x7000, 0x1FFFFF, 0x200000, 0x40000000, 0xBFFFFFFF, 0xFEE00020, 0xFFFFFFFF]
)
def test_identity_map_translates_to_itself(mapped: Memory, linear: int) -> None:
    walk = long_mode(mapped, linear)
    assert walk.physical == linear
    assert walk.page_size == 2 << 20
    assert [step.level for step in walk.steps] == ["PML4E", "PDPTE", "PDE"]
    assert (walk.writable, walk.user, walk.executable) == (True, False, True)


@pytest.mark.parametrize("linear", [0x100000000, 0x8000000000, 0xFFFFFFFF80000000])
def test_identity_map_maps_nothing_else_even_over_poison(mapped: Memory, linear: int) -> None:
    walk = long_mode(mapped, linear)
    assert walk.physical is None
    assert "not present" in walk.problem


def test_identity_map_stays_within_its_pages(mapped: Memory) -> None:
    size = paging.IDENTITY_MAP_SIZE
    assert mapped.bytes[: layout.PML4] == bytearray([0xA5]) * layout.PML4
    assert set(mapped.bytes[layout.PML4 + size :]) == {0xA5}


def test_text_of_a_walk(mapped: Memory) -> None:
    walk = long_mode(mapped, 0x234567)
    assert [str(step) for step in walk.steps] == [
        "PML4E[0x0] at 0x9000 = 0xa003 [RW P]",
        "PDPTE[0x0] at 0xa000 = 0xb003 [RW P]",
        "PDE[0x1] at 0xb008 = 0x200083 [PS RW P]",
    ]
    assert str(walk) == "0x234567 is physical 0x234567 (2 MiB page, writable, supervisor, executable)"


def test_without_paging_linear_is_physical() -> None:
    walk = paging.walk(Memory(), 0x1_0000_1000, cr0=1, cr3=0, cr4=0, efer=0)
    assert (walk.physical, walk.steps) == (0x1000, [])
    assert str(walk) == "0x100001000 is physical 0x1000 (paging is off)"


def four_levels(memory: Memory, *entries: int, linear: int = 0) -> None:
    """Put ``entries`` (top level first) at the indices of ``linear``, in tables at 0x1000, 0x2000, ..."""
    shift = 12 + 9 * (len(entries) - 1)
    for table, entry in enumerate(entries, start=1):
        memory.entry(table * 0x1000 + (linear >> shift & 511) * 8, entry)
        shift -= 9


def test_four_level_walk_combines_rights() -> None:
    memory, linear = Memory(0), 0xFFFF_8123_4567_89AB
    four_levels(
        memory,
        0x2000 | P | RW | US,
        0x3000 | P | RW | US,
        0x4000 | P | US,
        0x5000 | P | RW | US | NX,
        linear=linear,
    )
    walk = long_mode(memory, linear, cr3=0x1000, efer=LMA | NXE)
    assert walk.physical == 0x59AB
    assert (walk.writable, walk.user, walk.executable) == (False, True, False)
    assert walk.page_size == 4096


def test_five_levels() -> None:
    memory, linear = Memory(0), 0x00AB_CDEF_0123_4567
    four_levels(memory, 0x2003, 0x3003, 0x4003, 0x5003, 0x6003, linear=linear)
    walk = long_mode(memory, linear, cr3=0x1000, cr4=PAE | LA57)
    assert walk.physical == 0x6567
    assert [step.level for step in walk.steps] == ["PML5E", "PML4E", "PDPTE", "PDE", "PTE"]
    assert "not canonical" in long_mode(memory, linear, cr3=0x1000).problem


def test_gibibyte_page() -> None:
    memory = Memory(0)
    memory.entry(0x1000, 0x2003)
    memory.entry(0x2000, 0x40000083)
    assert long_mode(memory, 0x1234, cr3=0x1000).physical == 0x40001234


@pytest.mark.parametrize("linear", [0x0000_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 0x8000_0000_0000_0000])
def test_not_canonical(linear: int) -> None:
    walk = long_mode(Memory(), linear)
    assert walk.physical is None
    assert "not canonical" in walk.problem
    assert walk.steps == []


def test_canonical_ends() -> None:
    assert "not present" in long_mode(Memory(0), 0x0000_7FFF_FFFF_FFFF).problem
    assert "not present" in long_mode(Memory(0), 0xFFFF_8000_0000_0000).problem


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ((0,), "PML4E is not present"),
        ((0x2003, 0x3002), "PDPTE is not present"),
        ((0x2083,), "PML4E has the page size bit"),
        ((0x2003 | NX,), "PML4E has the no-execute bit"),
        ((0x2003, 0x3003, 0x2083), "PDE maps a page at an address that is not a multiple"),
        ((0x2003, 0x3003, 0x40000003), "PTE's table is at 0x40000000, where there is no RAM"),
    ],
)
def test_problems_are_told_in_words(entries: tuple[int, ...], words: str) -> None:
    memory = Memory(0)
    for table, entry in enumerate(entries, start=1):
        memory.entry(table * 0x1000, entry)
    walk = long_mode(memory, 0, cr3=0x1000)
    assert words in walk.problem
    assert walk.physical is None
    assert str(walk) == f"0x0 is not mapped: {walk.problem}"


def test_tables_outside_ram() -> None:
    walk = long_mode(Memory(), 0x1000, cr3=0x7_0000_0000)
    assert walk.steps[0].value is None
    assert str(walk.steps[0]) == "PML4E[0x0] at 0x700000000: no RAM there"


def test_pae() -> None:
    memory, linear = Memory(0), 0xC0201234
    memory.entry(0x1020 + 3 * 8, 0x2001)  # a PAE top table is aligned to 32 bytes, not to a page
    memory.entry(0x2000 + 1 * 8, 0x3003)
    memory.entry(0x3000 + 1 * 8, 0x5003)
    walk = paging.walk(memory, linear, cr0=CR0_PG, cr3=0x1020, cr4=PAE, efer=0)
    assert walk.physical == 0x5234
    assert walk.writable  # the PDPTE has no RW bit, and none is needed


def test_32_bit() -> None:
    memory, linear = Memory(0), 0x00403456
    memory.entry(0x1000 + 1 * 4, 0x2003, 4)
    memory.entry(0x2000 + 3 * 4, 0x8003, 4)
    walk = paging.walk(memory, linear, cr0=CR0_PG, cr3=0x1000, cr4=0, efer=0)
    assert walk.physical == 0x8456
    assert walk.page_size == 4096


def test_4_mib_pages_need_pse_and_reach_beyond_4_gib() -> None:
    memory = Memory(0)
    memory.entry(0x1000, 0x00C0_0083 | 0x5 << 13, 4)
    walk = paging.walk(memory, 0x345678, cr0=CR0_PG, cr3=0x1000, cr4=PSE, efer=0)
    assert walk.physical == 0x5_00C0_0000 + 0x345678
    assert "4 MiB page" in str(walk)
    without = paging.walk(memory, 0x345678, cr0=CR0_PG, cr3=0x1000, cr4=0, efer=0)
    assert without.steps[-1].level == "PTE"


def test_any_tables_and_any_registers_end_without_an_exception() -> None:
    rng = random.Random(1)
    memory = Memory()
    for _ in range(300):
        memory.bytes[:] = b"".join(
            struct.pack("<Q", rng.choice((rng.getrandbits(64), rng.getrandbits(16) | 3)))
            for _ in range(0x2000)
        )
        walk = paging.walk(
            memory,
            rng.getrandbits(rng.choice((16, 32, 47, 64))),
            cr0=rng.getrandbits(32),
            cr3=rng.choice((rng.getrandbits(16), rng.getrandbits(64))),
            cr4=rng.getrandbits(24),
            efer=rng.getrandbits(16),
        )
        assert (walk.physical is None) == bool(walk.problem)
        assert str(walk)
