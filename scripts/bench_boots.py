"""What the benchmarks share: where KVM is real, boots under the exit counter there, a QEMU to carry along, the report.

Exits to userspace are counted by the kernel (scripts/count_exits.py), so they are exact.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYVMM = str(ROOT / ".venv" / "bin" / "pyvmm")
QEMU = "qemu-system-x86_64"


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def stock_kernel(name: str) -> str:
    """The path of one of scripts/fetch-kernels."""
    fetch = [str(ROOT / "scripts" / "fetch-kernels"), name]
    return subprocess.run(fetch, check=True, capture_output=True, text=True).stdout.split()[-1]


# --- boots, where KVM is real ----------------------------------------------------------------------------------
class QemuBundle:
    """QEMU with its libraries and firmware in one folder, so that it runs anywhere, beside another C library."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which(QEMU)
        self.folder = folder if program is not None else None
        if program is None:
            return
        for name in ("lib", "share"):
            (folder / name).mkdir(parents=True)
        listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        libraries = {word for line in listing.splitlines() for word in line.split() if word.startswith("/")}
        for library in libraries:
            shutil.copy(library, folder / "lib")
        self.interpreter = folder / "lib" / Path(next(path for path in libraries if "/ld-linux" in path)).name
        shutil.copy(program, folder)
        for name in ("bios-microvm.bin", "qboot.rom", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin"):
            for data in (Path("/usr/share/qemu"), Path("/usr/share/seabios")):
                if (data / name).exists():
                    shutil.copy(data / name, folder / "share")

    def boot(self, kernel: str, initrd: str, cmdline: str) -> list[str]:
        """QEMU's microvm machine booting the same kernel and initrd."""
        assert self.folder is not None
        return [
            str(self.interpreter), "--library-path", str(self.folder / "lib"), str(self.folder / QEMU),
            "-L", str(self.folder / "share"), "-M", "microvm,accel=kvm", "-cpu", "host", "-m", "512M",
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", kernel, "-initrd", initrd, "-append", cmdline,
        ]  # fmt: skip


class Boots:
    """Runs boots of ``arch`` where KVM is real, here or in one lab session, each under the exit counter."""

    def __init__(
        self, folder: Path, kernel: str, initrd: str, extra: list[str], arch: str = "x86_64"
    ) -> None:
        from pyvmm.lab import Lab

        hardware = json.loads(
            subprocess.run([PYVMM, "doctor", "--json"], capture_output=True, check=False).stdout
        )["kvm"]
        self.folder = folder
        here = hardware == "hardware" and os.uname().machine == arch
        self.lab = None if here else Lab(arch)
        self.carry = [kernel, initrd, str(ROOT / "scripts" / "count_exits.py"), *extra]

    def __enter__(self) -> Boots:
        if self.lab is not None:
            self.lab.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.lab is not None:
            self.lab.__exit__(*exception)

    @property
    def place(self) -> str:
        """Where the boots run, in words."""
        return "this host" if self.lab is None else "the lab"

    def run(self, name: str, command: list[str], *, result: bool = False) -> dict[str, Any]:
        """One boot; returns the counter's figures, with pyvmm's own result under ``result``."""
        counts, own, log = (self.folder / f"{name}.{suffix}" for suffix in ("counts", "result", "log"))
        counted = ["python3", str(ROOT / "scripts" / "count_exits.py"), str(counts), *command]
        if result:
            counted += ["--result", str(own)]
        say(f"{name} in {self.place}")
        with log.open("wb") as output:
            if self.lab is None:
                status = subprocess.run(
                    counted, stdin=subprocess.DEVNULL, stdout=output, check=False
                ).returncode
            else:
                status = self.lab.run(
                    counted, carry_in=self.carry, carry_out=[str(counts), str(own)], stdin=None, stdout=output.fileno(),
                    timeout=240,
                )  # fmt: skip
        self.carry = []  # the session keeps what it was given
        if not counts.exists():
            raise SystemExit(f"bench: {name} could not be run (status {status}): {log.read_bytes()[-500:]!r}")
        figures: dict[str, Any] = json.loads(counts.read_text())
        figures["console_bytes"] = log.stat().st_size
        figures["reached_userspace"] = b"pyvmm: userspace reached" in log.read_bytes()
        if result:
            figures["result"] = json.loads(own.read_text())
        return figures


# --- the report ------------------------------------------------------------------------------------------------
def verdict(reached: bool) -> str:
    """The last column."""
    return "reached" if reached else "NOT reached"


def show_targets(figures: Mapping[str, float], targets: Mapping[str, float]) -> None:
    """A table of the figures beside what each is to be at most."""
    print("\nFigures with a target")
    for name, value in figures.items():
        print(f"  {name:52}{value:9g}  at most {targets[name]:<6g} {verdict(value <= targets[name])}")


def parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has, under the first line of its docstring."""
    made = argparse.ArgumentParser(prog=prog, description=(description or "").splitlines()[0])
    made.add_argument("--json", metavar="FILE", help="write the report as JSON too")
    return made


def write(report: dict[str, Any], path: str | None) -> None:
    """The report as JSON, where it is asked for."""
    if path:
        Path(path).write_text(json.dumps(report, indent=2) + "\n")
