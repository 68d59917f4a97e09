"""ELF images: every check of the headers, where the segments go, what is zeroed, and the notes."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from loader_images import MIB, Elf, Phdr, as_file, guest_os_note, kernel, note, pvh_note

from loader import elf, errors, files
from loader.buffer import BufferMemory
from loader.enums import EM_386, EM_AARCH64, EM_RISCV, EM_X86_64, ET_CORE, ET_REL, PT_INTERP, PT_NOTE
from loader.result import PVH_ENTRY_IGNORED, PVH_ENTRY_NOT_PRESENT, pvh_entry_present

POISON = 0xA5
BASE = 0x1000000
U64 = 2**64
PT_NULL, PT_PHDR, PT_GNU_STACK = 0, 6, 0x6474E551


def memory(end: int = 22 * MIB) -> BufferMemory:
    """RAM at 0 and around BASE, filled with a pattern."""
    return BufferMemory([(0, 3 * MIB), (BASE - 0x1000, end - (BASE - 0x1000))], fill=POISON)


def content(ram: BufferMemory) -> list[bytes]:
    return [ram.read(start, size) for start, size in ram.ranges]


def read(image: Elf, machine: str = "x86_64") -> elf.ElfImage:
    with as_file(bytes(image)) as file:
        return elf.read_image(file, machine)


def load(image: Elf, ram: BufferMemory | None = None, *arguments: int | None, **options: object):
    with as_file(bytes(image)) as file:
        return elf.load(ram or memory(), file, *arguments, **options)  # type: ignore[arg-type]


def refuse(
    image: Elf | bytes, error: type[Exception], match: str, *arguments: int | None
) -> errors.LoaderError:
    """Loading raises just ``error``, and writes nothing."""
    ram = memory(20 * MIB)
    before = content(ram)
    with as_file(bytes(image)) as file, pytest.raises(errors.LoaderError, match=match) as caught:
        elf.load(ram, file, *arguments)
    assert type(caught.value) is error
    assert content(ram) == before
    return caught.value


class TestHeader:
    @pytest.mark.parametrize("size", [0, 1, 63])
    def test_short(self, size):
        refuse(
            bytes(kernel())[:size],
            errors.ReadElfHeader,
            f"ends at {size:#x}, inside the ELF header of 64 bytes",
        )

    def test_read_error(self, monkeypatch):
        def broken(*arguments):
            raise OSError(errno.EIO, "Input/output error")

        with as_file(bytes(kernel())) as file:
            monkeypatch.setattr(files.os, "pread", broken)
            with pytest.raises(errors.ReadElfHeader, match="Input/output error"):
                elf.read_image(file)

    @pytest.mark.parametrize("magic", [b"\x7fELG", b"\x7fELE"])
    def test_bad_magic_number(self, magic):
        refuse(
            kernel(magic=magic),
            errors.InvalidElfMagicNumber,
            f"starts with {magic.hex(' ')}, not 7f 45 4c 46",
        )

    @pytest.mark.parametrize("data", [0, 2, 255])
    def test_bad_endian(self, data):
        refuse(kernel(ident_data=data), errors.BigEndianElfOnLittle, rf"EI_DATA {data} at 0x5")

    @pytest.mark.parametrize("bits", [0, 1, 3])
    def test_bad_class(self, bits):
        refuse(kernel(ident_class=bits), errors.InvalidElfClass, rf"EI_CLASS {bits} at 0x4")

    def test_other_machine(self):
        error = refuse(
            kernel(machine=EM_AARCH64), errors.InvalidElfMachine, "for aarch64 .e_machine 183 at 0x12."
        )
        assert isinstance(error, errors.WrongMachine)
        assert error.hint == "give a kernel built for x86_64"
        refuse(kernel(machine=EM_386), errors.InvalidElfMachine, "for i386")

    @pytest.mark.parametrize(
        ("number", "machine"), [(EM_AARCH64, "aarch64"), (EM_RISCV, "riscv64"), (EM_X86_64, "x86_64")]
    )
    def test_machine_asked_for(self, number, machine):
        assert read(kernel(machine=number), machine).machine == machine
        for other in {"aarch64", "riscv64", "x86_64"} - {machine}:
            with pytest.raises(errors.InvalidElfMachine, match=f"for {machine} .*machine is {other}"):
                read(kernel(machine=number), other)

    @pytest.mark.parametrize("kind", [0, ET_REL, ET_CORE, 9])
    def test_nothing_to_load(self, kind):
        refuse(kernel(kind=kind), errors.InvalidElfType, rf"e_type {kind} at 0x10")

    def test_position_independent(self):
        assert load(kernel(kind=3)).kernel_load == BASE + 0x10

    @pytest.mark.parametrize("size", [0, 32, 55, 57])
    def test_bad_phentsize(self, size):
        refuse(kernel(phentsize=size), errors.InvalidProgramHeaderSize, f"e_phentsize {size} at 0x36, not 56")

    @pytest.mark.parametrize("offset", [0, 63])
    def test_bad_phoff(self, offset):
        refuse(kernel(phoff=offset), errors.InvalidProgramHeaderOffset, f"e_phoff {offset:#x} at 0x20")

    @pytest.mark.parametrize("offset", [2**63 - 1, 2**63, U64 - 1])
    def test_phoff_that_is_no_place_in_a_file(self, offset):
        refuse(kernel(phoff=offset), errors.SeekProgramHeader, f"e_phoff {offset:#x}")

    def test_program_headers_end_outside_the_file(self):
        refuse(kernel(phnum=0xFFFF), errors.ReadProgramHeader, "before the 65535 program headers at 0x40 do")
        refuse(
            kernel(phoff=2**63 - 1 - 2 * 56),
            errors.ReadProgramHeader,
            "2 program headers at 0x7fffffffffffff8f",
        )
        refuse(kernel(phoff=2**63 - 2 * 56), errors.SeekProgramHeader, "e_phoff 0x7fffffffffffff90")

    def test_program_headers_read_error(self, monkeypatch):
        real = os.pread

        def broken(fd, size, offset):
            if offset >= 64:
                raise OSError(errno.EIO, "Input/output error")
            return real(fd, size, offset)

        with as_file(bytes(kernel())) as file:
            monkeypatch.setattr(files.os, "pread", broken)
            with pytest.raises(errors.ReadProgramHeader, match="reading at 0x40"):
                elf.read_image(file)

    def test_the_file_ends_where_the_section_headers_do(self):
        data = bytearray(bytes(kernel()))
        struct.pack_into("<Q", data, 0x28, 0x4321)
        struct.pack_into("<2H", data, 0x3A, 64, 5)
        with as_file(bytes(data)) as file:
            assert elf.read_image(file).end == 0x4321 + 5 * 64

    def test_nothing_among_the_program_headers(self):
        refuse(kernel(phnum=0), errors.ReadProgramHeader, "none of the 0 program headers")
        refuse(Elf([Phdr(memsz=0)]), errors.ReadProgramHeader, "none of the 1 program headers at 0x40")

    @pytest.mark.parametrize(
        "marks",
        [
            [Phdr(b"/lib64/ld-linux-x86-64.so.2\0", kind=PT_INTERP)],
            [Phdr(note(b"GNU\0", 1, bytes(16)), kind=PT_NOTE)],
        ],
    )
    def test_program_for_userspace(self, marks):
        image = kernel()
        image.segments += marks
        error = refuse(image, errors.ElfUserProgram, "a program for userspace")
        assert isinstance(error, errors.NotAKernel)
        image.segments.append(Phdr(pvh_note(BASE), kind=PT_NOTE))
        assert load(image).pvh_boot_cap.entry == BASE  # it says itself how to boot it


class TestSegments:
    def test_offset_that_is_no_place_in_a_file(self):
        image = kernel()
        image.segments[1].offset = 2**63
        refuse(image, errors.SeekKernelStart, "segment offset 0x8000000000000000")
        image.segments[1].offset = 2**63 - 1
        refuse(image, errors.ElfReadKernelImage, "before its segment from 0x7fffffffffffffff")

    def test_more_in_the_file_than_in_memory(self):
        image = kernel()
        image.segments[0].memsz = 0x122
        refuse(image, errors.InvalidSegmentSize, "0x123 bytes in the file and only 0x122 in memory")

    @pytest.mark.parametrize("kind", [PT_NULL, PT_PHDR, PT_GNU_STACK])
    def test_other_kinds_are_not_looked_at(self, kind):
        """Whatever they claim."""
        image = kernel()
        image.segments.append(Phdr(pvh_note(0x1234), BASE, kind=kind, memsz=1, filesz=0x10000, offset=2**63))
        found = read(image)
        assert (len(found.segments), found.has_notes, found.notes.pvh_entry) == (2, False, None)

    def test_ends_outside_the_file(self):
        image = kernel()
        refuse(bytes(image)[:-1], errors.ElfReadKernelImage, "before its segment from 0x1d3 to 0x218 does")
        image.segments[0].filesz = image.segments[0].memsz = U64 - 1
        refuse(image, errors.ElfReadKernelImage, "before its segment from 0xb0")

    def test_overlap(self):
        image = kernel()
        image.segments[1].paddr = BASE + 0x122
        refuse(
            image,
            errors.SegmentsOverlap,
            "segments at 0xb0 and 0x1d3 overlap in memory: 0x1000000..0x1000123",
        )
        image.segments[1].paddr = BASE + 0x123
        assert load(image).kernel_end == BASE + 0x2123

    def test_overlap_with_a_bss(self):
        image = kernel()
        image.segments[0].memsz = 0x1001
        refuse(image, errors.SegmentsOverlap, "overlap")

    def test_order_does_not_matter(self):
        image = kernel()
        image.segments.reverse()
        result = load(image)
        assert (result.load_base, result.kernel_end) == (BASE, BASE + 0x3000)

    def test_file_cut_while_it_is_loaded(self):
        with as_file(bytes(kernel())) as file:
            image = elf.read_image(file)
            os.ftruncate(file.fd, 0x1E0)
            with pytest.raises(errors.ElfReadKernelImage, match="ends at 0x1e0"):
                elf.load(memory(), file, image=image)


class TestLoad:
    def test_segments_and_zeroes(self):
        ram = memory()
        result = load(kernel(), ram)
        assert ram.read(BASE, 0x124) == b"\x11" * 0x123 + bytes((POISON,))
        assert ram.read(BASE + 0x1000, 0x2001) == b"\x22" * 0x45 + bytes(0x2000 - 0x45) + bytes((POISON,))
        assert (result.kernel_load, result.load_base, result.kernel_end) == (BASE + 0x10, BASE, BASE + 0x3000)
        assert (result.entry_64, result.entry_32) == (BASE + 0x10, None)
        assert result.reserved == ((BASE, 0x3000),)
        assert (result.setup_header, result.cmdline_size, result.initrd_addr_max) == (None, 2047, 0x7FFFFFFF)
        assert not result.is_linux

    def test_zeroes_of_more_than_one_step(self):
        image = kernel()
        image.segments[1].memsz = 0x25001
        ram = memory()
        load(image, ram)
        assert ram.read(BASE + 0x1045, 0x25001 - 0x45 + 1) == bytes(0x25001 - 0x45) + bytes((POISON,))

    def test_nothing_is_zeroed_in_memory_known_to_be_zero(self):
        ram = memory()
        load(kernel(), ram, memory_is_zero=True)
        assert ram.read(BASE + 0x1045, 1)[0] == POISON

    def test_segment_without_bytes_in_the_file_counts_for_the_end(self):
        """The crate skips it."""
        image = kernel()
        image.segments.append(Phdr(paddr=BASE + 0x8000, memsz=0x800))
        ram = memory()
        assert load(image, ram).kernel_end == BASE + 0x8800
        assert ram.read(BASE + 0x8000, 0x800) == bytes(0x800)

    def test_kernel_offset_is_added(self):
        ram = memory()
        result = load(kernel(), ram, 0x200000)
        assert ram.read(BASE + 0x200000, 0x123) == b"\x11" * 0x123
        assert ram.read(BASE, 1)[0] == POISON
        assert (result.kernel_load, result.load_base) == (BASE + 0x200010, BASE + 0x200000)
        assert (result.entry_64, result.kernel_end) == (BASE + 0x200010, BASE + 0x203000)
        assert result.reserved == ((BASE + 0x200000, 0x3000),)

    def test_load_elf_of_the_crate(self):
        """0x200400 with an offset, 0x400 without, and a highmem start of 0xa00000 fails."""
        image = Elf([Phdr(b"code", 0x400)], entry=0x400)
        assert load(image, None, 0x200000, 0).kernel_load == 0x200400
        assert load(image, None, 0x200000).kernel_load == 0x200400
        assert load(image, None, None, 0).kernel_load == 0x400
        refuse(image, errors.InvalidEntryAddress, "entry point 0x400 lies below .* 0xa00000", None, 0xA00000)

    def test_highmem_start_is_compared_with_where_it_goes(self):
        """The crate adds no offset to the entry point, and does not look at the segments."""
        image = Elf([Phdr(b"code", 0x400), Phdr(b"data", 0x300)], entry=0x400)
        assert load(image, None, 0x200000, 0x200300).kernel_load == 0x200400
        refuse(image, errors.InvalidProgramHeaderAddress, "to 0x300, below .* 0x400", None, 0x400)

    def test_overflow_loadaddr(self):
        refuse(kernel(), errors.ElfOverflow, "entry point 0x1000010 plus offset 0xffff", U64 - 1)

    def test_segment_address_passes_64_bits(self):
        image = Elf([Phdr(b"code", U64 - 4)], entry=0)
        refuse(image, errors.InvalidProgramHeaderAddress, "plus offset 0x10, passes 64 bits", 0x10)

    def test_segment_end_passes_64_bits(self):
        refuse(Elf([Phdr(b"code", U64 - 3)], entry=0), errors.MemoryOverflow, "ends past 64 bits")
        image = Elf([Phdr(b"code", BASE, memsz=0x1001)], entry=BASE)
        refuse(image, errors.MemoryOverflow, "ends past 64 bits", U64 - BASE - 0x1000)
        refuse(Elf([Phdr(b"code", U64 - 4)], entry=0), errors.SegmentOutsideRam, "not all RAM")
        refuse(Elf([Phdr(b"code", 0, memsz=U64 - 1)], entry=0), errors.SegmentOutsideRam, "not all RAM")

    def test_outside_ram_writes_nothing(self):
        image = kernel()
        image.segments[1].paddr = 20 * MIB - 0x1FFF
        error = refuse(image, errors.SegmentOutsideRam, "needs 0x13fe001..0x1400001, and that is not all RAM")
        assert isinstance(error, errors.ElfReadKernelImage)
        assert error.hint == "give the machine at least 21 MiB of memory"
        assert (
            refuse(kernel(), errors.SegmentOutsideRam, "RAM", 5 * MIB).hint
            == "give the machine at least 22 MiB of memory"
        )
        image.segments[1].paddr = 20 * MIB - 0x2000
        assert load(image, memory(20 * MIB)).kernel_end == 20 * MIB

    def test_entry_outside_the_image_is_none_for_the_64_bit_protocol(self):
        for entry in (BASE - 1, BASE + 0x123, BASE + 0x3000):
            result = load(kernel(entry=entry))
            assert (result.kernel_load, result.entry_64) == (entry, None)
        for entry in (BASE, BASE + 0x1000, BASE + 0x2FFF):
            assert load(kernel(entry=entry)).entry_64 == entry

    def test_base_is_the_lowest_address_not_the_entry(self):
        assert read(kernel(entry=BASE + 0x1000)).base == BASE


class TestLinux:
    @pytest.mark.parametrize(
        ("notes", "linux"),
        [
            ([], False),
            ([note(b"Linux\0", 0x100, b"6.1.0\0")], True),
            ([guest_os_note(b"linux")], True),
            ([guest_os_note(b"FreeBSD")], False),
            ([note(b"GNU\0", 3, bytes(20))], False),
            ([note(b"GNU\0", 6, b"linux\0")], False),
            ([note(b"Xen\0", 7, b"linux\0")], False),
        ],
    )
    def test_by_notes(self, notes, linux):
        assert read(kernel(*notes)).is_linux is linux
        assert load(kernel(*notes)).is_linux is linux

    def linked_high(self, *notes: bytes) -> Elf:
        image = kernel(*notes)
        for segment in image.segments[:2]:
            segment.vaddr = segment.paddr + 0xFFFFFFFF80000000
        return image

    def test_without_notes_by_its_virtual_addresses(self):
        assert read(self.linked_high()).is_linux
        assert not read(self.linked_high(guest_os_note(b"FreeBSD"))).is_linux

    def test_freebsd_names_an_interpreter(self):
        image = self.linked_high(pvh_note(BASE))
        image.segments.append(Phdr(b"/red/herring\0", kind=PT_INTERP))
        assert not read(image).is_linux

    @pytest.mark.parametrize("moved", [0x1000, -0x1000])
    def test_linked_elsewhere(self, moved):
        image = self.linked_high()
        image.segments[0].vaddr += moved
        assert not read(image).is_linux

    def test_linked_at_no_address_at_all(self):
        """The sum of the physical address and Linux's offset would pass 64 bits."""
        image = Elf([Phdr(b"code", 0x8000_0000, vaddr=0xFFFF_FFFF_0000_0000)], entry=0x8000_0000)
        assert not read(image).is_linux

    def test_the_lowest_segment_says_where_it_is_linked(self):
        """Linux's last, its per-CPU data, was at virtual address 0 for long."""
        image = self.linked_high()
        image.segments[1].vaddr = 0
        assert read(image).is_linux
        image.segments.reverse()
        assert read(image).is_linux

    def test_off_its_boundary(self):
        linux = kernel(guest_os_note(b"linux"))
        assert load(linux, None, 0x400000).load_base == BASE + 0x400000
        refuse(
            linux, errors.MisalignedKernel, "would start at 0x1100000, and off a 0x200000 boundary", 0x100000
        )
        assert load(kernel(), None, 0x100000).load_base == BASE + 0x100000  # others may do as they like


class TestNotes:
    def test_no_note_segment_at_all(self):
        assert load(kernel()).pvh_boot_cap == PVH_ENTRY_IGNORED

    def test_no_pvh_note(self):
        assert load(kernel(note(b"Xen\0", 6, b"x\0"))).pvh_boot_cap == PVH_ENTRY_NOT_PRESENT

    @pytest.mark.parametrize("size", [4, 8, 12])
    def test_present(self, size):
        capability = load(kernel(pvh_note(0x1E1FE1F, size))).pvh_boot_cap
        assert capability == pvh_entry_present(0x1E1FE1F)
        assert hash(capability) == hash(pvh_entry_present(0x1E1FE1F))
        assert repr(capability) == "<PVH entry present at 0x1e1fe1f>"
        assert capability != "present"

    def test_an_entry_point_has_32_bits(self):
        assert load(kernel(pvh_note(0x1_0000_1234, 8))).pvh_boot_cap.entry == 0x1234

    def test_ignored_with_an_offset(self):
        assert load(kernel(pvh_note(BASE)), None, 0x200000).pvh_boot_cap == PVH_ENTRY_IGNORED
        assert load(kernel(pvh_note(BASE)), None, 0).pvh_boot_cap == PVH_ENTRY_IGNORED

    @pytest.mark.parametrize("other", [(b"Xen\0", 17), (b"Xem\0", 18), (b"Xenon\0", 18)])
    def test_only_type_18_of_xen(self, other):
        image = kernel(note(*other, b"\1\2\3\4"), pvh_note(0x1234))
        assert load(image).pvh_boot_cap.entry == 0x1234
        assert load(kernel(note(*other, b"\1\2\3\4"))).pvh_boot_cap.status == "not present"

    @pytest.mark.parametrize("align", [1, 8, 13])
    def test_p_align_is_ignored(self, align):
        image = kernel(note(b"Linux\0", 0x100, b"6.1\0"), pvh_note(0x1234))
        image.segments[-1].align = align
        assert load(image).pvh_boot_cap.entry == 0x1234

    def test_the_first_pvh_note_counts(self):
        """In the crate the last PT_NOTE wins, even one without a PVH note."""
        image = kernel(pvh_note(0x1111), pvh_note(0x2222))
        image.segments.append(Phdr(note(b"GNU\0", 3, bytes(20)), kind=PT_NOTE))
        assert load(image).pvh_boot_cap.entry == 0x1111

    @pytest.mark.parametrize("size", [0, 2, 3])
    def test_bad_elfnote(self, size):
        refuse(
            kernel(note(b"Xen\0", 18, bytes(size))),
            errors.InvalidPvhNote,
            f"at 0x250 has {size} bytes, not 4",
        )

    def test_offset_that_is_no_place_in_a_file(self):
        image = kernel(pvh_note(1))
        image.segments[-1].offset = 2**63
        refuse(image, errors.SeekNoteHeader, "note segment offset 0x8000000000000000")
        image.segments[-1].offset = 2**63 - 1
        refuse(image, errors.ReadNoteHeader, "0x7fffffffffffffff")

    def test_file_ends_inside_the_notes(self):
        refuse(bytes(kernel(pvh_note(1)))[:-1], errors.ReadNoteHeader, "inside the notes of 0x14 bytes")

    def test_read_error(self, monkeypatch):
        real = os.pread

        def broken(fd, size, offset):
            if offset > 0x100:
                raise OSError(errno.EIO, "Input/output error")
            return real(fd, size, offset)

        with as_file(bytes(kernel(pvh_note(1)))) as file:
            monkeypatch.setattr(files.os, "pread", broken)
            with pytest.raises(errors.ReadNoteHeader, match="Input/output error"):
                elf.read_image(file)

    def test_segment_ends_inside_a_header(self):
        refuse(kernel(pvh_note(1), bytes(11)), errors.ReadNoteHeader, "the note at 0x264 runs past the end")

    def test_segment_ends_inside_a_note(self):
        """The crate reads on beyond the segment."""
        image = kernel(note(b"Linux\0", 1, b"6.1\0"))
        image.segments[-1].filesz = len(image.segments[-1].data) - 1
        refuse(image, errors.ReadNoteHeader, "of 0x6 and 0x4 bytes, runs past the end")

    def test_padding_of_the_last_note_may_be_missing(self):
        image = kernel(note(b"Xen\0", 6, b"linux\0"))
        image.segments[-1].filesz = len(image.segments[-1].data) - 2
        assert read(image).notes.guest_os == "linux"

    @pytest.mark.parametrize(
        ("namesz", "descsz"), [(0xFFFFFFFD, 0), (0, 0xFFFFFFFD), (0xFFFFFFFF, 0xFFFFFFFF)]
    )
    def test_sizes_that_overflow(self, namesz, descsz):
        refuse(kernel(struct.pack("<3I", namesz, descsz, 18)), errors.ElfOverflow, "pass 32 bits")

    def test_sizes_that_just_do_not_overflow(self):
        refuse(kernel(struct.pack("<3I", 0xFFFFFFFC, 0, 18)), errors.ReadNoteHeader, "runs past the end")

    def test_as_many_notes_as_no_kernel_has(self):
        few = [bytes(12)] * 1023
        assert load(kernel(*few, pvh_note(0x1234))).pvh_boot_cap.entry == 0x1234
        refuse(kernel(*few, pvh_note(0x1234), bytes(12)), errors.TooManyNotes, "more than 1024 notes")

    def test_endless_notes_of_a_sparse_file_are_given_up(self):
        image = kernel(bytes(12))
        image.segments[-1].filesz = 1 << 40
        with (
            as_file(bytes(image), size=1 << 41) as file,
            pytest.raises(errors.TooManyNotes, match="more than 1024"),
        ):
            elf.read_image(file)
