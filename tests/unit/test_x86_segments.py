"""Descriptors and hidden parts: the same attributes must read alike in the GDT and in KVM's segments."""

import struct

import pytest

from pyvmm.arch.x86_64 import layout, segments
from pyvmm.arch.x86_64.registers import SegmentAttributes
from pyvmm.kvm.uapi_x86 import kvm_segment, kvm_sregs


class Memory(dict[int, bytes]):
    def write(self, addr: int, data: bytes) -> None:
        self[addr] = data


@pytest.mark.parametrize(
    ("base", "limit", "attributes", "expected"),
    [
        # The descriptors of Linux's own boot GDT (arch/x86/boot/pm.c, arch/x86/boot/compressed/head_64.S).
        (0, 0xFFFFFFFF, segments.CODE_32, 0x00CF9B000000FFFF),
        (0, 0xFFFFFFFF, segments.DATA_32, 0x00CF93000000FFFF),
        (0, 0xFFFFFFFF, segments.CODE_64, 0x00AF9B000000FFFF),
        (4096, 103, segments.TSS_AVAILABLE, 0x0000890010000067),
        (0xFEDCBA98, 0xFFFFF, segments.CODE_16, 0xFE0F9BDCBA98FFFF),
    ],
)
def test_descriptor(base: int, limit: int, attributes: int, expected: int) -> None:
    assert segments.descriptor(base, limit, attributes) == expected


@pytest.mark.parametrize("code", [segments.CODE_64, segments.CODE_32])
def test_gdt_holds_what_the_segment_registers_say(code: int) -> None:
    memory = Memory()
    segments.write_gdt(memory, code)
    sregs = kvm_sregs()
    segments.load_flat(sregs, code)
    gdt = memory[layout.GDT]
    assert len(gdt) == sregs.gdt.limit + 1
    assert sregs.gdt.base == layout.GDT
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = getattr(sregs, name)
        (entry,) = struct.unpack_from("<Q", gdt, segment.selector)
        assert entry == segments.descriptor(segment.base, segment.limit, segments.attributes(segment)), name
    assert (sregs.cs.selector, sregs.ss.selector) == (0x10, 0x18)


def test_task_register_is_busy_with_pvh_limit_and_available_in_the_gdt() -> None:
    memory = Memory()
    segments.write_gdt(memory, segments.CODE_32)
    sregs = kvm_sregs()
    segments.load_flat(sregs, segments.CODE_32)
    (entry,) = struct.unpack_from("<Q", memory[layout.GDT], sregs.tr.selector)
    assert sregs.tr.limit == 0x67
    assert (sregs.tr.type, sregs.tr.s, sregs.tr.present) == (11, 0, 1)
    assert entry >> 40 & 0xF == 9


def test_flat_segments() -> None:
    sregs = kvm_sregs()
    segments.load_flat(sregs, segments.CODE_64)
    assert sregs.ldt.unusable == 1
    assert (sregs.cs.l, sregs.cs.db, sregs.cs.g, sregs.cs.s) == (1, 0, 1, 1)
    assert sregs.cs.limit == 0xFFFFFFFF


def test_real_mode_segments() -> None:
    sregs = kvm_sregs()
    segments.load_real_mode(sregs, 0x1234)
    assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) == (0x1234, 0x12340, 0xFFFF)
    assert (sregs.ds.selector, sregs.ds.base, sregs.ds.limit, sregs.ds.db) == (0, 0, 0xFFFF, 0)
    assert (sregs.idt.base, sregs.idt.limit) == (0, 0x3FF)


@pytest.mark.parametrize("value", [0xA09B, 0xC0F3, 0x8B, 0x10F2, 0x2])
def test_attributes_survive_a_load(value: int) -> None:
    segment = kvm_segment()
    segments.load(segment, 0x33, 0, 0, value)
    assert segments.attributes(segment) == SegmentAttributes(value)
    assert segment.unusable == (not value & 0x80)
