"""pyvmm boot --disk: a small guest drives it; what is refused, with a line and a hint; nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from conftest import cannot, run_pyvmm

from pyvmm.devices.virtio.disk_daemon import write_empty_image
from pyvmm.devices.virtio.disk_file import DiskFile

pytestmark = pytest.mark.usefixtures("kvm")

#: Register writes of kernels/x86_64/virtio.inc that only the VMM can answer.
SETUP_WRITES = 13


@pytest.fixture
def guest(guests):
    return guests / "four.elf"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def refused(*arguments) -> str:
    done = run_pyvmm("boot", *arguments, "--no-input", timeout=60)
    assert done.returncode == 125, done
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("pyvmm: ") and lines[1].startswith("hint: "), done
    return done.stderr


def test_a_disk_that_another_machine_uses(guest, image):
    other = DiskFile(str(image), read_only=False)
    other.lock(print)
    try:
        assert "is in use" in refused(guest, "--disk", image)
        assert "is in use" in refused(guest, "--disk", f"{image},ro")
        assert "is in use" in refused(guest, "--disk", f"{image},overlay")
    finally:
        other.close()
    assert run_pyvmm("boot", guest, "--no-input", "--disk", image).returncode == 0


def test_the_same_disk_twice(guest, image):
    assert "this machine twice" in refused(guest, "--disk", image, "--disk", f"{image},ro")
    done = run_pyvmm("boot", guest, "--no-input", "--disk", f"{image},ro", "--disk", f"{image},overlay")
    assert done.returncode == 0, done


def test_what_is_no_disk(guest, image, tmp_path):
    assert "there is no disk" in refused(guest, "--disk", tmp_path / "none")
    assert "--share" in refused(guest, "--disk", tmp_path)
    assert "perhaps you mean 'overlay'" in refused(guest, "--disk", f"{image},overly")
    image.write_bytes(b"QFI\xfb" + bytes(4092))
    assert "format=raw" in refused(guest, "--disk", image)


def test_a_bad_qcow2_image_leaves_no_daemon(guest, image):
    if shutil.which("qemu-storage-daemon") is None:
        cannot("qemu-storage-daemon is not installed")
    said = refused(guest, "--disk", f"{image},format=qcow2")
    assert "Image is not in qcow2 format" in said
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                assert os.fsencode(image) not in file.read()
        except (FileNotFoundError, ProcessLookupError):
            pass


# -- kernels/x86_64/disk.S: writes "disk" to sector 2, flushes, reads it back, and reads beyond the end ------------

KEPT = b"sector 2 begins 6b736964, and was written"
FRESH = b"sector 2 begins 00000000, and was written"


def run(guests, tmp_path, disk):
    result = tmp_path / "result.json"
    done = run_pyvmm(
        "boot", guests / "disk.elf", "--no-input", "--timeout", "30", "--result", result, "--disk", disk
    )
    assert done.returncode == 0, done
    return done.stdout, json.loads(result.read_text())


@pytest.mark.parametrize(
    ("words", "again"),
    [("", KEPT), (",overlay", FRESH), (",overlay={tmp_path}/changes", KEPT), (",cache=unsafe", KEPT)],
)
def test_a_guest_writes_and_reads(guests, image, tmp_path, words, again):
    disk = f"{image}{words.format(tmp_path=tmp_path)}"
    said, result = run(guests, tmp_path, disk)
    assert FRESH in said
    assert result["devices"]["disk0"] == {
        "reads": 3, "writes": 1, "flushes": 1, "discards": 0, "write_zeroes": 0, "errors": 1,
        "bytes_read": 1024, "bytes_written": 512,
    }  # fmt: skip
    assert result["exits"]["by_device"]["disk0"] == SETUP_WRITES, "none for the requests"
    expected = bytes(1 << 20) if "overlay" in words else bytes(1024) + b"disk" * 128 + bytes((1 << 20) - 1536)
    assert image.read_bytes() == expected
    said, _ = run(guests, tmp_path, disk)
    assert again in said


def test_a_guest_writes_to_qcow2(guests, tmp_path):
    """The daemon works on the guest's memory; the kicks and interrupts do not pass through here either."""
    if shutil.which("qemu-storage-daemon") is None:
        cannot("qemu-storage-daemon is not installed")
    image = tmp_path / "disk.qcow2"
    fd = os.open(image, os.O_RDWR | os.O_CREAT, 0o600)
    write_empty_image(fd, 1 << 30)
    os.close(fd)
    for words, expected in ((",overlay", FRESH), ("", FRESH), (",overlay", KEPT), ("", KEPT)):
        said, result = run(guests, tmp_path, f"{image}{words}")
        assert expected in said
        assert result["exits"]["by_device"]["disk0"] == SETUP_WRITES
