"""The benchmark behind scripts/bench --devices: virtio devices beside the same set of QEMU's microvm machine.

Two machines, one of each VMM, run side by side with a disk and two network cards, one with vhost-net and one whose
frames the VMM moves, and do the same work in turns (scripts/bench_devices_host.py); the best run of each counts,
because others use the machine too.  Then a kernel is booted quietly with no device, with each alone, and with all,
and the exits to userspace are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import QUIET
from bench_boots import PYVMM, ROOT, Boots, QemuBundle, parser, say, stock_kernel, verdict, write

from pyvmm.lab import programs

sys.path.insert(0, str(ROOT / "tests" / "boot"))
from guest_initrd import initrd  # the tests' initrd: busybox and a stock kernel's modules

OURS, THEIRS = "pyvmm", "QEMU microvm"
KERNEL = "debian-6.1-cloud"
DISK_MIB = 64
MODULES = [
    "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "vmw_vsock_virtio_transport",
    "virtio_balloon", "virtiofs",
]  # fmt: skip

#: Gives each card the address that the end of its MAC stands for, and then does what it is told.  $vhost and $own are
#: the host's addresses behind the card with vhost-net (interfaces 1 and 3) and the other one.
SHELL = """\
stty -echo
for card in /sys/class/net/eth*; do
    number=$(cut -c 17 $card/address) name=${card##*/}
    ip link set $name up && ip addr add 10.0.$number.2/24 dev $name
    case $number in [13]) vhost=10.0.$number.1 ;; *) own=10.0.$number.1 ;; esac
done
echo
echo ready
while read -r line; do
    eval "$line"
    echo "done $?"
done
"""

#: name -> (command in the guest, unit, the figure to reach, against QEMU's; None: only to be known).
WORK: dict[str, tuple[str, str, float | None]] = {
    "read 1 MiB": ("/blockio /dev/vda read 1048576 {mib}", "MiB/s", 0.9),
    "write 1 MiB": ("/blockio /dev/vda write 1048576 {mib}", "MiB/s", 0.9),
    "random read 4 KiB": ("/blockio /dev/vda randread 4096 {requests}", "requests/s", 0.5),
    "random write 4 KiB": ("/blockio /dev/vda randwrite 4096 {requests}", "requests/s", 0.5),
    "vhost-net, send": ("/netio $vhost 5000 send {net_mib}", "MiB/s", 0.9),
    "vhost-net, receive": ("/netio $vhost 5000 receive {net_mib}", "MiB/s", 0.9),
    "vhost-net, ping-pong": ("/netio $vhost 5000 ping {pings}", "turns/s", 0.9),
    "own card, send": ("/netio $own 5000 send {net_mib}", "MiB/s", None),
    "own card, receive": ("/netio $own 5000 receive {net_mib}", "MiB/s", None),
    "own card, ping-pong": ("/netio $own 5000 ping {pings}", "turns/s", None),
}
#: How much of each a run does: short runs, and many, so that the best of them was not disturbed by others.
LAB = {"mib": 8, "requests": 60, "net_mib": 2, "pings": 40}
HARDWARE = {"mib": 512, "requests": 20_000, "net_mib": 512, "pings": 10_000}
#: Exits that a device may add to a boot, and that a quiet boot without devices may make.
DEVICE_EXITS, QUIET_EXITS = 60, 230


def guest_program(name: str, folder: Path) -> bytes:
    """kernels/bench/``name``.c, built with the C library, statically."""
    source = ROOT / "kernels" / "bench" / f"{name}.c"
    command = ["gcc", "-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-static", "-s"]
    done = subprocess.run(
        [*command, "-o", folder / name, source], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench: {source} does not build: {done.stderr.strip()}")
    return (folder / name).read_bytes()


def mac(number: int) -> str:
    """The address of the card on TAP interface ``number``."""
    return f"52:54:00:00:00:0{number}"


def qemu_net(number: int, vhost: str) -> list[str]:
    """A card of QEMU's on TAP interface ``number``."""
    return [
        "-netdev", f"tap,id=n{number},ifname=bench{number},script=no,downscript=no,vhost={vhost}",
        "-device", f"virtio-net-device,netdev=n{number},mac={mac(number)}",
    ]  # fmt: skip


def qemu_disk(path: str) -> list[str]:
    """A disk of QEMU's, with what is its default everywhere: write-back, a pool of threads."""
    return ["-drive", f"if=none,id=d0,format=raw,file={path}", "-device", "virtio-blk-device,drive=d0"]


class Bench:
    """What all runs share: the kernel, QEMU, the initrds, the folder where everything is."""

    def __init__(self, folder: Path, kernel: str) -> None:
        self.folder = folder
        self.kernel = kernel
        self.qemu = QemuBundle(folder / "qemu")
        if self.qemu.folder is None:
            raise SystemExit("bench: there is no QEMU to compare with; apt-get install qemu-system-x86")
        programs = {name: guest_program(name, folder) for name in ("blockio", "netio")}
        self.shell, self.bare = folder / "shell.cpio", folder / "bare.cpio"
        self.shell.write_bytes(initrd(MODULES[:3], SHELL, KERNEL, programs))
        self.bare.write_bytes(initrd(MODULES, "echo 'pyvmm: userspace reached'\n", KERNEL))
        self.disk = folder / "disk.img"
        self.disk.write_bytes(bytes(1 << 20))
        self.share = folder / "share"
        self.share.mkdir()

    def ours(self, image: Path, devices: list[str]) -> list[str]:
        """A boot by pyvmm."""
        return ["pyvmm", "boot", self.kernel, "--initrd", str(image), "--cmdline", QUIET, *devices]

    def theirs(self, image: Path, devices: list[str]) -> list[str]:
        """A boot by QEMU, with devices of the standard's version 1 like pyvmm's."""
        modern = ["-global", "virtio-mmio.force-legacy=false"]
        return [*self.qemu.boot(self.kernel, str(image), QUIET), *modern, *devices]

    def files(self) -> list[str]:
        """What has to be carried to where KVM is real."""
        assert self.qemu.folder is not None
        scripts = [str(ROOT / "scripts" / f"{name}.py") for name in ("bench_devices_host", "count_exits")]
        own = [str(path) for path in (self.shell, self.bare, self.disk, self.qemu.folder)]
        return [self.kernel, *own, self.share, *programs.find(["virtiofsd"], "x86_64").carry, *scripts]


# --- throughput, and exits for a request or a frame ------------------------------------------------------------
def measure(bench: Bench, machines: Boots, options: argparse.Namespace) -> dict[str, Any]:
    """The work of both VMMs' devices, in turns; pyvmm's own count of its exits and requests with it."""
    plan_path, found_path, own = (bench.folder / name for name in ("plan.json", "found.json", "own.json"))
    disks = [str(bench.folder / f"{name}.img") for name in ("ours", "theirs")]
    our_devices = ["--disk", disks[0], "--result", str(own)]
    for number, vhost in ((1, "on"), (2, "off")):
        our_devices += ["--net", f"tap=bench{number},mac={mac(number)},vhost={vhost}"]
    their_devices = [*qemu_disk(disks[1]), *qemu_net(3, "on"), *qemu_net(4, "off")]
    sizes = dict(HARDWARE if machines.lab is None else LAB)
    sizes = {name: getattr(options, name) or size for name, size in sizes.items()}
    plan = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "interfaces": {f"bench{number}": f"10.0.{number}.1" for number in (1, 2, 3, 4)},
        "disks": disks,
        "disk_mib": DISK_MIB,
        "machines": {
            OURS: bench.ours(bench.shell, our_devices),
            THEIRS: bench.theirs(bench.shell, their_devices),
        },
        "work": {
            name: command.format(**sizes) for name, (command, *_) in WORK.items() if options.work in name
        },
    }
    plan_path.write_text(json.dumps(plan))
    say(f"the machines' devices, side by side in {machines.place}")
    command = ["python3", str(ROOT / "scripts" / "bench_devices_host.py"), str(plan_path), str(found_path)]
    limit = 1200 + options.seconds
    if machines.lab is None:
        subprocess.run(["unshare", "-n", *command], check=False, stdin=subprocess.DEVNULL, timeout=limit)
    else:
        results = [str(found_path), str(own)]
        machines.lab.run(command, carry_in=machines.carry, carry_out=results, stdin=None, timeout=limit)
        machines.carry = []
    if not found_path.exists():
        raise SystemExit("bench: the devices could not be measured")
    result = json.loads(own.read_text())
    return {
        "runs": json.loads(found_path.read_text()),
        "by device": {
            key: {"exits": result["exits"]["by_device"].get(key, 0), **counts}
            for key, counts in result["devices"].items()
        },
    }


def rates(runs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The best run of each VMM and each piece of work, in its unit, and their ratio; the median of the ratios of each
    turn; and register exits for each count."""
    found = {}
    for name, by_vmm in runs.items():
        row: dict[str, float] = {}
        for vmm, results in by_vmm.items():
            row[vmm] = max(each["count"] / each["seconds"] for each in results)
            row[f"{vmm}: exits"] = sum(each["mmio"] for each in results) / sum(
                each["count"] for each in results
            )
        row["ratio"] = row[OURS] / row[THEIRS]
        pairs = zip(by_vmm[OURS], by_vmm[THEIRS], strict=True)
        row["median"] = statistics.median(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
        found[name] = row
    return found


# --- boots -----------------------------------------------------------------------------------------------------
def device_options(bench: Bench) -> dict[str, tuple[list[str], list[str]]]:
    """For each device pyvmm's options, and QEMU's for the same; none where it takes another program."""
    disk = str(bench.disk)
    return {
        "disk": (["--disk", disk], qemu_disk(disk)),
        "net": (["--net", f"tap=bench5,mac={mac(5)},vhost=on"], qemu_net(5, "on")),
        "rng": (["--rng"], ["-device", "virtio-rng-device"]),
        "console": (
            ["--console", "hvc"],
            ["-device", "virtio-serial-device", "-chardev", "null,id=c", "-device", "virtconsole,chardev=c"],
        ),
        "vsock": (["--vsock", "1042"], ["-device", "vhost-vsock-device,guest-cid=1042"]),
        "balloon": (["--balloon", "0"], ["-device", "virtio-balloon-device"]),
        "share": (["--share", f"{bench.share}:share"], []),
    }  # fmt: skip


def boots(bench: Bench, machines: Boots) -> dict[str, Any]:
    """Quiet boots that load the drivers: with no device, with each, and, QEMU too, with all that QEMU has by itself."""
    found: dict[str, Any] = {}

    def boot(name: str, command: list[str], *, result: bool = False) -> None:
        for _ in range(3):  # the lab's emulator may lose a guest
            row = machines.run(name, ["timeout", "110", *command], result=result)
            if row["reached_userspace"] and not row["status"]:
                found[name] = row
                return
        say(f"{name} never reached userspace")

    options = device_options(bench)
    boot("none", bench.ours(bench.bare, []), result=True)
    for name, (mine, _) in options.items():
        boot(name, bench.ours(bench.bare, mine), result=True)
    pairs = [pair for pair in options.values() if pair[1]]
    boot("all", bench.ours(bench.bare, [word for mine, _ in pairs for word in mine]), result=True)
    boot("QEMU-none", bench.theirs(bench.bare, []))
    boot("QEMU-all", bench.theirs(bench.bare, [word for _, theirs in pairs for word in theirs]))
    return found


# --- the report ------------------------------------------------------------------------------------------------
def show(report: dict[str, Any]) -> None:
    """The report as tables."""
    if "devices" in report:
        rounds = max(len(runs[OURS]) for runs in report["devices"]["runs"].values())
        print(f"\nDevices in {report['place']}, the best of {rounds} runs in turns")
        print(
            f"  {'':24}{OURS:>10}{THEIRS:>14}{'':12}{'ratio':>6}{'median':>8}   exits for each: {OURS}, {THEIRS}"
        )
        for name, row in report["rates"].items():
            _, unit, least = WORK[name]
            wanted = "" if least is None else f"at least {least:<5}{verdict(row['ratio'] >= least)}"
            print(
                f"  {name:24}{row[OURS]:10.1f}{row[THEIRS]:14.1f} {unit:11}{row['ratio']:6.2f}{row['median']:8.2f}"
                f"{row[f'{OURS}: exits']:12.3f}{row[f'{THEIRS}: exits']:10.3f}   {wanted}"
            )
        print("  pyvmm, from its start: " + json.dumps(report["devices"]["by device"]))
    if "boots" in report:
        rows = report["boots"]
        print(f"\nExits to userspace of a quiet boot that loads the drivers, in {report['place']}")
        for name, row in rows.items():
            base = rows.get("QEMU-none" if name.startswith("QEMU") else "none", row)["exits"]
            text = f"  {name:24}{row['exits']:8}{row['exits'] - base:+8}"
            if "result" in row and name not in ("none", "all"):
                own = row["result"]["exits"]["by_device"].get(f"{name}0", 0)
                text += (
                    f"   the device's own {own:4}   at most {DEVICE_EXITS}  {verdict(own <= DEVICE_EXITS)}"
                )
            elif name == "none":
                text += f"{'':25}at most {QUIET_EXITS} {verdict(row['exits'] <= QUIET_EXITS)}"
            print(text)


def main() -> int:
    """Measure what was asked for; print the tables, write the JSON."""
    arguments = parser("scripts/bench --devices", __doc__)
    arguments.add_argument("--only", choices=("work", "boots"), help="one part alone")
    arguments.add_argument("--rounds", type=int, default=10, help="runs of each piece of work (default: 10)")
    arguments.add_argument(
        "--seconds", type=int, default=600, help="no further run after that long (default: 600)"
    )
    arguments.add_argument("--work", default="", metavar="TEXT", help="only what has TEXT in its name")
    arguments.add_argument("--mib", type=int, help=f"1 MiB requests in a run (in the lab: {LAB['mib']})")
    arguments.add_argument("--requests", type=int, help=f"4 KiB requests in a run ({LAB['requests']})")
    arguments.add_argument("--net-mib", type=int, help=f"MiB sent in a run ({LAB['net_mib']})")
    arguments.add_argument("--pings", type=int, help=f"bytes sent and returned in a run ({LAB['pings']})")
    options = arguments.parse_args()
    os.environ["PATH"] = f"{Path(PYVMM).parent}:{os.environ['PATH']}"
    kernel = stock_kernel(KERNEL)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), kernel)
        with Boots(bench.folder, kernel, str(bench.shell), bench.files()) as machines:
            report: dict[str, Any] = {"kernel": kernel, "place": machines.place}
            if options.only != "boots":
                report["devices"] = measure(bench, machines, options)
                report["rates"] = rates(report["devices"]["runs"])
            if options.only != "work":
                report["boots"] = boots(bench, machines)
    show(report)
    write(report, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
