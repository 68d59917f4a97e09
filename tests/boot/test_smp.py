"""Several vCPUs under stock Debian kernels: brought up, told the truth about, and, without ACPI, found by the MP table;
and the power button, from Ctrl-A s to the key event that a system shuts down by.
"""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, cannot
from guest_initrd import initrd
from lab_boot import ATTEMPTS, X86_64, boot, host, kernel, lab, only

from pyvmm.errors import HostError, PyvmmError
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

BUTTON = """\
for input in /sys/class/input/event*; do echo "$(basename $input): $(cat $input/device/name)"; done
timeout 60 dd if=/dev/input/event0 of=/tmp/event bs=24 count=1 2>/dev/null &
sleep 2
echo "ready for the button"
[ -e /dev/input/event0 ] && wait || sleep 60
echo "event: $(od -An -v -td2 -j16 /tmp/event | tr -s ' ')"
grep ACPI:Ged /proc/interrupts
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


class OnTerminal:
    """``pyvmm boot`` on a terminal of its own, whose output is answered: ``answers`` are (text to wait for, keys)."""

    def __init__(self, session, arguments, answers) -> None:
        ours, theirs = pty.openpty()
        self.output = b""
        self._answers = list(answers)
        self._done = threading.Event()
        reader = threading.Thread(target=self._read, args=(ours,))
        reader.start()
        command = ["boot", *map(str, arguments)]
        try:
            if session is None:
                self.code = subprocess.run(
                    [sys.executable, "-m", "pyvmm", *command], stdin=theirs, stdout=theirs, stderr=theirs,
                    check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=200,
                ).returncode  # fmt: skip
            else:
                try:
                    self.code = session.run(
                        ["pyvmm", *command], stdin=theirs, stdout=theirs, stderr=theirs, timeout=200
                    )
                except HostError as error:  # the lab itself went
                    self.output += error.message.encode()
                    self.code = -1
        finally:
            self._done.set()
            reader.join()
            os.close(ours)
            os.close(theirs)
        self.console = self.output.decode(errors="replace").replace("\r", "")

    def _read(self, fd: int) -> None:
        while True:
            if not select.select([fd], [], [], 0.2)[0]:
                if self._done.is_set():
                    return
                continue
            self.output += os.read(fd, 4096)
            if self._answers and self._answers[0][0] in self.output:
                os.write(fd, self._answers.pop(0)[1])

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.console}"


@pytest.fixture
def press(lab, kernel, tmp_path):
    """Boots with the modules of the button, and gives these answers; again, if the emulator may have lost the guest."""

    def press(answers, modules=("button", "evdev")) -> OnTerminal:
        path = Path(tmp_path / "initrd.cpio")
        path.write_bytes(initrd(modules, BUTTON))
        arguments = (kernel, "--initrd", path, "--cpus", "2", "--cmdline", QUIET, "--timeout", "100")
        for _ in range(ATTEMPTS):
            done = OnTerminal(lab, arguments, answers)
            if lab is None or done.code not in (-1, 122, 124):
                break
        return done

    return press


def test_the_power_button_is_a_key_event_for_the_guest(press):
    done = press([(b"ready for the button", b"\x01s")])
    assert "event0: Power Button" in done.console, done
    assert "power button was pressed" in done.console
    assert re.search(r"event: +1 116 1 0", done.console), done  # EV_KEY, KEY_POWER, pressed (32 bits)
    assert re.search(r": +[01] +[01] +IO-APIC +9-edge +ACPI:Ged", done.console), done
    assert done.code == 0, done


def test_a_second_press_stops_a_guest_that_does_not_heed_the_first(press):
    done = press([(b"ready for the button", b"\x01s"), (b"once more", b"\x01s")], modules=["evdev"])
    assert done.code == 130, done
    assert "stopped by Ctrl-A s twice" in done.console
