"""Guest RAM that other processes map as well (memfd), and pages given back to the host."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

import pytest

from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.memory import GuestMemory

MIB = 1 << 20
GIB = 1 << 30
PAGE = mmap.PAGESIZE
LOW, HIGH = (0, 4 * MIB), (4 * GIB, 2 * MIB)


def blocks(fd: int) -> int:
    """How many bytes the memfd really holds."""
    return os.fstat(fd).st_blocks * 512


def anonymous_kib(memory: GuestMemory) -> int:
    """Private pages of all regions that exist (smaps: Anonymous)."""
    total = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            inside = any(low < r.host_address + r.size and r.host_address < high for r in memory.regions)
        elif inside and line.startswith("Anonymous:"):
            total += int(line.split()[1])
    return total


def test_another_mapping_of_the_descriptor_sees_the_same_bytes() -> None:
    with GuestMemory([LOW, HIGH], shared=True) as memory:
        for region in memory.regions:
            assert region.fd is not None
            with mmap.mmap(region.fd, region.size, offset=region.fd_offset) as other:
                memory.write(region.start + 0x1234, b"from the guest")
                assert other[0x1234:0x1242] == b"from the guest"
                other[-4:] = b"last"
                assert memory.read(region.end - 4, 4) == b"last"


def test_private_memory_has_no_descriptor() -> None:
    with GuestMemory([LOW]) as memory:
        assert memory.regions[0].fd is None


def test_the_descriptor_cannot_be_cut_short_and_is_not_inherited() -> None:
    with GuestMemory([LOW], shared=True) as memory:
        fd = memory.regions[0].fd
        assert fd is not None
        assert not os.get_inheritable(fd)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, PAGE)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, 1033, 8)  # F_ADD_SEALS, F_SEAL_WRITE


def test_shared_addresses_agree_below_2_mib_and_nothing_is_touched() -> None:
    with GuestMemory([(4 * GIB + 0x3000, 6 * MIB), (16 * GIB, 64 * GIB)], shared=True) as memory:
        assert memory.host_address(4 * GIB + 0x3000) % (2 * MIB) == 0x3000
        assert [blocks(region.fd) for region in memory.regions if region.fd is not None] == [0, 0]


def test_closing_closes_the_descriptors() -> None:
    memory = GuestMemory([LOW, HIGH], shared=True)
    fds = [region.fd for region in memory.regions]
    memory.close()
    for fd in fds:
        assert fd is not None
        with pytest.raises(OSError):
            os.fstat(fd)


def test_poison_and_files_with_shared_memory(tmp_path: Path) -> None:
    """A private file mapping would be invisible to the other process, so the loader is told to read."""
    file = tmp_path / "image"
    file.write_bytes(b"I" * PAGE)
    with GuestMemory([LOW], shared=True, poison=0xA5) as memory, file.open("rb") as source:
        assert not memory.map_file(PAGE, PAGE, source.fileno(), 0)
        assert memory.read(PAGE, PAGE) == b"\xa5" * PAGE


def test_a_host_without_room_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(HostError, match="shared guest RAM: Cannot allocate memory") as caught:
        GuestMemory([LOW], shared=True)
    assert caught.value.hint


# --- giving pages back ----------------------------------------------------------------------------------


def test_discarded_pages_leave_the_memfd() -> None:
    with GuestMemory([LOW], shared=True) as memory:
        fd = memory.regions[0].fd
        assert fd is not None
        memory.fill(0, 4 * MIB, 0x5A)
        full = blocks(fd)
        memory.discard(MIB, 2 * MIB)
        assert full - blocks(fd) == 2 * MIB
        assert memory.read(MIB - 1, 2 * MIB + 2) == b"\x5a" + bytes(2 * MIB) + b"\x5a"


def test_discarded_private_pages_are_given_back() -> None:
    with GuestMemory([LOW]) as memory:
        memory.fill(0, 4 * MIB, 0x5A)
        before = anonymous_kib(memory)
        memory.discard(MIB, 2 * MIB)
        assert before - anonymous_kib(memory) == 2048
        assert memory.read(MIB - 1, 2 * MIB + 2) == b"\x5a" + bytes(2 * MIB) + b"\x5a"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("address", "size", "zero"),
    [
        (PAGE, PAGE, range(PAGE, 2 * PAGE)),
        (PAGE + 1, 2 * PAGE, range(2 * PAGE, 3 * PAGE)),
        (PAGE, 2 * PAGE - 1, range(PAGE, 2 * PAGE)),
        (PAGE + 1, PAGE, range(0)),
        (1, PAGE - 2, range(0)),
        (PAGE, 0, range(0)),
    ],
)
def test_only_whole_pages_are_discarded(shared: bool, address: int, size: int, zero: range) -> None:
    with GuestMemory([(0, 4 * PAGE)], poison=1, shared=shared) as memory:
        memory.discard(address, size)
        assert memory.read(0, 4 * PAGE) == bytes(0 if i in zero else 1 for i in range(4 * PAGE))


@pytest.mark.parametrize("shared", [False, True])
def test_only_ram_can_be_discarded(shared: bool) -> None:
    with GuestMemory([LOW], shared=shared) as memory:
        for address, size in [(4 * MIB - PAGE, 2 * PAGE), (GIB, PAGE), (-PAGE, PAGE), (0, -PAGE)]:
            with pytest.raises(GuestMemoryError):
                memory.discard(address, size)


def test_a_discarded_file_mapping_reads_as_zeroes_too(tmp_path: Path) -> None:
    """Linux with init_on_free counts on it; the file's bytes would come back with MADV_DONTNEED alone."""
    file = tmp_path / "image"
    file.write_bytes(b"I" * 4 * PAGE)
    with GuestMemory([LOW]) as memory, file.open("rb") as source:
        assert memory.map_file(PAGE, 4 * PAGE, source.fileno(), 0)
        memory.discard(0, 2 * PAGE)
        assert memory.read(PAGE, 2 * PAGE) == bytes(PAGE) + b"I" * PAGE
        memory.write(PAGE, b"again")
        assert file.read_bytes() == b"I" * 4 * PAGE
