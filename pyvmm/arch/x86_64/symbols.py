"""Names for addresses, from the symbol table of a vmlinux: System V ABI, "Symbol Table" (AMD64 supplement).

Only a post-mortem imports this; pyelftools finds the sections, and the table itself is read in one sweep,
since a kernel has a hundred thousand symbols.
"""

from __future__ import annotations

import bisect
import struct

from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section

_FUNCTION_OR_UNTYPED = (0, 2)  # STT_NOTYPE, STT_FUNC: assembly entry points often have no type


_NAME_MAX = 512  # Linux: KSYM_NAME_LEN
_SECTION_MAX = (
    64 << 20
)  # bytes of a symbol or string table; Debian's kernels with symbols have a tenth of that


def _contents(elf: ELFFile, section: Section, kind: str) -> bytes:
    """The bytes of a plain section of type ``kind`` that lies within the file; ValueError for any other."""
    header = section.header
    compressed = header.sh_flags & SH_FLAGS.SHF_COMPRESSED
    if header.sh_type != kind or compressed or header.sh_size > min(_SECTION_MAX, elf.stream_len):
        raise ValueError(f"not a plain {kind} of a sensible size")
    elf.stream.seek(header.sh_offset)
    data: bytes = elf.stream.read(header.sh_size)
    return data[: len(data) - len(data) % 24] if kind == "SHT_SYMTAB" else data


class Symbols:
    """The code symbols of an ELF file, found by virtual address or by the physical one it was linked for.

    A kernel that randomised its addresses does not match its file: boot it with ``nokaslr``.
    """

    def __init__(self, path: str) -> None:
        """Read ``path``; a file that is no ELF or has no symbols gives an empty table.  Raises OSError."""
        self._addresses: list[int] = []
        self._names: list[int] = []  # where each name starts in the string table
        self._strings = b""
        self._segments: list[tuple[int, int, int]] = []  # physical, virtual, size
        with open(path, "rb") as file:
            try:
                self._read(ELFFile(file))
            except (ELFError, struct.error, ValueError, UnicodeDecodeError):
                self._addresses, self._names, self._segments = [], [], []

    def _read(self, elf: ELFFile) -> None:
        for segment in elf.iter_segments("PT_LOAD"):
            header = segment.header
            if header.p_vaddr:  # the percpu segment is linked at 0
                self._segments.append((header.p_paddr, header.p_vaddr, header.p_memsz))
        table = elf.get_section_by_name(".symtab")
        if table is None or elf.elfclass != 64:
            return
        symbols = _contents(elf, table, "SHT_SYMTAB")
        self._strings = _contents(elf, elf.get_section(table.header.sh_link), "SHT_STRTAB")
        found = []
        for name, info, _, section, value, _ in struct.iter_unpack("<IBBHQQ", symbols):
            code = info & 0xF in _FUNCTION_OR_UNTYPED and 0 < section < 0xFF00 and value
            if code and self._strings[name : name + 1] not in (b"", b"\0"):
                found.append((value, name))
        found.sort()
        self._addresses = [value for value, _ in found]
        self._names = [name for _, name in found]

    def find(self, address: int) -> str:
        """``name+0xoffset`` of the code at ``address`` (virtual, or physical before paging), or nothing."""
        for candidate in (address, *self._virtual(address)):
            if any(start <= candidate < start + size for _, start, size in self._segments):
                position = bisect.bisect_right(self._addresses, candidate) - 1
                if position >= 0:
                    return f"{self._name(position)}+{candidate - self._addresses[position]:#x}"
        return ""

    def _name(self, position: int) -> str:
        start = self._names[position]
        return self._strings[start : start + _NAME_MAX].split(b"\0")[0].decode("utf-8", "replace")

    def _virtual(self, physical: int) -> list[int]:
        return [
            virtual + physical - start
            for start, virtual, size in self._segments
            if start <= physical < start + size
        ]
