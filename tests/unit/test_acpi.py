"""The ACPI tables: their sums and pointers by arithmetic, their meaning by ACPICA's own iasl."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyvmm.arch.x86_64 import acpi, aml, layout

BASE = 0xE0000

needs_iasl = pytest.mark.skipif(
    shutil.which("iasl") is None, reason="iasl (Debian: acpica-tools) is not here"
)


def tables(blob: bytes, base: int = BASE) -> dict[str, bytes]:
    """The tables in ``blob`` by signature, found as a kernel finds them: RSDP, XSDT, FADT, DSDT."""
    assert blob[:8] == b"RSD PTR "
    found = {}

    def at(address: int) -> bytes:
        start = address - base
        (length,) = struct.unpack_from("<I", blob, start + 4)
        assert length >= 36 and start + length <= len(blob)
        table = blob[start : start + length]
        found[table[:4].decode()] = table
        return table

    xsdt = at(struct.unpack_from("<Q", blob, 24)[0])
    for (address,) in struct.iter_unpack("<Q", xsdt[36:]):
        at(address)
    (dsdt_32,) = struct.unpack_from("<I", found["FACP"], 40)
    (dsdt_64,) = struct.unpack_from("<Q", found["FACP"], 140)
    assert dsdt_32 == dsdt_64
    at(dsdt_64)
    return found


def disassemble(table: bytes, folder: Path) -> tuple[str, str]:
    """What iasl makes of ``table``: the source, and everything it said."""
    binary = folder / f"{table[:4].decode().lower()}.dat"
    binary.write_bytes(table)
    done = subprocess.run(["iasl", "-d", binary.name], cwd=folder, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return binary.with_suffix(".dsl").read_text(), said


def complaints(said: str) -> list[str]:
    """The lines in which iasl finds something wrong."""
    return [
        line
        for line in said.splitlines()
        if re.search(r"error|warning|invalid|incorrect|unknown|truncat", line, re.IGNORECASE)
    ]


def test_the_tables_are_found_from_the_root_pointer() -> None:
    assert set(tables(acpi.build(1))) == {"XSDT", "FACP", "APIC", "DSDT"}


def test_the_tables_can_stand_anywhere() -> None:
    assert set(tables(acpi.build(1, base=0x7FFE_0000), 0x7FFE_0000)) == {"XSDT", "FACP", "APIC", "DSDT"}


def test_every_checksum_is_zero() -> None:
    blob = acpi.build(3)
    assert sum(blob[:20]) % 256 == 0
    assert sum(blob[:36]) % 256 == 0
    for signature, table in tables(blob).items():
        assert sum(table) % 256 == 0, signature


def test_the_root_pointer_and_tables_are_aligned() -> None:
    blob = acpi.build(1)
    (xsdt,) = struct.unpack_from("<Q", blob, 24)
    pointers = struct.unpack("<2Q", tables(blob)["XSDT"][36:])
    assert all(address % 16 == 0 for address in (xsdt, *pointers))


def test_fadt_is_the_revision_that_the_kernel_asks_of_hardware_reduced_acpi() -> None:
    fadt = tables(acpi.build(1))["FACP"]
    assert len(fadt) == 276
    assert fadt[8] == 6
    assert fadt[131] == 5


def test_madt_has_a_local_apic_for_every_vcpu() -> None:
    kinds = [kind for kind, _ in madt_entries(tables(acpi.build(4))["APIC"])]
    assert kinds == [0, 0, 0, 0, 1, 4]


def test_madt_uses_the_x2apic_structure_from_apic_id_255_on() -> None:
    entries = madt_entries(tables(acpi.build(257))["APIC"])
    x2apic_ids = [struct.unpack_from("<I", data, 4)[0] for kind, data in entries if kind == 9]
    assert x2apic_ids == [255, 256]
    assert [kind for kind, _ in entries].count(0) == 255
    assert [kind for kind, _ in entries][-1] == 10  # the NMI of the x2APIC processors


def madt_entries(madt: bytes) -> list[tuple[int, bytes]]:
    entries = []
    at = 44
    while at < len(madt):
        length = madt[at + 1]
        assert length >= 2 and at + length <= len(madt)
        entries.append((madt[at], madt[at : at + length]))
        at += length
    return entries


def test_the_sleep_value_is_what_linux_writes_for_s5() -> None:
    assert acpi.SLEEP_CONTROL_S5 == 0x34


@needs_iasl
def test_iasl_finds_nothing_wrong_with_any_table(tmp_path: Path) -> None:
    for table in tables(acpi.build(257)).values():
        _, said = disassemble(table, tmp_path)
        assert complaints(said) == []


@needs_iasl
def test_iasl_makes_the_same_root_pointer(tmp_path: Path) -> None:
    """By compiling the same values: this iasl does not disassemble an RSDP."""
    root = acpi.build(1)[:36]
    (xsdt,) = struct.unpack_from("<Q", root, 24)
    (tmp_path / "rsdp.asl").write_text(
        f"""
        Signature : "RSD PTR "
        Checksum : 00
        Oem ID : "PYVMM"
        Revision : 02
        RSDT Address : 00000000
        Length : 00000024
        XSDT Address : {xsdt:016X}
        Extended Checksum : 00
        Reserved : 000000
        """
    )
    done = subprocess.run(["iasl", "rsdp.asl"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "rsdp.aml").read_bytes() == root


@needs_iasl
@pytest.mark.parametrize("signature", ["XSDT", "FACP", "APIC", "DSDT"])
def test_iasl_notices_a_wrong_checksum(signature: str, tmp_path: Path) -> None:
    table = bytearray(tables(acpi.build(1))[signature])
    table[9] ^= 1
    source, said = disassemble(bytes(table), tmp_path)
    assert any("checksum" in line.lower() for line in complaints(said + source))


def values(source: str) -> list[tuple[str, str]]:
    """The ``name : value`` lines of a disassembled data table, in order, without comments."""
    pairs = re.findall(r"^\[[^\]]*\]\s+(.+?) : (.*)$", source, re.MULTILINE)
    return [(name.strip(), value.split("[")[0].strip()) for name, value in pairs]


@needs_iasl
def test_fadt_says_what_the_machine_lacks_and_which_ports_end_it(tmp_path: Path) -> None:
    source, _ = disassemble(tables(acpi.build(1))["FACP"], tmp_path)
    found = dict(values(source))
    flags = {
        name: int(value) for name, value in re.findall(r"^\s+(\S[^:\n]*?) : ([01])$", source, re.MULTILINE)
    }
    assert {name for name, value in flags.items() if value} == {
        "VGA Not Present (V4)",
        "CMOS RTC Not Present (V5)",
        "WBINVD instruction is operational (V1)",
        "Control Method Power Button (V1)",
        "Control Method Sleep Button (V1)",
        "Reset Register Supported (V2)",
        "Hardware Reduced (V5)",
    }
    assert flags["8042 Present on ports 60/64 (V2)"] == 0
    assert found["Value to cause reset"] == "01"
    assert int(found["Hypervisor ID"], 16).to_bytes(8, "little") == b"PYVMM\0\0\0"
    for register, port in (
        ("Reset Register", 0x602),
        ("Sleep Control Register", 0x600),
        ("Sleep Status Register", 0x601),
    ):
        fields = dict(values(source[source.index(f"{register} :") :])[:5])
        assert fields["Space ID"].startswith("01")  # system I/O
        assert fields["Bit Width"] == "08"
        assert int(fields["Address"], 16) == port


@needs_iasl
def test_madt_says_where_the_interrupt_controllers_are(tmp_path: Path) -> None:
    source, _ = disassemble(tables(acpi.build(2))["APIC"], tmp_path)
    found = values(source)
    assert ("Local Apic Address", "FEE00000") in found
    assert ("PC-AT Compatibility", "0") in [
        tuple(p) for p in re.findall(r"(PC-AT Compatibility) : (\d)", source)
    ]
    assert [value for name, value in found if name == "Local Apic ID"] == ["00", "01"]
    assert re.findall(r"Processor Enabled : (\d)", source) == ["1", "1"]
    assert ("Address", "FEC00000") in found
    assert ("Interrupt", "00000000") in found
    assert ("Processor ID", "FF") in found  # the NMI of every processor
    assert ("Interrupt Input LINT", "01") in found


@needs_iasl
def test_dsdt_has_the_serial_port_and_soft_off(tmp_path: Path) -> None:
    source, _ = disassemble(tables(acpi.build(1))["DSDT"], tmp_path)
    flat = " ".join(re.sub(r"//[^\n]*|/\*.*?\*/", "", source).split())
    assert "Name (\\_S5, Package (0x04) { 0x05, Zero, Zero, Zero })" in flat
    assert 'Scope (\\_SB) { Device (COM1) { Name (_HID, EisaId ("PNP0501")' in flat
    assert "Name (_UID, Zero)" in flat
    assert "Name (_STA, 0x0F)" in flat
    assert "IO (Decode16, 0x03F8, 0x03F8, 0x01, 0x08, )" in flat
    assert "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000004, }" in flat


@needs_iasl
def test_dsdt_has_the_power_button_and_the_event_that_tells_it(tmp_path: Path) -> None:
    source, said = disassemble(tables(acpi.build(1))["DSDT"], tmp_path)
    assert complaints(said) == []
    flat = " ".join(re.sub(r"//[^\n]*|/\*.*?\*/", "", source).split())
    assert 'Device (PWRB) { Name (_HID, EisaId ("PNP0C0C") ) Name (_UID, Zero) }' in flat
    assert 'Device (GED0) { Name (_HID, "ACPI0013" ) Name (_UID, Zero)' in flat
    assert "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000009, }" in flat
    assert "Method (_EVT, 1, Serialized) { If ((Arg0 == 0x09)) { Notify (PWRB, 0x80) } }" in flat


@needs_iasl
def test_the_event_can_have_another_interrupt(tmp_path: Path) -> None:
    source, _ = disassemble(tables(acpi.build(1, event_gsi=23))["DSDT"], tmp_path)
    assert "If ((Arg0 == 0x17))" in source
    assert re.search(r"0x00000017,", source)


def test_the_event_shares_its_interrupt_with_nothing_else_of_the_map() -> None:
    assert layout.GED_GSI < layout.IOAPIC_PINS
    # the timer, the keyboard, the cascade, the serial ports, the clock
    assert layout.GED_GSI not in (0, 1, 2, layout.COM1_IRQ, layout.COM2_IRQ, 8)
    assert layout.GED_GSI not in layout.VIRTIO_GSIS


@needs_iasl
def test_dsdt_has_the_devices_that_the_machine_adds(tmp_path: Path) -> None:
    extra = [acpi.virtio_mmio(f"V{n:03}", n, 0xD000_0000 + 0x1000 * n, 0x1000, 5 + n) for n in range(20)]
    source, said = disassemble(tables(acpi.build(1, extra_devices=extra))["DSDT"], tmp_path)
    assert complaints(said) == []
    assert source.count('"LNRO0005"') == 20
    flat = " ".join(re.sub(r"//[^\n]*|/\*.*?\*/", "", source).split())
    assert 'Device (V019) { Name (_HID, "LNRO0005") Name (_UID, 0x13) Name (_CCA, One)' in flat
    assert "Memory32Fixed (ReadWrite, 0xD0013000, 0x00001000, )" in flat
    assert "{ 0x00000018, }" in flat


@needs_iasl
@pytest.mark.parametrize("count", [0, 1, 3, 80])  # PkgLength of the scope in 2 and in 3 bytes
def test_iasl_compiles_its_disassembly_to_the_same_dsdt(count: int, tmp_path: Path) -> None:
    extra = [acpi.virtio_mmio(f"V{n:03}", n, 0xD000_0000 + 0x1000 * n, 0x1000, 5 + n) for n in range(count)]
    dsdt = tables(acpi.build(1, extra_devices=extra))["DSDT"]
    again, said = recompile(dsdt, tmp_path)
    assert again[36:] == dsdt[36:]
    assert "0 Errors, 0 Warnings" in said


@needs_iasl
def test_iasl_compiles_every_construct_to_the_same_aml(tmp_path: Path) -> None:
    numbers = (0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0xFFFF_FFFF, 0x1_0000_0000, 0xFFFF_FFFF_FFFF_FFFE)
    body = b"".join(
        (
            aml.name("NUMS", aml.package(*map(aml.integer, numbers))),
            aml.name("TEXT", aml.string("a text")),
            aml.name("BYTE", aml.buffer(bytes(range(100)))),
            aml.name("EISA", aml.eisa_id("PNP0A08")),
            aml.scope("\\", aml.name("TOP", aml.integer(7))),
            aml.scope(
                "\\_SB",
                aml.device(
                    "PCI0",
                    aml.device("ISA0", aml.device("DEEP", aml.name("_HID", aml.string("TEST0001")))),
                    aml.name("_HID", aml.string("TEST0002")),
                    aml.name(
                        "_CRS",
                        aml.resource_template(
                            aml.io(0x60, 1),
                            aml.io(0x100, 16, alignment=16),
                            aml.irq(1),
                            aml.irq(12, level=True, active_low=True, shared=True),
                            aml.interrupt(40, level=True, active_low=True, shared=True),
                            aml.memory32_fixed(0xFED0_0000, 0x400, writable=False),
                        ),
                    ),
                    aml.method("_STA", 0, aml.return_(aml.integer(0x0F))),
                    aml.method(
                        "_EVT",
                        1,
                        aml.if_(
                            aml.equal(aml.arg(0), aml.integer(300)),
                            aml.notify("^ISA0.DEEP", 0x80),
                            aml.notify("\\_SB.PCI0", 1),
                        ),
                        aml.if_(aml.equal(aml.arg(0), aml.arg(0))),
                    ),
                    aml.method("SIX", 7, aml.return_(aml.arg(6))),
                    aml.method("LONG", 2, aml.return_(aml.string("x" * 5000)), serialized=True),
                ),
            ),
            aml.scope("\\_SB.PCI0", aml.name("^NEW", aml.integer(3))),
            aml.scope("\\_SB.PCI0.ISA0.DEEP", aml.name("END", aml.integer(1))),
        )
    )
    table = acpi.table(b"DSDT", 2, body)
    again, _ = recompile(table, tmp_path)
    assert again[36:] == table[36:]
    source = " ".join((tmp_path / "dsdt.dsl").read_text().split())
    assert "IRQ (Edge, ActiveHigh, Exclusive, ) {1}" in source
    assert "IRQ (Level, ActiveLow, Shared, ) {12}" in source
    assert "Interrupt (ResourceConsumer, Level, ActiveLow, Shared, ,, ) { 0x00000028, }" in source
    assert "Memory32Fixed (ReadOnly, 0xFED00000," in source
    assert "Method (LONG, 2, Serialized)" in source
    assert "If ((Arg0 == 0x012C)) { Notify (^ISA0.DEEP, 0x80)" in source
    assert "Return (Arg6)" in source


def recompile(table: bytes, folder: Path) -> tuple[bytes, str]:
    """What iasl compiles its disassembly of ``table`` to, and what it said."""
    source, said = disassemble(table, folder)
    assert complaints(said) == []
    (folder / "again.dsl").write_text(source)
    done = subprocess.run(
        ["iasl", "-oa", "-p", "again", "again.dsl"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "again.aml").read_bytes(), done.stdout


@pytest.mark.parametrize(
    ("size", "encoded"),
    [
        (0, "01"),
        (62, "3f"),
        (63, "4104"),
        (0xFFF - 2, "4fff"),
        (0xFFF - 1, "810001"),
        (0xFFFFF - 3, "8fffff"),
        (0xFFFFF - 2, "c1000001"),
        (0xFFFFFFF - 4, "cfffffff"),
    ],
)
def test_package_length_at_the_edges_of_each_form(size: int, encoded: str) -> None:
    assert aml.package_length(size).hex() == encoded


def test_package_length_over_the_largest_is_refused() -> None:
    with pytest.raises(ValueError, match="256 MiB"):
        aml.package_length(0xFFFFFFF - 3)


@pytest.mark.parametrize("path", ["1ABC", "ABCDE", "abc", "A.", ".A", "\\\\A", "^\\A", "A-B", "A..B", "\\^A"])
def test_bad_names_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"is no ACPI (name|path)"):
        aml.name_string(path)


@pytest.mark.parametrize("identifier", ["PNP050", "pnp0501", "PNP05011", "PNP050G", "PN10501", ""])
def test_bad_eisa_ids_are_refused(identifier: str) -> None:
    with pytest.raises(ValueError, match="is no EISA id"):
        aml.eisa_id(identifier)


def test_numbers_that_aml_cannot_hold_are_refused() -> None:
    for value in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64-bit"):
            aml.integer(value)
    with pytest.raises(ValueError, match="0 to 15"):
        aml.irq(16)
    for number in (-1, 7):
        with pytest.raises(ValueError, match="0 to 6"):
            aml.arg(number)
