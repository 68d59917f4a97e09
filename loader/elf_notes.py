"""ELF notes: the PVH entry point, and whether a kernel is Linux.

gABI chapter 5 ("Note Section"); Linux include/xen/interface/elfnote.h.  A note is namesz, descsz and type
(4 bytes each), the name and the description, each padded to 4 bytes, whatever p_align says: that is what
the Linux kernel writes and what other loaders read.
"""

from __future__ import annotations

import struct

from loader import errors
from loader.enums import (
    FILE_OFFSET_MAX,
    KERNEL_ALIGNMENT,
    NT_GNU_ABI_TAG,
    U32_MAX,
    XEN_ELFNOTE_GUEST_OS,
    XEN_ELFNOTE_PHYS32_ENTRY,
    XEN_ELFNOTE_PHYS32_RELOC,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from loader.files import ImageFile

_HEADER = struct.Struct("<3I")
_MAX_NOTES = 1024  # Linux has about twenty
_MAX_SEGMENT = 1 << 20  # the bytes of a note segment that are looked at; Linux has about 500


class Note:
    """A note: ``name`` without its NUL, ``type``, ``desc``, and its file offset."""

    __slots__ = ("desc", "name", "offset", "type")

    def __init__(self, offset: int, name: bytes, type: int, desc: bytes) -> None:
        self.offset = offset
        self.name = name
        self.type = type
        self.desc = desc


class NoteSummary:
    """What the notes of a kernel say.

    - ``pvh_entry``: the 32-bit physical entry point of the PVH boot protocol, or None
    - ``pvh_reloc``: (alignment, lowest, highest byte) of the physical addresses it may be loaded to and still be
      entered there, offset and all; None without the PHYS32_RELOC note, when it must stay where it is linked for
    - ``guest_os``: what the Xen GUEST_OS note names, "" without one
    - ``linux``: a note of the Linux kernel's own, or GUEST_OS is "linux"
    - ``user_program``: a note of the C library, which marks a program for userspace
    """

    __slots__ = ("guest_os", "linux", "pvh_entry", "pvh_reloc", "user_program")

    def __init__(self) -> None:
        self.pvh_entry: int | None = None
        self.pvh_reloc: tuple[int, int, int] | None = None
        self.guest_os = ""
        self.linux = False
        self.user_program = False


def summarise(file: ImageFile, segments: list[tuple[int, int]]) -> NoteSummary:
    """Read the note segments (file offset, size) and sum them up.

    The first PVH note counts.  (In the crate the last PT_NOTE does, so one without a PVH note can hide the
    one before it.)  Raises SeekNoteHeader, ReadNoteHeader, ElfOverflow, InvalidPvhNote, TooManyNotes.
    """
    summary = NoteSummary()
    count = 0
    for offset, size in segments:
        for note in notes(file, offset, size):
            count += 1
            if count > _MAX_NOTES:
                raise errors.TooManyNotes(f"{file.path}: more than {_MAX_NOTES} notes, at {note.offset:#x}")
            _take(summary, note, file)
    return summary


def _take(summary: NoteSummary, note: Note, file: ImageFile) -> None:
    if note.name == b"Xen" and note.type == XEN_ELFNOTE_PHYS32_ENTRY:
        if len(note.desc) < 4:
            raise errors.InvalidPvhNote(
                f"{file.path}: the PVH note at {note.offset:#x} has {len(note.desc)} bytes, not 4 or more"
            )
        if summary.pvh_entry is None:
            summary.pvh_entry = int.from_bytes(note.desc[:4], "little")
    elif note.name == b"Xen" and note.type == XEN_ELFNOTE_PHYS32_RELOC:
        summary.pvh_reloc = _relocation_limits(note, file)
    elif note.name == b"Xen" and note.type == XEN_ELFNOTE_GUEST_OS:
        summary.guest_os = note.desc.rstrip(b"\0").decode("ascii", "replace")
        summary.linux |= summary.guest_os == "linux"
    elif note.name == b"Linux":
        summary.linux = True
    elif note.name == b"GNU" and note.type == NT_GNU_ABI_TAG:
        summary.user_program = True


def _relocation_limits(note: Note, file: ImageFile) -> tuple[int, int, int]:
    """Up to three numbers of 4 bytes, defaults for those left out (elfnote.h): alignment, lowest, highest."""
    given = struct.unpack(f"<{min(len(note.desc) // 4, 3)}I", note.desc[: len(note.desc) // 4 * 4][:12])
    alignment, lowest, highest = given + (KERNEL_ALIGNMENT, 0, U32_MAX)[len(given) :]
    if alignment == 0 or alignment & (alignment - 1):
        raise errors.InvalidPvhNote(
            f"{file.path}: the PHYS32_RELOC note at {note.offset:#x} asks for an alignment of {alignment:#x}"
        )
    return alignment, lowest, highest


def notes(file: ImageFile, offset: int, size: int) -> Iterator[Note]:
    """The notes of one segment, in order.  Raises SeekNoteHeader, ReadNoteHeader and ElfOverflow."""
    if offset > FILE_OFFSET_MAX:
        raise errors.SeekNoteHeader(f"{file.path}: note segment offset {offset:#x} is no place in a file")
    try:
        data = file.read(offset, min(size, _MAX_SEGMENT))
    except errors.FileUnreadable as error:
        raise errors.ReadNoteHeader(error.message) from None
    if len(data) < min(size, _MAX_SEGMENT):
        raise errors.ReadNoteHeader(
            f"{file.path}: ends at {file.size:#x}, inside the notes of {size:#x} bytes at {offset:#x}",
            "was it copied completely?",
        )
    position = 0
    while position < len(data):
        start = offset + position
        if len(data) - position < _HEADER.size:
            raise errors.ReadNoteHeader(
                f"{file.path}: the note at {start:#x} runs past the end of its segment"
            )
        namesz, descsz, kind = _HEADER.unpack_from(data, position)
        if max(namesz, descsz) > U32_MAX - 3:
            raise errors.ElfOverflow(
                f"{file.path}: the note at {start:#x} has sizes {namesz:#x} and {descsz:#x}, which pass"
                " 32 bits when aligned"
            )
        name = position + _HEADER.size
        desc = name + _padded(namesz)
        if desc + descsz > len(data):
            raise errors.ReadNoteHeader(
                f"{file.path}: the note at {start:#x}, of {namesz:#x} and {descsz:#x} bytes, runs past the"
                " end of its segment"
            )
        yield Note(start, data[name : name + namesz].rstrip(b"\0"), kind, data[desc : desc + descsz])
        position = desc + _padded(descsz)


def _padded(size: int) -> int:
    return (size + 3) & ~3
