"""The MP table: the vCPUs and the interrupt lines, for a kernel without ACPI (``acpi=off``, or built so).

Intel MultiProcessor Specification 1.4, chapter 4.  The floating pointer (4.1) is searched for in the first KiB
of the EBDA, the last KiB of base memory, and the BIOS's window from 0xf0000; the last has room for any number
of vCPUs, so that it stands there, directly before the configuration table it points to.

There is one bus, ISA, and one I/O APIC, whose pins are the GSIs.  All lines are edge-triggered and active high,
those above 15 too, which no ISA bus has: they are said to be, as for the devices that a kernel is told of on its
command line (``virtio_mmio.device=``).  Line 2 is the 8259s' cascade, and leads nowhere.

Linux reads the table where it has CONFIG_X86_MPPARSE, and uses none of it beside an ACPI MADT.
"""

from __future__ import annotations

import struct

from pyvmm.arch.x86_64 import layout
from pyvmm.arch.x86_64.acpi import checksum

FLOATING_POINTER_SIZE = 16
HEADER_SIZE = 44

# Entry types, table 4-3.
PROCESSOR, BUS, IO_APIC, IO_INTERRUPT, LOCAL_INTERRUPT = 0, 1, 2, 3, 4
# Interrupt types, table 4-10.
INT, NMI, SMI, EXT_INT = 0, 1, 2, 3

_REVISION = 4  # of the specification: 1.4
_ENABLED = 1  # flags of a processor, and of an I/O APIC
_BOOT_PROCESSOR = 2
_EDGE_ACTIVE_HIGH = 1 << 2 | 1  # flags of an interrupt
_FEATURES = 1 << 9 | 1 << 0  # CPUID leaf 1 EDX: APIC and FPU; kernels ask the processor itself for the rest
_LOCAL_APIC_VERSION = 0x14  # what KVM's answer in their version registers
_IO_APIC_VERSION = 0x11
_ISA = 0  # the bus's id
_EVERY_APIC = 0xFF
_CASCADE = 2
_MOST_APIC_ID = 0xFE


def build(cpu_count: int, *, base: int = layout.MP_TABLE) -> bytes:
    """The floating pointer and the table, to be placed at the physical address ``base``.

    The APIC ids are 0 to ``cpu_count - 1``; vCPUs beyond the 255th have no place in the format and are left out.  The
    I/O APIC's id is the next one; beside 255 vCPUs there is none left, and it shares the last (the ids must differ
    only on APICs with a bus of their own).
    """
    cpu_count = min(cpu_count, _MOST_APIC_ID + 1)
    io_apic_id = min(cpu_count, _MOST_APIC_ID)
    entries = [
        struct.pack(
            "<BBBBIIQ",
            PROCESSOR,
            apic_id,
            _LOCAL_APIC_VERSION,
            _ENABLED | (0 if apic_id else _BOOT_PROCESSOR),
            0,  # the signature, which CPUID tells
            _FEATURES,
            0,
        )
        for apic_id in range(cpu_count)
    ]
    entries.append(struct.pack("<BB6s", BUS, _ISA, b"ISA   "))
    entries.append(struct.pack("<BBBBI", IO_APIC, io_apic_id, _IO_APIC_VERSION, _ENABLED, layout.IOAPIC))
    entries += [
        struct.pack("<BBHBBBB", IO_INTERRUPT, INT, _EDGE_ACTIVE_HIGH, _ISA, gsi, io_apic_id, gsi)
        for gsi in range(layout.IOAPIC_PINS)
        if gsi != _CASCADE
    ]
    # The local APICs' pins as lapic.py wires them: the 8259's interrupts to the boot processor, the NMI to all.
    entries.append(struct.pack("<BBHBBBB", LOCAL_INTERRUPT, EXT_INT, 0, _ISA, 0, 0, 0))
    entries.append(struct.pack("<BBHBBBB", LOCAL_INTERRUPT, NMI, 0, _ISA, 0, _EVERY_APIC, 1))
    table = _table(b"".join(entries), len(entries))
    # Feature bytes of zero: there is a table, and no IMCR ("virtual wire mode", 3.6.2.2).
    pointer = struct.pack(
        "<4sIBBB5x", b"_MP_", base + FLOATING_POINTER_SIZE, FLOATING_POINTER_SIZE // 16, _REVISION, 0
    )
    return _with_checksum(pointer, 10) + table


def _table(entries: bytes, count: int) -> bytes:
    """The configuration table (4.2) with ``count`` entries, and no extended ones."""
    header = struct.pack(
        "<4sHBB8s12sIHHIHBB",
        b"PCMP",
        HEADER_SIZE + len(entries),
        _REVISION,
        0,
        b"PYVMM   ",
        b"PYVMM       ",
        0,
        0,
        count,
        layout.LAPIC,
        0,
        0,
        0,
    )
    return _with_checksum(header + entries, 7)


def _with_checksum(data: bytes, at: int) -> bytes:
    """``data``, whose byte ``at`` is zero, with the checksum of ACPI's kind there."""
    return data[:at] + bytes((checksum(data),)) + data[at + 1 :]
