"""ELF headers of any class, byte order and machine, read leniently: what is damaged is left out, with a warning.

gABI chapters 4 and 5.  The loader reads what it boots by :mod:`loader.elf_headers`, strictly.
"""

from __future__ import annotations

import struct

from loader.enums import ELFCLASS64, ELFDATA2MSB, FILE_OFFSET_MAX, PT_NOTE
from loader.field_descriptions import (
    ELF_HEADER,
    ELF_SECTION,
    GNU_NOTES,
    LINUX_NOTES,
    OBJECT_TYPES,
    SEGMENT_TYPES,
    XEN_NOTES,
    XEN_TEXT_NOTES,
    section,
)
from pyvmm.inspect.report import Field, Note, Report, Segment, printable, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile

#: A file may claim 65535 program headers; so many are read.
SEGMENTS_MAX = 256
NOTES_MAX = 256
_NOTE_SEGMENT_MAX = 1 << 20
_VALUE_MAX = 64  # bytes of a note's value that are shown

_SIZES_64 = (1, 1, 1, 2, 2, 4, 8, 8, 8, 4, 2, 2, 2, 2, 2, 2)
_SIZES_32 = (1, 1, 1, 2, 2, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2)
_OFFSETS_IDENT = (4, 5, 7)


class ElfFile:
    """The header's numbers by name, and whether the file is ``wide`` (64-bit) and ``big``-endian."""

    __slots__ = ("big", "values", "wide")

    def __init__(self, wide: bool, big: bool, values: dict[str, int]) -> None:
        self.wide = wide
        self.big = big
        self.values = values

    def __getitem__(self, name: str) -> int:
        """The number, 0 if the file ends before it."""
        return self.values.get(name, 0)

    @property
    def end(self) -> int:
        """Where the file ends if nothing follows its section headers; 0 if it has none."""
        return self["e_shoff"] + self["e_shnum"] * self["e_shentsize"] if self["e_shoff"] else 0


def read_header(report: Report, file: ImageFile) -> ElfFile:
    """The ELF header; its fields go to ``report``, as many as the file has."""
    data = file.read(0, 64)
    wide = len(data) > 4 and data[4] == ELFCLASS64
    big = len(data) > 5 and data[5] == ELFDATA2MSB
    values = {}
    offset = 16
    for number, ((name, meaning), size) in enumerate(
        zip(ELF_HEADER, _SIZES_64 if wide else _SIZES_32, strict=True)
    ):
        ident = number < len(_OFFSETS_IDENT)
        place = _OFFSETS_IDENT[number] if ident else offset
        offset += 0 if ident else size
        if place + size > len(data):
            report.warn(f"ends at {file.size:#x}, inside the ELF header")
            break
        value = int.from_bytes(data[place : place + size], "big" if big else "little")
        values[name] = value
        report.fields.append(Field(name, place, size, value, meaning, section("gabi", ELF_SECTION)))
    for field in report.fields:
        field.decoded = _decoded(field.name, values[field.name], report.machine)
    return ElfFile(wide, big, values)


def _decoded(name: str, value: int, machine: str) -> str:
    if name == "e_type":
        return OBJECT_TYPES.get(value, "unknown")
    if name == "e_machine":
        return machine
    if name in ("ei_class", "ei_data"):
        words = {"ei_class": ("32-bit", "64-bit"), "ei_data": ("little-endian", "big-endian")}[name]
        return words[value - 1] if value in (1, 2) else "invalid"
    if name in ("e_ehsize", "e_phentsize", "e_shentsize"):
        return size_text(value)
    return ""


def read_segments(report: Report, file: ImageFile, elf: ElfFile) -> None:
    """The program headers, into ``report``."""
    order = ">" if elf.big else "<"
    layout = struct.Struct(order + ("2I6Q" if elf.wide else "8I"))
    count, entry_size, start = elf["e_phnum"], elf["e_phentsize"], elf["e_phoff"]
    if not count:
        return
    if entry_size != layout.size:
        report.warn(f"e_phentsize is {entry_size}, and program headers have {layout.size} bytes")
        return
    if count > SEGMENTS_MAX:
        report.warn(f"{count} program headers; the first {SEGMENTS_MAX} are shown")
    wanted = min(count, SEGMENTS_MAX) * entry_size
    data = file.read(start, wanted) if start <= FILE_OFFSET_MAX - wanted else b""
    if len(data) < wanted:
        report.warn(f"ends at {file.size:#x}, before its {count} program headers at {start:#x} do")
    for numbers in layout.iter_unpack(data[: len(data) // entry_size * entry_size]):
        if elf.wide:
            kind, flags, offset, vaddr, paddr, file_size, memory_size, alignment = numbers
        else:
            kind, offset, vaddr, paddr, file_size, memory_size, flags, alignment = numbers
        name = SEGMENT_TYPES.get(kind, f"{kind:#x}")
        text = "".join(letter for bit, letter in ((4, "R"), (2, "W"), (1, "X")) if flags & bit)
        report.segments.append(Segment(name, text, offset, vaddr, paddr, file_size, memory_size, alignment))
        if file_size and offset + file_size > file.size:
            report.warn(
                f"ends at {file.size:#x}, before its {name} segment from {offset:#x} to"
                f" {offset + file_size:#x} does"
            )


def read_notes(report: Report, file: ImageFile, elf: ElfFile) -> None:
    """The notes of all note segments, into ``report``."""
    for segment in report.segments:
        if segment.type != SEGMENT_TYPES[PT_NOTE] or segment.file_offset > FILE_OFFSET_MAX:
            continue
        data = file.read(segment.file_offset, min(segment.file_size, _NOTE_SEGMENT_MAX))
        _notes(report, data, segment, elf)


def _notes(report: Report, data: bytes, segment: Segment, elf: ElfFile) -> None:
    alignment = 8 if segment.alignment == 8 else 4
    header = struct.Struct(">3I" if elf.big else "<3I")
    position = 0
    while position < len(data):
        start = segment.file_offset + position
        if position + header.size > len(data):
            if any(data[position:]):
                report.warn(f"the note at {start:#x} runs past the end of its segment")
            return
        name_size, size, kind = header.unpack_from(data, position)
        name = position + header.size
        value = _aligned(name + name_size, alignment)
        if value + size > len(data):
            report.warn(f"the note at {start:#x} runs past the end of its segment")
            return
        if len(report.notes) >= NOTES_MAX:
            report.warn(f"more than {NOTES_MAX} notes; the first are shown")
            return
        owner = printable(data[name : name + min(name_size, _VALUE_MAX)].rstrip(b"\0"))
        text = _value(owner, kind, data[value : value + size], elf)
        report.notes.append(Note(owner, kind, _note_name(owner, kind), start, size, text))
        position = _aligned(value + size, alignment)


def _aligned(value: int, alignment: int) -> int:
    return (value + alignment - 1) & -alignment


def _note_name(owner: str, kind: int) -> str:
    tables = {"Xen": XEN_NOTES, "GNU": GNU_NOTES, "Linux": LINUX_NOTES}
    return tables.get(owner, {}).get(kind, f"{kind:#x}")


def _value(owner: str, kind: int, data: bytes, elf: ElfFile) -> str:
    """A note's value: text where it is text, numbers in hex, bytes in hex else."""
    order = "big" if elf.big else "little"
    if owner == "GNU" and kind == 1 and len(data) >= 16:
        system, *version = struct.unpack_from(">4I" if elf.big else "<4I", data)
        return f"{'Linux' if system == 0 else f'system {system}'} {'.'.join(map(str, version))}"
    if owner == "GNU" and kind == 3:
        return data[:_VALUE_MAX].hex()
    is_text = (owner == "Xen" and kind in XEN_TEXT_NOTES) or (owner == "Linux" and kind == 0x100)
    if is_text:
        return printable(data[: 4 * _VALUE_MAX].rstrip(b"\0"))
    if owner == "Xen" and kind == 19 and len(data) >= 12:
        align, low, high = (int.from_bytes(data[n : n + 4], order) for n in (0, 4, 8))  # type: ignore[arg-type]
        return f"alignment {align:#x}, from {low:#x} to {high:#x}"
    if len(data) in (4, 8):
        return f"{int.from_bytes(data, order):#x}"  # type: ignore[arg-type]
    more = "..." if len(data) > _VALUE_MAX else ""
    return data[:_VALUE_MAX].hex(" ", 4) + more
