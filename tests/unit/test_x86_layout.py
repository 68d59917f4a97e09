"""The address map: nothing overlaps, the tables agree with the names, and RAM goes around the hole."""

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from pyvmm.arch.x86_64 import layout
from pyvmm.errors import UsageError

GIB = 1 << 30
MIB = 1 << 20


@pytest.mark.parametrize("table", [layout.MEMORY_MAP, layout.PORT_MAP], ids=["memory", "ports"])
def test_entries_ascend_without_overlap(table: tuple[tuple[int, int, str], ...]) -> None:
    for (start, size, name), (next_start, _, next_name) in itertools.pairwise(table):
        assert size > 0, name
        assert start + size <= next_start, f"{name} runs into {next_name}"


def test_map_holds_the_addresses_boot_code_relies_on() -> None:
    starts = {start for start, _, _ in layout.MEMORY_MAP}
    assert starts >= {
        layout.GDT,
        layout.EXCEPTION_HANDLERS,
        layout.PVH_START_INFO,
        layout.ZERO_PAGE,
        layout.PML4,
        layout.PDPT,
        layout.PAGE_DIRECTORIES,
        layout.COMMAND_LINE,
        layout.SETUP_DATA,
        layout.EBDA,
        layout.ACPI_TABLES,
        layout.RESET_STUB,
        layout.HIMEM,
        layout.IOAPIC,
        layout.LAPIC,
        layout.KVM_TSS,
        layout.KVM_IDENTITY_MAP,
    }
    assert layout.BOOT_STACK_TOP % 16 == 0
    assert 0x8000 < layout.BOOT_STACK_TOP <= 0x9000


def test_page_tables_are_one_run_of_pages() -> None:
    assert layout.PDPT == layout.PML4 + 0x1000
    assert layout.PAGE_DIRECTORIES == layout.PDPT + 0x1000


@pytest.mark.parametrize(
    ("size", "ranges"),
    [
        (2 * MIB, [(0, 2 * MIB)]),
        (512 * MIB, [(0, 512 * MIB)]),
        (3 * GIB, [(0, 3 * GIB)]),
        (3 * GIB + 4096, [(0, 3 * GIB), (4 * GIB, 4096)]),
        (8 * GIB, [(0, 3 * GIB), (4 * GIB, 5 * GIB)]),
        (511 * GIB, [(0, 3 * GIB), (4 * GIB, 508 * GIB)]),
    ],
)
def test_ram_goes_around_the_hole(size: int, ranges: list[tuple[int, int]]) -> None:
    assert layout.ram_ranges(size) == ranges
    assert sum(length for _, length in layout.ram_ranges(size)) == size
    assert all(start + length <= 1 << 39 for start, length in ranges)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes is less"),
        (-4096, "less"),
        (2 * MIB - 4096, "2044 KiB is less than the smallest machine's 2 MiB"),
        (512 * GIB, "512 GiB is more than the largest machine's 511 GiB"),
        (64 * MIB + 1, "67108865 bytes is not a whole number"),
    ],
)
def test_impossible_memory_is_refused_with_a_hint(size: int, words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        layout.ram_ranges(size)
    assert words in refusal.value.message
    assert "--memory" in refusal.value.hint


def test_e820_covers_ram_and_reserves_the_top_of_low_memory() -> None:
    assert layout.e820(4 * GIB) == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x60400, 2),
        (0x100000, 0xBFF00000, 1),
        (0x100000000, 0x40000000, 1),
    ]
    assert len(layout.e820(512 * MIB)) == 3


def test_e820_keeps_the_kernel_off_the_tables_and_the_reset_stub() -> None:
    usable = [(start, start + size) for start, size, kind in layout.e820(64 * MIB) if kind == layout.E820_RAM]
    for address in (layout.EBDA, layout.ACPI_TABLES, layout.RESET_STUB):
        assert not any(start <= address < end for start, end in usable), hex(address)


def test_reset_stub_fits_before_one_megabyte() -> None:
    assert len(layout.RESET_STUB_CODE) == 7
    assert layout.RESET_STUB + 16 == layout.HIMEM


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump (binutils)")
def test_reset_stub_is_what_its_comment_says(tmp_path: Path) -> None:
    stub = tmp_path / "stub.bin"
    stub.write_bytes(layout.RESET_STUB_CODE)
    text = subprocess.run(
        ["objdump", "-D", "-b", "binary", "-m", "i8086", str(stub)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    code = [" ".join(line.split("\t")[2].split()) for line in text.splitlines() if line.count("\t") >= 2]
    assert code == ["mov $0xfe,%al", "out %al,$0x64", "hlt", "jmp 0x4"]
