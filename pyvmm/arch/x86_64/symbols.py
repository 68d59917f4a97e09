"""Names for addresses, from the symbol table of a vmlinux: System V ABI, "Symbol Table" (AMD64 supplement).

Only a post-mortem imports this; pyelftools finds the sections, and the table itself is read in one sweep,
since a kernel has a hundred thousand symbols.
"""

from __future__ import annotations

import bisect
import struct

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

_FUNCTION_OR_UNTYPED = (0, 2)  # STT_NOTYPE, STT_FUNC: assembly entry points often have no type


class Symbols:
    """The code symbols of an ELF file, found by virtual address or by the physical one it was linked for.

    A kernel that randomised its addresses does not match its file: boot it with ``nokaslr``.
    """

    def __init__(self, path: str) -> None:
        """Read ``path``; a file that is no ELF or has no symbols gives an empty table.  Raises OSError."""
        self._addresses: list[int] = []
        self._names: list[str] = []
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
        strings = elf.get_section(table.header.sh_link).data()
        found = []
        for name, info, _, section, value, _ in struct.iter_unpack("<IBBHQQ", table.data()):
            if info & 0xF in _FUNCTION_OR_UNTYPED and 0 < section < 0xFF00 and value:
                found.append((value, name))
        found.sort()
        for value, name in found:
            text = strings[name : strings.index(b"\0", name)].decode()
            if text:
                self._addresses.append(value)
                self._names.append(text)

    def find(self, address: int) -> str:
        """``name+0xoffset`` of the code at ``address`` (virtual, or physical before paging), or nothing."""
        for candidate in (address, *self._virtual(address)):
            if any(start <= candidate < start + size for _, start, size in self._segments):
                position = bisect.bisect_right(self._addresses, candidate) - 1
                if position >= 0:
                    return f"{self._names[position]}+{candidate - self._addresses[position]:#x}"
        return ""

    def _virtual(self, physical: int) -> list[int]:
        return [
            virtual + physical - start
            for start, virtual, size in self._segments
            if start <= physical < start + size
        ]
