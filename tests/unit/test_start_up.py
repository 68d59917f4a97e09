"""What a plain boot imports: start-up time is the user's."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

#: Modules that would cost more than they give on the way to the first KVM_RUN.
FORBIDDEN = (
    "asyncio", "logging", "elftools", "rich", "dataclasses", "typing", "json", "inspect", "pathlib", "tempfile",
    "subprocess", "shutil", "importlib.metadata", "traceback", "socket", "random",
)  # fmt: skip

SCRIPT = """
import sys
import pyvmm.machine.machine as machine
machine.Machine.run = lambda self: (_ for _ in ()).throw(SystemExit(0))   # stop where the vCPUs would start
from pyvmm.cli import main
try:
    main(sys.argv[1:])
finally:
    print("\\n".join(sys.modules))
"""


@pytest.mark.usefixtures("kvm")
@pytest.mark.parametrize("guest", ["four"])
def test_plain_boot_imports_little(guests, guest):
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, "boot", str(guests / f"{guest}.elf"), "--no-input"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    modules = done.stdout.split()
    assert "pyvmm.machine.build" in modules, done.stderr
    assert "loader.elf" in modules, done.stderr
    assert [name for name in FORBIDDEN if name in modules] == []


def test_bzimage_imports_little(tmp_path):
    """The bzImage path, up to the point where KVM is needed: a made-up image is enough for that."""
    from loader_images import bzimage

    path = tmp_path / "bzImage"
    path.write_bytes(bytes(bzimage()))
    script = SCRIPT.replace(
        "machine.Machine.run =", "import pyvmm.machine.build as build\nbuild.System ="
    ).replace("lambda self:", "lambda:")
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, "boot", str(path), "--no-input"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    modules = done.stdout.split()
    assert "loader.configurator.linux" in modules, done.stderr
    assert [name for name in FORBIDDEN if name in modules] == []
