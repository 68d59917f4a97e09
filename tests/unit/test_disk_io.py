"""Whole transfers however short the kernel's are, holes, and zeroes."""

from __future__ import annotations

import errno
import os

import pytest

from pyvmm.devices.virtio import disk_io
from pyvmm.devices.virtio.disk_file import DiskFile
from pyvmm.devices.virtio.disk_raw import RawDisk


@pytest.fixture
def file(tmp_path):
    with open(tmp_path / "file", "wb+", buffering=0) as opened:
        opened.truncate(1 << 20)
        yield opened.fileno()


def views(*sizes):
    return [memoryview(bytearray(size)) for size in sizes]


def fill(pieces):
    for piece in pieces:
        piece[:] = os.urandom(len(piece))
    return b"".join(pieces)


def shorten(monkeypatch, name, most):
    """Let preadv or pwritev do ``most`` bytes at a time, as the kernel may."""
    real = getattr(os, name)

    def short(fd, buffers, offset):
        left, given = most, []
        for buffer in buffers:
            given.append(buffer[:left])
            left -= len(given[-1])
            if not left:
                break
        return real(fd, given, offset)

    monkeypatch.setattr(os, name, short)


@pytest.mark.parametrize("most", [1, 7, 512, 1000, 4096])
def test_short_transfers_are_continued(file, monkeypatch, most):
    source, target = views(512, 1024, 1, 2559), views(4000, 96)
    content = fill(source)
    shorten(monkeypatch, "pwritev", most)
    shorten(monkeypatch, "preadv", most)
    disk_io.write_all(file, source, 512, 4096)
    disk_io.read_all(file, target, 512, 4096)
    assert b"".join(target) == content == os.pread(file, 4096, 512)


def test_more_pieces_than_the_kernel_takes(file):
    source, target = views(*[16] * 3000), views(*[8] * 6000)
    content = fill(source)
    disk_io.write_all(file, source, 100, 48000)
    disk_io.read_all(file, target, 100, 48000)
    assert b"".join(target) == content


def test_a_file_that_became_shorter_is_an_error(file):
    os.ftruncate(file, 1000)
    target = views(512, 1024)
    with pytest.raises(OSError) as caught:
        disk_io.read_all(file, target, 0, 1536)
    assert caught.value.errno == errno.EIO


def test_part_of_views():
    pieces = views(3, 1, 4)
    content = fill(pieces)
    for start in range(8):
        for size in range(1, 9 - start):
            assert b"".join(disk_io.part(pieces, start, size)) == content[start : start + size]


def test_a_hole_gives_room_back(file):
    os.pwrite(file, b"x" * (64 << 10), 0)
    os.fsync(file)
    before = os.fstat(file).st_blocks
    assert disk_io.punch_hole(file, 4096, 32 << 10)
    assert os.pread(file, 64 << 10, 0) == b"x" * 4096 + bytes(32 << 10) + b"x" * (28 << 10)
    assert os.fstat(file).st_blocks < before


@pytest.mark.parametrize("supported", [True, False])
def test_zeroes_keep_the_room(file, monkeypatch, supported):
    if not supported:
        monkeypatch.setattr(disk_io, "_fallocate", lambda *_: False)
    os.pwrite(file, b"x" * (1 << 20), 0)
    os.fsync(file)
    before = os.fstat(file).st_blocks
    disk_io.write_zeroes(file, 512, 600 << 10)
    assert os.pread(file, 1 << 20, 0) == b"x" * 512 + bytes(600 << 10) + b"x" * ((424 << 10) - 512)
    assert os.fstat(file).st_blocks >= before
    assert os.fstat(file).st_size == 1 << 20


def test_fallocate_fails_as_an_oserror(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096)
    with open(path, "rb") as opened, pytest.raises(OSError) as caught:
        disk_io.punch_hole(opened.fileno(), 0, 4096)
    assert caught.value.errno == errno.EBADF


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * (64 << 10))
    disk = RawDisk(DiskFile(str(path), read_only=False))
    yield disk, path
    disk.close()


def test_after_a_flush_that_failed_none_succeeds(raw, monkeypatch):
    """Linux forgets what it could not write once it has said so: a second fsync tells nothing."""
    disk, _ = raw

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError):
            disk.flush()
    with pytest.raises(OSError):
        disk.flush()


def test_raw_disk_discards_and_zeroes(raw):
    disk, path = raw
    disk.discard(4096, 8192)
    disk.write_zeroes(16384, 512, unmap=True)
    disk.write_zeroes(17408, 1024, unmap=False)
    content = bytearray(b"x" * (64 << 10))
    content[4096 : 4096 + 8192] = bytes(8192)
    content[16384 : 16384 + 512] = bytes(512)
    content[17408 : 17408 + 1024] = bytes(1024)
    assert path.read_bytes() == content


def test_without_holes_a_discard_changes_nothing_and_zeroes_are_written(raw, monkeypatch):
    disk, path = raw
    monkeypatch.setattr(disk_io, "_fallocate", lambda *_: False)
    disk.discard(4096, 8192)
    assert path.read_bytes() == b"x" * (64 << 10)
    disk.write_zeroes(4096, 8192, unmap=True)
    assert path.read_bytes() == b"x" * 4096 + bytes(8192) + b"x" * ((64 << 10) - 12288)


def test_an_unsafe_disk_does_not_synchronise(tmp_path, monkeypatch):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    calls = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    for synchronous in (True, False):
        disk = RawDisk(DiskFile(str(path), read_only=False), synchronous=synchronous)
        disk.flush()
        disk.close()
    assert len(calls) == 1
