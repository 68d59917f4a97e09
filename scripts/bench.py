"""The benchmark behind scripts/bench: start-up on this host, and a stock kernel's boot where KVM is real.

Both parts put QEMU's microvm machine beside pyvmm, with the same guest in the same run; a time alone says nothing,
a ratio does.  Exits to userspace are counted by the kernel (scripts/count_exits.py), so they are exact.
"""

from __future__ import annotations

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

from bench_boots import PYVMM, QEMU, ROOT, Boots, QemuBundle, parser, say, show_targets, stock_kernel, write

FOUR = ROOT / "kernels" / "build" / "x86_64" / "four.elf"
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
def kvmtool_boot(program: str, kernel: str, initrd: str, cmdline: str) -> list[str]:
    """kvmtool booting the same kernel and initrd."""
    return [
        program, "run", "-k", kernel, "-i", initrd, "-m", "512", "-c", "1", "-p", cmdline, "--console", "serial",
    ]  # fmt: skip


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
    show_targets(report["figures"], TARGETS)


def main() -> int:
    """Measure what was asked for; print the tables, write the JSON."""
    arguments = parser("scripts/bench", __doc__)
    arguments.add_argument("--runs", type=int, default=15, help="runs of the start-up part (default: 15)")
    arguments.add_argument("--kvmtool", metavar="PATH", help="a kvmtool binary (lkvm) to run beside")
    arguments.add_argument(
        "--kernel", metavar="bzImage", help="the kernel to boot (default: Debian's 6.1 cloud kernel)"
    )
    arguments.add_argument("--only", choices=("startup", "boot"), help="one part alone")
    options = arguments.parse_args()
    report: dict[str, Any] = {}
    if options.only != "boot":
        report["startup"] = startup(options.runs)
    if options.only != "startup":
        kernel = options.kernel or stock_kernel("debian-6.1-cloud")
        report["kernel"] = kernel
        report["boots"] = boots(os.path.abspath(kernel), options.kvmtool)
    report["figures"] = figures(report)
    show(report)
    write(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
