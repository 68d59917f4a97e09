"""pyvmm inspect on made-up images of every kind: what it says, as data, and where it says a kernel would stand."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct

import pytest
from loader_images import MIB, Elf, Phdr, as_file, bzimage, guest_os_note, kernel, note, pvh_note

from loader.enums import EM_AARCH64, EM_RISCV, ET_REL, PT_INTERP, PT_NOTE
from loader.field_descriptions import SETUP_HEADER
from loader.structs import setup_header
from pyvmm import inspect
from pyvmm.errors import UsageError
from pyvmm.inspect.version import find_version

MEMORY = 512 * MIB
BANNER = b"Linux version 6.9.1 (someone@somewhere) (cc) #1 SMP Tue\n\0"


def report(data: bytes, memory: int = MEMORY, *, size: int | None = None) -> inspect.Report:
    with as_file(data, size=size) as file:
        found = inspect.inspect_open(file, memory)
    json.dumps(found.as_dict())  # whatever it is, it is data
    return found


def fields(found: inspect.Report) -> dict[str, inspect.report.Field]:
    return {field.name: field for field in found.fields}


def kinds(found: inspect.Report) -> dict[str, list[tuple[int, int]]]:
    assert found.placement is not None
    table: dict[str, list[tuple[int, int]]] = {}
    for piece in found.placement.ranges:
        table.setdefault(piece.kind, []).append((piece.start, piece.end))
    return table


def arm64_image(
    text_offset: int = 0, size: int = 9 * MIB, flags: int = 0xA, body: bytes = bytes(5000) + BANNER
) -> bytes:
    numbers = (0x91005A4D, 0x14000000, text_offset, size, flags, 0, 0, 0, 0x644D5241, 0)
    return struct.pack("<2I6Q2I", *numbers) + body


def riscv_image() -> bytes:
    numbers = (0x106F, 0, 2 * MIB, 9 * MIB, 0, 2, 0, 0, 0x5643534952, 0x05435352, 0)
    return struct.pack("<2I3Q2I2Q2I", *numbers) + bytes(5000) + BANNER


class TestBzImage:
    def test_every_field_is_told(self):
        found = report(bzimage())
        told = fields(found)
        assert [name for name, *_ in SETUP_HEADER] == [name for name, *_ in setup_header._fields_]
        for name, *_ in setup_header._fields_:
            assert told[name].offset == 0x1F1 + getattr(setup_header, name).offset
            assert told[name].size == getattr(setup_header, name).size
            assert told[name].meaning
            assert "boot.rst" in told[name].section
        assert told["version"].value == 0x20F
        assert told["version"].decoded == "2.15"
        assert told["loadflags"].bits == ["LOADED_HIGH"]
        assert told["xloadflags"].bits[:2] == ["KERNEL_64", "CAN_BE_LOADED_ABOVE_4G"]
        assert told["kernel_alignment"].decoded == "2 MiB"
        assert told["payload_offset"].decoded == "0xd00 in the file"
        assert told["kernel_info.setup_type_max"].decoded == "RNG_SEED, also indirect"
        assert told["kernel_info.setup_type_max"].offset == 0xA00 + 0x500 + 12
        assert all(field.present for field in found.fields)

    def test_facts(self):
        found = report(bzimage())
        assert (found.format, found.machine, found.is_kernel) == ("bzImage", "x86_64", True)
        assert found.version == "6.1.0-test (someone@somewhere) #1 SMP"
        assert found.protocol == "Linux/x86 boot protocol 2.15"
        assert (found.relocatable, found.warnings, found.hint) == (True, [], "")

    def test_entry_points_follow_the_placement(self):
        entries = {
            entry.name: (entry.address, entry.file_offset)
            for entry in report(bzimage(handover_offset=0x150)).entry_points
        }
        assert entries == {
            "16-bit (setup code)": (None, 0x200),
            "32-bit": (16 * MIB, 0xA00),
            "64-bit": (16 * MIB + 0x200, 0xC00),
            "EFI handover, 32-bit": (16 * MIB + 0x150, 0xB50),
            "EFI handover, 64-bit": (16 * MIB + 0x350, 0xD50),
        }

    def test_placement(self):
        places = kinds(report(bzimage()))
        assert places["kernel"] == [(16 * MIB, 16 * MIB + 2048)]
        assert places["runtime"] == [(16 * MIB, 24 * MIB)]
        assert places["initrd"] == [(24 * MIB, 512 * MIB)]
        assert (0x7000, 0x8000) in places["boot"]

    def test_loaded_low_it_runs_elsewhere(self):
        places = kinds(report(bzimage(relocatable_kernel=0)))
        assert places["kernel"] == [(MIB, MIB + 2048)]
        assert places["runtime"] == [(16 * MIB, 24 * MIB)]

    def test_initrd_stays_below_the_kernels_limit(self):
        places = kinds(report(bzimage(initrd_addr_max=0x7FFFFFFF), 8 << 30))
        assert places["initrd"] == [(24 * MIB, 1 << 31)]

    def test_devices_stand_in_the_hole_below_4_gib(self):
        found = report(bzimage(), 8 << 30)
        devices = kinds(found)["device"]
        assert {(0xD0000000, 0xD0011000), (0xFEC00000, 0xFEC01000)} <= set(devices)  # virtio, the IOAPIC
        assert found.placement is not None
        (_, hole), (end, _) = found.placement.ram
        assert (hole, end) == (0xC0000000, 1 << 32)
        assert all(hole <= start < stop <= end for start, stop in devices)

    def test_too_little_memory(self):
        found = report(bzimage(), 16 * MIB)
        assert found.placement is not None
        assert not found.placement.fits
        assert "0x1800000" in found.placement.problem
        assert "24 MiB" in found.placement.hint
        assert [entry.address for entry in found.entry_points] == [None] * 3

    def test_impossible_memory(self):
        with pytest.raises(UsageError):
            report(bzimage(), 4096)

    def test_an_old_protocol_lacks_fields(self):
        found = report(bzimage(version=0x203, xloadflags=0x7F))
        told = fields(found)
        assert next(name for name, field in told.items() if not field.present) == "kernel_alignment"
        assert told["xloadflags"].decoded == "from protocol 2.12 on"
        assert told["xloadflags"].bits == []
        assert (found.machine, found.relocatable, found.payload) == ("i386", False, None)

    def test_a_short_header_lacks_fields(self):
        told = fields(report(bzimage(jump=b"\xeb\x5e")))  # ends at 0x260, before init_size
        assert told["pref_address"].present
        assert (told["init_size"].present, told["init_size"].decoded) == (False, "not in this header")

    @pytest.mark.parametrize("size", [0x212, 0x240, 0x26C, 1500, 0xA00, 0xA80])
    def test_truncated(self, size):
        found = report(bzimage()[:size])
        assert found.format == "bzImage"
        assert len(found.warnings) == 1
        assert found.warnings[0].startswith("cannot be booted: ends at") or "announces" in found.warnings[0]
        assert found.placement is None
        told = fields(found)
        assert told["loadflags"].value == 1
        assert all(field.offset + field.size <= size for field in found.fields)

    def test_zimage(self):
        found = report(bzimage(loadflags=0))
        assert found.format == "zImage"
        assert "loaded low" in found.warnings[0]

    @pytest.mark.parametrize(
        ("name", "pack", "appended"),
        [
            ("gzip", gzip.compress, False),
            ("xz", lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32), True),
            ("bzip2", bz2.compress, True),
            ("lzma", lambda data: lzma.compress(data, lzma.FORMAT_ALONE), True),
        ],
    )
    def test_payload(self, name, pack, appended):
        inner = bytes(kernel(note(b"Linux\0", 0x100, b"6.1\0"), pvh_note(0x1000850))) + BANNER
        packed = pack(inner) + (struct.pack("<I", len(inner)) if appended else b"")
        code = bytes(0x300) + packed
        image = bzimage(code=code.ljust(0x1000, b"\0"), payload_length=len(packed), kernel_info=False)
        found = report(image)
        assert found.payload is not None
        assert (found.payload.offset, found.payload.length) == (0xD00, len(packed))
        assert (found.payload.compression, found.payload.unpacked_size) == (name, len(inner))
        assert (found.payload.problem, found.warnings) == ("", [])
        assert found.content is not None
        assert found.payload.content == found.content.description == "a Linux kernel (ELF vmlinux) for x86_64"
        assert [e.address for e in found.content.entry_points] == [0x1000010, 0x1000850]
        assert found.kaslr == "no: no relocation table follows the ELF file"

    def test_damaged_payload(self):
        packed = bytearray(gzip.compress(bytes(range(256)) * 999, mtime=0))
        packed[200] ^= 0xFF
        code = (bytes(0x300) + packed).ljust(0x3000, b"\0")
        found = report(bzimage(code=code, payload_length=len(packed)))
        assert found.payload is not None
        assert "damaged" in found.payload.problem
        assert found.version


class TestElf:
    def test_linux(self):
        xen = [guest_os_note(b"linux"), note(b"Xen\0", 19, struct.pack("<3I", 2 * MIB, 0, 1 << 30))]
        gnu = note(b"GNU\0", 3, bytes.fromhex("00112233445566778899"))
        found = report(bytes(kernel(gnu, *xen, pvh_note(0x1000850))) + bytes(2 * MIB) + BANNER)
        assert found.description == "a Linux kernel (ELF vmlinux) for x86_64"
        assert (found.is_kernel, found.hint, found.warnings) == (True, "", [])
        assert found.version == "6.9.1 (someone@somewhere) (cc) #1 SMP Tue"
        assert [(n.owner, n.name, n.value) for n in found.notes] == [
            ("GNU", "BUILD_ID", "00112233445566778899"),
            ("Xen", "GUEST_OS", "linux"),
            ("Xen", "PHYS32_RELOC", "alignment 0x200000, from 0x0 to 0x40000000"),
            ("Xen", "PHYS32_ENTRY", "0x1000850"),
        ]
        assert [(e.name, e.address, e.virtual) for e in found.entry_points] == [
            ("64-bit", 0x1000010, False),
            ("PVH (32-bit)", 0x1000850, False),
        ]
        assert (found.relocatable, found.kaslr[:3]) == (True, "no:")

    def test_segments_and_placement(self):
        found = report(bytes(kernel(pvh_note(0x1000000))))
        assert [(s.type, s.flags, s.file_size, s.memory_size) for s in found.segments] == [
            ("LOAD", "RWX", 0x123, 0x123),
            ("LOAD", "RWX", 0x45, 0x2000),
            ("NOTE", "RWX", 20, 20),
        ]
        places = kinds(found)
        assert places["kernel"] == [(0x1000000, 0x1000123), (0x1001000, 0x1001045)]
        assert places["runtime"] == [(0x1001045, 0x1003000)]
        assert places["initrd"] == [(0x1003000, 512 * MIB)]
        assert found.description == "a kernel (ELF) for x86_64 with a PVH entry point"

    def test_initrd_limit_of_pvh_is_4_gib(self):
        assert kinds(report(bytes(kernel(pvh_note(0x1000000))), 8 << 30))["initrd"][0][1] == 0xC0000000
        linux = kernel(note(b"Linux\0", 0x100, b"x"), pvh_note(0x1000000))
        assert kinds(report(bytes(linux), 8 << 30))["initrd"][0][1] == 1 << 31

    def test_too_little_memory(self):
        found = report(bytes(kernel()), 8 * MIB)
        assert found.placement is not None
        assert not found.placement.fits
        assert "17 MiB" in found.placement.hint

    def test_relocation_table(self):
        image = kernel(note(b"Linux\0", 0x100, b"x"))
        data = bytearray(bytes(image))
        data[0x28:0x30] = len(data).to_bytes(8, "little")  # e_shoff
        data[0x3A:0x3E] = struct.pack("<2H", 64, 2)
        table = struct.pack("<6I", 0, 0x81000000, 0x81000010, 0, 0, 0x81000020)
        found = report(bytes(data) + bytes(128) + table)
        assert found.relocatable
        assert (
            found.kaslr
            == f"yes: a relocation table of 3 entries follows the ELF file, at {len(data) + 128:#x}"
        )
        assert not report(bytes(data) + bytes(128)).relocatable

    @pytest.mark.parametrize(("machine", "name"), [(EM_AARCH64, "aarch64"), (EM_RISCV, "riscv64")])
    def test_other_machines(self, machine, name):
        found = report(bytes(kernel(machine=machine)))
        assert (found.machine, found.is_kernel, found.warnings) == (name, True, [])
        assert found.placement is not None
        assert (found.placement.machine, found.placement.relative, found.placement.fits) == (name, True, True)
        assert kinds(found)["kernel"] == [(0, 0x123), (0x1000, 0x1045)]

    def test_big_endian_32_bit(self):
        ident = b"\x7fELF" + bytes((1, 2, 1)) + bytes(9)
        header = struct.pack(">16s2H5I6H", ident, 2, 20, 1, 0x4000, 52, 0, 7, 52, 32, 2, 0, 0, 0)
        load = struct.pack(">8I", 1, 116, 0x4000, 0x4000, 24, 0x100, 5, 8)
        notes = struct.pack(">8I", 4, 116, 0, 0, 24, 24, 4, 4)
        gnu = struct.pack(">3I", 4, 8, 3) + b"GNU\0" + bytes(range(8))
        found = report(header + load + notes + gnu)
        assert found.description == "a big-endian ELF file for machine 20"
        assert [(s.type, s.flags, s.physical_address, s.memory_size) for s in found.segments] == [
            ("LOAD", "RX", 0x4000, 0x100),
            ("NOTE", "R", 0, 24),
        ]
        assert found.notes[0].value == "0001020304050607"
        assert (fields(found)["e_entry"].value, fields(found)["e_entry"].size) == (0x4000, 4)

    def test_32_bit_x86_is_not_what_the_loader_takes(self):
        header = struct.pack("<16s2H5I6H", b"\x7fELF\1\1\1", 2, 3, 1, 0x100000, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        found = report(header + struct.pack("<8I", 1, 84, 0x100000, 0x100000, 4, 4, 5, 4) + b"code")
        assert (found.machine, found.entry_points[0].name) == ("i386", "32-bit")
        assert "not a 64-bit ELF file" in found.warnings[0]
        assert found.placement is None

    def test_program(self):
        found = report(bytes(kernel(note(b"GNU\0", 1, struct.pack("<4I", 0, 3, 2, 0)))))
        assert found.description == "a program for userspace (ELF) for x86_64"
        assert (found.is_kernel, found.placement, found.notes[0].value) == (False, None, "Linux 3.2.0")
        assert found.hint

    def test_interpreter_makes_a_program(self):
        segments = [Phdr(b"x", 0x1000), Phdr(b"/lib/ld.so\0", kind=PT_INTERP)]
        assert not report(bytes(Elf(segments, entry=0x1000))).is_kernel

    def test_object_file(self):
        found = report(bytes(kernel(kind=ET_REL)))
        assert found.description == "an ELF object file or kernel module for x86_64"
        assert (found.is_kernel, found.placement) == (False, None)

    def test_truncated(self):
        image = bytes(kernel(pvh_note(0x1000000)))
        for size in range(4, len(image)):
            found = report(image[:size])
            assert found.format == "ELF"
            assert found.warnings or "damaged" in found.description or not found.segments, size
        assert "program headers" in report(image[:100]).warnings[0]

    def test_what_the_loader_refuses_is_a_warning(self):
        image = kernel()
        image.segments[1].memsz = 1
        found = report(bytes(image))
        assert "only 0x1 in memory" in found.warnings[0]
        assert found.placement is None

    def test_many_headers_and_notes_are_cut(self):
        image = kernel(*[note(b"Linux\0", n, b"") for n in range(1000)])
        found = report(bytes(image))
        assert len(found.notes) == 256
        assert "more than 256 notes" in "".join(found.warnings)
        found = report(bytes(kernel(phnum=0xFFFF)), size=64 * MIB)
        assert len(found.segments) == 256

    def test_note_overrun(self):
        segments = [Phdr(b"x", 0x1000000), Phdr(struct.pack("<3I", 4, 99, 1) + b"ABC\0", kind=PT_NOTE)]
        assert "runs past" in report(bytes(Elf(segments, entry=0x1000000))).warnings[0]


class TestImage:
    def test_arm64(self):
        found = report(arm64_image())
        assert (found.format, found.machine, found.is_kernel) == ("arm64 Image", "aarch64", True)
        assert fields(found)["flags"].bits == ["little-endian", "4 KiB pages", "anywhere in memory"]
        assert fields(found)["magic"].decoded == "ARMd"
        assert found.version.startswith("6.9.1")
        places = kinds(found)
        assert places["kernel"] == [(0, found.size)]
        assert places["runtime"] == [(0, 9 * MIB)]
        assert places["initrd"] == [(9 * MIB, 512 * MIB)]

    def test_arm64_before_3_17(self):
        found = report(arm64_image(text_offset=0, size=0))
        assert kinds(found)["kernel"] == [(0x80000, 0x80000 + found.size)]
        assert found.entry_points[0].address == 0x80000

    def test_riscv64(self):
        found = report(riscv_image())
        assert (found.format, found.protocol) == ("riscv64 Image", "riscv Image header 0.2")
        assert fields(found)["magic2"].decoded == "RSC\\x05"
        assert kinds(found)["runtime"] == [(2 * MIB, 11 * MIB)]

    def test_too_little_memory(self):
        found = report(arm64_image(), 8 * MIB)
        assert found.placement is not None
        assert (found.placement.fits, found.entry_points[0].address) == (False, None)
        assert "9 MiB" in found.placement.hint

    def test_sizes_past_64_bits(self):
        assert "64 bits" in report(arm64_image(text_offset=2**64 - 1)).warnings[0]

    def test_compressed(self):
        found = report(gzip.compress(arm64_image()))
        assert found.description.startswith("a gzip-compressed file with an Image for aarch64 in it")
        assert (found.machine, found.is_kernel, found.hint) == ("aarch64", True, "")
        assert found.version.startswith("6.9.1")
        assert found.content is not None
        assert found.content.placement is not None

    def test_zboot(self):
        packed = gzip.compress(arm64_image())
        head = b"MZ\0\0zimg" + struct.pack("<2I", 64, len(packed)) + bytes(8) + b"gzip".ljust(32, b"\0")
        found = report(head + struct.pack("<2I", 0x818223CD, 0) + packed)
        assert (found.format, found.is_kernel) == ("EFI zboot", True)
        assert fields(found)["comp_type"].value == "gzip"
        assert found.version.startswith("6.9.1")
        assert found.payload is not None
        assert (found.payload.offset, found.payload.length) == (64, len(packed))
        cut = report((head + struct.pack("<2I", 0x818223CD, 0) + packed)[:-10])
        assert "its payload at" in cut.warnings[0]


class TestOthers:
    def test_compressed_but_no_kernel(self):
        found = report(gzip.compress(b"text\n" * 1_000_000))
        assert found.description == "a gzip-compressed file with a text file in it"
        assert (found.is_kernel, found.content) == (False, None)

    def test_truncated_compressed_kernel_shows_what_there_is(self):
        packed = gzip.compress(arm64_image(body=bytes(range(256)) * 9000), 0)
        found = report(packed[:-1000])
        assert found.machine == "aarch64"
        assert found.payload is not None
        assert "ends at" in found.payload.problem

    def test_cpio(self):
        def entry(name: bytes, data: bytes = b"") -> bytes:
            numbers = [0, 0o100755, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
            head = b"070701" + b"".join(b"%08x" % n for n in numbers) + name + b"\0"
            return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)

        archive = entry(b"bin") + entry(b"init", b"#!/bin/sh\n") + entry(b"etc")
        whole = archive + entry(b"TRAILER!!!")
        assert report(whole).description == "a newc cpio archive (initramfs): 3 entries, with init"
        assert report(whole).warnings == []
        assert "has not ended" in report(archive).warnings[0]
        follows = report(whole + bytes(100) + gzip.compress(b"x" * 1000)).warnings[0]
        assert "gzip-compressed file follows" in follows

    @pytest.mark.parametrize("number", [b"0000000g", b"-0000001", b"0x000001"])
    def test_damaged_cpio(self, number):
        head = b"070701" + b"0" * 48 + number + b"0" * 32 + b"00000005" + b"0" * 8 + b"init\0"
        assert report(head).warnings == ["the cpio header at 0x0 is damaged"]

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"#!/bin/sh\n", "a script"),
            (b"hello\n", "a text file"),
            (bytes(9000), "a file of zeroes"),
            (b"\x80\x01" * 50, "a file of unknown content"),
            (b"QFI\xfb" + bytes(100), "a qcow2 disk image"),
        ],
    )
    def test_no_kernels(self, data, words):
        found = report(data)
        assert (found.description, found.is_kernel, found.placement) == (words, False, None)
        assert found.hint


class TestVersion:
    @pytest.mark.parametrize("offset", [0, 100, MIB - 20, MIB - 1, MIB, 5 * MIB + 3])
    def test_found_anywhere(self, offset):
        with as_file(bytes(offset) + BANNER + bytes(1000)) as file:
            assert find_version(file) == "6.9.1 (someone@somewhere) (cc) #1 SMP Tue"

    def test_the_complete_banner_counts(self):
        with as_file(b"Linux version 6.9.1 (x) # SMP\0Linux version %s\0" + BANNER) as file:
            assert find_version(file).endswith("#1 SMP Tue")
        with as_file(b"Linux version 6.9.1 (x) # SMP\0") as file:
            assert find_version(file) == "6.9.1 (x) # SMP"

    def test_absent(self):
        with as_file(b"Linux version of something") as file:
            assert find_version(file) == ""

    def test_long_text_is_cut(self):
        with as_file(b"Linux version 6" + b"x" * 100_000) as file:
            assert len(find_version(file)) == 512
