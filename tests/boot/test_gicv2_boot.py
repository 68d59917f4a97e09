"""A host whose KVM has a GICv2 only, as one with a Cortex-A72 and a GIC-400 has: a lab of its own with that machine."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import guest_initrd
import pytest
from conftest import cannot
from lab_boot import AARCH64, boot, host, kernel, only

from pyvmm.lab import Lab, requirements
from pyvmm.lab.platforms import PLATFORMS

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

platform = only(AARCH64)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The arm64 lab with a GICv2, booted: no state is saved for two tests."""
    missing = ", ".join(name for name, present, _ in requirements("aarch64") if not present)
    if missing:
        cannot(f"there is not what the lab needs: {missing}")
    other = copy.copy(PLATFORMS["aarch64"])
    other.machine = tuple(option.replace("gic-version=3", "gic-version=2") for option in other.machine)
    assert other.machine != PLATFORMS["aarch64"].machine
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PLATFORMS, "aarch64", other)
        wanted = Lab("aarch64", cold=True)
    with wanted:
        yield wanted


SCRIPT = """\
echo "online: $(cat /sys/devices/system/cpu/online)"
echo "random: $(head -c 64 /dev/hwrng | wc -c)"
read -r word
echo "typed: $word"
cat /proc/interrupts
"""


def test_the_machine_has_a_gicv2(boot, kernel, tmp_path):
    """Its interrupts arrive: the timer's and those among vCPUs, a virtio device's, the serial port's."""
    image = tmp_path / "initrd.cpio"
    image.write_bytes(guest_initrd.initrd(["virtio_mmio", "virtio_rng"], SCRIPT, AARCH64.kernel))
    done = boot(
        kernel, "--initrd", image, "--rng", "--cpus", "2", "--cmdline", AARCH64.quiet, "--timeout", "120",
        stdin=b"hello\n",
    )  # fmt: skip
    assert done.code == 0, done
    assert "script: exit 0" in done.console, done
    assert "online: 0-1" in done.console, done
    assert "typed: hello" in done.console, done
    assert "random: 64" in done.console, done
    for name in ("arch_timer", r"virtio\d", "uart-pl011"):
        counts = re.search(rf"^ *\d+: +(\d+) +(\d+) +GIC-0 .*{name}", done.console, re.MULTILINE)
        assert counts and int(counts[1]) + int(counts[2]) > 0, (name, done)


def test_more_vcpus_than_it_serves(boot, kernel):
    done = boot(kernel, "--verify", "--cpus", "9")
    assert done.code == 125, done
    assert "9 vCPUs are more than the 8 " in done.error, done
    assert "hint: " in done.error and "Traceback" not in done.error
