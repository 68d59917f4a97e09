"""Names for addresses, from an ELF file made here as a kernel's is laid out."""

import struct
from pathlib import Path

import pytest

from pyvmm.arch.x86_64.symbols import Symbols

VIRTUAL, PHYSICAL, SIZE = 0xFFFFFFFF81000000, 0x1000000, 0x20000
FUNCTION, UNTYPED, OBJECT = 2, 0, 1
ABSOLUTE, UNDEFINED = 0xFFF1, 0


def elf(symbols: list[tuple[str, int, int, int]]) -> bytes:
    """An ELF file with a loaded segment, a percpu segment linked at 0, and symbols (name, type, section, value)."""
    strings, table = b"\0", bytes(24)
    for name, kind, section, value in symbols:
        table += struct.pack("<IBBHQQ", len(strings), 1 << 4 | kind, 0, section, value, 0)
        strings += name.encode() + b"\0"
    names = b"\0.symtab\0.strtab\0.shstrtab\0"
    offset = 64 + 2 * 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, PHYSICAL, 64,
        offset + len(table) + len(strings) + len(names), 0, 64, 56, 2, 64, 4, 3,
    )  # fmt: skip
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, VIRTUAL, PHYSICAL, 0, SIZE, 0x1000)
    segments += struct.pack("<IIQQQQQQ", 1, 6, 0, 0, PHYSICAL + SIZE, 0, SIZE, 0x1000)
    sections = bytes(64)
    for title, kind, start, size, link, entry in (
        (1, 2, offset, len(table), 2, 24),
        (9, 3, offset + len(table), len(strings), 0, 0),
        (17, 3, offset + len(table) + len(strings), len(names), 0, 0),
    ):
        sections += struct.pack("<IIQQQQIIQQ", title, kind, 0, 0, start, size, link, 1, 8, entry)
    return header + segments + table + strings + names + sections


@pytest.fixture
def symbols(tmp_path: Path) -> Symbols:
    path = tmp_path / "vmlinux"
    path.write_bytes(
        elf(
            [
                ("start_kernel", FUNCTION, 1, VIRTUAL + 0x500),
                ("startup_64", UNTYPED, 1, VIRTUAL),
                ("in_percpu", UNTYPED, 1, 0x8),
                ("a_variable", OBJECT, 1, VIRTUAL + 0x600),
                ("an_address", UNTYPED, ABSOLUTE, VIRTUAL + 0x700),
                ("elsewhere", FUNCTION, UNDEFINED, VIRTUAL + 0x800),
                ("", UNTYPED, 1, VIRTUAL + 0x900),
            ]
        )
    )
    return Symbols(str(path))


def test_virtual_addresses(symbols: Symbols) -> None:
    assert symbols.find(VIRTUAL) == "startup_64+0x0"
    assert symbols.find(VIRTUAL + 0x4FF) == "startup_64+0x4ff"
    assert symbols.find(VIRTUAL + 0x512) == "start_kernel+0x12"


def test_only_code_has_a_name(symbols: Symbols) -> None:
    assert symbols.find(VIRTUAL + 0xA00) == "start_kernel+0x500"


def test_physical_addresses_before_paging(symbols: Symbols) -> None:
    assert symbols.find(PHYSICAL + 0x512) == "start_kernel+0x12"


@pytest.mark.parametrize(
    "address", [0, 0x1234, VIRTUAL - 1, VIRTUAL + SIZE, PHYSICAL + SIZE + 0x10, (1 << 64) - 1]
)
def test_addresses_outside_the_image_have_no_name(symbols: Symbols, address: int) -> None:
    assert symbols.find(address) == ""


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"MZ" + bytes(1000), elf([])[:200]])
def test_a_file_without_symbols_gives_no_names(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "not-a-kernel"
    path.write_bytes(content)
    assert Symbols(str(path)).find(VIRTUAL) == ""


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Symbols(str(tmp_path / "absent"))
