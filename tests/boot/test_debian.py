"""Stock Debian kernels, to userspace and to every kind of end.

On a host with hardware KVM they boot here, elsewhere in one lab session that all tests of this file share.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import guest_initrd
import pytest
from conftest import cannot
from lab_boot import ATTEMPTS, Boot, booter, fetch, lost_by_the_emulator, session

__all__ = ["ATTEMPTS", "Boot", "fetch", "lost_by_the_emulator"]  # what other files take from here

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

QUIET = "console=ttyS0 quiet"
#: Exits to userspace of a quiet boot to userspace and power-off: measured 208, with a little room.
QUIET_EXITS = 230


@pytest.fixture(scope="session")
def kernel() -> Path:
    """Debian's 6.1 cloud bzImage."""
    return fetch("debian-6.1-cloud")


@pytest.fixture(scope="session")
def newer_kernel() -> Path:
    """Debian's 6.12 cloud bzImage, with its payload in another compression."""
    return fetch("debian-6.12-cloud")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def initrd(tmp_path_factory) -> Path:
    """The project's own init as a file, for boots that are not ``--verify``."""
    from pyvmm.initramfs import verify_initramfs

    path = tmp_path_factory.mktemp("initrd") / "initrd.cpio"
    path.write_bytes(verify_initramfs("x86_64"))
    return path


@pytest.fixture(scope="session")
def lab():
    """A lab session, or None where KVM is real."""
    yield from session("x86_64")


@pytest.fixture
def boot(lab, tmp_path):
    """Run ``pyvmm boot`` where KVM is real, here or in the lab."""
    return booter(lab, tmp_path)


def test_quiet_boot_to_userspace_in_few_exits(boot, kernel):
    done = boot(kernel, "--verify", "--cmdline", QUIET, "--timeout", "100")
    assert done.code == 0, done
    assert "pyvmm: userspace reached, Linux 6.1." in done.console
    assert done.result["outcome"] == "shutdown"
    exits = done.result["exits"]
    assert exits["total"] <= QUIET_EXITS, exits
    assert exits["unhandled"] == {}, "a port that nobody thought of"


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


def test_what_userspace_prints_costs_few_exits(boot, kernel, initrd):
    """Three register reads for each burst of 16 bytes, and four IER writes a line, are what Linux's driver does with a
    16550A; Debian's kernels are built without CONFIG_SERIAL_8250_16550A_VARIANTS and never try the 64-byte FIFO.
    """
    few, many = (
        boot(kernel, "--initrd", initrd, "--cmdline", f"{QUIET} pyvmm_spam={size}", "--timeout", "100")
        for size in (5_000, 15_000)
    )
    assert (few.code, many.code) == (0, 0), (few, many)
    written = many.result["console_bytes"] - few.result["console_bytes"]
    assert written >= 10_000
    exits = many.result["exits"]["total"] - few.result["exits"]["total"]
    assert exits <= 0.35 * written, (exits, written)


def test_newer_kernel(boot, newer_kernel):
    done = boot(newer_kernel, "--verify", "--cmdline", QUIET, "--timeout", "75")
    assert done.code == 0, done
    assert "pyvmm: userspace reached, Linux 6.12" in done.console
    assert done.result["exits"]["total"] <= QUIET_EXITS, done.result["exits"]


@pytest.mark.parametrize("protocol", ["linux64", "pvh"])
def test_vmlinux(boot, vmlinux, protocol):
    done = boot(vmlinux, "--verify", "--protocol", protocol, "--cmdline", QUIET, "--timeout", "100")
    assert done.code == 0, done
    assert "userspace reached" in done.console


def test_vmlinux_at_a_random_address(boot, vmlinux, initrd):
    """The panic tells the offset; without --kaslr it is 0 and the kernel says that it is disabled."""
    end = f"{QUIET} pyvmm_end=panic"
    moved = boot(vmlinux, "--initrd", initrd, "--kaslr", "--map", "--cmdline", end, "--timeout", "100")
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


@pytest.mark.parametrize(
    ("how", "code", "outcome"),
    [("reboot", 0, "reset"), ("panic", 120, "panic"), ("hang", 124, "timeout")],
)
def test_ends(boot, kernel, initrd, how, code, outcome):
    timeout = "25" if how == "hang" else "100"
    done = boot(kernel, "--initrd", initrd, "--cmdline", f"{QUIET} pyvmm_end={how}", "--timeout", timeout)
    assert (done.code, done.result["outcome"]) == (code, outcome), done
    assert "userspace reached" in done.console
    if how == "panic":
        assert "Attempted to kill init" in done.error


def test_status_of_the_guest(boot, kernel, initrd):
    done = boot(kernel, "--initrd", initrd, "--cmdline", f"{QUIET} pyvmm_status=42", "--timeout", "100")
    assert (done.code, done.result["guest_status"]) == (42, 42), done


def test_expected_text(boot, kernel):
    done = boot(
        kernel, "--cmdline", "console=ttyS0", "--expect", "Run /", "--timeout", "100", "--memory", "256M"
    )
    assert done.code in (0, 120), done
    done = boot(kernel, "--cmdline", "console=ttyS0", "--expect", "Memory: ", "--timeout", "100")
    assert (done.code, done.result["outcome"]) == (0, "expected"), done


def test_input_reaches_userspace(boot, kernel, initrd):
    lines = [f"input line {number:03}" for number in range(60)]
    done = boot(
        kernel, "--initrd", initrd, "--cmdline", f"{QUIET} pyvmm_echo=1", "--timeout", "100",
        stdin="\n".join([*lines, "quit", ""]).encode(),
    )  # fmt: skip
    assert done.code == 0, done
    for line in lines:
        assert f"echo: {line}" in done.console, line


def test_too_little_memory_is_said(boot, kernel):
    done = boot(kernel, "--verify", "--memory", "32M")
    assert done.code == 125
    assert "memory" in done.error and "hint: " in done.error, done


def test_command_line_over_the_limit(boot, kernel):
    done = boot(kernel, "--verify", "--cmdline", "x" * 2048)
    assert done.code == 125
    assert "2047" in done.error, done
