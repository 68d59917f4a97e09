"""Images that qemu-storage-daemon serves: qcow2, temporary overlays of it, NBD; and how it fails and ends."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time

import pytest
from conftest import ROOT, cannot
from virtio_driver import Driver

from pyvmm.devices.virtio import block as b
from pyvmm.devices.virtio import disk_daemon
from pyvmm.errors import HostError, UsageError

SIZE = 3 << 30


@pytest.fixture(autouse=True)
def daemon():
    if shutil.which("qemu-storage-daemon") is None:
        cannot("qemu-storage-daemon is not installed")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.qcow2"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    disk_daemon.write_empty_image(fd, SIZE)
    os.close(fd)
    return str(path)


@pytest.fixture
def drive():
    """Make a disk and its driver."""
    drivers = []

    def drive(*arguments, **how):
        drivers.append(Driver(disk_daemon.disk("disk0", *arguments, **how), shared=True))
        return drivers[-1]

    yield drive
    for driver in drivers:
        driver.close()


def header(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


def write(driver, sector, data):
    assert driver.request(0, [header(b.OUT, sector), data], [1]) == [b"\0"]
    assert driver.request(0, [header(b.FLUSH)], [1]) == [b"\0"]


def read(driver, sector, size):
    data, status = driver.request(0, [header(b.IN, sector)], [size, 1])
    assert status == b"\0"
    return data


def test_a_qcow2_image_is_read_and_written(image, drive):
    driver = drive(image, "qcow2")
    assert driver.config(0, 8) == struct.pack("<Q", SIZE // 512)
    assert driver.offered() & (b.F_FLUSH | b.F_CONFIG_WCE) == b.F_FLUSH, (
        "a cache, which the guest has to flush"
    )
    write(driver, 4_000_000, b"x" * 4096)
    assert read(driver, 4_000_000 - 8, 8192) == bytes(4096) + b"x" * 4096
    driver.close()
    assert os.path.getsize(image) < 1 << 20
    driver = drive(image, "qcow2", read_only=True)
    assert read(driver, 4_000_000, 4096) == b"x" * 4096
    assert driver.offered() & b.F_RO
    assert driver.request(0, [header(b.OUT, 0), bytes(512)], [1]) == [b"\1"]


def test_a_temporary_overlay_of_it(image, drive):
    driver = drive(image, "qcow2")
    write(driver, 8, b"x" * 512)
    driver.close()
    with open(image, "rb") as file:
        before = file.read()
    folder = os.listdir(os.path.dirname(image))
    first, second = (drive(image, "qcow2", overlay=True) for _ in range(2))
    write(first, 9, b"1" * 512)
    write(second, 9, b"2" * 512)
    assert read(first, 8, 1024) == b"x" * 512 + b"1" * 512
    assert read(second, 8, 1024) == b"x" * 512 + b"2" * 512
    assert read(first, SIZE // 512 - 1, 512) == bytes(512)
    with open(image, "rb") as file:
        assert file.read() == before
    assert os.listdir(os.path.dirname(image)) == folder


def test_an_image_over_nbd(image, drive, tmp_path):
    process = subprocess.Popen(
        [
            "qemu-storage-daemon",
            "--blockdev", f"driver=file,node-name=f,filename={image}", "--blockdev", "driver=qcow2,node-name=q,file=f",
            "--nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd",
            "--export", "type=nbd,id=e,node-name=q,name=disk,writable=on", "--pidfile", f"{tmp_path}/pid",
        ]
    )  # fmt: skip
    try:
        while process.poll() is None and not (tmp_path / "pid").exists():
            time.sleep(0.01)
        url = f"nbd+unix:///disk?socket={tmp_path}/nbd"
        driver = drive(url, "raw")
        write(driver, 0, b"x" * 512)
        driver.close()
        over = drive(url, "raw", overlay=True)
        write(over, 1, b"y" * 512)
        assert read(over, 0, 1024) == b"x" * 512 + b"y" * 512
        over.close()
        assert read(drive(url, "raw"), 0, 1024) == b"x" * 512 + bytes(512)
    finally:
        process.terminate()
        process.wait()


def test_the_image_is_locked(image, drive):
    drive(image, "qcow2")
    with pytest.raises(HostError, match="is in use") as caught:
        disk_daemon.disk("disk1", image, "qcow2", overlay=True)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("path", "format", "words"),
    [
        ("/etc/passwd", "qcow2", "Image is not in qcow2 format$"),
        ("nbd://127.0.0.1:1/x", "raw", "Connection refused$"),
    ],
)
def test_the_daemon_says_why_it_does_not_start(path, format, words):
    with pytest.raises(HostError, match=words) as caught:
        disk_daemon.disk("disk0", path, format, read_only=True)
    assert caught.value.message.startswith(f"disk {path}: qemu-storage-daemon: ")
    assert "{" not in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("ftp://host/x", "not a URL"), ("nbd:///x", "not a URL"), ("nbd+unix:///x", "not a URL"),
        ("nbd://host:port/x", "Port"), ("https://host/x", "cannot be written"),
    ],
)  # fmt: skip
def test_urls_that_cannot_be_used(path, words):
    with pytest.raises(UsageError, match=words) as caught:
        disk_daemon.disk("disk0", path, "raw")
    assert caught.value.hint


def test_without_the_daemon_the_package_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match="qemu-storage-daemon is not installed") as caught:
        disk_daemon.find()
    assert "qemu-system-common" in caught.value.hint


def test_unsafe_and_serial_and_all_go_as_words_not_as_syntax(tmp_path, drive):
    path = str(tmp_path / 'a, "b".qcow2')
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    disk_daemon.write_empty_image(fd, 1 << 20)
    os.close(fd)
    write(drive(path, "qcow2", unsafe=True), 0, b"x" * 512)


def test_killed_it_takes_the_daemon_along(image):
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pyvmm.devices.virtio import disk_daemon
device = disk_daemon.disk("disk0", {image!r}, "qcow2")
print(device._daemon.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False)
    pid = int(done.stdout)
    limit = time.monotonic() + 5
    while time.monotonic() < limit and os.path.exists(f"/proc/{pid}"):
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return  # ended; whoever inherited it has not looked yet
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}")


def test_empty_images_of_any_size(tmp_path, drive):
    for size in (512, 1 << 20, 512 << 20, (512 << 20) + 512, 5 << 40):
        path = str(tmp_path / f"{size}.qcow2")
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        disk_daemon.write_empty_image(fd, size)
        os.close(fd)
        driver = drive(path, "qcow2")
        assert driver.config(0, 8) == struct.pack("<Q", size // 512)
        write(driver, size // 512 - 1, b"x" * 512)
        assert read(driver, size // 512 - 1, 512) == b"x" * 512
        driver.close()
