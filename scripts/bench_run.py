"""The benchmark behind scripts/bench --run: ``pyvmm run`` beside virtme-ng with QEMU, the same kernel in one lab run.

Both run ``true`` on the root file system of the place where they are, by turns.  What virtme-ng needs and the lab does
not have (QEMU with its firmware, kmod, bash) is taken from this host; virtme-ng itself comes from PyPI.  It is told to
use 9p, as untold it first waits in vain for Debian 12's virtiofsd, which is older than what it knows; so the kernel
is the generic one, which has 9p.  In the lab there is no udevd, without which virtme-ng finds no port for
its exit status: with -v it says "script exited with code 0", and vng ends with 255 all the same.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_boots import QemuBundle, parser, say, stock_kernel, verdict, write

from pyvmm.errors import UsageError

VIRTME_NG = "virtme-ng==1.42"
#: Machine code that QEMU's q35 machine takes, beyond what its microvm needs.
FIRMWARE = (
    "bios-256k.bin",
    "bios.bin",
    "linuxboot.bin",
    "vgabios-stdvga.bin",
    "vgabios.bin",
    "efi-virtio.rom",
)
#: Programs that virtme-ng or its guest starts; where each is to be in the lab is where it is here.
PROGRAMS = ("modprobe", "bash", "virtiofsd", "busybox", "file")
#: What file(1) knows file formats by, which virtme-ng asks for the kernel's version and for a static busybox.
MAGIC = "/usr/lib/file/magic.mgc"
#: The drivers of both: virtme-ng takes those that its kernel has, by modprobe.
DRIVERS = (
    "virtio_mmio", "virtio_console", "virtiofs", "overlay", "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng",
    "virtio_balloon", "virtio_scsi", "9p", "9pnet_virtio", "i6300esb",
)  # fmt: skip
AT_MOST = 0.7
#: What vng ends with where its guest has no udevd.
NO_STATUS = "255"


def program(name: str) -> str:
    """Where a program is on this host."""
    found = shutil.which(
        name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/lib/qemu:/usr/libexec"
    )
    if found is None:
        raise SystemExit(
            f"bench: {name} is missing here; install it (kmod, bash, virtiofsd, busybox-static, file)"
        )
    return os.path.realpath(found) if name == "modprobe" else found


def virtme_ng() -> Path:
    """A directory with virtme-ng and what it depends on, fetched once into the cache."""
    from pyvmm import cache

    with cache.lock("bench") as locked:
        final = os.path.join(locked, VIRTME_NG.replace("==", "-"))
        if not os.path.isdir(final):
            with cache.workspace(locked) as work:
                made = os.path.join(work, "made")
                pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile"]
                subprocess.run([*pip, "--target", made, VIRTME_NG], check=True)
                cache.publish(made, final)
    return Path(final)


def modules(kernel: str, folder: Path) -> str:
    """Both VMMs' modules below ``folder``/lib/modules, with their index; returns the kernel's release."""
    from pyvmm.lab.kernel_modules import fetched_modules

    tree = fetched_modules(kernel)
    if tree is None:
        raise SystemExit(f"bench: {kernel} is not one that scripts/fetch-kernels fetched")
    release = json.loads(Path(f"{kernel}.json").read_text())["release"]
    place = folder / "lib" / "modules" / release
    (place / "kernel").mkdir(parents=True)
    for driver in DRIVERS:
        try:
            found = tree.load_order([driver])
        except UsageError as error:  # not every kernel has every driver
            say(f"no {driver}: {error}")
            continue
        for module in found:
            shutil.copy(module.path, place / "kernel")
    shutil.copy(os.path.join(tree.path, "modules.builtin"), place)
    (place / "modules.order").touch()
    subprocess.run([shutil.which("depmod") or "/usr/sbin/depmod", "-b", str(folder), release], check=True)
    return str(release)


SCRIPT = r"""
set -e
mkdir -p /boot /lib/modules /usr/local/bin /usr/sbin /tmp /var/empty
cp -r {folder}/lib/modules/{release} /lib/modules/
ln -sf {kernel} /boot/vmlinuz-{release}
cp {folder}/qemu-wrapper /usr/local/bin/qemu-system-x86_64
chmod 755 /usr/local/bin/qemu-system-x86_64
for each in modprobe depmod modinfo insmod lsmod; do ln -sf {kmod} /usr/sbin/$each; done
ln -sf {bash} /bin/bash 2>/dev/null || true
export PATH=/usr/local/bin:{site}/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONDONTWRITEBYTECODE=
python3 -m compileall -q {site} || true
cd /root
export PYTHONPATH={site}:$PYTHONPATH
timed() {{
    name=$1; shift
    start=$(cut -d' ' -f1 /proc/uptime)
    status=0
    "$@" >{folder}/last 2>&1 </dev/null || status=$?
    end=$(cut -d' ' -f1 /proc/uptime)
    echo "$name $status $start $end" | tee -a {folder}/times >&2
    if [ $status != 0 ]; then tail -25 {folder}/last >&2; fi
}}
vng() {{ timeout 150 {site}/bin/vng "$@"; }}
mkdir -p /usr/share/misc; ln -sf /usr/lib/file/magic.mgc /usr/share/misc/magic.mgc
file -b /usr/bin/busybox >&2
for round in $(seq {rounds}); do
    timed pyvmm timeout 150 pyvmm run -k {kernel} --modules /lib/modules/{release} -- true
    timed vng vng --force-9p -r {kernel} -- true
done
"""


def measure(kernel: str, rounds: int) -> dict[str, Any]:
    """Wall times, in seconds, by name, and the statuses that were not 0."""
    from pyvmm.lab import Lab

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        qemu = QemuBundle(folder / "qemu")
        if qemu.folder is None:
            raise SystemExit("bench: there is no QEMU here")
        for firmware in FIRMWARE:
            for data in ("/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu"):
                if os.path.exists(f"{data}/{firmware}"):
                    shutil.copy(f"{data}/{firmware}", qemu.folder / "share")
                    break
        (folder / "qemu-wrapper").write_text(
            f"#!/bin/sh\nexec {qemu.interpreter} --library-path {qemu.folder}/lib {qemu.folder}/qemu-system-x86_64"
            f' -L {qemu.folder}/share "$@"\n'
        )
        release = modules(kernel, folder)
        site = virtme_ng()
        programs = {each: program(each) for each in PROGRAMS}
        script = folder / "script"
        script.write_text(
            SCRIPT.format(
                folder=folder, release=release, kernel=kernel, site=site, rounds=rounds,
                kmod=programs["modprobe"], bash=programs["bash"],
            )
        )  # fmt: skip
        times = folder / "times"
        with Lab() as lab:
            say(f"{rounds} rounds in the lab")
            lab.run(
                ["sh", str(script)], stdin=None, timeout=1500,
                carry_in=[kernel, str(folder), str(site), MAGIC, *programs.values()], carry_out=[str(times)],
            )  # fmt: skip
        found: dict[str, Any] = {"pyvmm": [], "vng": [], "failed": []}
        for line in times.read_text().splitlines():
            which, status, start, end = line.split()
            found[which].append(round(float(end) - float(start), 2))
            if status != "0" and (which, status) != ("vng", NO_STATUS):
                found["failed"].append(f"{which}: {status}")
        return found


def main() -> int:
    """Measure; print the table, write the JSON."""
    arguments = parser("scripts/bench --run", __doc__)
    arguments.add_argument("--rounds", type=int, default=3, help="runs of each, by turns (default: 3)")
    arguments.add_argument("--kernel", metavar="bzImage", help="a kernel of scripts/fetch-kernels")
    options = arguments.parse_args()
    kernel = options.kernel or stock_kernel("debian-6.1")
    found = measure(os.path.abspath(kernel), options.rounds)
    commands = {"pyvmm": "pyvmm run -k bzImage -- true", "vng": "vng --force-9p -r bzImage -- true"}
    for name, what in commands.items():
        each = ", ".join(f"{time:.2f}" for time in found[name])
        print(f"  {what:34} median {statistics.median(found[name]):6.2f} s   ({each})")
    ratio = statistics.median(found["pyvmm"]) / statistics.median(found["vng"])
    found["ratio"] = round(ratio, 3)
    print(f"  ratio {ratio:.2f}, at most {AT_MOST}: {verdict(ratio <= AT_MOST)}")
    for failure in found["failed"]:
        print(f"  FAILED: {failure}: the figures mean nothing")
    write(found, options.json)
    return 1 if found["failed"] or ratio > AT_MOST else 0


if __name__ == "__main__":
    sys.exit(main())
