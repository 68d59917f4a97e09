"""The benchmark behind scripts/bench: start-up on this host, and a stock kernel's boot where KVM is real.

Both parts put QEMU's microvm machine beside pyvmm, with the same guest in the same run; a time alone says nothing,
a ratio does.  Exits to userspace are counted by the kernel (scripts/count_exits.py), so they are exact.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYVMM = str(ROOT / ".venv" / "bin" / "pyvmm")
FOUR = ROOT / "kernels" / "build" / "x86_64" / "four.elf"
QEMU = "qemu-system-x86_64"
QUIET, LOUD = "console=ttyS0 quiet", "console=ttyS0"

#: What this project holds itself to (figure, at most).
TARGETS = {
    "exits of a quiet boot": 350,
    "exits per console byte, all messages": 1.1,
    "exits per byte written to the open tty": 0.15,
    "exec to first KVM_RUN, ms (median)": 90,
    "four-instruction guest, wall against QEMU microvm": 1.2,
    "Debian boot, wall against QEMU microvm": 0.5,
    "resident memory beyond guest RAM, MiB": 40,
}


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


# --- start-up on this host ---------------------------------------------------------------------------------
def timed(command: list[str], allowed: tuple[int, ...]) -> float:
    """Seconds of wall time of one run of ``command``."""
    started = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode not in allowed:
        raise SystemExit(
            f"bench: {' '.join(command)} ended with {done.returncode}: {done.stderr.decode()[-500:]}"
        )
    return wall


def qemu_four() -> list[str]:
    """QEMU's microvm machine with the four-instruction guest, as bare as it goes."""
    return [
        QEMU, "-M", "microvm,accel=kvm,rtc=off,pit=off,pic=off,isa-serial=on", "-m", "128M",
        "-cpu", "host,-arch-capabilities",  # which a software KVM offers and then refuses
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-kernel", str(FOUR),
    ]  # fmt: skip


def startup(runs: int) -> dict[str, Any]:
    """Median times of the smallest guest: from exec to the first KVM_RUN, and from start to end."""
    subprocess.run([ROOT / "scripts" / "build-guests"], check=True, stdout=subprocess.DEVNULL)
    say(f"start-up: {runs} runs of the four-instruction guest")
    boot = [PYVMM, "boot", str(FOUR), "--memory", "128M", "--no-input"]
    found: dict[str, list[float]] = {"pyvmm": [], "python": [], "first_run": [], "qemu": []}
    with tempfile.TemporaryDirectory() as folder:
        result = f"{folder}/result.json"
        for _ in range(runs):
            found["python"].append(timed([str(ROOT / ".venv" / "bin" / "python"), "-c", "pass"], (0,)))
            found["pyvmm"].append(timed(boot, (0,)))
            timed([*boot, "--result", result], (0,))
            found["first_run"].append(json.loads(Path(result).read_text())["first_run_s"])
            if shutil.which(QEMU):
                found["qemu"].append(timed(qemu_four(), tuple(range(256))))
    table = {
        name: {"median_ms": round(1000 * statistics.median(times), 2), "min_ms": round(1000 * min(times), 2)}
        for name, times in found.items()
        if times
    }
    return {"runs": runs, "times": table}


# --- a stock kernel, where KVM is real -----------------------------------------------------------------------
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


def kvmtool_boot(program: str, kernel: str, initrd: str, cmdline: str) -> list[str]:
    """kvmtool booting the same kernel and initrd."""
    return [
        program,
        "run",
        "-k",
        kernel,
        "-i",
        initrd,
        "-m",
        "512",
        "-c",
        "1",
        "-p",
        cmdline,
        "--console",
        "serial",
    ]


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

    def __exit__(self, *exception: object) -> None:
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


def boots(kernel: str, kvmtool: str | None) -> dict[str, Any]:
    """The stock kernel to userspace and power-off, by each VMM."""
    from pyvmm.initramfs import verify_initramfs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        initrd = folder / "initrd"
        initrd.write_bytes(verify_initramfs("x86_64"))
        qemu = QemuBundle(folder / "qemu")
        extra = [*([str(qemu.folder)] if qemu.folder else []), *([kvmtool] if kvmtool else [])]
        boot = [
            "pyvmm",
            "boot",
            kernel,
            "--initrd",
            str(initrd),
            "--no-input",
            "--timeout",
            "200",
            "--cmdline",
        ]
        with Boots(folder, kernel, str(initrd), extra) as machines:
            found = {
                "place": machines.place,
                "pyvmm quiet": machines.run("pyvmm-quiet", [*boot, QUIET], result=True),
            }
            if qemu.folder:
                found["QEMU microvm quiet"] = machines.run(
                    "qemu-quiet", qemu.boot(kernel, str(initrd), QUIET)
                )
            if kvmtool:
                found["kvmtool quiet"] = machines.run(
                    "kvmtool-quiet", kvmtool_boot(kvmtool, kernel, str(initrd), QUIET)
                )
            found["pyvmm all messages"] = machines.run("pyvmm-loud", [*boot, LOUD], result=True)
            for size in (5_000, 15_000):
                found[f"pyvmm tty {size}"] = machines.run(
                    f"pyvmm-tty-{size}", [*boot, f"{QUIET} pyvmm_end=poweroff pyvmm_spam={size}"], result=True
                )
            return found


# --- the report ----------------------------------------------------------------------------------------------
def figures(report: dict[str, Any]) -> dict[str, float]:
    """The figures that have a target, from whatever was measured."""
    found: dict[str, float] = {}
    if "startup" in report:
        times = report["startup"]["times"]
        found["exec to first KVM_RUN, ms (median)"] = times["first_run"]["median_ms"]
        if "qemu" in times:
            ratio = times["pyvmm"]["median_ms"] / times["qemu"]["median_ms"]
            found["four-instruction guest, wall against QEMU microvm"] = round(ratio, 2)
    if "boots" in report:
        boots = report["boots"]
        quiet, loud = boots["pyvmm quiet"], boots["pyvmm all messages"]
        found["exits of a quiet boot"] = quiet["exits"]
        found["exits per console byte, all messages"] = round(
            loud["exits"] / loud["result"]["console_bytes"], 3
        )
        few, many = boots["pyvmm tty 5000"], boots["pyvmm tty 15000"]
        written = many["result"]["console_bytes"] - few["result"]["console_bytes"]
        found["exits per byte written to the open tty"] = round((many["exits"] - few["exits"]) / written, 4)
        if "QEMU microvm quiet" in boots:
            found["Debian boot, wall against QEMU microvm"] = round(
                quiet["wall_s"] / boots["QEMU microvm quiet"]["wall_s"], 2
            )
        own = quiet["result"]["memory"]
        found["resident memory beyond guest RAM, MiB"] = round(
            (own["resident_kib"] - own["guest_kib"]) / 1024, 1
        )
    return found


def show(report: dict[str, Any]) -> None:
    """The report as tables."""
    if "startup" in report:
        print(f"\nStart-up on this host, {report['startup']['runs']} runs")
        print(f"  {'':34}{'median':>10}{'minimum':>10}")
        names = {
            "python": "bare interpreter",
            "first_run": "pyvmm: exec to first KVM_RUN",
            "pyvmm": "pyvmm: four-instruction guest",
            "qemu": "QEMU microvm: the same guest",
        }
        for key, name in names.items():
            if key in report["startup"]["times"]:
                row = report["startup"]["times"][key]
                print(f"  {name:34}{row['median_ms']:7.1f} ms{row['min_ms']:7.1f} ms")
    if "boots" in report:
        print(f"\n{report['kernel']}, 512 MiB, to userspace and power-off, in {report['boots']['place']}")
        print(f"  {'':24}{'exits':>8}{'wall':>9}{'CPU':>9}{'console':>10}  by device, or by KVM's reason")
        for name, row in report["boots"].items():
            if name == "place":
                continue
            parts = row["result"]["exits"]["by_device"] if "result" in row else row["by_reason"]
            detail = ", ".join(f"{key} {value}" for key, value in parts.items())
            bytes_ = row["result"]["console_bytes"] if "result" in row else row["console_bytes"]
            reached = "" if row["reached_userspace"] else "  (userspace NOT reached)"
            print(
                f"  {name:24}{row['exits']:8}{row['wall_s']:7.1f} s{row['cpu_s']:7.1f} s{bytes_:8} B  {detail}{reached}"
            )
    print("\nFigures with a target")
    for name, value in report["figures"].items():
        verdict = "reached" if value <= TARGETS[name] else "NOT reached"
        print(f"  {name:52}{value:9g}  at most {TARGETS[name]:<6g} {verdict}")


def main() -> int:
    """Measure what was asked for; print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON too")
    parser.add_argument("--runs", type=int, default=15, help="runs of the start-up part (default: 15)")
    parser.add_argument("--kvmtool", metavar="PATH", help="a kvmtool binary (lkvm) to run beside")
    parser.add_argument(
        "--kernel", metavar="bzImage", help="the kernel to boot (default: Debian's 6.1 cloud kernel)"
    )
    parser.add_argument("--only", choices=("startup", "boot"), help="one part alone")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    if options.only != "boot":
        report["startup"] = startup(options.runs)
    if options.only != "startup":
        kernel = options.kernel
        if kernel is None:
            fetch = [ROOT / "scripts" / "fetch-kernels", "debian-6.1-cloud"]
            kernel = subprocess.run(fetch, check=True, capture_output=True, text=True).stdout.split()[-1]
        report["kernel"] = kernel
        report["boots"] = boots(os.path.abspath(kernel), options.kvmtool)
    report["figures"] = figures(report)
    show(report)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
