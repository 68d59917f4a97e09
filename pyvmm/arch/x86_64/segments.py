"""Segments: the GDT that boot entries start with, and the processor's hidden copies of its descriptors.

Intel SDM volume 3, sections 3.4.3 (segment registers) and 3.4.5 (descriptors); the selectors are those of
Linux Documentation/arch/x86/boot.rst (__BOOT_CS 0x10, __BOOT_DS 0x18), which suit PVH as well
(Xen docs/misc/pvh.pandoc asks for flat segments and a TR limit of 0x67, not for particular selectors).
"""

from __future__ import annotations

import struct

from pyvmm.arch.x86_64 import layout
from pyvmm.arch.x86_64.registers import SegmentAttributes as A

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm.kvm.uapi_x86 import kvm_segment, kvm_sregs

    class WritableMemory(Protocol):
        """What writing the GDT needs of guest memory."""

        def write(self, address: int, data: bytes, /) -> None: ...


BOOT_TSS, BOOT_CS, BOOT_DS = 0x08, 0x10, 0x18
GDT_SIZE = 4 * 8
TSS_LIMIT = 0x67  # a TSS without an I/O permission map

# Types are "accessed" already, as after a load by the processor, which is what KVM expects of hidden copies.
CODE_64 = A.P | A.S | A.L | A.G | 0xB
CODE_32 = A.P | A.S | A.DB | A.G | 0xB
DATA_32 = A.P | A.S | A.DB | A.G | 0x3
CODE_16 = A.P | A.S | 0xB
DATA_16 = A.P | A.S | 0x3
TSS_AVAILABLE = A.P | 0x9
TSS_BUSY = A.P | 0xB

FLAT_LIMIT = 0xFFFF_FFFF


def descriptor(base: int, limit: int, attributes: int) -> int:
    """The 8-byte descriptor; ``limit`` is in bytes, inclusive, and scaled here if ``attributes`` has G."""
    if attributes & A.G:
        limit >>= 12
    return (
        limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | (attributes & 0xF0FF) << 40
        | (limit >> 16 & 0xF) << 48
        | (base >> 24 & 0xFF) << 56
    )


def load(segment: kvm_segment, selector: int, base: int, limit: int, attributes: int) -> None:
    """Set ``segment``, a register's hidden part, as the processor does on a load; ``limit`` is in bytes."""
    segment.base = base
    segment.limit = limit
    segment.selector = selector
    segment.type = attributes & A.TYPE
    segment.s = attributes >> 4 & 1
    segment.dpl = attributes >> 5 & 3
    segment.present = attributes >> 7 & 1
    segment.avl = attributes >> 12 & 1
    segment.l = attributes >> 13 & 1
    segment.db = attributes >> 14 & 1
    segment.g = attributes >> 15 & 1
    segment.unusable = not attributes & A.P


def attributes(segment: kvm_segment) -> A:
    """The access rights of ``segment``, put together from KVM's fields."""
    return A(
        segment.type
        | segment.s << 4
        | segment.dpl << 5
        | segment.present << 7
        | segment.avl << 12
        | segment.l << 13
        | segment.db << 14
        | segment.g << 15
    )


def write_gdt(memory: WritableMemory, code: int) -> None:
    """Write the boot GDT to ``layout.GDT``: null, TSS, flat code with attributes ``code``, flat data."""
    entries = (
        0,
        descriptor(0, TSS_LIMIT, TSS_AVAILABLE),
        descriptor(0, FLAT_LIMIT, code),
        descriptor(0, FLAT_LIMIT, DATA_32),
    )
    memory.write(layout.GDT, struct.pack("<4Q", *entries))


def load_flat(sregs: kvm_sregs, code: int) -> None:
    """Point ``sregs`` at the boot GDT and load flat segments from it, code with attributes ``code``."""
    load(sregs.cs, BOOT_CS, 0, FLAT_LIMIT, code)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        load(segment, BOOT_DS, 0, FLAT_LIMIT, DATA_32)
    load(sregs.tr, BOOT_TSS, 0, TSS_LIMIT, TSS_BUSY)
    load(sregs.ldt, 0, 0, 0, 0x2)
    sregs.gdt.base, sregs.gdt.limit = layout.GDT, GDT_SIZE - 1


def load_real_mode(sregs: kvm_sregs, cs: int) -> None:
    """Load real-mode segments: CS at ``cs``, the others at 0, 64 KiB each, the vector table at 0."""
    load(sregs.cs, cs, cs << 4, 0xFFFF, CODE_16)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        load(segment, 0, 0, 0xFFFF, DATA_16)
    load(sregs.tr, 0, 0, 0xFFFF, TSS_BUSY)
    load(sregs.ldt, 0, 0, 0xFFFF, A.P | 0x2)
    sregs.gdt.base, sregs.gdt.limit = 0, 0xFFFF
    sregs.idt.base, sregs.idt.limit = 0, 0x3FF
