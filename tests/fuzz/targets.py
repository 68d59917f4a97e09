"""What is fuzzed: for each format a function of some bytes, which lets nothing but the package's own errors out.

An input is a file of the format; where a target has something to choose (an address, a compression), its first byte
chooses.  scripts/fuzz runs these under atheris, tests/unit/test_fuzz_corpus.py with the corpus alone.
"""

from __future__ import annotations

import functools
import os
from array import array
from collections.abc import Callable
from contextlib import contextmanager

from loader import (
    bzimage,
    bzimage_header,
    cmdline,
    decompress,
    detect,
    dtb,
    elf,
    elf_headers,
    elf_notes,
    errors,
    image,
    initrd,
    lz4_legacy,
    lzop,
    machine_code,
    payload,
    relocation,
    zboot,
)
from loader.buffer import BufferMemory
from loader.cmdline_builder import Cmdline
from loader.configurator import linux, pvh
from loader.files import ImageFile
from loader.relocation_errors import RelocationOutsideImage
from loader.result import KernelLoaderResult
from pyvmm import inspect
from pyvmm.errors import PyvmmError
from pyvmm.inspect import bzimage as _bzimage
from pyvmm.inspect import content, cpio, elf_file, memory_map, placement, report, table, version
from pyvmm.inspect import elf as _elf
from pyvmm.inspect import image as _image

#: Imported while atheris watches imports, so that what is imported when it is needed is watched too.
WATCHED = (_bzimage, _elf, _image, bzimage_header, content, detect, elf_file, elf_notes, lz4_legacy, lzop)
WATCHED += (memory_map, placement, version, zboot)

MIB = 1 << 20
GUEST = BufferMemory([(0, 2 * MIB), (0x1000000, 2 * MIB), (0x8000_0000, MIB // 16)], fill=0xA5)
E820 = [(0, 0x9FC00, 1), (0x100000, MIB, 1), (0x1000000, 2 * MIB, 1)]
PLACES: tuple[tuple[int | None, int | None], ...] = (
    (None, None),
    (0x100000, None),
    (0x1000000, 0x100000),
    (0x1200000 - 0x800, 0),
    (0, 2**64 - 1),
    (2**64 - 1, None),
    (2**64 - 0x200000, 0),
    (2**32 - 0x1000000, 0x100000),
)
MACHINES = ("x86_64", "aarch64", "riscv64")
UNPACK_LIMIT = 2 * MIB  # so that the size of what comes out does not hide how long a byte of it takes
UNPACK_SECONDS = 5.0
COMPRESSIONS = tuple(dict.fromkeys(format for _, format in detect.COMPRESSION_MAGICS))


@contextmanager
def only_own_errors():
    """Let the package's errors end here, if each is one line that can be read."""
    try:
        yield
    except (errors.LoaderError, PyvmmError) as error:
        assert error.message.isprintable(), repr(error.message)
        assert error.message, type(error)
        assert not error.hint or error.hint.isprintable(), repr(error.hint)


@contextmanager
def as_file(data: bytes):
    """``data`` as an input file without a name on disk."""
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    os.write(fd, data)
    with ImageFile(fd, "image") as file:
        yield file


@functools.cache
def output() -> int:
    """A file to unpack into."""
    return os.memfd_create("unpacked", os.MFD_CLOEXEC)


def chosen(data: bytes, choices):
    """One of ``choices`` by the first byte, and the rest."""
    return choices[data[0] % len(choices) if data else 0], data[1:]


def fuzz_bzimage(data: bytes) -> None:
    """The header, placing, loading, and the zero page made of it."""
    (offset, highmem), data = chosen(data, PLACES)
    with as_file(data) as file, only_own_errors():
        header = bzimage.read_header(file)
        with only_own_errors():
            assert bzimage.place(GUEST, header) >= 0
        result = bzimage.load(GUEST, file, offset, highmem, header=header)
        assert GUEST.contains(result.load_base, result.kernel_end - result.load_base)
        with only_own_errors():
            address = initrd.place(GUEST.ranges, 4096, result.reserved, result.initrd_addr_max)
            assert GUEST.contains(address, 4096)
            assert all(address + 4096 <= at or at + size <= address for at, size in result.reserved)
        zero_page = linux.build(header, result, e820=E820, cmdline_addr=0x20000, setup_data_addr=0x2F000)
        linux.write(GUEST, 0x7000, zero_page)


def fuzz_elf(data: bytes) -> None:
    """Headers, notes, loading, and what can be entered afterwards."""
    (place, machine), data = chosen(data, [(place, machine) for machine in MACHINES for place in PLACES])
    with as_file(data) as file, only_own_errors():
        found = elf.read_image(file, machine)
        with only_own_errors():
            relocation.read_table(file, found)
        result = elf.load(GUEST, file, *place, image=found)
        assert all(GUEST.contains(s.paddr + (place[0] or 0), s.memory_size) for s in found.segments)
        assert result.load_base <= result.kernel_end <= 2**64
        pvh.write(GUEST, 0x6000, pvh.build(0x6000, memmap=E820))
        linux.build(None, result, e820=E820, cmdline_addr=0x20000)


IMAGE_SIZES = ((0x1000000, 0x2000), (0x1000000, 7), (0x3FFFF000, 0x2000), (0x7FFFF000, 0x2000), (2**64, 64))


def fuzz_relocation(data: bytes) -> None:
    """A table, and two ways to apply it, in machine code and in Python, which must do the same."""
    (base, size), table_data = chosen(data, IMAGE_SIZES)
    before = bytes(range(256)) * (size // 256 + 1)
    segment = elf_headers.Segment(64, 0, base, size, size)
    headers = elf_headers.ElfImage("x86_64", base, [segment], elf_notes.NoteSummary(), False, True, 64)
    with as_file(bytes(64) + table_data) as file, only_own_errors():
        found = relocation.read_table(file, headers)
        if found is None:
            return
        outcomes = []
        for loops in (machine_code.routines, lambda: None):
            memory = BufferMemory([(base, size)])
            memory.write(base, before[:size])
            result = KernelLoaderResult(base, base + size, load_base=base)
            outcomes.append(_applied(loops, memory, found, headers, result))
        assert outcomes[0] == outcomes[1]
        assert not isinstance(outcomes[0], str) or memory.read(base, size) == before[:size]
        memory = BufferMemory([(base, size)])
        relocation.kaslr(memory, file, headers, KernelLoaderResult(base, base + size, load_base=base))


def _applied(loops, memory, found, headers, result) -> str | bytes:
    kept = relocation.machine_code.routines
    relocation.machine_code.routines = loops
    try:
        relocation.apply(memory, found, headers, result, 0x1234_5678_9ABC)
    except RelocationOutsideImage as error:
        return error.message
    finally:
        relocation.machine_code.routines = kept
    return memory.read(result.load_base, result.kernel_end - result.load_base)


def fuzz_image(data: bytes) -> None:
    """The Image of arm64 and riscv64."""
    (offset, highmem), data = chosen(data, PLACES)
    with as_file(data) as file, only_own_errors():
        header = image.read_header(file)
        with only_own_errors():
            image.place(GUEST, header)
        result = image.load(GUEST, file, offset, highmem, header=header)
        assert GUEST.contains(*result.reserved[0])
        assert GUEST.read(result.load_base, len(data)) == data


def fuzz_dtb(data: bytes) -> None:
    """A device tree, from a file and from bytes."""
    address, data = chosen(data, (0x100000, 0x100004, 0, 2 * MIB - 64, 2**64 - 8, 0x1000000))
    with as_file(data) as file:
        for source in (file, data):
            with only_own_errors():
                end = dtb.load_dtb(GUEST, address, source)
                assert GUEST.read(address, end - address) == data


def fuzz_cmdline(data: bytes) -> None:
    """A text, and parameters line by line, the first byte the capacity."""
    capacity = data[0] if data else 0
    lines = data[1:].decode("utf-8", "surrogateescape").split("\n")
    with only_own_errors():
        cmdline.check("\n".join(lines), capacity)
    with only_own_errors():
        line = Cmdline.try_from(lines[0], capacity)
        again = Cmdline.try_from(str(line), capacity)
        assert str(again) == str(line)
    with only_own_errors():
        line = Cmdline(capacity)
        for number, text in enumerate(lines):
            before = str(line)
            key, _, value = text.partition("=")
            try:
                if number % 4 == 0:
                    line.insert(key, value)
                elif number % 4 == 1:
                    line.insert_multiple(key, value.split(",") if value else ())
                elif number % 4 == 2:
                    line.insert_str(text)
                else:
                    line.insert_init_args(text)
            except errors.LoaderError:
                assert str(line) == before
            assert len(str(line)) < capacity
            assert str(line).isprintable()
            assert str(line).count('"') % 2 == 0
        end = cmdline.load_cmdline(GUEST, 2 * MIB - 64, line)
        assert GUEST.read(end - 1, 1) == b"\0"


def fuzz_payload(data: bytes) -> None:
    """What is packed in a file of any kind, found and unpacked."""
    with as_file(data) as file, only_own_errors():
        found = payload.find(file)
        os.ftruncate(output(), 0)
        sink = payload.unpack(file, found, output(), limit=UNPACK_LIMIT, seconds=UNPACK_SECONDS)
        assert sink.total <= UNPACK_LIMIT
        assert found.size in (None, sink.total)


def fuzz_decompress(data: bytes) -> None:
    """Compressed data of the kind that the first byte names, at once in the decompressor."""
    format, data = chosen(data, COMPRESSIONS)
    with as_file(data) as file, only_own_errors():
        os.ftruncate(output(), 0)
        sink = decompress.Sink(output(), "image", UNPACK_LIMIT, UNPACK_SECONDS)
        decompress.decompressor(format)(decompress.Source(file, 0, len(data)), sink)
        assert sink.total <= UNPACK_LIMIT


def fuzz_zboot(data: bytes) -> None:
    """The header of an EFI zboot image, and its payload."""
    with as_file(b"MZ\0\0zimg" + data) as file, only_own_errors():
        header = zboot.read_header(file)
        assert 64 <= header.offset < header.offset + header.length <= file.size
    fuzz_payload(b"MZ\0\0zimg" + data)


def fuzz_inspect(data: bytes) -> None:
    """What pyvmm inspect says of any file, drawn."""
    memory, data = chosen(data, (512 * MIB, 2 * MIB, 64 * MIB, 8 << 30, 511 << 30))
    with as_file(data) as file, only_own_errors():
        found = inspect.inspect_open(file, memory)
        lines = table.render(found, table.Style(unicode=memory == 512 * MIB))
        assert all(line.isprintable() and len(line) <= 100 for line in lines)
        found.as_dict()


def fuzz_cpio(data: bytes) -> None:
    """A cpio archive, whatever it starts with."""
    with as_file(data) as file, only_own_errors():
        found = report.Report("image", file.size, "cpio", "")
        cpio.inspect(found, file)
        assert found.description.isprintable()


TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("fuzz_"): function
    for name, function in list(globals().items())
    if name.startswith("fuzz_")
}

assert array("I").itemsize == 4
