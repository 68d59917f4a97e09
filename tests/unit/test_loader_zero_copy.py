"""Zero-copy: pages of a file stand in guest memory where alignment allows, and the rest is read; never more."""

from __future__ import annotations

import os

import pytest
from loader_images import Elf, Phdr, as_file
from loader_images import bzimage as make_bzimage

from loader import bzimage, elf, errors, files, initrd
from loader.buffer import BufferMemory

PAGE = os.sysconf("SC_PAGESIZE")
MINIMUM = files.MAP_MINIMUM
BASE = 0x1000000
POISON = 0xA5


class Mapping(BufferMemory):
    """Memory that keeps a record of what is mapped; by copying, so that the outcome can be compared."""

    def __init__(self, size: int, willing: bool = True) -> None:
        super().__init__([(0, size)], fill=POISON)
        self.willing = willing
        self.maps: list[tuple[int, int, int]] = []
        self.read_ranges: list[tuple[int, int]] = []

    def map_file(self, addr: int, size: int, fd: int, offset: int) -> bool:
        self.maps.append((addr, size, offset))
        if self.willing:
            super().slice(addr, size)[:] = os.pread(fd, size, offset)
        return self.willing

    def slice(self, addr: int, size: int) -> memoryview:
        self.read_ranges.append((addr, size))
        return super().slice(addr, size)


def noise(size: int) -> bytes:
    return os.urandom(size)


def load(
    data: bytes, memory: BufferMemory, address: int, offset: int, size: int, may_map: bool = True
) -> int:
    with as_file(data) as file:
        file.may_map = may_map
        return file.load_into(memory, address, offset, size)


@pytest.mark.parametrize(
    ("address", "offset", "size", "mapped"),
    [
        (4 * PAGE, 2 * PAGE, MINIMUM, (4 * PAGE, MINIMUM)),
        (4 * PAGE, 2 * PAGE, MINIMUM - 1, None),
        (4 * PAGE, 2 * PAGE, MINIMUM + 5, (4 * PAGE, MINIMUM)),
        (4 * PAGE - 7, 2 * PAGE - 7, MINIMUM + 7, (4 * PAGE, MINIMUM)),
        (4 * PAGE - 7, 2 * PAGE - 7, MINIMUM + 6, None),
        (4 * PAGE + 3, 2 * PAGE + 3, MINIMUM + PAGE, (5 * PAGE, MINIMUM)),
        (4 * PAGE, 2 * PAGE + 512, 2 * MINIMUM, None),
        (4 * PAGE + 8, 2 * PAGE, 2 * MINIMUM, None),
    ],
)
@pytest.mark.parametrize("willing", [True, False])
def test_whole_pages_are_mapped_and_the_rest_is_read(address, offset, size, mapped, willing):
    data = noise(3 * MINIMUM)
    memory = Mapping(4 * MINIMUM, willing)
    count = load(data, memory, address, offset, size)
    assert memory.maps == ([(*mapped, offset + mapped[0] - address)] if mapped else [])
    assert count == (mapped[1] if mapped and willing else 0)
    assert sum(length for _, length in memory.read_ranges) == size - count
    whole = memory.read(0, 4 * MINIMUM)
    before, after = bytes((POISON,)) * address, bytes((POISON,)) * (4 * MINIMUM - address - size)
    assert whole == before + data[offset : offset + size] + after


def test_not_where_the_file_may_change():
    memory = Mapping(2 * MINIMUM)
    assert load(noise(MINIMUM), memory, 0, 0, MINIMUM, may_map=False) == 0
    assert memory.maps == []


def test_memory_that_cannot_map():
    data = noise(MINIMUM)
    memory = BufferMemory([(0, MINIMUM)])
    assert load(data, memory, 0, 0, MINIMUM) == 0
    assert memory.read(0, MINIMUM) == data


def test_a_file_cut_since_it_was_opened_is_never_mapped():
    """A page behind its end would be a SIGBUS."""
    memory = Mapping(2 * MINIMUM)
    with as_file(noise(MINIMUM)) as file:
        os.ftruncate(file.fd, MINIMUM - 1)
        with pytest.raises(errors.FileChanged, match=f"ends at {MINIMUM - 1:#x}, and had {MINIMUM:#x} bytes"):
            file.load_into(memory, 0, 0, MINIMUM)
    assert memory.maps == []


def test_segments():
    first, second = noise(MINIMUM + 0x234), noise(MINIMUM)
    image = Elf(
        [
            Phdr(first, BASE, memsz=MINIMUM + 2 * PAGE, offset=PAGE),
            Phdr(second, BASE + 2 * MINIMUM, offset=PAGE + len(first)),
        ],
        entry=BASE,
    )
    header = bytes(image)[: 64 + 2 * 56].ljust(PAGE, b"\0")
    memory = Mapping(BASE + 4 * MINIMUM)
    with as_file(header + first + second) as file:
        elf.load(memory, file)
    assert memory.maps == [(BASE, MINIMUM, PAGE)]  # the other is not aligned
    assert memory.read(BASE, MINIMUM + 2 * PAGE) == first.ljust(MINIMUM + 2 * PAGE, b"\0")
    assert memory.read(BASE + 2 * MINIMUM, MINIMUM) == second


def test_bzimage_code():
    data = make_bzimage(setup_sects=39, code=noise(MINIMUM + 100), kernel_info=False, payload_length=0)
    memory = Mapping(BASE + 2 * MINIMUM)
    with as_file(data) as file:
        result = bzimage.load(memory, file, BASE)
    assert memory.maps == [(BASE, MINIMUM, 40 * 512)]
    assert memory.read(BASE, result.kernel_end - BASE) == data[40 * 512 :]


def test_initrd():
    data = noise(MINIMUM + 100)
    memory = Mapping(4 * MINIMUM)
    with as_file(data) as file:
        assert initrd.load(memory, file, MINIMUM) == MINIMUM + len(data)
    assert memory.maps == [(MINIMUM, MINIMUM, 0)]
    assert memory.read(MINIMUM, len(data) + 1) == data + bytes((POISON,))
