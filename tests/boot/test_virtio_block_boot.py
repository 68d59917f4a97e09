"""Block devices under a stock kernel's own driver: what is written comes back, and a request makes no exit."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import os
import shutil
import subprocess

import lab_programs
import pytest
from conftest import cannot
from guest_initrd import initrd
from lab_boot import X86_64, boot, check_device_exits, host, kernel, lab, platform

from pyvmm.devices.virtio.disk_daemon import write_empty_image

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

SCRIPT = """\
for disk in vda vdb vdc; do
    queue=/sys/block/$disk/queue
    echo "$disk: size $(cat /sys/block/$disk/size) ro $(cat /sys/block/$disk/ro) $(cat $queue/write_cache)," \\
        "discard $(cat $queue/discard_max_bytes) segments $(cat $queue/max_segments)" \\
        "blocks $(cat $queue/logical_block_size) $(cat $queue/physical_block_size)"
done
echo "serial $(cat /sys/block/vda/serial)"

forget() { sync; echo 3 > /proc/sys/vm/drop_caches; }
blocks() { dd if=$1 bs=1M skip=$2 count=$3 2>/dev/null; }
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
dd if=/tmp/data of=/dev/vda bs=64k conv=fsync,notrunc 2>/dev/null || echo "vda was not written"
forget
blocks /dev/vda 0 8 | cmp - /tmp/data && echo "vda as written"
dd if=/dev/vda of=/dev/null bs=4k count=500 iflag=direct 2>/dev/null || echo "no direct reads"
blkdiscard -o 1048576 -l 1048576 /dev/vda && forget
echo "discarded: $(blocks /dev/vda 1 1 | tr -d '\\000' | wc -c) bytes left"
blocks /dev/vda 2 6 | cmp -n 6291456 - /tmp/data 0 2097152 && echo "the rest of vda as written"

echo "vdb: $(blocks /dev/vdb 0 1 | head -c 19)"
dd if=/tmp/data of=/dev/vdb bs=4k count=1 2>/dev/null && echo "vdb was written"

mount -t ext4 /dev/vdc /mnt && cat /mnt/hello
cp /tmp/data /mnt/data && umount /mnt && forget
mount -t ext4 /dev/vdc /mnt && cmp /mnt/data /tmp/data && echo "a file system as written"
umount /mnt
dmesg | grep -i 'I/O error'
true
"""


def test_block_devices(boot, platform, kernel, tmp_path):
    mkfs = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:" + os.environ["PATH"])
    if mkfs is None:
        cannot("mkfs.ext4 is not installed")
    image, data, read_only, system, content = (
        tmp_path / name for name in ("initrd.cpio", "data.img", "ro.img", "system.img", "content")
    )
    image.write_bytes(
        initrd(["virtio_mmio", "virtio_blk", "?crc32c_generic", "ext4"], SCRIPT, platform.kernel)
    )
    data.write_bytes(bytes(16 << 20))
    read_only.write_bytes(b"nobody may write me".ljust(1 << 20))
    content.mkdir()
    (content / "hello").write_text("hello from the host\n")
    subprocess.run([mkfs, "-q", "-d", content, system, "32M"], check=True)
    before = system.read_bytes()

    done = boot(
        kernel, "--initrd", image, "--cmdline", platform.quiet, "--timeout", "200",
        "--disk", f"{data},serial=pyvmm-data", "--disk", f"{read_only},ro", "--disk", f"{system},overlay",
        carry=[data, read_only, system],
    )  # fmt: skip
    assert done.code == 0, done
    assert "script: exit 0" in done.console, done
    said = done.console.replace("\r", "")
    discard = 1 << 30
    assert f"vda: size 32768 ro 0 write back, discard {discard} segments 510 blocks 512 4096\n" in said, done
    assert "vdb: size 2048 ro 1 write through, discard 0 segments 510 blocks 512 4096\n" in said, done
    assert f"vdc: size 65536 ro 0 write back, discard {discard} segments 510 blocks 512 4096\n" in said, done
    for words in (
        "serial pyvmm-data\n", "vda as written\n", "discarded: 0 bytes left\n", "the rest of vda as written\n",
        "vdb: nobody may write me\n", "hello from the host\n", "a file system as written\n",
    ):  # fmt: skip
        assert words in said, done
    for words in ("was written", "was not", "no direct reads", "I/O error"):
        assert words not in said, done
    assert read_only.read_bytes().startswith(b"nobody may write me")
    assert system.read_bytes() == before

    devices, exits = done.result["devices"], done.result["exits"]
    assert devices["disk0"]["reads"] > 500, devices
    assert devices["disk0"]["bytes_written"] >= 8 << 20 and devices["disk0"]["flushes"] >= 1, devices
    assert devices["disk0"]["discards"] == 1, devices
    assert [devices[name]["errors"] for name in ("disk0", "disk1", "disk2")] == [0, 0, 0], devices
    check_device_exits(platform, done, "disk0", "disk1", "disk2")
    assert exits["unhandled"] == {}, exits


QCOW2 = """\
echo "vda: size $(cat /sys/block/vda/size) $(cat /sys/block/vda/queue/write_cache)"
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
dd if=/tmp/data of=/dev/vda bs=64k seek=100 conv=fsync,notrunc 2>/dev/null || echo "vda was not written"
sync; echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/vda bs=64k skip=100 count=64 2>/dev/null | cmp - /tmp/data && echo "vda as written"
dd if=/dev/vda of=/dev/null bs=4k count=200 iflag=direct 2>/dev/null || echo "no direct reads"
true
"""


@pytest.mark.parametrize("platform", [X86_64], indirect=True, scope="module", ids=["x86_64"])
def test_qcow2(boot, platform, kernel, tmp_path):
    """Served by qemu-storage-daemon on the guest's memory; the image stays as it is.  That a daemon can serve arm64
    guests as well is seen by their shared directories."""
    daemon = lab_programs.find("qemu-storage-daemon", platform)
    image, disk = tmp_path / "initrd.cpio", tmp_path / "disk.qcow2"
    image.write_bytes(initrd(["virtio_mmio", "virtio_blk"], QCOW2, platform.kernel))
    fd = os.open(disk, os.O_RDWR | os.O_CREAT, 0o600)
    write_empty_image(fd, 1 << 30)
    os.close(fd)
    before = disk.read_bytes()
    done = boot(
        kernel, "--initrd", image, "--cmdline", platform.quiet, "--timeout", "200", "--disk", f"{disk},overlay",
        carry=[disk, *daemon.carry], env=daemon.env,
    )  # fmt: skip
    assert done.code == 0, done
    assert "script: exit 0" in done.console, done
    assert "vda: size 2097152 write back" in done.console and "vda as written" in done.console, done
    assert "was not written" not in done.console and "no direct reads" not in done.console, done
    assert disk.read_bytes() == before
    check_device_exits(platform, done, "disk0")
