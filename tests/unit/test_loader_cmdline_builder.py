"""The command line builder beyond the crate's own tests: traps, boundaries, messages."""

from __future__ import annotations

import pytest

from loader import cmdline, errors
from loader.buffer import BufferMemory
from loader.cmdline_builder import Cmdline


def refuse(error: type[errors.LoaderError], match: str, method, *arguments):
    with pytest.raises(error, match=match):
        method(*arguments)


@pytest.mark.parametrize("capacity", [0, -1])
def test_capacity_includes_the_nul(capacity):
    refuse(errors.InvalidCapacity, f"of {capacity} bytes has no room for its NUL", Cmdline, capacity)
    assert bytes(Cmdline(1)) == b"\0"


@pytest.mark.parametrize("character", ["\0", "\x1f", "\n", "\x7f", "\xe9"])
def test_only_printable_ascii(character):
    line = Cmdline(100)
    bad = f"a{character}b"
    for method, *arguments in (
        (line.insert, bad, "v"), (line.insert, "k", bad), (line.insert_multiple, "k", ("v", bad)),
        (line.insert_str, bad), (line.insert_init_args, bad),
    ):  # fmt: skip
        refuse(errors.InvalidAscii, "at position 1, which is not printable", method, *arguments)
    assert str(line) == ""


def test_key_is_checked_for_ascii_first():
    line = Cmdline(100)
    refuse(errors.InvalidAscii, "at position 1", line.insert, " \xe9=", "v")
    refuse(errors.HasSpace, "'a b=' has a space at position 1", line.insert, "a b=", "v")
    refuse(errors.HasEquals, "'ab=' has an equals sign at position 2", line.insert, "ab=", "v")


def test_empty_key_and_value_are_taken():
    line = Cmdline(100)
    line.insert("", "")
    line.insert("k", "")
    line.insert("~ !"[::2], '""')
    assert str(line) == '= k= ~!=""'


@pytest.mark.parametrize("value", ['"', '"a', 'a"'])
def test_quote_without_another(value):
    """The crate takes it, and the kernel takes everything behind it for part of the value."""
    line = Cmdline(100)
    refuse(errors.InvalidQuote, "without another to end it", line.insert, "k", value)
    refuse(errors.InvalidQuote, "without another to end it", line.insert, 'k"', "v")
    refuse(errors.InvalidQuote, "without another to end it", line.insert_str, f"k={value}")
    refuse(errors.InvalidQuote, "without another to end it", line.insert_init_args, value)
    refuse(errors.InvalidQuote, "without another to end it", Cmdline.try_from, value, 100)
    assert str(line) == ""


def test_values_of_spaces_and_quotes():
    line = Cmdline(100)
    refuse(errors.NoQuoteSpace, "' ' of 'k' has a space at position 0", line.insert, "k", " ")
    refuse(errors.InvalidQuote, "inside it, at position 1", line.insert, "k", '"""')
    line.insert("k", '" "')
    assert str(line) == 'k=" "'


def test_white_space_is_trimmed_as_unicode_has_it():
    """str.strip() would take 0x1c to 0x1f off as well: they are no white space."""
    line = Cmdline(100)
    line.insert_str("\t\n\v\f\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000a b \n")
    line.insert_init_args(" \tc ")
    assert str(line) == "a b -- c"
    for character in "\x1c\x1d\x1e\x1f\u200b":
        refuse(errors.InvalidAscii, "position 0", line.insert_str, character + "x")
        refuse(errors.InvalidAscii, "position 1", line.insert_init_args, "x" + character)


def test_an_empty_text_adds_nothing():
    """The crate adds a space."""
    line = Cmdline(4)
    line.insert_str("  ")
    line.insert_str("a=b")
    line.insert_str("")
    line.insert_init_args("")
    assert bytes(line) == b"a=b\0"


def test_state_is_kept_and_the_message_says_how_much():
    line = Cmdline(8)
    line.insert_str("abc")
    with pytest.raises(
        errors.TooLarge, match="would have 9 bytes, NUL included, and its capacity is 8"
    ) as caught:
        line.insert_init_args("d")
    assert caught.value.hint == "shorten it by 1"
    refuse(errors.TooLarge, "would have 9 bytes", line.insert_str, "defg")
    assert str(line) == "abc"
    line.insert_str("def")
    assert bytes(line) == b"abc def\0"


def test_init_arguments_count_their_separator_once():
    line = Cmdline(9)
    line.insert_init_args("ab")
    line.insert_init_args("c")
    refuse(errors.TooLarge, "10 bytes", line.insert_str, "d")
    assert (line.boot_args, line.init_args) == ("", "ab c")
    refuse(errors.NoBootArgsInserted, "arguments for init .'ab c'.", line.as_cstring)


class TestMmio:
    @pytest.mark.parametrize(
        ("size", "text"),
        [
            (1023, "1023"), (1024, "1K"), (1025, "1025"), (1 << 20, "1M"), ((1 << 20) + 1024, "1025K"),
            ((1 << 30) - 1024, "1048575K"), (3 << 30, "3G"), (1 << 40, "1024G"),
        ],
    )  # fmt: skip
    def test_largest_exact_suffix(self, size, text):
        line = Cmdline(100)
        line.add_virtio_mmio_device(size, 0xD0000ABC, 5)
        assert str(line) == f"virtio_mmio.device={text}@0xd0000abc:5"

    def test_id_0_is_an_id(self):
        line = Cmdline(100)
        line.add_virtio_mmio_device(512, 0, 5, 0)
        assert str(line) == "virtio_mmio.device=512@0x0:5:0"

    def test_size_and_range(self):
        line = Cmdline(100)
        for size in (0, -1):
            refuse(errors.MmioSize, f"size {size} at 0x10", line.add_virtio_mmio_device, size, 0x10, 5)
        for size, base in ((1, -1), (1, 2**64), (2, 2**64 - 1)):
            refuse(errors.MmioSize, "passes 64 bits", line.add_virtio_mmio_device, size, base, 5)
        line.add_virtio_mmio_device(1, 2**64 - 1, 1)
        assert str(line) == "virtio_mmio.device=1@0xffffffffffffffff:1"

    @pytest.mark.parametrize("irq", [0, -1])
    def test_interrupt_0(self, irq):
        """Linux refuses it; the crate does not."""
        refuse(errors.MmioInterrupt, f"interrupt {irq}", Cmdline(100).add_virtio_mmio_device, 1, 0, irq)


class TestTryFrom:
    @pytest.mark.parametrize(
        ("text", "boot", "init"),
        [
            ("a --", "a", ""),  # a parameter for the crate; what came after it would have gone to init
            ("-- a", "", "a"),
            ("--", "", ""),
            (" a  --  b ", "a", "b"),
            ("a -- b -- c", "a", "b -- c"),
            ('a="b -- c" d -- e', 'a="b -- c" d', "e"),
            ('a="b -- c"', 'a="b -- c"', ""),
            ('a="b" -- "c -- d"', 'a="b"', '"c -- d"'),
            ("a --- b", "a --- b", ""),
            ("a --b", "a --b", ""),
        ],
    )
    def test_division(self, text, boot, init):
        line = Cmdline.try_from(text, 100)
        assert (line.boot_args, line.init_args) == (boot, init)

    def test_exact_capacity(self):
        assert bytes(Cmdline.try_from(" abc ", 4)) == b"abc\0"
        refuse(errors.InvalidCapacity, "would have 4 bytes", Cmdline.try_from, "abc", 3)

    def test_characters_are_checked(self):
        """The crate does not, and its text may then be longer in bytes than in characters."""
        refuse(errors.NullTerminator, "NUL at position 1", Cmdline.try_from, "a\0b", 100)
        refuse(errors.InvalidAscii, r"'\\xe9' at position 0", Cmdline.try_from, "\xe9", 100)

    def test_more_can_be_inserted(self):
        line = Cmdline.try_from("a -- b", 100)
        line.insert("c", "d")
        line.insert_init_args("e")
        assert line.as_cstring() == b"a c=d -- b e"


def test_equality_is_that_of_the_text():
    assert Cmdline.try_from("a -- b", 20) == Cmdline.try_from("a --  b", 30)
    assert Cmdline(1) != ""
    assert Cmdline.try_from("-- b", 20) != Cmdline(20)
    with pytest.raises(TypeError):
        hash(Cmdline(1))


def test_repr():
    assert repr(Cmdline.try_from("a -- b", 20)) == "<Cmdline 'a -- b', capacity 20>"


def test_load_cmdline_takes_one():
    memory = BufferMemory([(0, 0x1000)], fill=0xFF)
    assert cmdline.load_cmdline(memory, 0, Cmdline.try_from("a -- b", 20)) == 7
    assert memory.read(0, 8) == b"a -- b\0\xff"
    with pytest.raises(errors.InvalidCommandLine, match="none for the kernel") as caught:
        cmdline.load_cmdline(memory, 0, Cmdline.try_from("-- b", 20))
    assert caught.value.hint
    assert memory.read(0, 8) == b"a -- b\0\xff"
