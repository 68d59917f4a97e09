"""The power button under stock Debian kernels, from Ctrl-A s to the key event that a system shuts down by."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import threading

import pytest
from conftest import ROOT
from guest_initrd import initrd
from lab_boot import AARCH64, ATTEMPTS, X86_64, fetch, lab, platform

from pyvmm.errors import HostError

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

#: For each architecture a kernel with a driver for the button (Debian's cloud kernels for arm64 have none for keys on
#: GPIO lines), that driver, the name it gives the button, and its interrupt.
BUTTONS = {
    X86_64: (X86_64.kernel, "button", "Power Button", r"IO-APIC +9-edge +ACPI:Ged"),
    AARCH64: ("debian-6.1-arm64", "gpio_keys", "gpio-keys", r"9030000\.gpio +3 +Edge +power button"),
}

BUTTON = """\
for input in /sys/class/input/event*; do echo "$(basename $input): $(cat $input/device/name)"; done
timeout 60 dd if=/dev/input/event0 of=/tmp/event bs=24 count=1 2>/dev/null &
sleep 2
echo "ready for the button"
[ -e /dev/input/event0 ] && wait || sleep 60
echo "event: $(od -An -v -td2 -j16 /tmp/event | tr -s ' ')"
grep -iE "ACPI:Ged|gpio" /proc/interrupts
"""


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
def press(platform, lab, tmp_path):
    """Boots with the modules of the button, and gives these answers; again, if the emulator may have lost the guest."""

    def press(answers, driven=True) -> OnTerminal:
        name, driver, _, _ = BUTTONS[platform]
        path = tmp_path / "initrd.cpio"
        path.write_bytes(initrd([driver, "evdev"] if driven else ["evdev"], BUTTON, name))
        arguments = (
            fetch(name),
            "--initrd",
            path,
            "--cpus",
            2,
            "--cmdline",
            platform.quiet,
            "--timeout",
            100,
        )
        for _ in range(ATTEMPTS):
            done = OnTerminal(lab, arguments, answers)
            if lab is None or not platform.loses_guests or done.code not in (-1, 122, 124):
                break
        return done

    return press


def test_the_power_button_is_a_key_event_for_the_guest(platform, press):
    _, _, name, interrupt = BUTTONS[platform]
    done = press([(b"ready for the button", b"\x01s")])
    assert f"event0: {name}" in done.console, done
    assert "power button was pressed" in done.console
    assert re.search(r"event: +1 116 1 0", done.console), done  # EV_KEY, KEY_POWER, pressed (32 bits)
    assert re.search(rf": +[012] +[012] +{interrupt}", done.console), done
    assert done.code == 0, done


@pytest.mark.parametrize("platform", [X86_64], indirect=True, scope="module", ids=["x86_64"])
def test_a_second_press_stops_a_guest_that_does_not_heed_the_first(press):
    done = press([(b"ready for the button", b"\x01s"), (b"once more", b"\x01s")], driven=False)
    assert done.code == 130, done
    assert "stopped by Ctrl-A s twice" in done.console
