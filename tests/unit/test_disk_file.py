"""Disks' files: opened, measured, and locked against double use, also against QEMU's tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest
from conftest import cannot

from pyvmm.devices.virtio.disk_file import DiskFile
from pyvmm.errors import HostError, PyvmmError, UsageError


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return str(path)


@pytest.fixture
def opened():
    """Open and lock disks; all are closed at the end."""
    files = []

    def open_disk(path, read_only=False):
        file = DiskFile(path, read_only)
        files.append(file)
        notes = []
        try:
            file.lock(notes.append)
        except HostError:
            file.close()
            raise
        assert notes == []
        return file

    yield open_disk
    for file in files:
        file.close()


def test_a_disk_has_whole_sectors(tmp_path):
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(512 * 3 + 100))
    file = DiskFile(str(path), read_only=True)
    notes = []
    file.check_size(notes.append)
    assert (file.size, file.length) == (1536, 1636)
    assert len(notes) == 1 and "last 100 bytes" in notes[0]
    file.close()


@pytest.mark.parametrize("length", [0, 511])
def test_less_than_a_sector_is_no_disk(tmp_path, length):
    path = tmp_path / "small.img"
    path.write_bytes(bytes(length))
    file = DiskFile(str(path), read_only=False)
    with pytest.raises(UsageError, match=f"has {length} bytes"):
        file.check_size(print)
    file.close()


def test_two_writers_exclude_each_other(image, opened):
    first = opened(image)
    with pytest.raises(HostError, match=r"in use.* has it open") as caught:
        opened(image)
    assert "overlay" in caught.value.hint
    first.close()
    opened(image)


def test_a_writer_excludes_readers_and_readers_a_writer(image, opened):
    writer = opened(image)
    with pytest.raises(HostError, match=r"in use.* writes to it"):
        opened(image, read_only=True)
    writer.close()
    opened(image, read_only=True)
    opened(image, read_only=True)
    with pytest.raises(HostError, match="in use"):
        opened(image)


def test_the_lock_holds_between_processes_and_ends_with_them(image, opened):
    """A descriptor that a child inherited keeps the lock; the lock ends with its last holder, killed or not."""
    mine = opened(image)
    os.set_inheritable(mine.fd, True)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[mine.fd])
    try:
        mine.close()
        with pytest.raises(HostError, match="in use"):
            opened(image)
    finally:
        child.kill()
        child.wait()
    opened(image)


def test_qemu_and_pyvmm_exclude_each_other(image, opened, tmp_path):
    daemon = shutil.which("qemu-storage-daemon")
    if daemon is None:
        cannot("qemu-storage-daemon is not installed")

    def start(read_only):
        pid = tmp_path / "pid"
        pid.unlink(missing_ok=True)
        node = f"driver=file,filename={image},node-name=a,read-only={'on' if read_only else 'off'}"
        export = f"type=vhost-user-blk,id=e,node-name=a,addr.type=unix,addr.path={tmp_path}/s"
        process = subprocess.Popen(
            [daemon, "--blockdev", node, "--export", f"{export},writable={'off' if read_only else 'on'}",
             "--pidfile", str(pid)], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while process.poll() is None and not pid.exists():
            time.sleep(0.01)
        return process

    def stop(process):
        process.terminate()
        process.communicate()

    writer = opened(image)
    refused = start(read_only=False)
    assert 'Failed to get "write" lock' in refused.communicate()[1]
    writer.close()

    other = start(read_only=False)
    with pytest.raises(HostError, match="in use"):
        opened(image)
    with pytest.raises(HostError, match="in use"):
        opened(image, read_only=True)
    stop(other)

    reader = opened(image, read_only=True)
    both = start(read_only=True)
    assert both.poll() is None, both.communicate()
    stop(both)
    reader.close()


def test_without_locks_there_is_a_note(image, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    file = DiskFile(image, read_only=False)
    monkeypatch.setattr("fcntl.fcntl", no_locks)
    notes = []
    file.lock(notes.append)
    assert len(notes) == 1 and "not protected" in notes[0] and "No locks available" in notes[0]
    file.close()


@pytest.mark.parametrize(
    ("make", "words", "hint"),
    [
        (lambda path: None, "there is no disk", "truncate"),
        (lambda path: path.mkdir(), "is a directory", "--share"),
        (lambda path: os.mkfifo(path), "neither a file nor a block device", "image"),
    ],
)
def test_what_is_no_disk_is_said(tmp_path, make, words, hint):
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(PyvmmError, match=words) as caught:
        DiskFile(str(path), read_only=False)
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_disk_that_may_not_be_written_says_what_to_do(image, monkeypatch):
    real = os.open

    def refuse(path, flags, *more):
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match="may not be written") as caught:
        DiskFile(image, read_only=False)
    assert ",ro" in caught.value.hint and ",overlay" in caught.value.hint


def test_a_block_device_is_a_disk(image, opened):
    losetup = shutil.which("losetup")
    if losetup is None or os.geteuid():
        pytest.skip("needs root and losetup")
    done = subprocess.run([losetup, "--show", "-f", image], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        file = opened(device)
        assert (file.is_device, file.size, file.mtime) == (True, 8192, 0)
        with pytest.raises(HostError, match="in use"):
            opened(device, read_only=True)
        file.close()
    finally:
        subprocess.run([losetup, "-d", device], check=False)
