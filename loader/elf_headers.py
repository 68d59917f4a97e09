"""ELF headers: reading and checking what an image says of itself, without regard to any memory.

gABI chapter 4 ("ELF Header") and chapter 5 ("Program Header").
"""

from __future__ import annotations

import struct
from itertools import pairwise

from loader import errors
from loader.descriptions import ELF_TYPES
from loader.detect import elf_machine
from loader.elf_notes import NoteSummary, summarise
from loader.enums import (
    ELF_MAGIC,
    ELFCLASS64,
    ELFDATA2LSB,
    ET_DYN,
    ET_EXEC,
    FILE_OFFSET_MAX,
    PT_INTERP,
    PT_LOAD,
    PT_NOTE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile

_EHDR = struct.Struct("<16s2HI3QI6H")  # Elf64_Ehdr
_PHDR = struct.Struct("<2I6Q")  # Elf64_Phdr
_START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000  # what Linux adds to a physical address of its image


class Segment:
    """A PT_LOAD segment: ``offset`` and ``file_size`` in the file, ``paddr``, ``vaddr``, ``memory_size``."""

    __slots__ = ("file_size", "memory_size", "offset", "paddr", "vaddr")

    def __init__(self, offset: int, vaddr: int, paddr: int, file_size: int, memory_size: int) -> None:
        self.offset = offset
        self.vaddr = vaddr
        self.paddr = paddr
        self.file_size = file_size
        self.memory_size = memory_size

    @property
    def end(self) -> int:
        """The physical address after the last byte, zeroed part included."""
        return self.paddr + self.memory_size


class ElfImage:
    """The checked headers of an ELF image.

    ``machine`` as of ``uname -m``; ``entry``, the e_entry; ``segments`` in ascending order of physical
    address, those of no size left out; ``notes``, a NoteSummary, and ``has_notes``, whether there is a
    PT_NOTE at all; ``is_linux``; ``end``, the file offset where the section headers end, and so the ELF file
    (Linux appends its relocation table there).
    """

    __slots__ = ("end", "entry", "has_notes", "is_linux", "machine", "notes", "segments")

    def __init__(
        self,
        machine: str,
        entry: int,
        segments: list[Segment],
        notes: NoteSummary,
        has_notes: bool,
        is_linux: bool,
        end: int,
    ) -> None:
        self.end = end
        self.machine = machine
        self.entry = entry
        self.segments = segments
        self.notes = notes
        self.has_notes = has_notes
        self.is_linux = is_linux

    @property
    def base(self) -> int:
        """The lowest physical address, where the image starts (e_entry may lie anywhere in it)."""
        return self.segments[0].paddr


def read_image(file: ImageFile, machine: str = "x86_64") -> ElfImage:
    """Read and check the headers and notes of an ELF image for ``machine``, without regard to any memory.

    Raises subclasses of ElfError.
    """
    name, entry, phoff, phnum, end = _read_header(file, machine)
    loads: list[Segment] = []
    note_segments: list[tuple[int, int]] = []
    interpreter = False
    for kind, _, offset, vaddr, paddr, file_size, memory_size, _ in _PHDR.iter_unpack(
        _read_program_headers(file, phoff, phnum)
    ):
        if kind == PT_LOAD:
            segment = Segment(offset, vaddr, paddr, file_size, memory_size)
            _check_segment(file, segment)
            if memory_size:
                loads.append(segment)
        elif kind == PT_NOTE:
            note_segments.append((offset, file_size))
        interpreter |= kind == PT_INTERP
    if not loads:
        raise errors.ReadProgramHeader(
            f"{file.path}: none of the {phnum} program headers at {phoff:#x} is of a segment to load"
        )
    loads.sort(key=_paddr)
    _check_overlap(file, loads)
    notes = summarise(file, note_segments)
    if notes.pvh_entry is None and (interpreter or notes.user_program):
        raise errors.ElfUserProgram(
            f"{file.path}: a program for userspace, not a kernel", "give a vmlinux or a bzImage"
        )
    is_linux = notes.linux or _linked_as_linux(loads[0], notes, interpreter)
    return ElfImage(name, entry, loads, notes, bool(note_segments), is_linux, end)


def _paddr(segment: Segment) -> int:
    return segment.paddr


def _linked_as_linux(first: Segment, notes: NoteSummary, interpreter: bool) -> bool:
    """Whether an image without telling notes (Linux before 4.19, no Xen support) is linked as Linux is.

    FreeBSD is linked at the same offset, but names an interpreter.
    """
    return not interpreter and not notes.guest_os and first.vaddr - first.paddr == _START_KERNEL_MAP


def _read_header(file: ImageFile, wanted: str) -> tuple[str, int, int, int, int]:
    """The ELF header's machine name, e_entry, e_phoff and e_phnum, all checked, and the section headers' end."""
    try:
        data = file.read(0, _EHDR.size)
    except errors.FileUnreadable as error:
        raise errors.ReadElfHeader(error.message) from None
    if len(data) < _EHDR.size:
        raise errors.ReadElfHeader(
            f"{file.path}: ends at {file.size:#x}, inside the ELF header of {_EHDR.size} bytes",
            "was it copied completely?",
        )
    ident, kind, number, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, _ = _EHDR.unpack(
        data
    )
    if ident[:4] != ELF_MAGIC:
        raise errors.InvalidElfMagicNumber(
            f"{file.path}: starts with {ident[:4].hex(' ')}, not 7f 45 4c 46", "give an ELF file"
        )
    if ident[5] != ELFDATA2LSB:
        raise errors.BigEndianElfOnLittle(
            f"{file.path}: not little-endian (EI_DATA {ident[5]} at 0x5)", _other_kernel(wanted)
        )
    if ident[4] != ELFCLASS64:
        raise errors.InvalidElfClass(
            f"{file.path}: not a 64-bit ELF file (EI_CLASS {ident[4]} at 0x4)", _other_kernel(wanted)
        )
    machine = elf_machine(number, 64)
    if machine != wanted:
        raise errors.InvalidElfMachine(
            f"{file.path}: for {machine} (e_machine {number} at 0x12), and the machine is {wanted}",
            _other_kernel(wanted),
        )
    if kind not in (ET_EXEC, ET_DYN):
        words = ELF_TYPES.get(kind, "ELF file")
        raise errors.InvalidElfType(
            f"{file.path}: {words}, nothing to load (e_type {kind} at 0x10)",
            "give a linked vmlinux or a bzImage",
        )
    if phentsize != _PHDR.size:
        raise errors.InvalidProgramHeaderSize(
            f"{file.path}: e_phentsize {phentsize} at 0x36, not {_PHDR.size}"
        )
    if phoff < _EHDR.size:
        raise errors.InvalidProgramHeaderOffset(
            f"{file.path}: e_phoff {phoff:#x} at 0x20, inside the ELF header"
        )
    return machine, entry, phoff, phnum, shoff + shentsize * shnum


def _other_kernel(machine: str) -> str:
    return f"give a kernel built for {machine}"


def _read_program_headers(file: ImageFile, phoff: int, phnum: int) -> bytes:
    size = phnum * _PHDR.size
    if phoff > FILE_OFFSET_MAX - size:
        raise errors.SeekProgramHeader(f"{file.path}: e_phoff {phoff:#x} at 0x20 is no place in a file")
    try:
        data = file.read(phoff, size)
    except errors.FileUnreadable as error:
        raise errors.ReadProgramHeader(error.message) from None
    if len(data) < size:
        raise errors.ReadProgramHeader(
            f"{file.path}: ends at {file.size:#x}, before the {phnum} program headers at {phoff:#x} do",
            "was it copied completely?",
        )
    return data


def _check_segment(file: ImageFile, segment: Segment) -> None:
    """Checks of a segment for itself, in the crate's order, and memsz >= filesz."""
    offset, end = segment.offset, segment.offset + segment.file_size
    if offset > FILE_OFFSET_MAX:
        raise errors.SeekKernelStart(f"{file.path}: segment offset {offset:#x} is no place in a file")
    if segment.memory_size < segment.file_size:
        raise errors.InvalidSegmentSize(
            f"{file.path}: the segment at {offset:#x} has {segment.file_size:#x} bytes in the file and only"
            f" {segment.memory_size:#x} in memory"
        )
    if segment.file_size and end > file.size:
        raise errors.ElfReadKernelImage(
            f"{file.path}: ends at {file.size:#x}, before its segment from {offset:#x} to {end:#x} does",
            "was it copied completely?",
        )


def _check_overlap(file: ImageFile, segments: list[Segment]) -> None:
    for lower, upper in pairwise(segments):
        if lower.end > upper.paddr:
            raise errors.SegmentsOverlap(
                f"{file.path}: the segments at {lower.offset:#x} and {upper.offset:#x} overlap in memory:"
                f" {lower.paddr:#x}..{lower.end:#x} and {upper.paddr:#x}..{upper.end:#x}"
            )
