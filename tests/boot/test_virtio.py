"""The virtio transport and the entropy device under a stock kernel's own drivers."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import pytest
from guest_initrd import initrd
from lab_boot import boot, check_device_exits, host, kernel, lab, platform

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

SCRIPT = """\
cat /sys/class/misc/hw_random/rng_current
readlink /sys/bus/virtio/devices/virtio0/driver
for number in 1 2 3 4 5 6 7 8; do
    dd if=/dev/hwrng of=/tmp/$number bs=4096 count=1 2>/dev/null || echo "no random numbers"
done
wc -c /tmp/8
cmp -s /tmp/7 /tmp/8 && echo "the same again"
cd /sys/bus/virtio/drivers/virtio_rng
echo virtio0 > unbind && echo virtio0 > bind
dd if=/dev/hwrng of=/tmp/again bs=100 count=1 2>/dev/null
wc -c /tmp/again
"""


def test_entropy_device(boot, platform, kernel, tmp_path):
    """Found by the DSDT or the device tree, bound by virtio_mmio and virtio_rng; a request makes no exit."""
    image = tmp_path / "initrd.cpio"
    image.write_bytes(initrd(["virtio_mmio", "virtio_rng"], SCRIPT, platform.kernel))
    done = boot(kernel, "--initrd", image, "--rng", "--cmdline", platform.quiet, "--timeout", "150")
    assert done.code == 0, done
    assert "script: exit 0" in done.console, done
    assert "virtio_rng.0" in done.console and "/virtio_rng" in done.console
    assert "4096 /tmp/8" in done.console
    assert "100 /tmp/again" in done.console, "after the driver has left and come back"
    assert "no random numbers" not in done.console and "the same again" not in done.console
    counts = done.result["devices"]["rng0"]
    assert counts["bytes"] >= 8 * 4096 and counts["requests"] >= 8, counts
    check_device_exits(platform, done, "rng0")  # though the driver comes twice
    assert done.result["exits"]["unhandled"] == {}, done.result["exits"]
