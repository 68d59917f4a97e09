"""A whole Debian system: from its disk, with its own kernel and initrd, to a login, all devices, and a clean end.

scripts/make-debian-disk makes the disk, once for a day, in the cache.  In the lab this takes minutes, so that
scripts/test leaves it out there unless it is asked for with --system.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from conftest import ROOT, cannot
from lab_boot import X86_64, Boot, lost_by_the_emulator, needs_lab

from pyvmm import cache
from pyvmm.devices.virtio import virtiofsd
from pyvmm.errors import HostError

pytestmark = [pytest.mark.boot, pytest.mark.system, pytest.mark.timeout(2400)]

CID, VSOCK_PORT, PORT = 4343, 777, 8000
#: Seconds for the boot to the login, and for each thing after it.
TO_LOGIN, STEP = 700, 300
#: Days for which a disk is kept.
FRESH = 1.0
#: Units without which this system starts sooner; and in the lab things take longer than systemd expects.
UNWANTED = (
    "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "sys-kernel-config.mount", "modprobe@configfs", "modprobe@dm_mod", "modprobe@drm", "modprobe@efi_pstore",
    "modprobe@loop", "dpkg-db-backup.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp", "systemd-update-utmp-runlevel", "systemd-pstore", "systemd-journal-flush",
    "systemd-binfmt", "systemd-firstboot", "systemd-sysusers", "systemd-machine-id-commit",
)  # fmt: skip
CMDLINE = (
    "console=ttyS0 quiet root=/dev/vda fsck.mode=skip systemd.show_status=no systemd.default_timeout_start_sec=600 "
    + " ".join(f"systemd.mask={unit}" for unit in UNWANTED)
)
#: For the lab: now and then QEMU raises #UD for an AVX instruction of the guest, in the self-test of aesni_intel.
WITHOUT_AVX = " clearcpuid=xsave"

#: Typed into a shell without line editing.
CHECKS = f"""\
wait_for() {{ for i in $(seq 120); do "$@" > /dev/null 2>&1 && return; sleep 1; done; echo "in vain: $*"; }}
started() {{ [ "$(systemctl is-system-running)" != starting ]; }}
wait_for started
echo "state: $(systemctl is-system-running) $(systemctl --failed --plain --no-legend | tr '\\n' ' ')"
echo "logind: $(systemctl is-active systemd-logind)"
echo "root: $(findmnt -no SOURCE,FSTYPE,OPTIONS /)"
dd if=/dev/urandom of=/var/kept bs=1M count=4 2> /dev/null; sync; md5sum /var/kept
echo "rng: $(cat /sys/class/misc/hw_random/rng_current) $(head -c 16 /dev/hwrng | wc -c)"
gateway() {{ ip -4 route show default | sed -n 's/.* via \\([^ ]*\\).*/\\1/p' | grep .; }}
wait_for gateway
tcp() {{ perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new($ARGV[0]) or die $!; print <$s>' "$1"; }}
vsock() {{ perl -e 'socket(S, 40, 1, 0) && connect(S, pack("SSLLx4", 40, 0, $ARGV[0], 2)) or die $!; print <S>' $1; }}
echo "net: $(tcp "$(gateway):{PORT}")"
echo "vsock: $(vsock {VSOCK_PORT})"
mount -t virtiofs data /mnt && echo "share: $(cat /mnt/hello)"
echo "hello from the guest" > /mnt/answer && umount /mnt
echo "uptime: $(cut -d. -f1 /proc/uptime)"
echo "checked $((6 * 7))"
"""

#: Runs beside pyvmm, as its parent: the other end of the network, of the vsock, and the shared directory.
HOST = """\
import os, socket, struct, subprocess, sys, threading
from fcntl import ioctl

folder, vsock_port, port, *arguments = sys.argv[1:]

def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)

def serve(listener, text):
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(text)

def dhcp(server):
    # RFC 2131, for one client
    while True:
        request = server.recv(2048)
        options, at, kind = request[240:], 0, 0
        while at < len(options) and options[at] != 255:
            if options[at] == 53:
                kind = options[at + 2]
            at += 2 + options[at + 1] if options[at] else 1
        if kind not in (1, 3):  # DISCOVER, REQUEST
            continue
        us, them = socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2")
        reply = b"\\2\\1\\6\\0" + request[4:12] + bytes(4) + them + us + bytes(4) + request[28:44] + bytes(192)
        reply += b"\\x63\\x82\\x53\\x63" + bytes((53, 1, 2 if kind == 1 else 5, 51, 4, 0, 0, 255, 0))
        reply += b"\\x36\\4" + us + b"\\1\\4\\xff\\xff\\xff\\0" + b"\\3\\4" + us + b"\\xff"
        server.sendto(reply, ("255.255.255.255", 68))

fd = os.open("/dev/net/tun", os.O_RDWR)
ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x5002))  # TUNSETIFF: a TAP
ioctl(fd, 0x400454CB, 1)  # TUNSETPERSIST
os.close(fd)
ip("link", "set", "lo", "up")
ip("addr", "add", "192.0.2.1/24", "dev", "tap0")
ip("link", "set", "tap0", "up")
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"tap0")
server.bind(("", 67))
threading.Thread(target=dhcp, args=(server,), daemon=True).start()
os.makedirs(folder + "/data", exist_ok=True)
with open(folder + "/data/hello", "w") as file:
    file.write("hello from the shared directory")
vsock = socket.socket(socket.AF_VSOCK)
vsock.bind((socket.VMADDR_CID_ANY, int(vsock_port)))
vsock.listen()
tcp = socket.create_server(("", int(port)))
for listener, text in (vsock, b"hello over vsock"), (tcp, b"hello over the network"):
    threading.Thread(target=serve, args=(listener, text), daemon=True).start()
code = subprocess.run([sys.executable, "-m", "pyvmm", *arguments]).returncode
with open(folder + "/data/answer") as file:
    print("host: the guest wrote:", file.read(), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def disk() -> Path:
    """The disk's image, with .vmlinuz and .initrd beside it, from the cache if it is not old."""
    for program in ("mmdebstrap", "mkfs.ext4", "e2fsck"):
        if shutil.which(program, path="/usr/sbin:/sbin:" + os.environ["PATH"]) is None:
            cannot(f"{program} is not installed")
    script = ROOT / "scripts" / "make-debian-disk"
    with cache.lock("debian-system") as folder:
        image = Path(folder) / "debian.img"
        wanted = max(script.stat().st_mtime, time.time() - FRESH * 24 * 3600)
        if not image.exists() or image.stat().st_mtime < wanted:
            command = [script, "--force", "--size", "420M", image]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                cannot(f"the disk could not be made: {done.stderr}")
    return image


class Dialogue:
    """Somebody at the console: waits for a text, types an answer.  ``stdin`` and ``stdout`` are for pyvmm."""

    def __init__(self, steps: list[tuple[str, str, float]]) -> None:
        self.stdin, self._type = os.pipe()
        self._read, self.stdout = os.pipe()
        self._steps = steps
        self._output = bytearray()
        self._more = threading.Condition()
        self._ended = False
        self.stuck = ""  # what was waited for in vain
        self.times: list[tuple[str, float]] = []
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._reader, self._typist)]

    def __enter__(self) -> Dialogue:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.stdout)
        for thread in self._threads:
            thread.join()
        for fd in (self.stdin, self._type, self._read):
            os.close(fd)

    @property
    def text(self) -> str:
        return self._output.decode(errors="replace").replace("\r", "")

    def _reader(self) -> None:
        while data := os.read(self._read, 65536):
            with self._more:
                self._output += data
                self._more.notify()
        with self._more:
            self._ended = True
            self._more.notify()

    def _typist(self) -> None:
        seen, start = 0, time.monotonic()
        for awaited, answer, limit in self._steps:
            deadline = time.monotonic() + limit
            with self._more:
                while (at := self._output.find(awaited.encode(), seen)) < 0:
                    if self._ended or not self._more.wait(max(0.0, deadline - time.monotonic())):
                        self.stuck = awaited
                        return
                seen = at + len(awaited)
            self.times.append((awaited, time.monotonic() - start))
            os.write(self._type, answer.encode())


STEPS = [
    ("login: ", "root\n", TO_LOGIN),
    ("Password: ", "pyvmm\n", STEP),
    ("~# ", "stty -echo; exec env PS1='rea''dy$ ' sh\n", STEP),
    ("ready$ ", CHECKS, STEP),
    ("checked 42", "poweroff\n", STEP),
]


def boot(disk: Path, folder: Path) -> tuple[Boot, Dialogue]:
    """Boot a copy of the disk, here where KVM is real or in a lab, with somebody at its console."""
    image, script, result = folder / "system.img", folder / "host.py", folder / "result.json"
    subprocess.run(["cp", "--sparse=always", disk, image], check=True)
    script.write_text(HOST)
    result.unlink(missing_ok=True)
    kernel, initrd = f"{disk}.vmlinuz", f"{disk}.initrd"
    hardware = not needs_lab(X86_64)
    cmdline = CMDLINE + ("" if hardware else WITHOUT_AVX)
    host = [str(script), str(folder), str(VSOCK_PORT), str(PORT)]
    command = [
        *host, "boot", kernel, "--initrd", initrd, "--cmdline", cmdline, "--timeout", str(TO_LOGIN + 4 * STEP),
        "--disk", str(image), "--net", "tap=tap0", "--rng", "--vsock", str(CID), "--share", f"{folder}/data:data",
        "--result", str(result),
    ]  # fmt: skip
    with Dialogue(STEPS) as dialogue, (folder / "err").open("wb") as err:
        if hardware:
            if os.geteuid() != 0:
                pytest.skip("only root can make network namespaces and TAP interfaces")
            code = subprocess.run(
                ["unshare", "-n", sys.executable, *command], stdin=dialogue.stdin, stdout=dialogue.stdout, stderr=err,
                env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
            ).returncode  # fmt: skip
        else:
            from pyvmm.lab import Lab

            try:
                with Lab() as lab:
                    code = lab.run(
                        ["python3", *command], stdin=dialogue.stdin, stdout=dialogue.stdout, stderr=err.fileno(),
                        carry_in=[kernel, initrd, str(image), virtiofsd.find()],
                        carry_out=[str(result), str(image)], timeout=TO_LOGIN + 5 * STEP,
                    )  # fmt: skip
            except HostError as error:
                err.write(error.message.encode())
                code = -1
    found = json.loads(result.read_text()) if result.exists() else {}
    return Boot(code, dialogue.text, (folder / "err").read_text(errors="replace"), found), dialogue


def test_debian_to_its_login_and_a_clean_power_off(disk, tmp_path):
    try:
        virtiofsd.find()
    except HostError as error:
        cannot(f"{error.message}: {error.hint}")
    done, dialogue = boot(disk, tmp_path)
    if lost_by_the_emulator(done, ()):
        warnings.warn(f"booted again: {done.result.get('report')}", stacklevel=1)
        done, dialogue = boot(disk, tmp_path)
    print(dialogue.times)
    assert not dialogue.stuck, (dialogue.stuck, done)
    assert (done.code, done.result["outcome"]) == (0, "shutdown"), done
    said = done.console
    assert re.search(r"state: running *\n", said), done
    assert "logind: active\n" in said, done  # who shuts down when the power button is pressed
    assert re.search(r"root: /dev/vda +ext4 +rw", said), done
    assert "rng: virtio_rng.0 16\n" in said, done
    assert "net: hello over the network\n" in said, done
    assert "vsock: hello over vsock\n" in said, done
    assert "share: hello from the shared directory\n" in said, done
    assert "host: the guest wrote: hello from the guest\n" in done.error, done
    assert "in vain" not in said and "I/O error" not in said, done
    exits = done.result["exits"]
    print(exits)
    assert exits["unhandled"] == {}, exits
    check_disk(tmp_path / "system.img", re.findall(r"\b([0-9a-f]{32})  /var/kept", said))


def check_disk(image: Path, digests: list[str]) -> None:
    """The file system is clean, and holds what was written."""
    path = {**os.environ, "PATH": "/usr/sbin:/sbin:" + os.environ["PATH"]}
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, env=path, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "recovering journal" not in checked.stdout + checked.stderr
    kept = image.with_name("kept")
    subprocess.run(
        ["debugfs", "-R", f"dump /var/kept {kept}", image], env=path, capture_output=True, check=True
    )
    digest = subprocess.run(["md5sum", kept], capture_output=True, text=True, check=True).stdout.split()[0]
    assert digests == [digest]
