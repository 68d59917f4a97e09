"""Files in place of guest memory: what is mapped, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import mmap
import os

import pytest

from pyvmm import memory_region
from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.memory import GuestMemory

PAGE = mmap.PAGESIZE
SIZE = 16 * PAGE


@pytest.fixture
def file():
    """A file of eight pages and a bit, each page of a byte of its own."""
    fd = os.memfd_create("image")
    os.write(fd, b"".join(bytes((number + 1,)) * PAGE for number in range(8)) + b"tail")
    yield fd
    os.close(fd)


@pytest.mark.parametrize("poison", [None, 0xA5])
def test_exactly_the_pages_asked_for(file, poison):
    filled = bytes((poison or 0,))
    with GuestMemory([(0x100000, SIZE)], poison=poison) as memory:
        assert memory.map_file(0x100000 + PAGE, 2 * PAGE, file, 3 * PAGE)
        assert memory.read(0x100000, PAGE) == filled * PAGE
        assert memory.read(0x100000 + PAGE, 2 * PAGE) == b"\4" * PAGE + b"\5" * PAGE
        assert memory.read(0x100000 + 3 * PAGE, SIZE - 3 * PAGE) == filled * (SIZE - 3 * PAGE)


def test_writes_stay_the_guests_own(file):
    with GuestMemory([(0, SIZE)]) as memory:
        assert memory.map_file(0, PAGE, file, 0)
        view = memory.slice(0, 5)
        memory.write(0, b"guest")
        assert bytes(view) == b"guest"
        assert os.pread(file, 5, 0) == b"\1" * 5


def test_the_descriptor_may_be_closed(file):
    with GuestMemory([(0, SIZE)]) as memory:
        copy = os.dup(file)
        assert memory.map_file(0, PAGE, copy, PAGE)
        os.close(copy)
        assert memory.read(0, 1) == b"\2"


def test_claims_are_as_before(file):
    with GuestMemory([(0, SIZE)]) as memory:
        memory.claim(0, PAGE, "kernel")
        assert memory.map_file(0, PAGE, file, 0)
        owner = memory.owner(5)
        assert owner is not None and owner.name == "kernel"


@pytest.mark.parametrize(
    ("address", "size", "offset"), [(1, PAGE, 0), (0, PAGE - 1, 0), (0, PAGE, 512), (0, 0, 0)]
)
def test_parts_of_pages_are_left_to_be_read(file, address, size, offset):
    with GuestMemory([(0, SIZE)], poison=0xA5) as memory:
        assert not memory.map_file(address, size, file, offset)
        assert memory.read(0, SIZE) == b"\xa5" * SIZE


def test_a_file_that_cannot_be_mapped_takes_nothing_away(tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with GuestMemory([(0, SIZE)], poison=0xA5) as memory:
            assert not memory.map_file(0, PAGE, directory, 0)
            assert memory.read(0, SIZE) == b"\xa5" * SIZE
    finally:
        os.close(directory)


@pytest.mark.parametrize(("address", "size"), [(SIZE, PAGE), (SIZE - PAGE, 2 * PAGE), (-PAGE, PAGE)])
def test_outside_ram_is_refused(file, address, size):
    with GuestMemory([(0, SIZE), (0x1000000, PAGE)]) as memory:
        with pytest.raises(GuestMemoryError, match=f"{size:#x} bytes at guest address"):
            memory.map_file(address, size, file, 0)
        assert memory.read(0, SIZE) == bytes(SIZE)


def test_a_host_that_cannot_move_the_mapping(file, monkeypatch):
    unmapped = []
    real = memory_region._libc()

    class Libc:
        mmap = real.mmap

        @staticmethod
        def mremap(*arguments):
            return memory_region._MAP_FAILED

        @staticmethod
        def munmap(where, size):
            unmapped.append(size)
            return real.munmap(where, size)

    monkeypatch.setattr(memory_region, "_libc", Libc)
    with GuestMemory([(0, SIZE)]) as memory:
        with pytest.raises(
            HostError, match="cannot map 0x1000 bytes of a file over guest address 0x2000"
        ) as caught:
            memory.map_file(0x2000, 0x1000, file, 0)
        assert caught.value.hint
        assert unmapped == [0x1000]
        assert memory.read(0, SIZE) == bytes(SIZE)


def test_closing_unmaps_the_file_too(file):
    memory = GuestMemory([(0, SIZE)])
    assert memory.map_file(0, PAGE, file, 0)
    with open("/proc/self/maps") as maps:
        assert "memfd:image" in maps.read()
    memory.close()
    with open("/proc/self/maps") as maps:
        assert "memfd:image" not in maps.read()
