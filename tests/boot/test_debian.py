"""Stock Debian kernels for x86_64: their entries and boot protocols, their console, their memory.

On a host with hardware KVM they boot here, elsewhere in one lab session that all tests of this file share.
"""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import guest_initrd
import pytest
from conftest import cannot
from lab_boot import X86_64, boot, host, kernel, lab, only, verify_initrd

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

platform = only(X86_64)
QUIET = X86_64.quiet


@pytest.fixture(scope="module")
def vmlinux(kernel: Path, tmp_path_factory) -> Path:
    """The ELF image inside the 6.1 bzImage (LZ4)."""
    from loader import bzimage, open_kernel

    path = tmp_path_factory.mktemp("vmlinux") / "vmlinux"
    with open_kernel(str(kernel)) as file:
        header = bzimage.read_header(file)
        payload = file.read(header.payload_offset, header.payload_length - 4)
    (path.parent / "payload.lz4").write_bytes(payload)
    subprocess.run(["lz4", "-dqf", path.parent / "payload.lz4", path], check=True)
    return path


def test_all_messages_cost_one_exit_a_byte(boot, kernel):
    done = boot(kernel, "--verify", "--cmdline", "console=ttyS0", "--timeout", "75")
    assert done.code == 0, done
    assert "Linux version 6.1." in done.console
    assert "Kernel command line: console=ttyS0\n" in done.console.replace("\r", "")
    assert "kvm-clock: Using msrs" in done.console
    # The IRQ number is Linux's own: without a PIC there are no legacy numbers.
    assert re.search(r"ttyS0 at I/O 0x3f8 \(irq = \d+, base_baud = 115200\) is a 16550A", done.console)
    assert "ACPI: RSDP" in done.console
    assert "random: crng init done" in done.console
    for complaint in ("ACPI Error", "ACPI BIOS", "ACPI Warning", "BUG:", "WARNING:", "Unable to"):
        assert complaint not in done.console, complaint
    assert done.result["exits"]["total"] <= 1.1 * done.result["console_bytes"], done.result["exits"]


def test_what_userspace_prints_costs_few_exits(boot, kernel, verify_initrd):
    """Three register reads for each burst of 16 bytes, and four IER writes a line, are what Linux's driver does with a
    16550A; Debian's kernels are built without CONFIG_SERIAL_8250_16550A_VARIANTS and never try the 64-byte FIFO.
    """
    few, many = (
        boot(kernel, "--initrd", verify_initrd, "--cmdline", f"{QUIET} pyvmm_spam={size}", "--timeout", "100")
        for size in (5_000, 15_000)
    )
    assert (few.code, many.code) == (0, 0), (few, many)
    written = many.result["console_bytes"] - few.result["console_bytes"]
    assert written >= 10_000
    exits = many.result["exits"]["total"] - few.result["exits"]["total"]
    assert exits <= 0.35 * written, (exits, written)


@pytest.mark.parametrize("protocol", ["linux64", "pvh"])
def test_vmlinux(boot, vmlinux, protocol):
    done = boot(vmlinux, "--verify", "--protocol", protocol, "--cmdline", QUIET, "--timeout", "100")
    assert done.code == 0, done
    assert "userspace reached" in done.console


def test_vmlinux_at_a_random_address(boot, vmlinux, verify_initrd):
    """The panic tells the offset; without --kaslr it is 0 and the kernel says that it is disabled."""
    end = f"{QUIET} pyvmm_end=panic"
    moved = boot(vmlinux, "--initrd", verify_initrd, "--kaslr", "--map", "--cmdline", end, "--timeout", "100")
    assert moved.code == 120, moved
    assert "userspace reached" in moved.console
    offset = re.search(r"Kernel Offset: (0x[0-9a-f]+) from", moved.console)
    assert offset is not None or "Kernel Offset: disabled" not in moved.console, moved
    if offset is not None:  # absent only if chance chose 0, one in about 500
        assert int(offset[1], 16) % (2 << 20) == 0


def test_bzimage_by_the_32_bit_entry(boot, kernel):
    done = boot(kernel, "--verify", "--protocol", "linux32", "--cmdline", QUIET, "--timeout", "100")
    assert done.code == 0, done


def test_poisoned_memory(boot, vmlinux):
    """Neither loader nor machine rely on RAM being zero."""
    done = boot(
        vmlinux, "--verify", "--poison", "0xa5", "--memory", "256M", "--cmdline", QUIET, "--timeout", "100"
    )
    assert done.code == 0, done


def test_memory_above_the_hole(boot, kernel, tmp_path):
    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 5 << 30:
        cannot("the host has less than 5 GiB of memory")
    archive = tmp_path / "initrd.cpio"
    archive.write_bytes(guest_initrd.initrd([], "grep 'System RAM' /proc/iomem"))
    done = boot(kernel, "--initrd", archive, "--memory", "4G", "--cmdline", QUIET, "--timeout", "100")
    assert done.code == 0, done
    assert "100000000-13fffffff : System RAM" in done.console


def test_expected_text(boot, kernel):
    done = boot(
        kernel, "--cmdline", "console=ttyS0", "--expect", "Run /", "--timeout", "100", "--memory", "256M"
    )
    assert done.code in (0, 120), done
    done = boot(kernel, "--cmdline", "console=ttyS0", "--expect", "Memory: ", "--timeout", "100")
    assert (done.code, done.result["outcome"]) == (0, "expected"), done
