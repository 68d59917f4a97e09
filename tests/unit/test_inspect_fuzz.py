"""Whatever a file holds, inspecting it ends soon, in little memory, in a report or an error of the package's own."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc

import loader_images
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loader_images import MIB, as_file, guest_os_note, kernel, note, pvh_note
from test_inspect import arm64_image, riscv_image
from test_loader_fuzz import mutated

from loader.errors import LoaderError
from pyvmm import inspect
from pyvmm.errors import PyvmmError
from pyvmm.inspect import content
from pyvmm.inspect.table import Style, render

INNER = bytes(kernel(note(b"Linux\0", 0x100, b"6.1\0"), guest_os_note(b"linux"), pvh_note(0x1000000)))
PACKED = gzip.compress(INNER, mtime=0)
BZIMAGE = loader_images.bzimage(code=(bytes(0x300) + PACKED).ljust(0x900, b"\0"), payload_length=len(PACKED))
ZBOOT = (
    b"MZ\0\0zimg" + (64).to_bytes(4, "little") + len(PACKED).to_bytes(4, "little") + bytes(8)
    + b"gzip".ljust(32, b"\0") + bytes(8) + PACKED
)  # fmt: skip
CPIO = (
    b"070701"
    + b"%08x" * 13 % (0, 0o100755, 0, 0, 1, 0, 5, 0, 0, 0, 0, 5, 0)
    + b"init\0\0hello\0\0\0"
    + bytes(64)
)
MEMORY_LIMIT = 12 * MIB
TIME_LIMIT = 5.0
RAM = [2 * MIB, 64 * MIB, 512 * MIB, 8 << 30, 511 << 30]


def bounded(data: bytes, memory: int, size: int | None = None) -> inspect.Report | None:
    """Inspect and render ``data``; only the package's errors, little memory and time."""
    started = time.process_time()
    tracemalloc.start()
    try:
        with as_file(data, size=size) as file:
            report = inspect.inspect_open(file, memory)
        lines = render(report, Style(unicode=bool(memory & MIB)))
        assert max(map(len, lines)) <= 100
        assert all(line.isprintable() for line in lines)
        assert "NaN" not in json.dumps(report.as_dict())
        return report
    except (LoaderError, PyvmmError) as error:
        assert error.message.isprintable()
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY_LIMIT
        assert time.process_time() - started < TIME_LIMIT


any_ram = st.sampled_from(RAM)


@settings(deadline=None, max_examples=300)
@given(mutated(BZIMAGE, 0x290), any_ram)
@example(BZIMAGE, 512 * MIB)
@example(loader_images.bzimage(initrd_addr_max=1), 512 * MIB)
def test_bzimage(data, memory):
    bounded(data, memory)


@settings(deadline=None, max_examples=300)
@given(mutated(INNER, len(INNER)), any_ram)
@example(INNER, 512 * MIB)
def test_elf(data, memory):
    bounded(data, memory)


@settings(deadline=None, max_examples=200)
@given(mutated(INNER, 64) | mutated(INNER, 200), st.integers(0, 2), st.integers(0, 2))
def test_elf_of_any_class_and_order(data, wide, big):
    data = bytearray(data)
    if len(data) > 5:
        data[4:6] = bytes((wide, big))
    bounded(bytes(data), 512 * MIB)


@settings(deadline=None, max_examples=200)
@given(mutated(arm64_image(), 64) | mutated(riscv_image(), 64), any_ram)
@example(arm64_image(), 512 * MIB)
def test_image(data, memory):
    bounded(data, memory)


@settings(deadline=None, max_examples=200)
@given(
    mutated(ZBOOT, 80) | mutated(PACKED, len(PACKED)) | mutated(CPIO, len(CPIO)) | st.binary(max_size=600),
    any_ram,
)
@example(ZBOOT, 512 * MIB)
@example(CPIO, 512 * MIB)
def test_others(data, memory):
    bounded(data, memory)


@pytest.mark.parametrize("size", [1 << 30, 1 << 40])
@pytest.mark.parametrize("data", [BZIMAGE, INNER, arm64_image(body=b""), PACKED, CPIO, b"", b"x"])
def test_sparse_files_cost_little(data, size):
    assert bounded(data, 512 * MIB, size) is not None


def test_a_bomb_is_not_unpacked_whole(monkeypatch):
    """An ELF file that unpacks to more than is allowed: its start is shown, and why it is no more."""
    monkeypatch.setattr(content, "SIZE_LIMIT", 4 * MIB)
    report = bounded(gzip.compress(INNER + bytes(64 * MIB)), 512 * MIB)
    assert report is not None
    assert report.payload is not None
    assert "the most it may" in report.payload.problem
    assert report.content is not None
    assert report.content.size <= 4 * MIB
    assert report.content.segments


def test_a_bomb_that_is_no_kernel_is_left_at_once():
    report = bounded(gzip.compress(bytes(256 * MIB), 1), 512 * MIB)
    assert report is not None
    assert report.payload is not None
    assert report.payload.unpacked_size is None
    assert report.payload.content == "a file of zeroes"
