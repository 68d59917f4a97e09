"""Stock Debian kernels for arm64, to userspace and to every kind of end.

On an arm64 host with KVM they boot here, elsewhere in one lab session, an emulated Arm host, that all tests of this
file share.
"""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import guest_initrd
import pytest
from lab_boot import booter, fetch, session

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

CLOUD = "debian-6.1-cloud-arm64"
QUIET = "console=ttyAMA0 quiet"
#: Exits to userspace of a quiet boot to userspace and power-off.
QUIET_EXITS = 350


@pytest.fixture(scope="session")
def kernel() -> Path:
    """Debian's 6.1 cloud Image."""
    return fetch(CLOUD)


@pytest.fixture(scope="session")
def lab():
    """A lab session, or None on an arm64 host with KVM."""
    yield from session("aarch64")


@pytest.fixture
def boot(lab, tmp_path):
    """Run ``pyvmm boot`` where KVM is an Arm one, here or in the lab."""
    return booter(lab, tmp_path)


@pytest.fixture(scope="session")
def initrd(tmp_path_factory) -> Path:
    """The project's own init as a file, for boots that are not ``--verify``."""
    from pyvmm.initramfs import verify_initramfs

    path = tmp_path_factory.mktemp("initrd") / "initrd.cpio"
    path.write_bytes(verify_initramfs("aarch64"))
    return path


def test_quiet_boot_to_userspace_in_few_exits(boot, kernel):
    done = boot(kernel, "--verify", "--cmdline", QUIET, "--timeout", "150")
    assert done.code == 0, done
    assert "pyvmm: userspace reached, Linux 6.1." in done.console
    assert done.result["outcome"] == "shutdown"
    exits = done.result["exits"]
    assert exits["total"] <= QUIET_EXITS, exits
    assert exits["unhandled"] == {}, "an address that nobody thought of"


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


@pytest.mark.parametrize("count", [2, 4])
def test_several_vcpus(boot, kernel, tmp_path, count):
    """Switched on by PSCI; none of them costs an exit."""
    image = tmp_path / "initrd.cpio"
    image.write_bytes(guest_initrd.initrd([], VCPUS, CLOUD))
    done = boot(
        kernel, "--initrd", image, "--cpus", count, "--cmdline", QUIET, "--timeout", "200", carry=[image]
    )
    assert done.code == 0, done
    assert f"online: 0-{count - 1}" in done.console, done
    assert f"smp: Brought up 1 node, {count} CPUs" in done.console
    assert "failed" not in done.console and "will not" not in done.console
    assert done.result["exits"]["total"] <= QUIET_EXITS + done.result["console_bytes"], done.result["exits"]


def test_compressed_image(boot, kernel, tmp_path):
    """Image.gz, which is unpacked by pyvmm: a kernel for arm64 does not do it itself."""
    path = tmp_path / "Image.gz"
    path.write_bytes(gzip.compress(kernel.read_bytes(), 1))
    done = boot(path, "--verify", "--cmdline", QUIET, "--timeout", "150")
    assert done.code == 0, done


@pytest.mark.parametrize(
    ("how", "code", "outcome"),
    [("reboot", 0, "reset"), ("panic", 120, "panic"), ("hang", 124, "timeout")],
)
def test_ends(boot, kernel, initrd, how, code, outcome):
    timeout = "40" if how == "hang" else "150"
    done = boot(kernel, "--initrd", initrd, "--cmdline", f"{QUIET} pyvmm_end={how}", "--timeout", timeout)
    assert (done.code, done.result["outcome"]) == (code, outcome), done
    assert "userspace reached" in done.console
    if how == "panic":
        assert "Attempted to kill init" in done.error


def test_status_of_the_guest(boot, kernel, initrd):
    done = boot(kernel, "--initrd", initrd, "--cmdline", f"{QUIET} pyvmm_status=42", "--timeout", "150")
    assert (done.code, done.result["guest_status"]) == (42, 42), done


def test_input_reaches_userspace(boot, kernel, initrd):
    lines = [f"input line {number:03}" for number in range(40)]
    done = boot(
        kernel, "--initrd", initrd, "--cmdline", f"{QUIET} pyvmm_echo=1", "--timeout", "150",
        stdin="\n".join([*lines, "quit", ""]).encode(),
    )  # fmt: skip
    assert done.code == 0, done
    for line in lines:
        assert f"echo: {line}" in done.console, line


DEVICES = """\
cat /sys/class/misc/hw_random/rng_current
dd if=/dev/hwrng of=/tmp/random bs=4096 count=1 2>/dev/null
wc -c /tmp/random
dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\0'
echo "from the guest" | dd of=/dev/vda bs=512 seek=1 conv=sync,fsync 2>/dev/null || echo "not written"
grep virtio /proc/interrupts
"""


def test_virtio_devices(boot, kernel, tmp_path):
    """Found by the device tree, with interrupts by their own lines: an entropy device and a disk, read and written."""
    image, disk = tmp_path / "initrd.cpio", tmp_path / "disk"
    wanted = ["virtio_mmio", "virtio_rng", "virtio_blk"]
    image.write_bytes(guest_initrd.initrd(wanted, DEVICES, CLOUD))
    disk.write_bytes(b"from the host\n".ljust(512, b"\0") + bytes(1 << 20))
    done = boot(
        kernel, "--initrd", image, "--rng", "--disk", disk, "--cmdline", QUIET, "--timeout", "200", carry=[image, disk]
    )  # fmt: skip
    assert done.code == 0, done
    assert "script: exit 0" in done.console, done
    assert "virtio_rng.0" in done.console and "4096 /tmp/random" in done.console
    assert "from the host" in done.console and "not written" not in done.console
    assert len(re.findall(r"GICv3 +\d+ +Edge +virtio\d", done.console)) == 2, done
    assert done.result["exits"]["unhandled"] == {}, done.result["exits"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "16M"), "memory"),
        (("--cmdline", "x" * 2048), "2047"),
        (("--protocol", "pvh"), "protocol"),
        (("--dtb", os.fspath(Path(__file__))), "device tree"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(boot, kernel, arguments, said):
    done = boot(kernel, "--verify", *arguments)
    assert done.code == 125, done
    assert said in done.error and "hint: " in done.error, done
    assert "Traceback" not in done.error
