"""The errors of the loader: each one line that says what and where, with the offending value, and a hint.

A class for each thing that can be wrong with an image, so that a caller can tell them apart; under one
base, and grouped by format.  The names are those of the Rust crate ``linux-loader``, with the format in
front where two formats share a name there (``ElfOverflow``) or where the name alone says nothing
(``BzImageUnderflow``); the classes without a counterpart there are marked *(ours)*.  Reads here carry
their offset, so a plain seek never fails: the classes for that are kept for the names, marked *(unused)*.
"""

from __future__ import annotations


class LoaderError(Exception):
    """Base of every error of this package: ``message`` is one line, ``hint`` what to do (may be empty)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


# -- files ---------------------------------------------------------------------------------------------


class FileError(LoaderError):
    """An input file cannot be used, whatever its format should have been. (ours)"""


class FileMissing(FileError):
    """There is no such file."""


class FilePermission(FileError):
    """The file may not be read by this user."""


class FileIsDirectory(FileError):
    """A directory was given where a file belongs."""


class FileNotRegular(FileError):
    """A pipe, socket or device: the loader reads at offsets, so it needs a regular file."""


class FileEmpty(FileError):
    """The file has no bytes."""


class FileUnreadable(FileError):
    """The operating system refused to open or read the file for another reason."""


class FileChanged(FileError):
    """The file ended earlier than its size said when it was opened."""


class NotAKernel(FileError):
    """The content is nothing that can be booted."""


class WrongMachine(FileError):
    """A kernel, but for another architecture."""


# -- shared by the formats -----------------------------------------------------------------------------


class InvalidKernelStartAddress(LoaderError):
    """The kernel would be loaded below the start of high memory."""


class MemoryOverflow(LoaderError):
    """The kernel would reach past the 64-bit address space or outside RAM."""


class KernelDoesNotFit(LoaderError):
    """The RAM cannot hold what the kernel needs to start. (ours)"""


# -- bzImage -------------------------------------------------------------------------------------------


class BzImageError(LoaderError):
    """Something is wrong with a bzImage."""


class SeekBzImageEnd(BzImageError):
    """The size of the image cannot be found out. (unused)"""


class SeekBzImageHeader(BzImageError):
    """The setup header cannot be reached. (unused)"""


class ReadBzImageHeader(BzImageError):
    """The setup header cannot be read, or the file ends inside it."""


class InvalidBzImage(BzImageError):
    """No "HdrS", a protocol before 2.00, a zImage, or a field that makes no sense."""


class BzImageUnderflow(BzImageError):
    """The file ends before its setup code does (``Underflow`` of the crate)."""


class BzImageTruncated(BzImageError):
    """The file ends before the protected-mode code or the payload that its header announces. (ours)"""


class SeekBzImageCompressedKernel(BzImageError):
    """The protected-mode code cannot be reached. (unused)"""


class ReadBzImageCompressedKernel(BzImageError):
    """The protected-mode code cannot be read."""


# -- ELF -----------------------------------------------------------------------------------------------


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


# -- arm64 and riscv64 Image ---------------------------------------------------------------------------


class PeError(LoaderError):
    """Something is wrong with an Image for arm64 or riscv64 (``Pe`` in the crate)."""


class SeekImageEnd(PeError):
    """The size of the Image cannot be found out. (unused)"""


class SeekImageHeader(PeError):
    """The header of the Image cannot be reached. (unused)"""


class ReadImageHeader(PeError):
    """The file ends inside the header of 64 bytes, or it cannot be read."""


class InvalidImageMagicNumber(PeError):
    """The header does not carry the magic number of an Image for the machine."""


class InvalidBaseAddrAlignment(PeError):
    """The base address is not on a 2 MiB boundary."""


class InvalidImage(PeError):
    """Base address and text_offset give no address."""


class PeReadKernelImage(PeError):
    """The image cannot be read from the file into memory (``ReadKernelImage`` of the crate)."""


class ImageOutsideRam(PeReadKernelImage):
    """The image, with the room its image_size reserves, does not lie in RAM. (ours)"""


# -- device tree blob ----------------------------------------------------------------------------------


class DtbError(LoaderError):
    """Something is wrong with a device tree blob."""


class DtbTooBig(DtbError):
    """The blob is larger than the 2 MiB that Linux maps of it."""


class SeekDtbEnd(DtbError):
    """The size of the blob cannot be found out. (unused)"""


class SeekDtbStart(DtbError):
    """The start of the blob cannot be reached. (unused)"""


class ReadDtbImage(DtbError):
    """The blob cannot be read from the file into memory."""


class DtbOutsideRam(ReadDtbImage):
    """The address given for the blob is not RAM. (ours)"""


class InvalidDtbMagic(DtbError):
    """The blob does not start with d0 0d fe ed. (ours)"""


class InvalidDtbSize(DtbError):
    """The blob's totalsize is smaller than its header, or larger than the blob. (ours)"""


class MisalignedDtb(DtbError):
    """The address given for the blob is not on an 8-byte boundary. (ours)"""


# -- command line --------------------------------------------------------------------------------------


class CommandLineError(LoaderError):
    """Something is wrong with a kernel command line."""


class NullTerminator(CommandLineError):
    """A NUL inside the text would cut it short."""


class InvalidAscii(CommandLineError):
    """A character outside printable ASCII (0x20 to 0x7e)."""


class TooLarge(CommandLineError):
    """More characters than the kernel keeps."""


class InvalidCommandLine(CommandLineError):
    """A command line that cannot be put into words, as one of init arguments alone."""


class InvalidCapacity(CommandLineError):
    """A capacity of 0, or one too small for the text to start from."""


class HasSpace(CommandLineError):
    """A key with a space, which would end it."""


class HasEquals(CommandLineError):
    """A key with an equals sign, where its value would start."""


class InvalidQuote(CommandLineError):
    """A quote inside a value, or one without another to end it, which takes in all that follows."""


class NoQuoteSpace(CommandLineError):
    """A value with a space and without quotes around it."""


class MissingVal(CommandLineError):
    """A key without any value."""


class MmioSize(CommandLineError):
    """A virtio-mmio device of no size, or of an impossible range of addresses."""


class MmioInterrupt(CommandLineError):
    """A virtio-mmio device with interrupt 0, which Linux refuses. (ours)"""


class NoBootArgsInserted(CommandLineError):
    """Arguments for init alone: the kernel looks for its own in front of them."""


class CommandLineOverflow(CommandLineError):
    """The command line would end past the last address of RAM."""


class CommandLineCopy(CommandLineError):
    """The command line would lie in a hole of RAM."""


# -- initrd --------------------------------------------------------------------------------------------


class InitrdError(LoaderError):
    """Something is wrong with an initrd. (ours)"""


class InitrdDoesNotFit(InitrdError):
    """No free RAM is left for the initrd where the boot protocol allows one."""


class InitrdOutsideRam(InitrdError):
    """The address given for the initrd is not RAM."""


# -- boot parameters -----------------------------------------------------------------------------------


class BootParamsError(LoaderError):
    """Something is wrong with a list of boot parameters."""


class MissingStartAddress(BootParamsError):
    """An element was added to a list that has no start address yet."""


class BootParamsOverflow(BootParamsError):
    """A list would end past the 64-bit address space (``Overflow`` of the crate)."""


class InvalidAddress(BootParamsError):
    """An element was added in front of its list."""


class BootParamsGap(BootParamsError):
    """An element was added so far from its list that the gap would be all the list is. (ours)"""


# -- configurators: zero page, PVH, FDT ----------------------------------------------------------------


class ConfiguratorError(LoaderError):
    """The boot parameters cannot be made or written."""


class LinuxConfiguratorError(ConfiguratorError):
    """Something is wrong with a zero page."""


class ZeroPagePastRamEnd(LinuxConfiguratorError):
    """The zero page does not lie in RAM."""


class ZeroPageSetup(LinuxConfiguratorError):
    """A value does not fit its field of the zero page, or it cannot be written."""


class InvalidE820(LinuxConfiguratorError):
    """The memory map has too few or too many entries, or an impossible one. (ours)"""


class SetupDataPastRamEnd(LinuxConfiguratorError):
    """The setup_data list does not lie in RAM. (ours)"""


class PvhConfiguratorError(ConfiguratorError):
    """Something is wrong with the PVH start_info and its tables."""


class MemmapTableMissing(PvhConfiguratorError):
    """A PVH guest needs a memory map."""


class MemmapTableAddressMissing(PvhConfiguratorError):
    """No address was given for the memory map."""


class MemmapTablePastRamEnd(PvhConfiguratorError):
    """The memory map does not lie in RAM."""


class MemmapTableSetup(PvhConfiguratorError):
    """The memory map has too many entries, an impossible one, or cannot be written."""


class StartInfoPastRamEnd(PvhConfiguratorError):
    """The start_info does not lie in RAM."""


class StartInfoSetup(PvhConfiguratorError):
    """A value does not fit the start_info, or it cannot be written."""


class ModulesAddressMissing(PvhConfiguratorError):
    """No address was given for the module list."""


class ModulesSetup(PvhConfiguratorError):
    """The module list is not in RAM, or cannot be written."""


class FdtConfiguratorError(ConfiguratorError):
    """The device tree blob cannot be handed to the kernel."""


class FDTPastRamEnd(FdtConfiguratorError):
    """The blob would end past the last address of RAM."""


class WriteFDTToMemory(FdtConfiguratorError):
    """The blob would lie in a hole of RAM."""
