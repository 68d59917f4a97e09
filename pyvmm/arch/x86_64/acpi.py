"""The ACPI tables of the machine: hardware-reduced ACPI, ACPI 6.5 chapter 5.

One blob, placed at one address, holds them all: RSDP first, then XSDT, FADT, MADT and DSDT.  What they are
for is to keep a stock kernel from looking for hardware that is not there: every probe costs exits.

- FADT (5.2.9): no PIC, no PM timer and no SCI (HW_REDUCED_ACPI); no PS/2 controller, no VGA and no CMOS
  clock (IA-PC boot flags); reset, power-off and sleep by three ports.
- MADT (5.2.12): the vCPUs' local APICs and the one I/O APIC.
- DSDT (5.2.11.1): the first serial port, which a kernel without a PIC finds no other way, the soft-off
  value, the power button and its event, and whatever devices the machine adds.
"""

from __future__ import annotations

import struct

from pyvmm.arch.x86_64 import aml, layout
from pyvmm.registers import Bit, Register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

OEM_ID = b"PYVMM"
OEM_TABLE_ID = b"PYVMM"
CREATOR_ID = b"PYVM"
HYPERVISOR_VENDOR_ID = b"PYVMM"

SLP_TYP_S5 = 5
"""What the \\_S5 package says to write into SLP_TYP for power-off (7.4.2.6); our choice."""

SLEEP_CONTROL_S5 = SLP_TYP_S5 << 2 | 1 << 5
"""The byte that powers off, written to the sleep control register: SLP_TYP and SLP_EN (table 4.13)."""


BUTTON_PRESSED = 0x80
"""The notification that a button was pressed while the system runs (5.6.6, control method power button)."""


class FadtFlags(Register):
    """Fixed feature flags, table 5.10."""

    WBINVD = Bit(0)
    PWR_BUTTON = Bit(4)  # the power button is a device in the DSDT, or absent
    SLP_BUTTON = Bit(5)  # as is the sleep button
    RESET_REG_SUP = Bit(10)
    HW_REDUCED_ACPI = Bit(20)


class BootArchitecture(Register):
    """IA-PC boot architecture flags, table 5.11."""

    LEGACY_DEVICES = Bit(0)
    KEYBOARD_CONTROLLER_8042 = Bit(1)
    VGA_NOT_PRESENT = Bit(2)
    MSI_NOT_SUPPORTED = Bit(3)
    PCIE_ASPM_CONTROLS = Bit(4)
    CMOS_RTC_NOT_PRESENT = Bit(5)


class Structure:
    """A little-endian structure: its size in bytes, and the fields that are ever set, as (offset, format).

    Formats are those of the struct module.  What is not set is zero, as most of a hardware-reduced FADT is.
    """

    __slots__ = ("fields", "size")

    def __init__(self, size: int, **fields: tuple[int, str]) -> None:
        self.size = size
        self.fields = fields

    def pack(self, **values: int | bytes) -> bytes:
        """The structure with the named fields set to ``values``."""
        data = bytearray(self.size)
        for name, value in values.items():
            offset, format = self.fields[name]
            struct.pack_into("<" + format, data, offset, value)
        return bytes(data)


# Generic Address Structure, table 5.1.
GENERIC_ADDRESS = Structure(
    12, address_space_id=(0, "B"), register_bit_width=(1, "B"), access_size=(3, "B"), address=(4, "Q")
)

# Root System Description Pointer of revision 2, table 5.3; its first checksum is over 20 bytes.
RSDP = Structure(
    36,
    signature=(0, "8s"),
    checksum=(8, "B"),
    oem_id=(9, "6s"),
    revision=(15, "B"),
    length=(20, "I"),
    xsdt_address=(24, "Q"),
    extended_checksum=(32, "B"),
)
_RSDP_CHECKSUMMED = 20

# System Description Table Header, table 5.4.
TABLE_HEADER = Structure(
    36,
    signature=(0, "4s"),
    length=(4, "I"),
    revision=(8, "B"),
    checksum=(9, "B"),
    oem_id=(10, "6s"),
    oem_table_id=(16, "8s"),
    oem_revision=(24, "I"),
    creator_id=(28, "4s"),
    creator_revision=(32, "I"),
)

# Fixed ACPI Description Table of revision 6, table 5.9; offsets from the start of its header.
FADT = Structure(
    276,
    dsdt=(40, "I"),
    iapc_boot_arch=(109, "H"),
    flags=(112, "I"),
    reset_reg=(116, "12s"),
    reset_value=(128, "B"),
    minor_version=(131, "B"),
    x_dsdt=(140, "Q"),
    sleep_control_reg=(244, "12s"),
    sleep_status_reg=(256, "12s"),
    hypervisor_vendor_identity=(268, "8s"),
)

# What follows the header in a Multiple APIC Description Table (table 5.19), then its entries: tables 5.22,
# 5.24, 5.28, 5.34 and 5.36.
MADT = Structure(8, local_apic_address=(0, "I"), flags=(4, "I"))
LOCAL_APIC = Structure(
    8, type=(0, "B"), length=(1, "B"), processor_uid=(2, "B"), apic_id=(3, "B"), flags=(4, "I")
)
IO_APIC = Structure(
    12, type=(0, "B"), length=(1, "B"), io_apic_id=(2, "B"), address=(4, "I"), gsi_base=(8, "I")
)
LOCAL_APIC_NMI = Structure(
    6, type=(0, "B"), length=(1, "B"), processor_uid=(2, "B"), flags=(3, "H"), lint=(5, "B")
)
LOCAL_X2APIC = Structure(
    16, type=(0, "B"), length=(1, "B"), x2apic_id=(4, "I"), flags=(8, "I"), processor_uid=(12, "I")
)
LOCAL_X2APIC_NMI = Structure(
    12, type=(0, "B"), length=(1, "B"), flags=(2, "H"), processor_uid=(4, "I"), lint=(8, "B")
)

_SYSTEM_IO = 1
_BYTE_ACCESS = 1
_ENABLED = 1
_FIRST_X2APIC_ID = 255  # from this APIC id on a processor needs the x2APIC structure (5.2.12.12)


def checksum(data: bytes) -> int:
    """The byte that makes the sum of ``data`` and itself zero modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table: the header with its length and checksum, then ``body``."""

    def header(check: int) -> bytes:
        return TABLE_HEADER.pack(
            signature=signature,
            length=TABLE_HEADER.size + len(body),
            revision=revision,
            checksum=check,
            oem_id=OEM_ID,
            oem_table_id=OEM_TABLE_ID,
            oem_revision=1,
            creator_id=CREATOR_ID,
            creator_revision=1,
        )

    return header(checksum(header(0) + body)) + body


def rsdp(xsdt_address: int) -> bytes:
    """The root pointer, revision 2, to an XSDT and no RSDT."""

    def pointer(check: int, extended: int) -> bytes:
        return RSDP.pack(
            signature=b"RSD PTR ",
            checksum=check,
            oem_id=OEM_ID,
            revision=2,
            length=RSDP.size,
            xsdt_address=xsdt_address,
            extended_checksum=extended,
        )

    first = checksum(pointer(0, 0)[:_RSDP_CHECKSUMMED])
    return pointer(first, checksum(pointer(first, 0)))


def xsdt(table_addresses: Iterable[int]) -> bytes:
    """Extended System Description Table (5.2.8): where the other tables are."""
    return table(b"XSDT", 1, b"".join(address.to_bytes(8, "little") for address in table_addresses))


def _port(address: int) -> bytes:
    return GENERIC_ADDRESS.pack(
        address_space_id=_SYSTEM_IO, register_bit_width=8, access_size=_BYTE_ACCESS, address=address
    )


def fadt(dsdt_address: int, *, reset_port: int, sleep_control_port: int, sleep_status_port: int) -> bytes:
    """Fixed ACPI Description Table of a hardware-reduced machine."""
    whole = FADT.pack(
        dsdt=dsdt_address,
        x_dsdt=dsdt_address,
        iapc_boot_arch=BootArchitecture.VGA_NOT_PRESENT | BootArchitecture.CMOS_RTC_NOT_PRESENT,
        flags=FadtFlags.WBINVD
        | FadtFlags.PWR_BUTTON
        | FadtFlags.SLP_BUTTON
        | FadtFlags.RESET_REG_SUP
        | FadtFlags.HW_REDUCED_ACPI,
        reset_reg=_port(reset_port),
        reset_value=layout.RESET_VALUE,
        minor_version=5,
        sleep_control_reg=_port(sleep_control_port),
        sleep_status_reg=_port(sleep_status_port),
        hypervisor_vendor_identity=HYPERVISOR_VENDOR_ID,
    )
    return table(b"FACP", 6, whole[TABLE_HEADER.size :])


def madt(cpu_count: int, *, local_apic_address: int, io_apic_address: int) -> bytes:
    """Multiple APIC Description Table: APIC ids 0 to ``cpu_count - 1``, one I/O APIC for GSIs from 0.

    LINT1 of every local APIC is the NMI.  PCAT_COMPAT is clear: the 8259s are masked (see setup.py) and not to
    be programmed.
    """
    entries = [MADT.pack(local_apic_address=local_apic_address)]

    def entry(structure: Structure, type: int, **values: int) -> None:
        entries.append(structure.pack(type=type, length=structure.size, **values))

    for apic_id in range(min(cpu_count, _FIRST_X2APIC_ID)):
        entry(LOCAL_APIC, 0, processor_uid=apic_id, apic_id=apic_id, flags=_ENABLED)
    for apic_id in range(_FIRST_X2APIC_ID, cpu_count):
        entry(LOCAL_X2APIC, 9, processor_uid=apic_id, x2apic_id=apic_id, flags=_ENABLED)
    entry(IO_APIC, 1, address=io_apic_address)
    entry(LOCAL_APIC_NMI, 4, processor_uid=0xFF, lint=1)
    if cpu_count > _FIRST_X2APIC_ID:
        entry(LOCAL_X2APIC_NMI, 10, processor_uid=0xFFFFFFFF, lint=1)
    return table(b"APIC", 6, b"".join(entries))


def serial_port(name: str, uid: int, base: int, gsi: int) -> bytes:
    """A device for the DSDT: a 16550A at eight ports from ``base``, edge-triggered interrupt ``gsi``."""
    return aml.device(
        name,
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_STA", aml.integer(0x0F)),
        aml.name("_CRS", aml.resource_template(aml.io(base, 8), aml.interrupt(gsi))),
    )


def power_button(gsi: int) -> bytes:
    """Two devices for the DSDT: the power button, and the generic event device (5.6.9) that tells it of a press.

    The press is an edge on ``gsi``; Linux's evged calls _EVT with that number.
    """
    button = aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C")), aml.name("_UID", aml.integer(0)))
    pressed = aml.if_(aml.equal(aml.arg(0), aml.integer(gsi)), aml.notify("PWRB", BUTTON_PRESSED))
    events = aml.device(
        "GED0",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resource_template(aml.interrupt(gsi))),
        aml.method("_EVT", 1, pressed, serialized=True),
    )
    return button + events


def virtio_mmio(name: str, uid: int, base: int, size: int, gsi: int) -> bytes:
    """A device for the DSDT: a virtio MMIO transport, found by Linux's virtio_mmio driver as LNRO0005."""
    return aml.device(
        name,
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_CCA", aml.integer(1)),
        aml.name("_CRS", aml.resource_template(aml.memory32_fixed(base, size), aml.interrupt(gsi))),
    )


def dsdt(devices: Iterable[bytes]) -> bytes:
    """Differentiated System Description Table: soft-off, and the encoded ``devices`` in ``\\_SB``."""
    soft_off = aml.package(aml.integer(SLP_TYP_S5), aml.integer(0), aml.integer(0), aml.integer(0))
    return table(b"DSDT", 2, aml.name("\\_S5", soft_off) + aml.scope("\\_SB", *devices))


def build(
    cpu_count: int,
    *,
    base: int = layout.ACPI_TABLES,
    com1_port: int = layout.COM1,
    com1_gsi: int = layout.COM1_IRQ,
    event_gsi: int = layout.GED_GSI,
    reset_port: int = layout.RESET_REGISTER,
    sleep_control_port: int = layout.SLEEP_CONTROL,
    sleep_status_port: int = layout.SLEEP_STATUS,
    io_apic_address: int = layout.IOAPIC,
    local_apic_address: int = layout.LAPIC,
    extra_devices: Iterable[bytes] = (),
) -> bytes:
    """All the tables, to be placed at the physical address ``base``, with the RSDP at its first byte.

    ``extra_devices`` are encoded devices for ``\\_SB``, such as :func:`virtio_mmio` gives.
    """
    dsdt_table = dsdt((serial_port("COM1", 0, com1_port, com1_gsi), power_button(event_gsi), *extra_devices))
    madt_table = madt(cpu_count, local_apic_address=local_apic_address, io_apic_address=io_apic_address)

    blob = bytearray(_aligned(RSDP.size))  # the RSDP comes last: it points to what follows it

    def place(data: bytes) -> int:
        address = base + len(blob)
        blob.extend(data.ljust(_aligned(len(data)), b"\0"))
        return address

    dsdt_address = place(dsdt_table)
    fadt_address = place(
        fadt(
            dsdt_address,
            reset_port=reset_port,
            sleep_control_port=sleep_control_port,
            sleep_status_port=sleep_status_port,
        )
    )
    madt_address = place(madt_table)
    root = rsdp(place(xsdt((fadt_address, madt_address))))
    blob[: len(root)] = root
    return bytes(blob)


def _aligned(size: int) -> int:
    return (size + 15) & ~15
