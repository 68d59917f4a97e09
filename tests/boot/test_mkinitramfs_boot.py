"""What ``pyvmm mkinitramfs`` makes boots a stock kernel: modules by name, busybox, and a shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_pyvmm
from guest_initrd import busybox
from lab_boot import X86_64, boot, host, kernel, lab, only  # noqa: F401  fixtures

pytestmark = pytest.mark.boot
platform = only(X86_64)

#: Typed at the shell.  What comes before the serial port is in use is lost, which the blanks are for.
TYPED = (
    b" " * 200
    + b"""\
echo "modules:" $(ls /sys/module | grep virtio), "disks:" $(ls /sys/block), "init:" $(cat /proc/1/comm); exit
"""
)


def test_busybox_and_a_module_by_name(boot, kernel, tmp_path: Path) -> None:  # noqa: F811
    program, disk, initrd = (tmp_path / name for name in ("busybox", "disk", "initrd"))
    program.write_bytes(busybox())
    disk.write_bytes(bytes(1 << 20))
    made = run_pyvmm(
        "mkinitramfs", "-o", initrd, "--kernel", kernel, "--busybox", program, "--compress", "gzip",
        "--module", "virtio_mmio", "--module", "virtio_blk",
    )  # fmt: skip
    assert made.returncode == 0, made
    done = boot(
        kernel, "--initrd", initrd, "--disk", disk, "--cmdline", X86_64.quiet, "--timeout", 60, stdin=TYPED
    )
    assert "modules: virtio virtio_blk virtio_mmio virtio_ring, disks: vda, init: init" in done.console, done
    assert "was not loaded" not in done.console, done
    assert done.result["outcome"] == "shutdown", done
