"""What an ELF file says of itself: kernel or program, segments, notes, entry points, placement.

gABI chapters 4 and 5; Linux Documentation/arch/x86/boot.rst and the PVH entry point for kernels.
"""

from __future__ import annotations

from loader import elf_headers
from loader.enums import ET_DYN, ET_EXEC, XEN_ELFNOTE_PHYS32_ENTRY, XEN_ELFNOTE_PHYS32_RELOC
from loader.errors import ElfUserProgram, LoaderError
from loader.field_descriptions import section
from pyvmm.inspect import elf_file, placement
from pyvmm.inspect.report import EntryPoint, Report, Segment
from pyvmm.inspect.version import find_version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile

_X86 = ("x86_64", "i386")
_LOADABLE = (*_X86, "aarch64", "riscv64")  # the loader has an opinion on them
_RELOCATIONS_MAX = 8 << 20  # bytes; the largest kernels need less than 2 MiB


def inspect(report: Report, file: ImageFile, memory: int) -> None:
    """Fill ``report`` with what ``file``, an ELF file, says; placement in ``memory`` bytes."""
    elf = elf_file.read_header(report, file)
    elf_file.read_segments(report, file, elf)
    elf_file.read_notes(report, file, elf)
    if elf["e_type"] not in (ET_EXEC, ET_DYN):
        return
    loads = [segment for segment in report.segments if segment.type == "LOAD" and segment.memory_size]
    interpreter = any(segment.type == "INTERP" for segment in report.segments)
    c_library = any(note.owner == "GNU" and note.name == "ABI_TAG" for note in report.notes)
    pvh = _note_number(report, XEN_ELFNOTE_PHYS32_ENTRY)
    virtual = not any(_holds(segment, elf["e_entry"]) for segment in loads)
    if pvh is None and (interpreter or c_library):
        report.description = f"a program for userspace (ELF) for {report.machine}"
        report.entry_points = [EntryPoint("program", elf["e_entry"], virtual=True)]
        return
    report.version, report.version_source = find_version(file), '"Linux version" in the image'
    linux = bool(report.version) or any(note.owner == "Linux" for note in report.notes)
    if not loads:
        return
    report.is_kernel = True
    if linux:
        report.description = f"a Linux kernel (ELF vmlinux) for {report.machine}"
    elif pvh is not None:
        report.description = f"a kernel (ELF) for {report.machine} with a PVH entry point"
    _entry_points(report, loads, elf["e_entry"], pvh, virtual)
    _relocation(report, file, elf)
    _place(report, file, loads, memory)


def _holds(segment: Segment, address: int) -> bool:
    return segment.physical_address <= address < segment.physical_address + segment.memory_size


def _note_number(report: Report, kind: int) -> int | None:
    """The number in the first Xen note of this kind."""
    for note in report.notes:
        if note.owner == "Xen" and note.type == kind and note.value.startswith("0x"):
            return int(note.value, 16) & 0xFFFF_FFFF
    return None


def _entry_points(report: Report, loads: list[Segment], entry: int, pvh: int | None, virtual: bool) -> None:
    wide = report.machine != "i386"
    names = {"x86_64": "64-bit", "i386": "32-bit"}
    where = section("x86", f"{'64' if wide else '32'}-bit Boot Protocol") if report.machine in _X86 else ""
    name = names.get(report.machine, "e_entry")
    report.entry_points.append(EntryPoint(name, entry, _offset(loads, entry, virtual), virtual, where))
    if pvh is not None:
        offset = _offset(loads, pvh, False)
        report.entry_points.append(EntryPoint("PVH (32-bit)", pvh, offset, section=section("pvh", "")))


def _offset(loads: list[Segment], address: int, virtual: bool) -> int | None:
    """Where the byte at ``address`` is in the file."""
    for segment in loads:
        start = segment.virtual_address if virtual else segment.physical_address
        if start <= address < start + segment.file_size:
            return segment.file_offset + address - start
    return None


def _relocation(report: Report, file: ImageFile, elf: elf_file.ElfFile) -> None:
    """Whether the kernel can run elsewhere: the table that Linux for x86 puts after the ELF file's end."""
    if report.machine not in _X86:
        report.relocatable = True if elf["e_type"] == ET_DYN else None
        return
    size = file.size - elf.end if elf.end else 0
    if 8 < size <= _RELOCATIONS_MAX and size % 4 == 0 and not any(file.read(elf.end, 4)):
        words = memoryview(file.read(elf.end, size)).cast("I")
        count = sum(1 for word in words if word)  # zeroes part its lists
        report.relocatable = True
        report.kaslr = f"yes: a relocation table of {count} entries follows the ELF file, at {elf.end:#x}"
    elif any(note.owner == "Xen" and note.type == XEN_ELFNOTE_PHYS32_RELOC for note in report.notes):
        report.relocatable = True
        report.kaslr = "no: physically relocatable when entered by PVH, without a relocation table"
    else:
        report.relocatable = False
        report.kaslr = "no: no relocation table follows the ELF file"


def _place(report: Report, file: ImageFile, loads: list[Segment], memory: int) -> None:
    """The placement, if the loader would load the file; what it says against it is a warning."""
    pieces = [(load.physical_address, load.file_size, load.memory_size) for load in loads]
    if report.machine in _LOADABLE:
        try:
            elf_headers.read_image(file, report.machine)
        except ElfUserProgram as error:
            report.is_kernel = False
            report.description = f"a program for userspace (ELF) for {report.machine}"
            report.warn(error.message)
            return
        except LoaderError as error:
            report.warn(f"cannot be booted: {error.message.removeprefix(file.path + ': ')}")
            return
    elif any(in_memory < in_file for _, in_file, in_memory in pieces):
        report.warn("a segment has more bytes in the file than in memory")
        return
    if report.machine in _X86:
        pvh = any(entry.name.startswith("PVH") for entry in report.entry_points)
        linux = any(note.owner == "Linux" for note in report.notes) or bool(report.version)
        report.placement = placement.of_x86_segments(pieces, memory, pvh=pvh and not linux)
    else:
        report.placement = placement.of_segments(report.machine, pieces, memory)
