"""The benchmark behind ``scripts/bench --arch aarch64``: Debian's stock arm64 kernel to userspace and power-off.

In one lab session (or on this host, where it is arm64 with hardware KVM) boot by pyvmm, by QEMU's ``virt`` machine
with KVM and, if given, by kvmtool: the same kernel, initrd, memory and a quiet command line.  Exits to userspace are
counted by the kernel (scripts/count_exits.py).  The time that the lab takes to run its first command is measured too.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_boots import Boots, parser, say, show_targets, stock_kernel, write
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from pyvmm import cache
from pyvmm.lab import Lab, foreign, packages

ARCH, DEBIAN = "aarch64", "arm64"
KERNEL = "debian-6.1-cloud-arm64"
QEMU, QEMU_PACKAGE = "qemu-system-aarch64", "qemu-system-arm"
#: Depended on, and there wherever the bundle runs.
UNWANTED = ("libc6", "gcc-12-base", "gcc-14-base")
SHARED_LIBRARY = re.compile(r"(usr/)?lib/[^/]+-linux-gnu/lib[^/]+\.so[^/]*")

#: What this project holds itself to (figure, at most).
TARGETS = {
    "exits of a quiet boot": 350,
    "lab, cold start to the first command, s": 30,
    "lab, saved state to the first command, s": 5,
}


# --- QEMU for arm64, with its libraries ------------------------------------------------------------------------
def needed(path: Path) -> list[str]:
    """The names of the libraries that an ELF file asks for (DT_NEEDED)."""
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".dynamic")
        if not isinstance(section, DynamicSection):
            return []
        return [tag.needed for tag in section.iter_tags("DT_NEEDED")]


def closure(program: Path, folder: Path) -> list[Path]:
    """The libraries of ``folder`` that ``program`` loads, those that they load in turn, and so on."""
    found: dict[str, Path] = {}
    queue = needed(program)
    while queue:
        name = queue.pop()
        if name not in found and (folder / name).exists():
            found[name] = folder / name
            queue += needed(folder / name)
    return [found[name] for name in sorted(found)]


def take(deb: str, programs: Path, libraries: Path) -> None:
    """Unpack QEMU and the shared libraries of a package; links among libraries stay as they are."""
    for member, contents in packages.members(deb):
        base = os.path.basename(member.name)
        if base == QEMU:
            place = programs / base
        elif SHARED_LIBRARY.fullmatch(member.name):
            place = libraries / base
        else:
            continue
        if contents is not None:
            with place.open("wb") as file:
                shutil.copyfileobj(contents, file)
            place.chmod(0o755)
        elif member.issym():
            place.unlink(missing_ok=True)
            place.symlink_to(os.path.basename(member.linkname))


def qemu_bundle() -> Path:
    """A folder with QEMU and, in lib/, what it loads: Debian's own for arm64, fetched once."""

    def fetch(folder: str) -> list[str]:
        direct = packages.direct_dependencies(QEMU_PACKAGE)
        libraries = [name for name in direct or () if re.match("lib|zlib1g", name) and name not in UNWANTED]
        wanted = [QEMU_PACKAGE, *packages.dependencies(libraries, UNWANTED)]
        return packages.fetch(packages.candidates(wanted), folder)

    with cache.lock("programs") as locked:
        final = Path(locked, f"{QEMU}-{DEBIAN}")
        if not final.exists():
            say("fetching QEMU for arm64 (once, 22 MB)")
            with cache.workspace(locked) as work:
                made, every = Path(work, "made"), Path(work, "every")
                (made / "lib").mkdir(parents=True)
                every.mkdir()
                for deb in foreign.using(DEBIAN, lambda: fetch(work), say):
                    take(deb, made, every)
                for library in closure(made / QEMU, every):
                    shutil.copy(library, made / "lib")  # what a link leads to, by the name that is asked for
                cache.publish(os.fspath(made), os.fspath(final))
        return final


# --- the boots -----------------------------------------------------------------------------------------------
def pyvmm_boot(kernel: str, initrd: str) -> list[str]:
    """pyvmm, in its own words."""
    return [
        "pyvmm", "boot", kernel, "--initrd", initrd, "--no-input", "--memory", "512M", "--timeout", "200",
        "--cmdline", "console=ttyAMA0 quiet",
    ]  # fmt: skip


def qemu_boot(folder: Path, kernel: str, initrd: str) -> list[str]:
    """QEMU's virt machine, as bare as it goes, with a device tree as pyvmm has."""
    return [
        "env", f"LD_LIBRARY_PATH={folder / 'lib'}", str(folder / QEMU),
        "-M", "virt,accel=kvm,gic-version=3,acpi=off", "-cpu", "host", "-m", "512M", "-smp", "1",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyAMA0 quiet",
    ]  # fmt: skip


def lkvm_boot(program: str, kernel: str, initrd: str) -> list[str]:
    """kvmtool, which has a 16550 and no PL011."""
    return [
        program, "run", "-k", kernel, "-i", initrd, "-m", "512", "-c", "1", "--irqchip", "gicv3",
        "--network", "mode=none", "--console", "serial", "-p", "console=ttyS0 quiet",
    ]  # fmt: skip


def boots(kernel: str, lkvm: str | None, rounds: int) -> dict[str, Any]:
    """Each VMM by turns, ``rounds`` times: the figures of each boot."""
    from pyvmm.initramfs import verify_initramfs

    qemu = qemu_bundle()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        initrd = folder / "initrd"
        initrd.write_bytes(verify_initramfs(ARCH))
        commands = {
            "pyvmm": pyvmm_boot(kernel, str(initrd)),
            "QEMU virt": qemu_boot(qemu, kernel, str(initrd)),
        }
        if lkvm:
            commands["kvmtool"] = lkvm_boot(lkvm, kernel, str(initrd))
        found: dict[str, list[dict[str, Any]]] = {vmm: [] for vmm in commands}
        extra = [os.fspath(qemu), *([lkvm] if lkvm else [])]
        with Boots(folder, kernel, str(initrd), extra, ARCH) as machines:
            for each in range(rounds):
                for vmm, command in commands.items():
                    row = machines.run(f"{vmm.replace(' ', '-')}-{each + 1}", command, result=vmm == "pyvmm")
                    if not row["reached_userspace"]:
                        log = (folder / f"{vmm.replace(' ', '-')}-{each + 1}.log").read_bytes()
                        raise SystemExit(f"bench: {vmm} did not reach userspace: {log[-500:]!r}")
                    found[vmm].append(row)
            return {"place": machines.place, "boots": found}


def lab_starts() -> dict[str, float]:
    """Seconds from nothing to the end of the first command in the lab: booted, and from its saved state."""
    with Lab(ARCH) as lab:  # builds what is missing
        lab.run(["true"], stdin=None)
    times = {}
    for name, cold in (("cold", True), ("saved", False)):
        say(f"the lab's start, {name}")
        started = time.monotonic()
        with Lab(ARCH, cold=cold) as lab:
            if lab.run(["true"], stdin=None):
                raise SystemExit("bench: the lab cannot run a command")
            times[name] = round(time.monotonic() - started, 2)
    return times


# --- the report ----------------------------------------------------------------------------------------------
def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one VMM's boots: the range of the exits, the median times, the last one's reasons."""
    return {
        "exits_min": min(row["exits"] for row in rows),
        "exits_max": max(row["exits"] for row in rows),
        "wall_s": round(statistics.median(row["wall_s"] for row in rows), 2),
        "cpu_s": round(statistics.median(row["cpu_s"] for row in rows), 2),
        "by_reason": rows[-1]["by_reason"],
    }


def show(report: dict[str, Any]) -> None:
    """The report as tables."""
    if "summary" in report:
        print(
            f"\n{report['kernel']}, 512 MiB, one vCPU, quiet, to userspace and power-off, in {report['place']};"
        )
        print(f"{report['rounds']} boots each: exits from least to most, median times")
        print(f"  {'':12}{'exits':>12}{'wall':>9}{'CPU':>9}{'pyvmm/it':>10}  by KVM's reason")
        own = report["summary"]["pyvmm"]["wall_s"]
        for vmm, row in report["summary"].items():
            exits = f"{row['exits_min']}-{row['exits_max']}"
            detail = ", ".join(f"{name} {count}" for name, count in row["by_reason"].items())
            print(
                f"  {vmm:12}{exits:>12}{row['wall_s']:7.1f} s{row['cpu_s']:7.1f} s{own / row['wall_s']:10.2f}  {detail}"
            )
    show_targets(report["figures"], TARGETS)


def main() -> int:
    """Measure; print the tables, write the JSON."""
    arguments = parser("scripts/bench --arch aarch64", __doc__)
    arguments.add_argument("--rounds", type=int, default=3, help="boots by each (default: 3)")
    arguments.add_argument(
        "--lkvm", metavar="PATH", default=os.environ.get("LKVM"),
        help="a kvmtool binary for arm64 to run beside (default: $LKVM)",
    )  # fmt: skip
    arguments.add_argument("--kernel", metavar="Image", help=f"the kernel to boot (default: {KERNEL})")
    arguments.add_argument("--only", choices=("boot", "lab"), help="one part alone")
    options = arguments.parse_args()
    report: dict[str, Any] = {"rounds": options.rounds, "figures": {}}
    if options.only != "lab":
        kernel = options.kernel or stock_kernel(KERNEL)
        report["kernel"] = kernel
        lkvm = os.path.abspath(options.lkvm) if options.lkvm else None
        report.update(boots(os.path.abspath(kernel), lkvm, max(1, options.rounds)))
        report["summary"] = {vmm: summary(rows) for vmm, rows in report["boots"].items()}
        report["figures"]["exits of a quiet boot"] = report["summary"]["pyvmm"]["exits_max"]
    if options.only != "boot":
        report["lab_starts"] = lab_starts()
        report["figures"]["lab, cold start to the first command, s"] = report["lab_starts"]["cold"]
        report["figures"]["lab, saved state to the first command, s"] = report["lab_starts"]["saved"]
    show(report)
    write(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
