"""Registers as data: masks on the class, values on an instance, and text that a person can read."""

import pytest

from pyvmm.arch.x86_64.registers import (
    CR0,
    CR3,
    CR4,
    EFER,
    RFLAGS,
    InterruptionInfo,
    PageFaultError,
    PageTableEntry,
    SegmentAttributes,
    exception_name,
)
from pyvmm.registers import Bit, Bits, Register


class Line(Register):
    TEN = Bits(11, 8)
    KIND = Bits(5, 4, {0: "none", 2: "two"})
    READY = Bit(0)


def test_a_field_is_a_mask_on_the_class_and_a_value_on_an_instance() -> None:
    assert CR0.PG == 0x80000000
    assert RFLAGS.IOPL == 0x3000
    assert CR0(0x80000011).PG == 1
    assert CR0(0x11).PG == 0
    assert RFLAGS(0x2002).IOPL == 2


def test_masks_combine_into_a_value() -> None:
    assert CR0.PE | CR0.ET | CR0.PG == 0x80000011
    assert EFER.LME | EFER.LMA == 0x500


def test_text_names_the_set_bits_highest_first() -> None:
    assert str(CR0(0x80000011)) == "CR0 = 0x80000011 [PG ET PE]"
    assert str(CR4(0)) == "CR4 = 0x0 []"
    assert str(EFER(0xD01)) == "EFER = 0xd01 [NXE LMA LME SCE]"


def test_fields_of_several_bits_show_their_value_or_its_name() -> None:
    assert str(Line(0xB21)) == "Line = 0xb21 [TEN=0xb KIND=two READY]"
    assert Line(0x310).decode() == "TEN=3 KIND=1"
    assert Line(0).decode() == "KIND=none"


def test_bits_without_a_name_are_shown_as_a_number() -> None:
    assert CR0(1 << 40 | 1).decode() == "PE +0x10000000000"


def test_a_register_is_a_number() -> None:
    assert CR0(5) + 1 == 6
    assert f"{CR0(16):#x}" == "0x10"
    assert f"{CR0(16)}" == "CR0 = 0x10 [ET]"
    assert repr(CR0(16)) == "CR0(0x10)"


def test_no_two_fields_of_a_register_share_a_bit() -> None:
    for register in (CR0, CR3, CR4, EFER, RFLAGS, SegmentAttributes, PageTableEntry, PageFaultError):
        seen = 0
        for field in register.fields():
            assert not seen & field.mask, f"{register.__name__}.{field.name}"
            seen |= field.mask


def test_flags_leave_out_the_bit_that_is_always_set() -> None:
    assert RFLAGS(0x10246).decode() == "RF IF ZF PF"
    assert RFLAGS(0x3202).decode() == "IOPL=3 IF"


def test_cr3_reads_as_an_address() -> None:
    assert CR3(0x9000).decode() == "tables at 0x9000"
    assert CR3(0x1234018).decode() == "tables at 0x1234000 low bits 0x18"


def test_segment_attributes_read_as_words() -> None:
    assert SegmentAttributes(0xA09B).decode() == "present code execute/read accessed 64-bit DPL=0"
    assert SegmentAttributes(0xC0F3).decode() == "present data read/write accessed 32-bit DPL=3"
    assert SegmentAttributes(0x008B).decode() == "present TSS busy DPL=0"
    assert SegmentAttributes(0x0010).decode() == "not present data read 16-bit DPL=0"
    assert SegmentAttributes(0x009C).decode() == "present code execute conforming 16-bit DPL=0"


@pytest.mark.parametrize(
    ("vector", "mnemonic"),
    [(0, "#DE"), (6, "#UD"), (8, "#DF"), (13, "#GP"), (14, "#PF"), (19, "#XM"), (21, "#CP")],
)
def test_exception_names(vector: int, mnemonic: str) -> None:
    assert exception_name(vector).startswith(mnemonic + " ")
    assert exception_name(200) == "exception 200"


def test_the_event_being_delivered_reads_as_words() -> None:
    assert InterruptionInfo(0x80000B0E).decode() == "#PF page fault"
    assert InterruptionInfo(0x80000202).decode() == "NMI"
    assert InterruptionInfo(0x80000020).decode() == "interrupt 0x20"
    assert InterruptionInfo(0x80000480).decode() == "software interrupt 0x80"
    assert InterruptionInfo(0x0000030E).decode() == "none"


def test_a_page_table_entry_shows_flags_and_not_its_address() -> None:
    assert PageTableEntry(0x8000000012345063).decode() == "NX D A RW P"
    assert PageTableEntry(0).decode() == ""
