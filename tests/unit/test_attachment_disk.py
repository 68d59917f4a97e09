"""--disk: what its words mean, what is refused and how, and that two machines never write to one file."""

from __future__ import annotations

import os

import pytest

from pyvmm.devices.virtio import block as b
from pyvmm.errors import HostError, PyvmmError, UsageError
from pyvmm.machine.attachments.base import Host
from pyvmm.machine.attachments.disk import Disk


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return str(path)


@pytest.fixture
def create(monkeypatch):
    """Make devices of options; all are closed at the end."""
    devices, said = [], []
    host = Host("disk0", None, None, [], said.append)

    def create(text):
        devices.append(Disk.parse(text).create(host))
        return devices[-1]

    create.said = said
    yield create
    for device in devices:
        device.close()


def test_the_words_of_the_option():
    disk = Disk.parse("a,,b.img,ro,serial=x1,cache=unsafe,format=raw")
    assert (disk.path, disk.ro, disk.serial, disk.cache, disk.kind) == (
        "a,b.img",
        True,
        "x1",
        "unsafe",
        "raw",
    )
    assert disk.to_table() == {
        "path": "a,b.img",
        "ro": True,
        "serial": "x1",
        "cache": "unsafe",
        "format": "raw",
    }
    assert Disk.from_table(disk.to_table()).to_table() == disk.to_table()
    plain = Disk.parse("disk.img")
    assert (plain.ro, plain.overlay, plain.kind, plain.shared_memory) == (False, None, "raw", False)


@pytest.mark.parametrize(
    ("text", "overlay", "changed"),
    [
        ("disk.img", None, ["disk.img"]),
        ("disk.img,ro", None, []),
        ("disk.img,overlay", "temporary", []),
        ("disk.img,overlay=changes", "changes", ["changes"]),
        ("https://host/disk.img,ro", None, []),
    ],
)
def test_what_is_changed(text, overlay, changed):
    disk = Disk.parse(text)
    assert disk.overlay == overlay
    assert disk.changed_files() == changed
    assert disk.files() == ([] if disk.remote else ["disk.img"])


def test_the_program_that_serves_it():
    assert Disk.parse("a.qcow2").program() == "qemu-storage-daemon"
    assert Disk.parse("https://host/disk.img,ro").program() == "qemu-storage-daemon"
    assert Disk.parse("a.img").program() == ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a.img", "raw"), ("a.QCOW2", "qcow2"), ("a.qcow2,format=raw", "raw"), ("a.img,format=qcow2", "qcow2"),
        ("nbd://host/a,ro", "raw"), ("https://host/a.qcow2,overlay", "qcow2"),
    ],
)  # fmt: skip
def test_the_format_is_in_the_name_and_never_in_the_content(text, kind):
    disk = Disk.parse(text)
    assert disk.kind == kind
    assert disk.shared_memory is (kind == "qcow2" or "://" in text)


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("", "disk without path", "path"),
        (",ro", "without a name", "FILE"),
        ("a,ro,overlay", "exclude each other", "leave out ro"),
        ("a,overlay=", "has no file", "overlay=FILE"),
        ("a,serial=" + "x" * 21, "serial", "20"),
        ("a,serial=\u00e4", "serial", "plain"),
        ("a,overly", "perhaps you mean 'overlay'", "overlay"),
        ("a,cache=none", "unknown", "writeback"),
        ("a,format=vmdk", "unknown", "qcow2"),
        ("a.qcow2,serial=x", "no serial", "leave out"),
        ("a.qcow2,overlay=b", "raw images", "qemu-img create -f qcow2 -F qcow2 -b a.qcow2 b"),
    ],
)
def test_what_makes_no_sense_is_said(text, words, hint):
    with pytest.raises(UsageError, match=words) as caught:
        Disk.parse(text)
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_missing_file_is_found_before_anything_is_built(tmp_path):
    with pytest.raises(UsageError, match="there is no disk") as caught:
        Disk.parse(str(tmp_path / "none.img")).check()
    assert "truncate" in caught.value.hint


def test_a_raw_disk_that_looks_like_qcow2_is_not_guessed_at(image, create):
    """A guest can write any header into its raw disk; another format would let it name files of the host."""
    with open(image, "r+b") as file:
        file.write(b"QFI\xfb")
    with pytest.raises(UsageError, match="looks like a qcow2 image") as caught:
        Disk.parse(image).check()
    assert "format=raw" in caught.value.hint
    device = create(f"{image},format=raw")
    assert isinstance(device, b.BlockDevice)


def test_the_same_file_twice_in_one_machine(image, create):
    first = create(image)
    for text in (image, f"{image},ro", f"{image},overlay"):
        with pytest.raises(HostError, match="in use"):
            create(text)
    first.close()
    create(f"{image},overlay")
    create(f"{image},overlay")
    create(f"{image},ro")
    with pytest.raises(HostError, match="in use"):
        create(image)


def test_nothing_stays_open_after_an_error(image, tmp_path, create):
    bad = tmp_path / "bad"
    bad.write_bytes(b"not an overlay")
    before = sorted(os.listdir("/proc/self/fd"))
    for text in (f"{image},overlay={bad}", f"{image},overlay={tmp_path}", f"{image},overlay=/nowhere/x"):
        with pytest.raises(PyvmmError):
            create(text)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_base_as_its_own_overlay(image, create):
    with pytest.raises(PyvmmError, match=r"in use|not an overlay"):
        create(f"{image},overlay={image}")
    with open(image, "rb") as file:
        assert file.read() == bytes(1 << 20)


def test_a_kept_overlay_is_used_again(image, tmp_path, create):
    for round in range(2):
        device = create(f"{image},overlay={tmp_path}/changes")
        data = memoryview(bytearray(512))
        device._disk.read([data], 512, 512)
        assert data == (b"x" * 512 if round else bytes(512))
        device._disk.write([memoryview(bytearray(b"x" * 512))], 512, 512)
        device.close()
    with open(image, "rb") as file:
        assert file.read() == bytes(1 << 20)


def test_sizes_are_rounded_down_with_a_note(tmp_path, create):
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(1000))
    device = create(str(path))
    assert device.config[:8] == (1).to_bytes(8, "little")
    assert len(create.said) == 1 and create.said[0].startswith("note: ") and "488 bytes" in create.said[0]


def test_unsafe_means_no_synchronising(image, tmp_path, create, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    for text in (
        f"{image},cache=unsafe",
        f"{image},overlay={tmp_path}/changes,cache=unsafe",
        f"{image},overlay",
    ):
        device = create(text)
        device._disk.write([memoryview(bytearray(512))], 0, 512)
        device._disk.flush()
        device.close()
    assert calls == []
    device = create(image)
    device._disk.flush()
    assert len(calls) == 1
