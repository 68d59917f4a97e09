"""Where an initrd goes: as high as the protocol and the RAM allow, and never over anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loader_images import MIB, as_file

from loader import errors, initrd
from loader.buffer import BufferMemory

PAGE = 4096
GIB = 1 << 30
RAM = [(0, 512 * MIB)]
KERNEL = ((0x1000000, 0x3378000),)


def test_at_the_end_of_ram():
    assert initrd.place(RAM, 10 * MIB, KERNEL) == 502 * MIB
    assert initrd.place(RAM, 10 * MIB + 1, KERNEL) == 502 * MIB - PAGE


def test_limit_is_the_last_byte_allowed():
    assert initrd.place([(0, 3 * GIB)], 131072, (), 0x37FFFFFF) == 0x37FE0000  # the example of boot.rst
    assert initrd.place([(0, 3 * GIB)], MIB, (), 0x7FFFFFFF) == 0x80000000 - MIB
    assert initrd.place([(0, 3 * GIB)], MIB, (), 0x7FFFFFFE) == 0x80000000 - MIB - PAGE


def test_limit_of_a_64_bit_kernel_by_default():
    assert initrd.place([(0, 3 * GIB)], MIB) == 0x80000000 - MIB


def test_above_the_hole_only_if_the_limit_allows():
    ram = [(0, 3 * GIB), (4 * GIB, GIB)]
    assert initrd.place(ram, MIB, (), 0xFFFFFFFF) == 3 * GIB - MIB
    assert initrd.place(ram, MIB, (), 2**64 - 1) == 5 * GIB - MIB


def test_beside_what_is_reserved():
    assert initrd.place(RAM, MIB, [(511 * MIB, 1)]) == 510 * MIB
    assert initrd.place(RAM, MIB, [(511 * MIB - 1, 1)]) == 511 * MIB
    assert initrd.place(RAM, MIB, [(512 * MIB - PAGE, 1)]) == 511 * MIB - PAGE
    assert initrd.place(RAM, MIB, [(512 * MIB - 1, 1)]) == 511 * MIB - PAGE


def test_exact_fit_above_the_kernels_room():
    end = 0x1000000 + 0x3378000
    assert initrd.place([(0, end + 8 * MIB)], 8 * MIB, KERNEL) == end


def test_room_below_the_kernel_is_used_at_last():
    assert initrd.place([(0, 72 * MIB)], 15 * MIB, ((0x1000000, 56 * MIB),)) == MIB


def test_never_below_1_mib():
    with pytest.raises(errors.InitrdDoesNotFit):
        initrd.place([(0, MIB)], PAGE)
    assert initrd.place([(0, MIB)], PAGE, floor=0) == MIB - PAGE


def test_too_little_memory_says_how_much_it_takes():
    with pytest.raises(errors.InitrdDoesNotFit, match=r"an initrd of 60 MiB \(62914560 bytes\)") as caught:
        initrd.place([(0, 128 * MIB)], 60 * MIB, ((0x1000000, 53 * MIB),))
    assert caught.value.hint == "give the machine at least 129 MiB of memory"
    assert initrd.place([(0, 129 * MIB)], 60 * MIB, ((0x1000000, 53 * MIB),)) == 69 * MIB


def test_no_memory_helps_above_the_limit():
    with pytest.raises(errors.InitrdDoesNotFit, match="up to 0x37ffffff") as caught:
        initrd.place([(0, 3 * GIB)], 896 * MIB, KERNEL, 0x37FFFFFF)
    assert "smaller" in caught.value.hint


def test_memory_helps_up_to_the_limit():
    ram, kernel = [(0, 64 * MIB)], ((MIB, 31 * MIB),)
    with pytest.raises(errors.InitrdDoesNotFit) as caught:
        initrd.place(ram, 40 * MIB, kernel, 72 * MIB - 1)
    assert caught.value.hint == "give the machine at least 72 MiB of memory"
    assert initrd.place([(0, 72 * MIB)], 40 * MIB, kernel, 72 * MIB - 1) == 32 * MIB
    with pytest.raises(errors.InitrdDoesNotFit) as caught:
        initrd.place(ram, 40 * MIB, kernel, 72 * MIB - 2)
    assert "smaller" in caught.value.hint


def test_no_ram():
    with pytest.raises(errors.InitrdDoesNotFit):
        initrd.place([], PAGE)


spans = st.tuples(st.integers(0, 64 * PAGE), st.integers(0, 16 * PAGE))


@given(st.integers(1, 48), st.integers(1, 20 * PAGE), st.lists(spans, max_size=5), st.integers(0, 80 * PAGE))
def test_the_highest_free_page(ram_pages, size, reserved, limit):
    """Against trying every page."""
    ram = [(0, ram_pages * PAGE), (50 * PAGE, 8 * PAGE)]
    whole = -(-size // PAGE) * PAGE

    def free(address):
        end = address + whole
        return (
            end <= limit + 1
            and any(start <= address and end <= start + length for start, length in ram)
            and not any(length and start < end and address < start + length for start, length in reserved)
        )

    best = max(filter(free, range(0, 64 * PAGE, PAGE)), default=None)
    if best is None:
        with pytest.raises(errors.InitrdDoesNotFit):
            initrd.place(ram, size, reserved, limit, floor=0)
    else:
        assert initrd.place(ram, size, reserved, limit, floor=0) == best


def test_load_file_and_bytes():
    ram = BufferMemory([(0, 64 * PAGE)], fill=0xA5)
    with as_file(b"070701file") as file:
        assert initrd.load(ram, file, 0x2000) == 0x200A
    assert initrd.load(ram, b"bytes", 0x4000) == 0x4005
    assert ram.read(0x1FFF, 12) == b"\xa5070701file\xa5"
    assert ram.read(0x4000, 6) == b"bytes\xa5"


def test_load_outside_ram():
    ram = BufferMemory([(0, 2 * PAGE)])
    with pytest.raises(errors.InitrdOutsideRam, match="the initrd: 0x5 bytes at 0x1ffc"):
        initrd.load(ram, b"bytes", 0x1FFC)
    with (
        as_file(b"12345") as file,
        pytest.raises(errors.InitrdOutsideRam, match="image: 0x5 bytes at 0x1ffc"),
    ):
        initrd.load(ram, file, 0x1FFC)
    assert initrd.load(ram, b"bytes", 0x1FFB) == 0x2000
