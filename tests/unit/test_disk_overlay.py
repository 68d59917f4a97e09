"""Copy-on-write overlays, against a model: reads, writes, discards, zeroes, flushes, reopening, and crashes."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from pyvmm.devices.virtio import disk_io
from pyvmm.devices.virtio.disk_file import DiskFile
from pyvmm.devices.virtio.disk_overlay import DATA, ZERO, cluster_shift
from pyvmm.devices.virtio.disk_overlay_file import kept_overlay, temporary_overlay
from pyvmm.errors import HostError, UsageError

SECTOR = 512


def kept(base, overlay, **more):
    return kept_overlay(str(overlay), DiskFile(str(base), read_only=True), print, **more)


def read(disk, offset, size, pieces=3):
    buffer = memoryview(bytearray(size))
    step = max(1, size // pieces)
    disk.read([buffer[at : at + step] for at in range(0, size, step)], offset, size)
    return bytes(buffer)


def write(disk, offset, data):
    buffer = memoryview(bytearray(data))
    cut = len(data) // 3 or 1
    disk.write([piece for piece in (buffer[:cut], buffer[cut:]) if len(piece)], offset, len(data))


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.img"
    path.write_bytes(os.urandom(100 << 10))
    return path


class Overlay(RuleBasedStateMachine):
    """A kept overlay does what a plain array of bytes does; what a crash loses is what came after the last flush.

    A crash is a copy of the file with the map in memory thrown away.  Sectors written since the last flush may then
    read as either value, and once read, stay as they are.
    """

    SIZE = 41 * 1024 + SECTOR  # not a whole number of clusters

    @initialize()
    def start(self):
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.base = os.path.join(self.folder.name, "base")
        self.path = os.path.join(self.folder.name, "overlay")
        self.original = os.urandom(self.SIZE)
        with open(self.base, "wb") as file:
            file.write(self.original)
        self.model = bytearray(self.original)
        self.uncertain: dict[int, set[bytes]] = {}
        self.disk = kept(self.base, self.path)

    sectors = st.integers(0, SIZE // SECTOR - 1)
    counts = st.integers(1, 40)

    def span(self, sector, count):
        offset = sector * SECTOR
        return offset, min(count * SECTOR, self.SIZE - offset)

    def change(self, offset, data):
        for at in range(offset, offset + len(data), SECTOR):
            old = bytes(self.model[at : at + SECTOR])
            self.uncertain.setdefault(at, {old}).add(data[at - offset : at - offset + SECTOR])
        self.model[offset : offset + len(data)] = data

    @rule(sector=sectors, count=counts)
    def write(self, sector, count):
        offset, size = self.span(sector, count)
        data = os.urandom(size)
        write(self.disk, offset, data)
        self.change(offset, data)

    @rule(sector=sectors, count=counts)
    def read(self, sector, count):
        offset, size = self.span(sector, count)
        assert read(self.disk, offset, size) == self.model[offset : offset + size]

    @rule(sector=sectors, count=counts, unmap=st.booleans())
    def zero(self, sector, count, unmap):
        offset, size = self.span(sector, count)
        self.disk.write_zeroes(offset, size, unmap)
        self.change(offset, bytes(size))

    @rule(sector=sectors, count=counts)
    def discard(self, sector, count):
        """Whole clusters are zeroes, parts of them are as before."""
        offset, size = self.span(sector, count)
        self.disk.discard(offset, size)
        grain = self.disk.granularity
        start = -(-offset // grain) * grain
        end = offset + size if offset + size == self.SIZE else (offset + size) // grain * grain
        if start < end:
            self.change(start, bytes(end - start))

    @rule()
    def flush(self):
        self.disk.flush()
        self.uncertain.clear()

    @rule()
    def reopen(self):
        self.disk.close()
        self.uncertain.clear()
        self.disk = kept(self.base, self.path)

    @rule()
    def crash(self):
        """As when pyvmm is killed: the map in memory is gone."""
        os.close(self.disk._fd)  # the descriptor, without the flush of close()
        os.close(self.disk._base._fd)
        self.disk = kept(self.base, self.path)
        found = read(self.disk, 0, self.SIZE)
        for at in range(0, self.SIZE, SECTOR):
            sector = found[at : at + SECTOR]
            if at in self.uncertain:
                assert sector in self.uncertain[at], f"sector {at // SECTOR} is neither old nor new"
            else:
                assert sector == self.model[at : at + SECTOR], (
                    f"sector {at // SECTOR} was flushed and is lost"
                )
        self.model[:] = found
        # What was read is what stays, until it is written again.
        self.uncertain = {at: {found[at : at + SECTOR]} for at in self.uncertain}

    @precondition(lambda self: hasattr(self, "disk"))
    @rule()
    def base_is_untouched(self):
        with open(self.base, "rb") as file:
            assert file.read() == self.original

    def teardown(self):
        if hasattr(self, "disk"):
            assert read(self.disk, 0, self.SIZE) == self.model
            self.base_is_untouched()
            self.disk.close()
            self.folder.cleanup()


Overlay.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestOverlay = Overlay.TestCase


def test_temporary_overlay_leaves_nothing(base, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = base.read_bytes()
    file = DiskFile(str(base), read_only=True)
    disk = temporary_overlay(file)
    write(disk, 512, b"new" * 512)
    disk.flush()
    assert read(disk, 0, 4096) == before[:512] + b"new" * 512 + before[2048:4096]
    assert os.listdir(tmp_path) == ["base.img"]
    disk.close()
    disk.close()
    assert base.read_bytes() == before
    assert os.listdir(tmp_path) == ["base.img"]


def test_temporary_overlay_without_o_tmpfile(base, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    real = os.open

    def refuse(path, flags, *more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    disk = temporary_overlay(DiskFile(str(base), read_only=True))
    assert str(tmp_path) in os.readlink(f"/proc/self/fd/{disk._fd}")
    assert os.listdir(tmp_path) == ["base.img"]
    write(disk, 0, b"x" * 512)
    assert read(disk, 0, 512) == b"x" * 512
    disk.close()


def test_what_a_crash_cut_off_does_not_come_back(base, tmp_path):
    """A write into zeroes that was lost with the map stays lost, though its data are in the file."""
    disk = kept(base, tmp_path / "overlay")
    disk.discard(0, 8192)
    disk.flush()
    write(disk, 512, b"lost" * 128)
    write(disk, 4096 + 2048, b"lost" * 128)
    os.close(disk._fd)  # killed
    disk = kept(base, tmp_path / "overlay")
    assert read(disk, 0, 8192) == bytes(8192)
    write(disk, 0, b"x" * 512)
    write(disk, 8192 - 512, b"x" * 512)
    assert read(disk, 0, 8192) == b"x" * 512 + bytes(8192 - 1024) + b"x" * 512
    disk.close()


def test_data_are_on_the_storage_before_the_map_that_speaks_of_them(base, tmp_path, monkeypatch):
    disk = kept(base, tmp_path / "overlay")
    events = []
    for name in ("fdatasync", "pwritev"):
        real = getattr(os, name)

        def traced(fd, *more, name=name, real=real):
            events.append((name, more[-1] if more else None))
            return real(fd, *more)

        monkeypatch.setattr(os, name, traced)
    write(disk, 0, b"x" * 4096)
    data = events[0][1]
    assert [name for name, _ in events] == ["pwritev"] and data >= 8192, "the map waits for the flush"
    disk.flush()
    assert events[1:] == [("fdatasync", None), ("pwritev", 4096), ("fdatasync", None)]
    del events[:]
    write(disk, 0, b"y" * 4096)
    disk.flush()
    assert events == [("pwritev", data), ("fdatasync", None)], "the map has not changed"
    disk.close()


def test_after_a_failed_flush_the_map_stays_as_it_was(base, tmp_path, monkeypatch):
    disk = kept(base, tmp_path / "overlay")
    write(disk, 0, b"x" * 4096)

    def fail(_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError):
            disk.flush()
    with pytest.raises(OSError):
        disk.flush()
    disk.close()
    again = kept(base, tmp_path / "overlay")
    assert read(again, 0, 4096) == base.read_bytes()[:4096]
    again.close()


def test_discarded_clusters_give_their_room_back(base, tmp_path):
    disk = kept(base, tmp_path / "overlay")
    write(disk, 0, os.urandom(64 << 10))
    disk.flush()
    full = os.stat(tmp_path / "overlay").st_blocks
    disk.discard(0, 64 << 10)
    disk.flush()
    assert os.stat(tmp_path / "overlay").st_blocks <= full - (60 << 10) // 512
    disk.close()
    again = kept(base, tmp_path / "overlay")
    assert read(again, 0, 64 << 10) == bytes(64 << 10)
    again.close()


def test_a_discard_where_holes_cannot_be_made(base, tmp_path, monkeypatch):
    disk = kept(base, tmp_path / "overlay")
    write(disk, 0, os.urandom(16 << 10))
    disk.flush()
    monkeypatch.setattr(disk_io, "_fallocate", lambda *_: False)
    disk.discard(0, 16 << 10)
    write(disk, 1024, b"x" * 512)
    assert read(disk, 0, 4096) == bytes(1024) + b"x" * 512 + bytes(2560)
    disk.close()


def test_the_base_may_not_have_changed(base, tmp_path):
    kept(base, tmp_path / "overlay").close()
    os.utime(base, ns=(0, 12345))
    with pytest.raises(UsageError, match="has been written to since") as caught:
        kept(base, tmp_path / "overlay")
    assert "rm " in caught.value.hint
    with open(base, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(UsageError, match=r"102400 bytes.* has 102912"):
        kept(base, tmp_path / "overlay")


def test_overlay_is_locked(base, tmp_path):
    disk = kept(base, tmp_path / "overlay")
    with pytest.raises(HostError, match="in use"):
        kept(base, tmp_path / "overlay")
    disk.close()


def test_an_overlay_cut_short_while_it_was_made_is_made_again(base, tmp_path):
    path = tmp_path / "overlay"
    path.touch()  # created, and no further
    kept(base, path).close()
    whole = path.stat().st_size
    os.truncate(path, 4096)  # the header, and no further
    disk = kept(base, path)
    assert path.stat().st_size == whole
    assert read(disk, 0, 100 << 10) == base.read_bytes()
    disk.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"QFI\xfb" + bytes(100_000)), "is not an overlay"),
        (lambda path: path.write_bytes(b"short"), "is not an overlay"),
        (lambda path: patch(path, 8, struct.pack("<I", 9)), "version 9"),
        (lambda path: patch(path, 12, struct.pack("<I", 99)), "damaged"),
        (lambda path: patch(path, 12, struct.pack("<I", 0)), "damaged"),
        (lambda path: patch(path, 32, struct.pack("<Q", 0)), "damaged"),
        (lambda path: patch(path, 40, struct.pack("<Q", 4096)), "damaged"),
        (lambda path: patch(path, 40, struct.pack("<Q", 1 << 62)), "damaged"),
        (lambda path: patch(path, 4096, bytes([ZERO + 1])), "map makes no sense"),
        (lambda path: os.truncate(path, 50_000), "damaged: it has 50000 bytes"),
    ],
)
def test_a_damaged_overlay_is_refused_and_left_alone(base, tmp_path, damage, words):
    path = tmp_path / "overlay"
    disk = kept(base, path)
    write(disk, 0, b"x" * 8192)
    disk.close()
    damage(path)
    content = path.read_bytes()
    with pytest.raises(UsageError, match=words):
        kept(base, path)
    assert path.read_bytes() == content


def patch(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_the_map_in_the_file(base, tmp_path):
    """The format that the module describes."""
    path = tmp_path / "overlay"
    disk = kept(base, path)
    write(disk, 4096, b"x" * 100 * 512)
    disk.discard(80 << 10, 20 << 10)
    disk.close()
    content = path.read_bytes()
    magic, version, shift, length, mtime, at, data, name = struct.unpack_from("<8sIIQqQQH", content)
    assert (magic, version, shift, length, at) == (b"PYVMMOVL", 1, 12, 100 << 10, 4096)
    assert mtime == base.stat().st_mtime_ns
    assert content[50 : 50 + name] == os.fsencode(base)
    assert content[at : at + 25] == bytes([0] + [DATA] * 13 + [0] * 6 + [ZERO] * 5)
    assert content[data + 4096 : data + 4096 + 51200] == b"x" * 51200
    assert (
        content[data + 4096 + 51200 : data + 4096 + 13 * 4096] == base.read_bytes()[4096 + 51200 : 14 * 4096]
    )


def test_clusters_grow_with_the_disk():
    assert cluster_shift(1 << 20) == cluster_shift(64 << 30) == 12
    assert cluster_shift((64 << 30) + 512) == 13
    assert cluster_shift(1 << 40) == 16
