"""Stock Debian kernels for arm64: each format of their images, their messages, several vCPUs.

On an arm64 host with KVM they boot here, elsewhere in one lab session, an emulated Arm host, that all tests of this
file share.
"""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import os
import re
from pathlib import Path

import arm64_images
import guest_initrd
import pytest
from lab_boot import AARCH64, boot, host, kernel, lab, only

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

platform = only(AARCH64)
QUIET = AARCH64.quiet


def test_all_messages(boot, kernel):
    """By the early console too.  So many exits take an emulated host longer than the kernel's watchdog likes."""
    done = boot(kernel, "--verify", "--cmdline", "console=ttyAMA0 earlycon nowatchdog", "--timeout", "150")
    assert done.code == 0, done
    console = done.console.replace("\r", "")
    assert "Linux version 6.1." in console
    assert "earlycon: pl11 at MMIO" in console
    assert "psci: PSCIv1" in console
    assert re.search(r"GICv3: \d+ SPIs implemented", console)
    assert re.search(
        r"[0-9a-f]+\.\w+: ttyAMA0 at MMIO 0x[0-9a-f]+ \(irq = \d+, base_baud = 0\) is a PL011", console
    )
    assert "random: crng init done" in console
    for complaint in ("BUG:", "WARNING:", "Unable to", "Failed to", "malformed", "OF: fdt:"):
        assert complaint not in console, complaint


VCPUS = """\
echo "online: $(cat /sys/devices/system/cpu/online)"
dmesg | grep -E "smp: Brought up|CPU[0-9]+: (failed|will not)"
"""


def test_a_16550_for_the_console(boot, kernel):
    """In the PL011's place where the command line asks for it; it takes fewer exits than that."""
    done = boot(kernel, "--verify", "--cmdline", "console=ttyS0 quiet", "--timeout", "100")
    assert done.code == 0 and "pyvmm: userspace reached, Linux 6.1." in done.console, done
    exits = done.result["exits"]
    assert exits["total"] <= AARCH64.quiet_exits and exits["unhandled"] == {}, exits
    assert exits["by_device"]["16550"] and "pl011" not in exits["by_device"]


def test_several_vcpus(boot, kernel, tmp_path):
    """Switched on by PSCI; none of them costs an exit."""
    image = tmp_path / "initrd.cpio"
    image.write_bytes(guest_initrd.initrd([], VCPUS, AARCH64.kernel))
    done = boot(kernel, "--initrd", image, "--cpus", "4", "--cmdline", QUIET, "--timeout", "100")
    assert done.code == 0, done
    assert "online: 0-3" in done.console, done
    assert "smp: Brought up 1 node, 4 CPUs" in done.console
    assert "failed" not in done.console and "will not" not in done.console
    assert done.result["exits"]["total"] <= AARCH64.quiet_exits + done.result["console_bytes"], done.result[
        "exits"
    ]


@pytest.mark.parametrize("make", [arm64_images.image_gz, arm64_images.zboot, arm64_images.vmlinux])
def test_other_formats(boot, kernel, tmp_path, make):
    """Unpacked by pyvmm, as a kernel for arm64 does not do it itself; or an ELF file for virtual addresses.  A kernel
    that is off a 2 MiB boundary runs all the same, and warns of it."""
    path = tmp_path / make.__name__
    path.write_bytes(make(kernel.read_bytes()))
    done = boot(path, "--verify", "--cmdline", "console=ttyAMA0 loglevel=5", "--timeout", "100")
    assert done.code == 0, done
    assert "pyvmm: userspace reached, Linux 6.1." in done.console
    assert "Firmware Bug" not in done.console, done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--protocol", "pvh"), "protocol"), (("--dtb", os.fspath(Path(__file__))), "device tree")],
)
def test_bad_input_is_one_line_and_a_hint(boot, kernel, arguments, said):
    done = boot(kernel, "--verify", *arguments)
    assert done.code == 125, done
    assert said in done.error and "hint: " in done.error, done
    assert "Traceback" not in done.error
