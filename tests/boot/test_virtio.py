"""The virtio transport and the entropy device under a stock kernel's own drivers."""

from __future__ import annotations

import re

import pytest
from guest_initrd import initrd
from test_debian import QUIET, boot, kernel, lab  # noqa: F401

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

#: Exits that a device may add to a boot.
DEVICE_EXITS = 60

SCRIPT = """\
cat /sys/class/misc/hw_random/rng_current
readlink /sys/bus/virtio/devices/virtio0/driver
for number in 1 2 3 4 5 6 7 8; do
    dd if=/dev/hwrng of=/tmp/$number bs=4096 count=1 2>/dev/null || echo "no random numbers"
done
wc -c /tmp/8
cmp -s /tmp/7 /tmp/8 && echo "the same again"
grep virtio /proc/interrupts
cd /sys/bus/virtio/drivers/virtio_rng
echo virtio0 > unbind && echo virtio0 > bind
dd if=/dev/hwrng of=/tmp/again bs=100 count=1 2>/dev/null
wc -c /tmp/again
"""


def test_entropy_device(boot, kernel, tmp_path):  # noqa: F811
    """Found through the DSDT, bound by virtio_mmio and virtio_rng; a request makes no exit."""
    image = tmp_path / "initrd.cpio"
    image.write_bytes(initrd(["virtio_mmio", "virtio_rng"], SCRIPT))
    done = boot(kernel, "--initrd", image, "--rng", "--cmdline", QUIET, "--timeout", "150", carry=[image])
    assert done.code == 0, done
    assert "script: exit 0" in done.console, done
    assert "virtio_rng.0" in done.console and "/virtio_rng" in done.console
    assert "4096 /tmp/8" in done.console
    assert re.search(r"IO-APIC +16-edge +virtio0", done.console)
    assert "100 /tmp/again" in done.console, "after the driver has left and come back"
    assert "no random numbers" not in done.console and "the same again" not in done.console
    counts = done.result["devices"]["rng0"]
    assert counts["bytes"] >= 8 * 4096 and counts["requests"] >= 8, counts
    exits = done.result["exits"]
    assert exits["by_device"]["rng0"] <= DEVICE_EXITS, exits  # though the driver comes twice
    assert exits["by_device"]["rng0"] < counts["requests"], (exits, counts)
    assert exits["unhandled"] == {}, exits
