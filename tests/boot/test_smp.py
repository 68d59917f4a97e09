"""Several vCPUs under stock Debian kernels for x86_64: brought up, told the truth about, and found without ACPI."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import re

import pytest
from conftest import cannot
from guest_initrd import initrd
from lab_boot import X86_64, boot, host, kernel, lab, only

from pyvmm.errors import PyvmmError
from pyvmm.lab import kernels

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

platform = only(X86_64)
QUIET = X86_64.quiet

TOPOLOGY = """\
grep -E '^(processor|physical id|siblings|core id|cpu cores|apicid)' /proc/cpuinfo | tr -d '\\t'
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    echo "$(basename $cpu): core $(cat $cpu/topology/core_id), package $(cat $cpu/topology/physical_package_id)," \\
        "threads $(cat $cpu/topology/thread_siblings_list), cores $(cat $cpu/topology/core_siblings_list)"
done
echo "online: $(cat /sys/devices/system/cpu/online)"
dmesg | grep -E 'smp: Brought up|Max logical packages|MP-table|IOAPIC.0.|CPU.*(mismatch|BUG|WARNING)|APIC id'
grep ttyS0 /proc/interrupts
"""


def check_topology(console: str, count: int) -> None:
    """One package of ``count`` cores with one thread each, in /proc/cpuinfo and in sysfs."""
    every = f"0-{count - 1}"
    found = re.findall(
        r"^processor: (\d+)\nphysical id: (\d+)\nsiblings: (\d+)\ncore id: (\d+)\ncpu cores: (\d+)\napicid: (\d+)$",
        re.sub(r" *: *", ": ", console.replace("\r", "")),
        re.MULTILINE,
    )
    assert found == [(f"{n}", "0", f"{count}", f"{n}", f"{count}", f"{n}") for n in range(count)], console
    for n in range(count):
        assert f"cpu{n}: core {n}, package 0, threads {n}, cores {every}" in console
    assert f"online: {every}" in console
    assert f"smp: Brought up 1 node, {count} CPUs" in console
    assert "Max logical packages: 1" in console
    for complaint in ("mismatch", "BUG", "WARNING"):
        assert complaint not in console


@pytest.mark.parametrize("count", [2, 5])
def test_topology(boot, kernel, tmp_path, count):
    path = tmp_path / "initrd.cpio"
    path.write_bytes(initrd((), TOPOLOGY))
    done = boot(kernel, "--initrd", path, "--cpus", count, "--cmdline", QUIET, "--timeout", "150")
    assert done.code == 0 and "script: exit 0" in done.console, done
    check_topology(done.console, count)
    assert done.result["outcome"] == "shutdown"


def test_a_second_vcpu_costs_no_exits(boot, kernel):
    done = boot(kernel, "--verify", "--cpus", "2", "--cmdline", QUIET, "--timeout", "100")
    assert done.code == 0, done
    assert done.result["exits"]["total"] <= X86_64.quiet_exits, done.result["exits"]


def test_without_acpi_the_mp_table_tells_of_all_vcpus(boot, tmp_path):
    """Debian's cloud kernels cannot read one (CONFIG_X86_MPPARSE); the kernel for PCs can."""
    try:
        for_pcs = kernels.fetch("debian-6.1")
    except PyvmmError as error:
        cannot(f"the kernel debian-6.1 could not be fetched: {error.message}")
    path = tmp_path / "initrd.cpio"
    path.write_bytes(initrd((), TOPOLOGY))
    done = boot(
        for_pcs, "--initrd", path, "--cpus", "2", "--cmdline", f"{QUIET} acpi=off", "--timeout", "180"
    )
    assert "script: exit 0" in done.console, done
    check_topology(done.console, 2)
    assert "found SMP MP-table at [mem 0x000f0000-0x000f000f]" in done.console
    assert re.search(r"IOAPIC\[0\]: apic_id 2, version \d+, address 0xfec00000, GSI 0-23", done.console)
    assert re.search(r" 4:.*IO-APIC +4-edge +ttyS0", done.console), "the console has its interrupt"
    assert (done.code, done.result["outcome"]) == (0, "shutdown"), done  # it halts, as it cannot power off
    assert "no power-off" in done.error
