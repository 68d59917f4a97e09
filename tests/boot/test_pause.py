"""A paused machine under hardware KVM: its clocks stand still, for a stock kernel and for whoever reads the counter."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT
from guest_initrd import initrd
from lab_boot import ATTEMPTS, X86_64, kernel, lab, platform

from pyvmm.errors import HostError

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

#: Seconds of a pause, and how much of them a clock may show: the guest's own sleep, and a slow emulator.
PAUSE = 10.0
SEEN = 5.0

#: Runs beside pyvmm, where it runs: steers the machine by ``pyvmm ctl``, and writes down what it was answered.
STEER = """\
import json, subprocess, sys, time

socket, report, ready, pause, keys, *command = sys.argv[1:]
PYVMM = [sys.executable, "-m", "pyvmm"]
machine = subprocess.Popen([*PYVMM, *command, "--control", socket], stdin=subprocess.PIPE)
said = {"answers": []}

def ctl(*words):
    done = subprocess.run([*PYVMM, "ctl", socket, *words, "--json"], capture_output=True, text=True)
    said["answers"].append([words[0], done.returncode, done.stdout, done.stderr])
    return json.loads(done.stdout) if done.returncode == 0 else {}

deadline = time.monotonic() + 120
while machine.poll() is None and time.monotonic() < deadline:
    tail = subprocess.run([*PYVMM, "ctl", socket, "console"], capture_output=True, text=True).stdout
    if ready in tail:
        break
    time.sleep(0.3)
ctl("pause")
said["before"] = [ctl("status"), ctl("exits")]
time.sleep(float(pause))
said["after"] = [ctl("status"), ctl("exits")]
ctl("resume")
time.sleep(3)
if keys:
    machine.stdin.write(keys.encode())
    machine.stdin.flush()
else:
    said["outcome"] = ctl("stop", "--wait", "60")
try:
    said["code"] = machine.wait(60)
except subprocess.TimeoutExpired:
    machine.kill()
    said["code"] = machine.wait()
json.dump(said, open(report, "w"))
"""

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


def steer(lab, tmp_path: Path, ready: str, keys: str, *arguments: object) -> tuple[dict, str]:
    """Boot, pause, resume, and end the guest; what was answered and what it printed.  In the lab it is tried again if
    the emulator may have lost the guest."""
    for _ in range(ATTEMPTS):
        said, console = steer_once(lab, tmp_path, ready, keys, *arguments)
        if lab is None or said.get("code") == 0:
            break
        warnings.warn(f"booted again, the emulator may have lost the guest: {said}", stacklevel=2)
    return said, console


def steer_once(lab, tmp_path: Path, ready: str, keys: str, *arguments: object) -> tuple[dict, str]:
    script, report, out = tmp_path / "steer.py", tmp_path / "report.json", tmp_path / "out"
    script.write_text(STEER)
    report.unlink(missing_ok=True)
    command = [
        str(script), str(tmp_path / "ctl.sock"), str(report), ready, str(PAUSE), keys, "boot", *map(str, arguments)
    ]  # fmt: skip
    with out.open("wb") as output:
        if lab is None:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(
                [sys.executable, *command],
                stdout=output,
                stderr=output,
                check=False,
                timeout=300,
                env=environment,
            )
        else:
            try:
                lab.run(
                    ["python3", *command], stdin=None, stdout=output.fileno(), stderr=output.fileno(),
                    carry_out=[str(report)], timeout=300,
                )  # fmt: skip
            except HostError as error:
                output.write(error.message.encode())
    said = json.loads(report.read_text()) if report.exists() else {}
    return said, out.read_text(errors="replace")


def check_pause(said: dict) -> None:
    """The machine stood still in between: its state and its exits."""
    assert all(code == 0 for _, code, _, _ in said["answers"]), said
    (status, exits), (later, exits_later) = said["before"], said["after"]
    assert status["state"] == later["state"] == "paused"
    assert later["paused_s"] - status["paused_s"] >= PAUSE
    assert exits == exits_later


def test_a_kernels_clocks_stand_still(lab, platform, kernel, tmp_path):
    """The guest ends itself: when the power button is pressed or, as Debian's cloud kernel for arm64 has no driver for
    keys on GPIO lines, when a line is typed."""
    has_button = platform is X86_64
    image = tmp_path / "initrd.cpio"
    script = CLOCKS.format(signal="/dev/input/event0" if has_button else "/dev/console")
    image.write_bytes(initrd(["button", "evdev"] if has_button else [], script, platform.kernel))
    # Its watchdog calls a CPU locked up after 8 s without a sign of life.
    said, console = steer(
        lab, tmp_path, "ready to pause", "" if has_button else "x\n", kernel, "--initrd", image, "--cpus", "2",
        "--timeout", "150", "--cmdline", f"{platform.quiet} watchdog_thresh=4",
    )  # fmt: skip
    assert said.get("code") == 0, (said, console)
    check_pause(said)
    assert not has_button or said["outcome"]["outcome"] == "shutdown", said
    assert "the signal came" in console, console
    assert "complaints" not in console, console
    times = re.findall(r"^clocks ([\d.]+) (\d+) (\d+)\r?$", console, re.MULTILINE)
    assert len(times) > 8, console
    for name, unit, values in zip(
        ("uptime", "date", "monotonic"), (1, 1, 1e9), zip(*times, strict=True), strict=True
    ):
        steps = [(float(after) - float(before)) / unit for before, after in pairwise(values)]
        assert min(steps) >= 0 and max(steps) < SEEN, (name, steps, console)
    print(said, console)


@pytest.mark.parametrize("platform", [X86_64], indirect=True, scope="module", ids=["x86_64"])
def test_the_counter_stands_still(lab, guests, tmp_path):
    """The guest that watches the counter is for x86_64."""
    said, console = steer(
        lab, tmp_path, "looking", "x\n", guests / "gap.elf", "--memory", "32M", "--timeout", "100"
    )
    assert said.get("code") == 0, (said, console)
    check_pause(said)
    found = re.search(r"gap ([0-9a-f]+) of ([0-9a-f]+)", console)
    assert found, console
    gap, whole = (int(word, 16) for word in found.groups())
    # Did the counter go on, the pause would be that part of all the time, or more.
    assert gap / whole < PAUSE / (said["after"][0]["uptime_s"] + 10) / 2, (said, console)
    print(console)
