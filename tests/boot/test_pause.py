"""A paused machine under hardware KVM: its clocks stand still, for a stock kernel and for whoever reads the counter."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from itertools import pairwise

import pytest
from guest_initrd import initrd
from lab_boot import ATTEMPTS, X86_64, kernel, no_lab_stays, platform

import pyvmm

pytestmark = [
    pytest.mark.boot,
    pytest.mark.timeout(900),
    pytest.mark.vm(lab="auto", timeout=150, expect_timeout=120),
]

#: Seconds of a pause, and how much of them a clock may show: the guest's own sleep, and a slow emulator.
PAUSE = 10.0
SEEN = 5.0

#: The time every half second, by three clocks; until something comes from the file {signal}.
CLOCKS = """\
dd if={signal} of=/tmp/signal bs=24 count=1 2>/dev/null &
reader=$!
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
for moment in $(seq 400); do
    echo "clocks $(cut -d' ' -f1 /proc/uptime) $(date +%s) $(awk '/^now at/ {{print $3; exit}}' /proc/timer_list)"
    [ $moment = 6 ] && echo "ready to pause"
    kill -0 $reader 2>/dev/null || break
    sleep 0.5
done
echo "the signal came"
dmesg | grep -iE 'lockup|stall|hung|blocked for' && echo "complaints"
"""


@pytest.fixture
def paused(vmm, platform) -> Callable[..., tuple[str, float]]:
    """``paused(kernel, ready, end, **machine)`` boots, waits for the text ``ready``, pauses for a while, and has
    ``end(vm)`` end the guest; returns its console and the seconds it was up when it went on.  In the lab it is tried
    again if the emulator may have lost the guest."""

    def paused(kernel, ready: str, end: Callable[[pyvmm.Machine], None], **machine) -> tuple[str, float]:
        for attempt in range(ATTEMPTS):
            vm = vmm(kernel, **machine)
            try:
                return stand_still(vm, ready, end)
            except pyvmm.GuestError as error:
                if not (vmm.booted[-1].in_lab and platform.loses_guests) or attempt == ATTEMPTS - 1:
                    raise
                warnings.warn(f"booted again, the emulator may have lost the guest: {error}", stacklevel=2)
                vmm.discard(vm)
        raise AssertionError

    return paused


def stand_still(vm: pyvmm.Machine, ready: str, end: Callable[[pyvmm.Machine], None]) -> tuple[str, float]:
    """Once: the machine stands still in between, its state and its exits."""
    vm.console.expect_exact(ready)
    vm.pause()
    before, exits = vm.status(), vm.exits()
    time.sleep(PAUSE)
    after = vm.status()
    assert before["state"] == after["state"] == "paused"
    assert after["paused_s"] - before["paused_s"] >= PAUSE
    assert vm.exits() == exits
    vm.resume()
    time.sleep(3)
    end(vm)
    how = vm.wait(60)
    if not how.ok:
        raise pyvmm.UnexpectedExit(how.describe(), console_tail=how.console_tail)
    return vm.console.text, after["uptime_s"]


def test_a_kernels_clocks_stand_still(paused, platform, kernel):
    """The guest ends itself: when the power button is pressed or, as Debian's cloud kernel for arm64 has no driver for
    keys on GPIO lines, when a line is typed."""
    has_button = platform is X86_64
    script = CLOCKS.format(signal="/dev/input/event0" if has_button else "/dev/console")
    # Its watchdog calls a CPU locked up after 8 s without a sign of life.
    console, _ = paused(
        kernel, "ready to pause", lambda vm: vm.stop() if has_button else vm.console.sendline("x"),
        initrd=initrd(["button", "evdev"] if has_button else [], script, platform.kernel), cpus=2,
        cmdline=f"{platform.quiet} watchdog_thresh=4",
    )  # fmt: skip
    assert "the signal came" in console, console
    assert "complaints" not in console, console
    times = re.findall(r"^clocks ([\d.]+) (\d+) (\d+)\r?$", console, re.MULTILINE)
    assert len(times) > 8, console
    for name, unit, values in zip(
        ("uptime", "date", "monotonic"), (1, 1, 1e9), zip(*times, strict=True), strict=True
    ):
        steps = [(float(after) - float(before)) / unit for before, after in pairwise(values)]
        assert min(steps) >= 0 and max(steps) < SEEN, (name, steps, console)
    print(console)


@pytest.mark.parametrize("platform", [X86_64], indirect=True, scope="module", ids=["x86_64"])
def test_the_counter_stands_still(paused, guests):
    """The guest that watches the counter is for x86_64."""
    console, uptime = paused(guests / "gap.elf", "looking", lambda vm: vm.console.sendline("x"), memory="32M")
    found = re.search(r"gap ([0-9a-f]+) of ([0-9a-f]+)", console)
    assert found, console
    gap, whole = (int(word, 16) for word in found.groups())
    # Did the counter go on, the pause would be that part of all the time, or more.
    assert gap / whole < PAUSE / (uptime + 10) / 2, (uptime, console)
    print(console)
