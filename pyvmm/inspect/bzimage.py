"""What a bzImage says of itself: every field of its setup header, its payload, its entry points.

Linux Documentation/arch/x86/boot.rst.  Reads leniently: of a damaged or truncated file it shows what is
there, and what the loader would say of it becomes a warning.
"""

from __future__ import annotations

from ctypes import sizeof

from loader import bzimage_header
from loader.bzimage_header import BzImageHeader
from loader.detect import COMPRESSION_MAGICS
from loader.enums import (
    ELF_MAGIC,
    ENTRY_64_OFFSET,
    HDRS_MAGIC,
    KERNEL_INFO_MAGIC,
    SECTOR_SIZE,
    SETUP_HEADER_LIMIT,
    SETUP_HEADER_OFFSET,
    Protocol,
    XLoadFlags,
)
from loader.errors import LoaderError
from loader.field_descriptions import (
    KERNEL_INFO,
    LOADER_TYPES,
    LOADFLAGS,
    SETUP_DATA_TYPES,
    SETUP_HEADER,
    SUBARCHITECTURES,
    XLOADFLAGS,
    bits,
    section,
)
from loader.structs import setup_header
from pyvmm.inspect import placement
from pyvmm.inspect.report import EntryPoint, Field, Payload, Report, printable, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from loader.files import ImageFile

_VERSION_MAX = 256
_VIDEO_MODES = {0xFFFF: "normal", 0xFFFE: "extended", 0xFFFD: "asks"}
_SETUP_INDIRECT = 1 << 31


def inspect(report: Report, file: ImageFile, memory: int) -> None:
    """Fill ``report`` with what ``file``, a bzImage or zImage, says; placement in ``memory`` bytes."""
    raw = file.read(SETUP_HEADER_OFFSET, SETUP_HEADER_LIMIT - SETUP_HEADER_OFFSET)
    end = _header_end(raw)
    header = BzImageHeader(raw[: end - SETUP_HEADER_OFFSET], file.size)
    report.is_kernel = True
    report.protocol = f"Linux/x86 boot protocol {_version(header.protocol)}"
    report.fields = [*_fields(header, len(raw), end), *_kernel_info(header, file)]
    report.version, report.version_source = _version_string(header, file), "the bzImage's header"
    report.relocatable = header.relocatable
    report.kaslr = "" if header.relocatable else "no: the kernel is not relocatable"
    report.payload = _payload(header, file)
    report.entry_points = _entry_points(header, file)
    try:
        checked = bzimage_header.read_header(file)
    except LoaderError as error:
        report.warn(f"cannot be booted: {error.message.removeprefix(file.path + ': ')}")
        return
    report.placement = placement.of_bzimage(checked, memory)
    _set_addresses(report, checked)


def _header_end(raw: bytes) -> int:
    """Where the header ends: the jump's target if that is a sensible one, else its whole room."""
    jump = raw[0x200 - SETUP_HEADER_OFFSET : 0x202 - SETUP_HEADER_OFFSET]
    if len(jump) == 2 and jump[0] == 0xEB and 0x10 <= jump[1] < 0x80:
        return min(0x202 + jump[1], SETUP_HEADER_LIMIT)
    return SETUP_HEADER_LIMIT


def _version(protocol: int) -> str:
    return f"{protocol >> 8}.{protocol & 0xFF:02}"


def _fields(header: BzImageHeader, available: int, end: int) -> list[Field]:
    """The header's fields that the file has bytes for; those the protocol lacks are not ``present``."""
    fields = []
    decoders = _decoders(header, end)
    known = header.setup_header.header == HDRS_MAGIC
    for name, since, meaning, title in SETUP_HEADER:
        place = getattr(setup_header, name)
        offset = SETUP_HEADER_OFFSET + place.offset
        if place.offset + place.size > min(available, sizeof(setup_header)):
            continue
        value = getattr(header.setup_header, name)
        field = Field(name, offset, place.size, value, meaning, section("x86", title))
        field.present = not since or (known and header.protocol >= since and offset + place.size <= end)
        if field.present:
            field.decoded = decoders[name](value) if name in decoders else ""
            field.bits = bits(value, _BITS[name]) if name in _BITS else []
        elif header.protocol < since:
            field.decoded = f"from protocol {_version(since)} on"
        else:
            field.decoded = "not in this header"
        fields.append(field)
    return fields


_BITS = {"loadflags": LOADFLAGS, "xloadflags": XLOADFLAGS}


def _decoders(header: BzImageHeader, end: int) -> dict[str, Callable[[int], str]]:
    """How to say the value of each field whose number alone says little."""

    def in_code(value: int) -> str:
        return f"{header.setup_size + value:#x} in the file" if value else "none"

    return {
        "setup_sects": lambda value: f"{size_text((value or 4) * SECTOR_SIZE)}",
        "root_flags": lambda value: "read-only" if value else "read-write",
        "syssize": lambda value: size_text(value * 16),
        "vid_mode": lambda value: _VIDEO_MODES.get(value, ""),
        "jump": lambda _: f"{end:#x}",
        "header": lambda value: printable(value.to_bytes(4, "little")),
        "version": _version,
        "kernel_version": lambda value: f"{value + 0x200:#x} in the file" if value else "none",
        "type_of_loader": lambda value: LOADER_TYPES.get(value >> 4, "unknown") if value else "not filled in",
        "code32_start": size_text,
        "initrd_addr_max": lambda value: f"below {size_text(value + 1)}",
        "kernel_alignment": size_text,
        "relocatable_kernel": lambda value: "yes" if value else "no",
        "min_alignment": lambda value: size_text(1 << value) if 0 < value < 64 else "",
        "cmdline_size": str,
        "hardware_subarch": lambda value: SUBARCHITECTURES.get(value, "unknown"),
        "payload_offset": in_code,
        "payload_length": size_text,
        "pref_address": size_text,
        "init_size": size_text,
        "handover_offset": in_code,
        "kernel_info_offset": in_code,
    }


def _kernel_info(header: BzImageHeader, file: ImageFile) -> list[Field]:
    """The fields of kernel_info, if there is one."""
    offset = header.setup_size + header.setup_header.kernel_info_offset
    if header.protocol < Protocol.KERNEL_INFO or offset == header.setup_size:
        return []
    data = file.read(offset, 16)
    if len(data) < 16 or int.from_bytes(data[:4], "little") != KERNEL_INFO_MAGIC:
        return []
    fields = []
    for name, place, meaning in KERNEL_INFO:
        value = int.from_bytes(data[place : place + 4], "little")
        fields.append(Field(name, offset + place, 4, value, meaning, section("x86", "The kernel_info")))
    fields[0].decoded = printable(data[:4])
    largest = fields[-1].value
    assert isinstance(largest, int)
    name = SETUP_DATA_TYPES.get(largest & ~_SETUP_INDIRECT, f"type {largest & ~_SETUP_INDIRECT}")
    fields[-1].decoded = f"{name}, also indirect" if largest & _SETUP_INDIRECT else name
    return fields


def _version_string(header: BzImageHeader, file: ImageFile) -> str:
    """The version string, wherever in the setup code the header says it is; "" if there is none."""
    offset = header.setup_header.kernel_version
    if not offset or offset + 0x200 >= header.setup_size or header.protocol < Protocol.HIGH_LOAD:
        return ""
    size = min(_VERSION_MAX, header.setup_size - offset - 0x200)
    return printable(file.read(offset + 0x200, size).split(b"\0")[0])


def compression(magic: bytes) -> str:
    """How something that starts with ``magic`` is compressed, by name; "none" for an ELF file as it is."""
    for prefix, format in COMPRESSION_MAGICS:
        if magic.startswith(prefix):
            return format.value
    return "none" if magic.startswith(ELF_MAGIC) else "unknown"


def _payload(header: BzImageHeader, file: ImageFile) -> Payload | None:
    """The payload; all compressors but gzip have the unpacked size appended, and gzip ends with it itself."""
    if not header.payload_offset:
        return None
    end = header.payload_offset + header.payload_length
    name = compression(file.read(header.payload_offset, 8))
    size = None
    if header.payload_length >= 4 and end <= file.size and name not in ("none", "unknown"):
        size = int.from_bytes(file.read(end - 4, 4), "little")
    return Payload(header.payload_offset, header.payload_length, name, size)


def _entry_points(header: BzImageHeader, file: ImageFile) -> list[EntryPoint]:
    start = header.setup_size
    found = [
        EntryPoint("16-bit (setup code)", None, 0x200, section=section("x86", "Running the Kernel")),
        EntryPoint("32-bit", None, start, section=section("x86", "32-bit Boot Protocol")),
    ]
    if header.xloadflags & XLoadFlags.KERNEL_64:
        where = section("x86", "64-bit Boot Protocol")
        found.append(EntryPoint("64-bit", None, start + ENTRY_64_OFFSET, section=where))
    handover = header.setup_header.handover_offset
    if header.protocol >= 0x20B and handover:
        where = section("x86", "EFI Handover Protocol (deprecated)")
        for bit, name, distance in (
            (XLoadFlags.EFI_HANDOVER_32, "32-bit", 0),
            (XLoadFlags.EFI_HANDOVER_64, "64-bit", 0x200),
        ):
            if header.xloadflags & bit:
                offset = start + handover + distance
                found.append(EntryPoint(f"EFI handover, {name}", None, offset, section=where))
    pe = pe_entry(file)
    if pe is not None:
        found.append(EntryPoint("EFI (PE program)", None, pe, section="UEFI specification, PE/COFF"))
    return found


def pe_entry(file: ImageFile) -> int | None:
    """The entry point of the PE program that an image also is, from its start; None if it is none."""
    head = file.read(0, 0x40)
    if len(head) < 0x40 or not head.startswith(b"MZ"):
        return None
    header = file.read(int.from_bytes(head[0x3C:0x40], "little"), 0x2C)
    if len(header) < 0x2C or not header.startswith(b"PE\0\0"):
        return None
    return int.from_bytes(header[0x28:0x2C], "little")


def _set_addresses(report: Report, header: BzImageHeader) -> None:
    """Where the entry points will be, now that it is known where the kernel will."""
    loaded = report.placement.ranges if report.placement else []
    load = next((found.start for found in loaded if found.kind == "kernel"), None)
    if load is None:
        return
    for entry in report.entry_points:
        if entry.file_offset is not None and entry.name != "16-bit (setup code)" and "PE" not in entry.name:
            entry.address = load + entry.file_offset - header.setup_size
