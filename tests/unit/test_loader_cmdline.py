"""The kernel command line: what it may hold, how long it may be, and where it may stand."""

from __future__ import annotations

import pytest

from loader import cmdline, errors
from loader.buffer import BufferMemory

END = 0x4000


def test_check_gives_the_bytes():
    assert cmdline.check("console=ttyS0 quiet", 2047) == b"console=ttyS0 quiet"
    assert cmdline.check("", 0) == b""


def test_limit_does_not_count_the_nul():
    assert len(cmdline.check("x" * 2047, 2047)) == 2047
    with pytest.raises(errors.TooLarge, match="2048 characters, and this kernel keeps 2047") as caught:
        cmdline.check("x" * 2048, 2047)
    assert caught.value.hint == "shorten it by 1"


def test_nul():
    with pytest.raises(errors.NullTerminator, match="NUL at position 5"):
        cmdline.check("quiet\0splash", 2047)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", r"'\n'"), ("a\tb", r"'\t'"), ("é", r"'\xe9'"), ("\x7f", r"'\x7f'"), ("\udcff", r"'\udcff'")],
)
def test_only_printable_ascii(text, shown):
    with pytest.raises(errors.InvalidAscii) as caught:
        cmdline.check(text, 2047)
    assert shown in caught.value.message
    assert caught.value.message.isprintable()


def test_all_printable_characters_may_be_there():
    text = "".join(map(chr, range(0x20, 0x7F)))
    assert cmdline.check(text, 2047) == text.encode()


def test_load_writes_a_nul_over_dirty_memory():
    """cmdline_write_end_regresion of the crate."""
    memory = BufferMemory([(0, END)], fill=0xFF)
    assert cmdline.load_cmdline(memory, 0x100, "12345") == 0x106
    assert memory.read(0xFF, 8) == b"\xff12345\0\xff"
    assert cmdline.load_cmdline(memory, 0x200, b"") == 0x201
    assert memory.read(0x200, 2) == b"\0\xff"


def test_cmdline_overflow():
    """Of the crate: END - 5 fails, END - 6 passes, for 5 characters."""
    memory = BufferMemory([(0, END)], fill=0xFF)
    assert cmdline.load_cmdline(memory, END - 6, "12345") == END
    with pytest.raises(
        errors.CommandLineOverflow, match="6 bytes, NUL included, at 0x3ffb ends past the last address 0x3fff"
    ):
        cmdline.load_cmdline(memory, END - 5, "12345")


@pytest.mark.parametrize("addr", [END, 2**64 - 3, 2**64])
def test_past_the_end(addr):
    with pytest.raises(errors.CommandLineOverflow):
        cmdline.load_cmdline(BufferMemory([(0, END)]), addr, "12345")


def test_no_ram():
    with pytest.raises(errors.CommandLineOverflow):
        cmdline.load_cmdline(BufferMemory([]), 0, "12345")


def test_hole_is_not_written_to_by_half():
    memory = BufferMemory([(0, 0x1000), (0x2000, 0x1000)], fill=0xFF)
    with pytest.raises(errors.CommandLineCopy, match="at 0xffd does not lie in RAM"):
        cmdline.load_cmdline(memory, 0xFFD, "12345")
    assert memory.read(0xFFD, 3) == b"\xff\xff\xff"


def test_hole_just_before_the_last_address():
    with pytest.raises(errors.CommandLineCopy):
        cmdline.load_cmdline(BufferMemory([(0, 0x1000), (0x2000, 1)]), 0x2001 - 6, "12345")
