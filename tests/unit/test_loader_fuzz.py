"""Whatever a file holds, only the loader's own errors leave it, and it takes neither time nor memory for it.

Real headers with bytes changed, fields set to the numbers that break sums, and files cut short; and for what has no
file (boot parameters, a command line) anything that a caller could give.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import tracemalloc
from pathlib import Path

import loader_images
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loader_images import MIB, Elf, Phdr, as_file, guest_os_note, kernel, note, pvh_note

from loader import bzimage, elf, errors, initrd
from loader.boot_params import LIST_SIZE_MAX, BootParams
from loader.buffer import BufferMemory
from loader.configurator import fdt, linux, pvh
from loader.detect import HEAD_SIZE, identify
from loader.result import KernelLoaderResult
from loader.structs import boot_params, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info, setup_data

FOLDER = Path(__file__).resolve().parent.parent / "fuzz"
sys.path.insert(0, str(FOLDER))

from targets import TARGETS  # noqa: E402

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
    order = draw(st.sampled_from(["little", "big"]))
    for _ in range(draw(st.integers(0, 6))):
        width = draw(st.sampled_from([1, 2, 4, 8]))
        offset = draw(st.integers(0, header - width))
        value = draw(interesting | st.integers(0, 2**64 - 1)) & ((1 << 8 * width) - 1)
        data[offset : offset + width] = value.to_bytes(width, order)
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


def only_loader_errors(boot, *arguments, limit: int = MEMORY_LIMIT) -> None:
    tracemalloc.start()
    try:
        boot(*arguments)
    except errors.LoaderError as error:
        assert error.message.isprintable()
        assert "\n" not in error.hint
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < limit


offsets = st.none() | interesting | st.sampled_from([0x100000, 0x1000000, 4 * MIB - 0x800])


@settings(deadline=None, max_examples=150)
@given(mutated(BZIMAGE, 0x290), offsets, st.none() | interesting)
@example(BZIMAGE, None, None)
@example(BZIMAGE[:559], 2**64 - 1, 0)
def test_bzimage(data, offset, highmem):
    only_loader_errors(boot_bzimage, data, offset, highmem)


@settings(deadline=None, max_examples=150)
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


@settings(deadline=None, max_examples=150)
@given(st.builds(Elf, st.lists(segments, max_size=5), entry=interesting), offsets)
def test_elf_of_any_segments(image, offset):
    only_loader_errors(boot_elf, bytes(image), offset, None)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_any_notes(data, size):
    image = kernel(data + struct.pack("<3I", 4, 4, 18) + b"Xen\0\1\2\3\4")
    if size % 2:
        image.segments[-1].filesz = image.segments[-1].memsz = size >> 1
    only_loader_errors(boot_elf, bytes(image), None, None)


@settings(deadline=None, max_examples=150)
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


# -- the other formats, from the corpus of the fuzzer, by its functions, which assert what they do ------------

CORPUS = {
    target: [file.read_bytes() for file in sorted((FOLDER / "corpus" / target).iterdir())]
    for target in ("image", "dtb", "relocation", "payload", "decompress", "zboot")
}
UNPACKING_LIMIT = 24 * MIB  # a block of LZ4, twice, and its packed form


@st.composite
def from_corpus(draw: st.DrawFn, target: str) -> bytes:
    original = draw(st.sampled_from(CORPUS[target]))
    return draw(mutated(original, draw(st.sampled_from([min(0x290, len(original)), len(original)]))))


@pytest.mark.parametrize("target", CORPUS)
@settings(deadline=None, max_examples=100)
@given(st.data())
def test_mutated_corpus(target, data):
    limit = MEMORY_LIMIT if target in ("image", "dtb", "relocation") else UNPACKING_LIMIT
    only_loader_errors(TARGETS[target], data.draw(from_corpus(target)), limit=limit)


parameters = st.text(st.sampled_from('ab=,"- .\t\0\x7f\xe4\u20ac\ud800'), max_size=40)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 255), st.lists(parameters, max_size=8))
def test_any_command_line(capacity, lines):
    only_loader_errors(
        TARGETS["cmdline"], bytes((capacity,)) + "\n".join(lines).encode("utf-8", "surrogatepass")
    )


LOW = 0x8100_0000  # what the image of the relocation target is linked at
words = st.just(0) | st.integers(LOW - 8, LOW + 0x2008) | st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 4), st.lists(words, max_size=12))
def test_any_relocation_table(choice, table):
    only_loader_errors(TARGETS["relocation"], struct.pack(f"<B{len(table) + 1}I", choice, 0, *table))


# -- boot parameters -------------------------------------------------------------------------------------------

numbers = interesting | st.integers(-1, 2**64)
low_addresses = st.integers(0, 0x10000) | st.sampled_from([0x7000, 4 * MIB - 0x1000, 4 * MIB - 8])
addresses = low_addresses | numbers
ranges = st.tuples(numbers, numbers, st.integers(0, 2**32 - 1))
sane_ranges = st.tuples(st.integers(0, 2**63), st.integers(1, 2**63), st.integers(0, 2**32 - 1))
memory_maps = st.lists(sane_ranges, min_size=1, max_size=5) | st.lists(ranges, max_size=130)


@settings(deadline=None, max_examples=150)
@given(
    st.none() | mutated(BZIMAGE, 0x290),
    memory_maps,
    addresses,
    addresses,
    st.none() | st.tuples(addresses, numbers),
    addresses,
    addresses,
)
@example(None, [(0, 1, 0), (0, 2**64, 0)], 0, 1, None, 0, 0)  # once found: a size of 2**64 became 0
def test_zero_page_of_anything(image, e820, at, cmdline_addr, initrd, rsdp, setup_data_addr):
    def boot() -> None:
        header = None
        if image is not None:
            with as_file(image) as file:
                header = bzimage.read_header(file)
        result = KernelLoaderResult(0x1000000, 0x1800000, load_base=0x1000000)
        params = linux.build(
            header,
            result,
            e820=e820,
            cmdline_addr=cmdline_addr,
            initrd=initrd,
            acpi_rsdp_addr=rsdp,
            setup_data_addr=setup_data_addr,
        )
        table = [(e.addr, e.size, e.type) for e in params.e820_table[: params.e820_entries]]
        assert table == e820
        assert params.ext_cmd_line_ptr << 32 | params.hdr.cmd_line_ptr == cmdline_addr
        found = (
            params.ext_ramdisk_image << 32 | params.hdr.ramdisk_image,
            params.ext_ramdisk_size << 32 | params.hdr.ramdisk_size,
        )
        assert found == (initrd or (0, 0))
        assert params.acpi_rsdp_addr == rsdp
        if setup_data_addr:
            assert params.hdr.setup_data == setup_data_addr
        linux.write(GUEST, at, params)
        assert GUEST.read(at, 4096) == bytes(params)

    only_loader_errors(boot)


@settings(deadline=None, max_examples=150)
@given(addresses, st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=40)), max_size=4))
@example(0, [(1, b"once found: a list that no kernel would see")])
def test_setup_data_of_anything(at, nodes):
    def boot() -> None:
        assert linux.write_setup_data(GUEST, at, nodes) >= at
        place, found = at if nodes else 0, []
        while place:
            node = setup_data.from_buffer_copy(GUEST.read(place, ctypes.sizeof(setup_data)))
            found.append((node.type, GUEST.read(place + ctypes.sizeof(setup_data), node.len)))
            place = node.next
        assert found == nodes

    only_loader_errors(boot)


@settings(deadline=None, max_examples=150)
@given(
    addresses,
    memory_maps,
    addresses,
    addresses,
    st.lists(st.tuples(addresses, addresses), max_size=3),
    st.none() | addresses,
    st.none() | addresses,
)
def test_start_info_of_anything(at, memmap, cmdline_addr, rsdp, modules, modlist_addr, memmap_addr):
    def boot() -> None:
        params = pvh.build(
            at,
            memmap=memmap,
            cmdline_addr=cmdline_addr,
            rsdp_addr=rsdp,
            modules=modules,
            modlist_addr=modlist_addr,
            memmap_addr=memmap_addr,
        )
        assert [(m.paddr, m.size) for m in params.modules] == modules
        assert [(e.addr, e.size, e.type) for e in params.memmap] == memmap
        pvh.write(GUEST, at, params)
        info = hvm_start_info.from_buffer_copy(GUEST.read(at, ctypes.sizeof(hvm_start_info)))
        assert (info.cmdline_paddr, info.rsdp_paddr) == (cmdline_addr, rsdp)

    only_loader_errors(boot)


elements = (
    st.binary(max_size=100)
    | st.just(boot_params())
    | st.just(hvm_start_info())
    | st.just(hvm_memmap_table_entry(addr=1, size=2))
    | st.just(hvm_modlist_entry(paddr=3, size=4))
    | mutated(CORPUS["dtb"][0][1:], 40)
)
steps = st.tuples(st.sampled_from(["sections", "modules"]), st.booleans(), elements, st.none() | addresses)


@settings(deadline=None, max_examples=150)
@given(elements, addresses, st.lists(steps, max_size=5))
def test_boot_params_of_anything(header, at, added):
    params = BootParams(header, at)

    def boot() -> None:
        for kind, whole, element, addr in added:
            before = getattr(params, kind), getattr(params, f"{kind}_start")
            try:
                if whole:
                    getattr(params, f"set_{kind}")([element, element], addr or 0)
                else:
                    getattr(params, f"add_{kind[:-1]}")(element, addr)
            except errors.LoaderError:
                assert (getattr(params, kind), getattr(params, f"{kind}_start")) == before
                continue
            data, start = getattr(params, kind), getattr(params, f"{kind}_start")
            assert len(data) <= LIST_SIZE_MAX
            position = 0 if whole else len(before[0] or b"") if addr is None else addr - start
            assert data[position : position + len(bytes(element))] == bytes(element)

    only_loader_errors(boot)
    for write in (linux.write_bootparams, pvh.write_bootparams, fdt.write_bootparams):
        only_loader_errors(write, GUEST, params)
