"""What ``pyvmm mkinitramfs`` makes boots a stock kernel: modules by name, busybox, and a shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_pyvmm
from guest_initrd import busybox
from lab_boot import X86_64, kernel, no_lab_stays, only  # noqa: F401  fixtures

pytestmark = pytest.mark.boot
platform = only(X86_64)

TYPED = """\
echo "modules:" $(ls /sys/module | grep virtio), "disks:" $(ls /sys/block), "init:" $(cat /proc/1/comm); exit"""


def test_busybox_and_a_module_by_name(vmm, kernel, tmp_path: Path) -> None:  # noqa: F811
    program, disk, initrd = (tmp_path / name for name in ("busybox", "disk", "initrd"))
    program.write_bytes(busybox())
    disk.write_bytes(bytes(1 << 20))
    made = run_pyvmm(
        "mkinitramfs", "-o", initrd, "--kernel", kernel, "--busybox", program, "--compress", "gzip",
        "--module", "virtio_mmio", "--module", "virtio_blk",
    )  # fmt: skip
    assert made.returncode == 0, made
    vm = vmm(kernel, initrd=initrd, devices=[f"disk={disk}"], cmdline=X86_64.quiet, lab="auto")
    vm.console.expect_exact("# ")
    vm.console.sendline(TYPED)
    vm.console.expect_exact("modules: virtio virtio_blk virtio_mmio virtio_ring, disks: vda, init: init")
    assert vm.wait().outcome == "shutdown"
    assert "was not loaded" not in vm.console.text
