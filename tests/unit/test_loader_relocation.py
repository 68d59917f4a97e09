"""Relocation: the table after the ELF file, what is changed in memory, and where a kernel may go."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_images import MIB, Elf, Phdr, as_file, kernel, note, pvh_note

from loader import elf, errors, machine_code, relocation
from loader import relocation_errors as wrong
from loader.buffer import BufferMemory
from loader.enums import EM_AARCH64, EM_RISCV, PT_NOTE
from loader.result import PVH_ENTRY_IGNORED, pvh_entry_present

BASE = 0x1000000
LINK = 0x8000_0000 + BASE  # the low half of the virtual address of BASE
SIZE = 0x3000
POISON = 0xA5


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def table(wide=(), inverse=(), narrow=()) -> bytes:
    return words(0, *wide, 0, *inverse, 0, *narrow)


def vmlinux(after: bytes, content: bytes = bytes(SIZE), **changes: object) -> bytes:
    """An ELF kernel of one segment, its section headers (two of 64 bytes), and what follows those."""
    image = Elf([Phdr(content, BASE, vaddr=0xFFFF_FFFF_0000_0000 | LINK, memsz=SIZE)], entry=BASE)
    for name, value in changes.items():
        setattr(image, name, value)
    data = bytearray(bytes(image))
    data[40:48] = struct.pack("<Q", len(data))
    data[58:62] = struct.pack("<2H", 64, 2)
    return bytes(data) + b"\x55" * 128 + after


@pytest.fixture(params=["machine code", "Python"])
def way(request, monkeypatch):
    if request.param == "Python":
        monkeypatch.setattr(machine_code, "routines", lambda: None)
    elif machine_code.routines() is None:
        pytest.skip("no machine code on this host")
    return request.param


def ram() -> BufferMemory:
    return BufferMemory([(BASE - 0x1000, 8 * MIB)], fill=POISON)


def move(data: bytes, memory: BufferMemory | None = None, physical: int | None = None, **options: object):
    memory = memory or ram()
    with as_file(data) as file:
        image = elf.read_image(file)
        result = elf.load(memory, file, physical, image=image)
        return relocation.kaslr(memory, file, image, result, **options), result, memory


class TestTable:
    def read(self, after: bytes, **changes: object):
        with as_file(vmlinux(after, **changes)) as file:
            machine = {EM_AARCH64: "aarch64"}.get(changes.get("machine"), "x86_64")
            return relocation.read_table(file, elf.read_image(file, machine))

    def test_three_lists(self):
        found = self.read(table([LINK, LINK + 8], [LINK + 16], [LINK + 20, LINK + 25, LINK + 30]))
        assert found.sites(64).tolist() == [LINK, LINK + 8]
        assert found.sites(32, -1).tolist() == [LINK + 16]
        assert found.sites(32).tolist() == [LINK + 20, LINK + 25, LINK + 30]
        assert found.count == 6

    def test_two_lists_of_newer_kernels(self):
        found = self.read(words(0, LINK, 0, LINK + 8, LINK + 12))
        assert (found.sites(64).tolist(), found.sites(32).tolist()) == ([LINK], [LINK + 8, LINK + 12])
        assert found.sites(32, -1).tolist() == []

    def test_empty_lists(self):
        assert self.read(table()).count == self.read(words(0, 0)).count == 0

    @pytest.mark.parametrize("after", [b"", b"\0\0\0", b"signature of some kind", words(LINK, 0, 0)])
    def test_none(self, after):
        assert self.read(after) is None

    def test_only_for_x86_64(self):
        assert self.read(table([LINK]), machine=EM_AARCH64) is None

    def test_no_section_headers_say_where_it_would_be(self):
        with as_file(bytes(kernel()) + table([LINK])) as file:
            assert relocation.read_table(file, elf.read_image(file)) is None

    def test_zero_bytes_of_two_words_are_no_zero_word(self):
        found = self.read(table([0x80000000, 0x81000000, 0x00000081], [], [0x81000000]))
        assert [count for *_, count in found.lists] == [3, 0, 1]

    @pytest.mark.parametrize(
        ("after", "match"),
        [
            (words(0), "0x4 bytes at 0x[0-9a-f]+ has 1 zero words, not 2 or 3"),
            (words(0, LINK), "has 1 zero words"),
            (table() + words(0, 1), "has 4 zero words"),
            (bytes(400), "has 4 zero words"),
            (table([LINK]) + b"\1", "must be whole words"),
        ],
    )
    def test_damaged(self, after, match):
        with pytest.raises(wrong.InvalidRelocationTable, match=match):
            self.read(after)

    def test_of_a_size_no_kernel_has(self, monkeypatch):
        monkeypatch.setattr(relocation, "_TABLE_MAX", 12)
        assert self.read(table()).count == 0
        with pytest.raises(wrong.InvalidRelocationTable, match="at most 0xc"):
            self.read(table([LINK]))

    def test_on_a_big_endian_host(self, monkeypatch):
        """The table stays little-endian: pretended by a table of the other order."""
        monkeypatch.setattr(relocation.sys, "byteorder", "big")
        found = self.read(struct.pack(">4I", 0, LINK, 0, 0))
        assert found.sites(64).tolist() == [LINK]

    def test_cut_while_it_is_read(self):
        with as_file(vmlinux(table([LINK] * 4))) as file:
            image = elf.read_image(file)
            os.ftruncate(file.fd, image.end + 8)
            with pytest.raises(errors.FileChanged):
                relocation.read_table(file, image)


class TestApply:
    def test_each_kind_at_unaligned_places(self, way):
        content = bytearray(os.urandom(SIZE))
        struct.pack_into("<Q", content, 3, 0xFFFF_FFFF_8100_1234)
        struct.pack_into("<I", content, 17, 0xFFFF_F000)
        struct.pack_into("<I", content, 33, 0x8123_4567)
        data = vmlinux(table([LINK + 3], [LINK + 17], [LINK + 33]), bytes(content))
        offset, result, memory = move(data, offset=0x1260_0000)
        struct.pack_into("<Q", content, 3, 0xFFFF_FFFF_9360_1234)
        struct.pack_into("<I", content, 17, 0xED9F_F000)
        struct.pack_into("<I", content, 33, 0x9383_4567)
        assert memory.read(BASE, SIZE) == bytes(content)
        assert offset == 0x1260_0000
        assert memory.read(BASE - 0x1000, 0x1000) == bytes((POISON,)) * 0x1000
        assert result.entry_64 == BASE, "the physical address stays"

    def test_numbers_wrap(self, way):
        content = bytes.fromhex("ff" * 8 + "00" * 4 + "ff" * 4).ljust(SIZE, b"\0")
        *_, memory = move(vmlinux(table([LINK], [LINK + 8], [LINK + 12]), content), offset=0x200000)
        expected = words(0x1FFFFF, 0, 0xFFE00000, 0x1FFFFF)
        assert memory.read(BASE, 24) == expected + bytes(8)

    def test_a_carry_reaches_the_high_half_of_64_bits_only(self, way):
        content = words(0xFFFFFFFF, 5, 0xFFFFFFFF, 5).ljust(SIZE, b"\0")
        *_, memory = move(vmlinux(table([LINK], [], [LINK + 8]), content), offset=0x200000)
        assert memory.read(BASE, 16) == words(0x1FFFFF, 6, 0x1FFFFF, 5)

    def test_where_the_image_was_loaded(self, way):
        *_, memory = move(vmlinux(table([LINK + 8])), physical=0x200000, offset=0x400000)
        assert memory.read(BASE + 0x200008, 8) == words(0x400000, 0)
        assert memory.read(BASE + 8, 8) == bytes((POISON,)) * 8

    @pytest.mark.parametrize(
        ("lists", "bytes_named", "place"),
        [
            (([LINK - 1], [], []), 8, LINK - 1),
            (([LINK + SIZE - 7], [], []), 8, LINK + SIZE - 7),
            (([], [LINK + SIZE - 3], []), 4, LINK + SIZE - 3),
            (([], [], [LINK + 4, 1]), 4, 1),
            (([], [], [0xFFFF_FFFF]), 4, 0xFFFF_FFFF),
        ],
    )
    def test_outside_the_image_nothing_is_changed(self, way, lists, bytes_named, place):
        memory = ram()
        wide, inverse, narrow = lists
        data = vmlinux(table([LINK, *wide], inverse, narrow), bytes(SIZE))
        with pytest.raises(
            wrong.RelocationOutsideImage, match=f"names {bytes_named} bytes at .* {place:#x} "
        ):
            move(data, memory, offset=0x200000)
        assert memory.read(BASE, SIZE) == bytes(SIZE)

    def test_the_last_bytes_of_the_image(self, way):
        lists = table([LINK + SIZE - 8], [LINK + SIZE - 12], [LINK + SIZE - 16])
        *_, memory = move(vmlinux(lists), offset=0x200000)
        assert memory.read(BASE + SIZE - 16, 16) == words(0x200000, 0xFFE00000, 0x200000, 0)

    def test_an_image_smaller_than_a_number(self, way):
        image = vmlinux(table([LINK]), b"abcd")
        image = image.replace(struct.pack("<Q", SIZE), struct.pack("<Q", 4), 1)
        with pytest.raises(wrong.RelocationOutsideImage, match="names 8 bytes"):
            move(image, offset=0x200000)

    def test_an_image_in_two_pieces(self):
        image = Elf([Phdr(b"a", BASE), Phdr(b"b", BASE + 2 * MIB)], entry=BASE)
        memory = BufferMemory([(BASE, MIB), (BASE + 2 * MIB, MIB)])
        with as_file(bytes(image)) as file:
            headers = elf.read_image(file)
            result = elf.load(memory, file, image=headers)
            empty = relocation.RelocationTable(relocation.array("I"), [])
            with pytest.raises(wrong.RelocationOutsideImage, match="not one piece of RAM"):
                relocation.apply(memory, empty, headers, result, 0x200000)

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_machine_code_does_what_python_does(self, data):
        sites = st.lists(st.integers(LINK, LINK + SIZE - 8), max_size=20)
        lists = table(data.draw(sites), data.draw(sites), data.draw(sites))
        content = data.draw(st.binary(min_size=64, max_size=64)) * (SIZE // 64)
        offset = data.draw(st.integers(0, 400)) * 0x200000
        *_, first = move(vmlinux(lists, content), offset=offset)
        real, machine_code.routines = machine_code.routines, lambda: None
        try:
            *_, second = move(vmlinux(lists, content), offset=offset)
        finally:
            machine_code.routines = real
        assert first.read(BASE, SIZE) == second.read(BASE, SIZE)


class TestMachineCode:
    def test_not_on_another_processor(self, monkeypatch):
        monkeypatch.setattr(
            machine_code.os, "uname", lambda: os.uname_result(("Linux", "h", "6", "v", "aarch64"))
        )
        assert machine_code.routines() is None

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 only")
    def test_not_where_memory_may_not_become_executable(self, monkeypatch):
        class Call:
            argtypes = ()

            def __call__(self, *arguments):
                return -1

        monkeypatch.setattr(machine_code, "CDLL", lambda name: type("Libc", (), {"mprotect": Call()}))
        assert machine_code.routines() is None

    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 only")
    def test_not_without_memory(self, monkeypatch):
        def full(*arguments):
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(machine_code.mmap, "mmap", full)
        assert machine_code.routines() is None


class TestKaslr:
    def test_offset_is_drawn_from_the_slots(self):
        slots = ((1 << 30) - BASE - SIZE) // 0x200000 + 1
        for number, slot in (
            (0, 0),
            (1, 1),
            (slots - 1, slots - 1),
            (slots, 0),
            (2**64 - 1, (2**64 - 1) % slots),
        ):
            offset, _, memory = move(
                vmlinux(table([LINK])), random=lambda count, number=number: number.to_bytes(count, "little")
            )
            assert offset == slot * 0x200000
            assert memory.read(BASE, 8) == struct.pack("<Q", offset)

    def test_by_default_from_the_system(self):
        offsets = {move(vmlinux(table([LINK])))[0] for _ in range(8)}
        assert len(offsets) > 1
        assert all(offset % 0x200000 == 0 and offset < 1 << 30 for offset in offsets)

    def test_the_room_it_needs_counts(self):
        room = (1 << 30) - BASE - 0x200000
        data = vmlinux(table())
        assert move(data, room=room, offset=0x200000)[0] == 0x200000
        with pytest.raises(
            wrong.InvalidRelocationOffset, match="by 0x200000: multiples of 0x200000 below 0x200000"
        ):
            move(data, room=room + 1, offset=0x200000)
        assert move(data, room=room + 0x200000)[0] == 0
        with pytest.raises(wrong.InvalidRelocationOffset, match="too large"):
            move(data, room=room + 0x200001)

    def test_alignment(self):
        data = vmlinux(table())
        assert move(data, alignment=0x1000000)[0] % 0x1000000 == 0
        for offset in (0x200000, -0x1000000, 1 << 30):
            with pytest.raises(wrong.InvalidRelocationOffset, match=f"by {offset:#x}"):
                move(data, alignment=0x1000000, offset=offset)

    def test_without_a_table(self):
        with pytest.raises(wrong.NoRelocations, match="no relocation table follows") as caught:
            move(vmlinux(b""))
        assert "CONFIG_RANDOMIZE_BASE" in caught.value.hint
        assert isinstance(caught.value, errors.LoaderError)

    def test_pvh_is_taken_back(self):
        data = vmlinux(table())
        memory = ram()
        with as_file(data) as file:
            image = elf.read_image(file)
            result = elf.load(memory, file, image=image)
            result.pvh_boot_cap = pvh_entry_present(BASE)
            relocation.kaslr(memory, file, image, result, offset=0)
        assert result.pvh_boot_cap == PVH_ENTRY_IGNORED

    @pytest.mark.parametrize(
        ("text", "on"),
        [
            ("", True),
            ("console=ttyS0 nokaslr", False),
            ("nokaslr", False),
            ("quiet -- nokaslr", False),
            ("nokaslrx xnokaslr nokaslr=1", True),
        ],
    )
    def test_wanted(self, text, on):
        assert relocation.wanted(text) is on


class TestPhysical:
    """PHYS32_RELOC (note 19): where a PVH kernel may be loaded."""

    def load(self, offset: int | None, *limits: int):
        image = kernel(pvh_note(BASE + 0x850), note(b"Xen\0", 19, words(*limits)))
        memory = BufferMemory([(0, 64 * MIB)])
        with as_file(bytes(image)) as file:
            return elf.load(memory, file, offset).pvh_boot_cap

    def test_entry_moves_with_the_kernel(self):
        assert self.load(None, 0x200000) == pvh_entry_present(BASE + 0x850)
        assert self.load(0x400000, 0x200000) == pvh_entry_present(BASE + 0x400850)
        assert self.load(0) == pvh_entry_present(BASE + 0x850)

    @pytest.mark.parametrize(
        ("limits", "status"),
        [
            ((), "present"),
            ((0x400000,), "present"),
            ((0x800000,), "ignored"),
            ((0x200000, BASE + 0x400000), "present"),
            ((0x200000, BASE + 0x400001), "ignored"),
            ((0x200000, 0, BASE + 0x402FFF), "present"),
            ((0x200000, 0, BASE + 0x402FFE), "ignored"),
            ((0x200000, 0, BASE + 0x402FFF, 7), "present"),
        ],
    )
    def test_limits(self, limits, status):
        assert self.load(0x400000, *limits).status == status

    def test_alignment_by_default(self):
        assert self.load(0x100000).status == "ignored"

    @pytest.mark.parametrize("alignment", [0, 3, 0x300000])
    def test_alignment_that_is_none(self, alignment):
        with pytest.raises(
            errors.InvalidPvhNote, match=f"PHYS32_RELOC note at .* alignment of {alignment:#x}"
        ):
            self.load(None, alignment)


class TestOtherMachines:
    @pytest.mark.parametrize(
        ("number", "machine", "limit"), [(EM_AARCH64, "aarch64", 2047), (EM_RISCV, "riscv64", 1023)]
    )
    def test_loaded_without_pvh(self, number, machine, limit):
        image = kernel(pvh_note(BASE), note(b"Linux\0\0\0", 257, b""), machine=number)
        memory = BufferMemory([(0, 64 * MIB)])
        with as_file(bytes(image)) as file:
            result = elf.load(memory, file, 0x200000, machine=machine)
        assert (result.kernel_load, result.entry_64) == (BASE + 0x200010, BASE + 0x200010)
        assert result.pvh_boot_cap == PVH_ENTRY_IGNORED
        assert result.cmdline_size == limit
        assert result.initrd_addr_max == 2**64 - 1

    @pytest.mark.parametrize(
        ("number", "machine", "good", "bad"),
        [(EM_AARCH64, "aarch64", 0x80000, 0x8000), (EM_RISCV, "riscv64", 0x200000, 0x100000)],
    )
    def test_alignment(self, number, machine, good, bad):
        image = kernel(note(b"Linux\0\0\0", 257, b""), machine=number)
        memory = BufferMemory([(0, 64 * MIB)])
        with as_file(bytes(image)) as file:
            elf.load(memory, file, good, machine=machine)
            with pytest.raises(errors.MisalignedKernel, match=f"would start at {BASE + bad:#x}"):
                elf.load(memory, file, bad, machine=machine)

    def test_checks_are_the_same(self):
        image = kernel(machine=EM_RISCV)
        image.segments[1].paddr = BASE + 0x100
        with as_file(bytes(image)) as file, pytest.raises(errors.SegmentsOverlap):
            elf.read_image(file, "riscv64")
        with as_file(bytes(kernel(machine=EM_RISCV))) as file:
            with pytest.raises(errors.InvalidElfMachine, match="for riscv64"):
                elf.read_image(file, "aarch64")


def test_the_notes_segment_is_where_the_note_stands():
    image = Elf([Phdr(b"code", BASE), Phdr(note(b"Xen\0", 19, words(0x200000)), kind=PT_NOTE)], entry=BASE)
    with as_file(bytes(image)) as file:
        assert elf.read_image(file).notes.pvh_reloc == (0x200000, 0, 0xFFFFFFFF)
