"""The errors of ELF images."""

from __future__ import annotations

from loader.errors import LoaderError, NotAKernel, WrongMachine


class ElfError(LoaderError):
    """Something is wrong with an ELF image."""


class SeekElfStart(ElfError):
    """The start of the file cannot be reached. (unused)"""


class ReadElfHeader(ElfError):
    """The file ends inside the ELF header, or it cannot be read."""


class InvalidElfMagicNumber(ElfError):
    """The file does not start with 7f 45 4c 46."""


class BigEndianElfOnLittle(ElfError):
    """The file is big-endian."""


class InvalidElfClass(ElfError):
    """The file is not a 64-bit ELF file. (ours)"""


class InvalidElfType(ElfError):
    """The file is an object file, module or core dump: nothing that can be loaded. (ours)"""


class InvalidElfMachine(ElfError, WrongMachine):
    """The file is for another architecture. (ours)"""


class ElfUserProgram(ElfError, NotAKernel):
    """The file is a program for userspace. (ours)"""


class InvalidProgramHeaderSize(ElfError):
    """e_phentsize is not the size of a program header."""


class InvalidProgramHeaderOffset(ElfError):
    """The program headers would overlap the ELF header."""


class InvalidEntryAddress(ElfError):
    """The entry point lies below the start of high memory."""


class ElfOverflow(ElfError):
    """A sum of addresses or sizes passes 64 bits, or a note's sizes pass 32 (``Overflow`` of the crate)."""


class SeekProgramHeader(ElfError):
    """The program headers' offset is no file offset."""


class ReadProgramHeader(ElfError):
    """The file ends before the program headers do, or there are none."""


class SeekKernelStart(ElfError):
    """A segment's offset is no file offset."""


class InvalidProgramHeaderAddress(ElfError):
    """A segment's physical address is out of the 64-bit range, or below the start of high memory."""


class ElfReadKernelImage(ElfError):
    """A segment cannot be read from the file into memory (``ReadKernelImage`` of the crate)."""


class SegmentOutsideRam(ElfReadKernelImage):
    """A segment does not lie in RAM. (ours: found before anything is written)"""


class InvalidSegmentSize(ElfError):
    """A segment has more bytes in the file than in memory. (ours)"""


class SegmentsOverlap(ElfError):
    """Two segments claim the same memory. (ours)"""


class MisalignedKernel(ElfError):
    """A Linux kernel off its 2 MiB boundary would hang without a word. (ours)"""


class SeekNoteHeader(ElfError):
    """A note segment's offset is no file offset."""


class ReadNoteHeader(ElfError):
    """The file or the segment ends inside a note."""


class InvalidPvhNote(ElfError):
    """The PVH note is too short to hold an entry point."""


class TooManyNotes(ElfError):
    """More notes than any kernel has. (ours: bounds the time a sparse file can cost)"""
