"""Whatever a file holds, only the loader's own errors leave it, and it takes neither time nor memory for it.

Real headers with bytes changed, fields set to the numbers that break sums, and files cut short.
"""

from __future__ import annotations

import struct
import tracemalloc

import loader_images
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loader_images import MIB, Elf, Phdr, as_file, guest_os_note, kernel, note, pvh_note

from loader import bzimage, elf, errors, initrd
from loader.buffer import BufferMemory
from loader.configurator import linux, pvh
from loader.detect import HEAD_SIZE, identify

BZIMAGE = loader_images.bzimage()
ELF = bytes(kernel(note(b"Linux\0", 0x100, b"6.1\0"), guest_os_note(b"linux"), pvh_note(0x1000000)))
E820 = [(0, 0x9FC00, 1), (0x100000, 3 * MIB, 1)]
MEMORY_LIMIT = 5 * MIB  # what handling a file may take beside guest memory; 65535 program headers are 3.5

interesting = st.sampled_from(
    [0, 1, 3, 4, 0x7F, 0xFF, 0xFFF, 0x1000, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1, 2**32]
    + [2**62, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 2, 2**64 - 1]
)


@st.composite
def mutated(draw: st.DrawFn, original: bytes, header: int) -> bytes:
    """``original`` with up to six numbers of its first ``header`` bytes overwritten, and perhaps cut."""
    data = bytearray(original)
    for _ in range(draw(st.integers(0, 6))):
        width = draw(st.sampled_from([1, 2, 4, 8]))
        offset = draw(st.integers(0, header - width))
        value = draw(interesting | st.integers(0, 2**64 - 1)) & ((1 << 8 * width) - 1)
        data[offset : offset + width] = value.to_bytes(width, "little")
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


#: The small RAM the images are loaded into; some of it at 16 MiB, where they want to be.
GUEST = BufferMemory([(0, 4 * MIB), (0x1000000, 2 * MIB)])


def boot_bzimage(data: bytes, offset: int | None, highmem: int | None) -> None:
    with as_file(data) as file:
        header = bzimage.read_header(file)
        result = bzimage.load(GUEST, file, offset, highmem, header=header)
        assert GUEST.contains(result.load_base, result.kernel_end - result.load_base)
        if result.setup_header is not None and header.protocol >= 0x209:
            linux.write(
                GUEST,
                0x7000,
                linux.build(header, result, e820=E820, cmdline_addr=0x20000, setup_data_addr=0x2F000),
            )
        address = initrd.place(GUEST.ranges, 4096, result.reserved, result.initrd_addr_max)
        assert GUEST.contains(address, 4096)
        bzimage.place(GUEST, header)


def boot_elf(data: bytes, offset: int | None, highmem: int | None) -> None:
    with as_file(data) as file:
        image = elf.read_image(file)
        result = elf.load(GUEST, file, offset, highmem, image=image)
        assert result.load_base <= result.kernel_end <= 2**64
        assert all(GUEST.contains(s.paddr + (offset or 0), s.memory_size) for s in image.segments)
        pvh.write(GUEST, 0x6000, pvh.build(0x6000, memmap=E820))
        linux.build(None, result, e820=E820, cmdline_addr=0x20000)


def only_loader_errors(boot, *arguments) -> None:
    tracemalloc.start()
    try:
        boot(*arguments)
    except errors.LoaderError as error:
        assert error.message.isprintable()
        assert "\n" not in error.hint
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT


offsets = st.none() | interesting | st.sampled_from([0x100000, 0x1000000, 4 * MIB - 0x800])


@settings(deadline=None, max_examples=300)
@given(mutated(BZIMAGE, 0x290), offsets, st.none() | interesting)
@example(BZIMAGE, None, None)
@example(BZIMAGE[:559], 2**64 - 1, 0)
def test_bzimage(data, offset, highmem):
    only_loader_errors(boot_bzimage, data, offset, highmem)


@settings(deadline=None, max_examples=300)
@given(mutated(ELF, len(ELF)), offsets, st.none() | interesting)
@example(ELF, None, None)
@example(ELF, 2**64 - 1, 0)
def test_elf(data, offset, highmem):
    only_loader_errors(boot_elf, data, offset, highmem)


segments = st.builds(
    Phdr,
    st.binary(max_size=64),
    paddr=st.sampled_from([0x1000, 0x100000, 0x1000000, 2**64 - 16]) | interesting,
    memsz=st.none() | interesting,
    vaddr=st.none() | interesting,
    kind=st.sampled_from([0, 1, 1, 1, 3, 4, 4]),
    offset=st.none() | interesting,
    filesz=st.none() | interesting,
)


@settings(deadline=None, max_examples=300)
@given(st.builds(Elf, st.lists(segments, max_size=5), entry=interesting), offsets)
def test_elf_of_any_segments(image, offset):
    only_loader_errors(boot_elf, bytes(image), offset, None)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_any_notes(data, size):
    image = kernel(data + struct.pack("<3I", 4, 4, 18) + b"Xen\0\1\2\3\4")
    if size % 2:
        image.segments[-1].filesz = image.segments[-1].memsz = size >> 1
    only_loader_errors(boot_elf, bytes(image), None, None)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=HEAD_SIZE) | mutated(BZIMAGE, 0x290) | mutated(ELF, 200))
def test_identify_any_content(data):
    found = identify(data[:HEAD_SIZE])
    assert found.description.isprintable()
    assert found.description.split()[0] in ("a", "an")


@pytest.mark.parametrize("size", [1 << 30, 1 << 40])
def test_sparse_files_cost_nothing(size):
    """A terabyte of nothing, claimed by one segment, 65535 headers, or the notes."""
    huge = kernel(pvh_note(1))
    huge.segments[0].filesz = huge.segments[0].memsz = size // 2
    many = kernel(phnum=0xFFFF)
    notes = kernel(bytes(12))
    notes.segments[-1].filesz = size // 2

    def boot(data: bytes) -> None:
        with as_file(data, size=size) as file:
            elf.load(GUEST, file)

    for data in map(bytes, (huge, many, notes)):
        only_loader_errors(boot, data)

    def boot_bz() -> None:
        with as_file(BZIMAGE, size=size) as file:
            bzimage.load(GUEST, file)

    only_loader_errors(boot_bz)
