"""The guests of kernels/aarch64 under arm64's KVM, through ``pyvmm boot``.

On other hosts tests/boot/test_aarch64_guests_boot.py runs this file in the lab, where there is no compiler:
``$PYVMM_TEST_GUESTS`` is the folder of the guests then.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, cannot

pytestmark = pytest.mark.skipif(
    platform.machine() != "aarch64" or not os.path.exists("/dev/kvm"), reason="this is no arm64 host with KVM"
)


@pytest.fixture(scope="module")
def folder() -> Path:
    given = os.environ.get("PYVMM_TEST_GUESTS")
    if given:
        return Path(given)
    built = subprocess.run(
        [sys.executable, ROOT / "scripts" / "build-guests", "--arch", "aarch64"],
        capture_output=True,
        text=True,
    )
    if built.returncode:
        cannot(f"the test guests could not be built: {built.stderr.strip()}")
    return ROOT / "kernels" / "build" / "aarch64"


def boot(guest: Path, *options: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", "boot", str(guest), "--timeout", "60", *options],
        input=typed, capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("guest", "options", "code", "output"),
    [
        ("hello", (), 0, "hello from a guest of pyvmm\n"),
        ("hello", ("--no-coalesce",), 0, "hello from a guest of pyvmm\n"),
        ("smp", ("--cpus", "2"), 0, "one\ntwo\n"),
        ("status", (), 3, ""),
        ("reset", (), 0, ""),
    ],
)
def test_guests_end_as_they_should(
    folder: Path, guest: str, options: tuple[str, ...], code: int, output: str
) -> None:
    done = boot(folder / f"{guest}.elf", "--no-input", *options)
    assert (done.returncode, done.stdout.replace("\r", "")) == (code, output), done.stderr


def test_coalesced_output_makes_one_exit_a_byte(folder: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = boot(folder / "hello.elf", "--no-input", "--result", str(result))
    assert done.returncode == 0, done.stderr
    exits = json.loads(result.read_text())["exits"]
    assert exits["by_device"]["pl011"] == len("hello from a guest of pyvmm\n")


def test_a_polling_guest_gets_its_input(folder: Path) -> None:
    done = boot(folder / "echo.elf", typed="hiq")
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\r", "") == "ready\nhi\nbye\n"


def test_an_access_that_cannot_be_emulated_has_a_post_mortem(folder: Path) -> None:
    done = boot(folder / "badaccess.elf", "--no-input")
    assert done.returncode == 122
    assert "an access to guest address 0xc000000, where there is no RAM" in done.stderr
    assert "[a9400801]" in done.stderr


def test_a_guest_without_vectors_is_found_at_them(folder: Path) -> None:
    done = boot(folder / "novectors.elf", "--no-input", "--timeout", "5")
    assert done.returncode == 124
    assert "at the synchronous exception vector" in done.stderr
