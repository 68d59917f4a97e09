"""The virtio console and the balloon under a stock kernel's own drivers."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import hashlib
import os
import re

import pytest
from guest_initrd import initrd
from lab_boot import X86_64, boot, check_device_exits, host, kernel, lab, platform

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

MIB = 1 << 20

#: Runs beside pyvmm, where it runs: a client of the port's socket, which sends a file and wants it back.
CLIENT = """\
import hashlib, os, socket, subprocess, sys, threading, time

path, source, *command = sys.argv[1:]
data = open(source, "rb").read()

def talk():
    for _ in range(2000):
        if os.path.exists(path):
            break
        time.sleep(0.05)
    port = socket.socket(socket.AF_UNIX)
    port.connect(path)
    sender = threading.Thread(target=port.sendall, args=(data,), daemon=True)
    sender.start()
    received = bytearray()
    while len(received) < len(data):
        piece = port.recv(65536)
        if not piece:
            break
        received += piece
    print("client: received", len(received), hashlib.md5(received).hexdigest(), file=sys.stderr, flush=True)

talking = threading.Thread(target=talk, daemon=True)
talking.start()
code = subprocess.run([sys.executable, "-m", "pyvmm", *command]).returncode
talking.join(5)
print("client: socket", "left" if os.path.exists(path) else "removed", file=sys.stderr)
sys.exit(code)
"""

PORTS = """\
for moment in $(seq 50); do  # the driver hears of names by and by
    [ "$(cat /sys/class/virtio-ports/*/name 2>/dev/null | wc -l)" = 2 ] && break
    sleep 0.2
done
mkdir /ports
for port in /sys/class/virtio-ports/*; do
    name=$(cat $port/name 2>/dev/null) && echo "port: $name" && ln -s /dev/${port##*/} "/ports/$name"
done
for moment in $(seq 50); do  # and of the console; once opened it stays open: closing throws input away
    { command exec 4<>/dev/hvc0; } 2>/dev/null && break
    sleep 0.2
done
stty -F /dev/hvc0 raw -echo
read -t 30 line <&4
echo "hvc0 heard: $line" >&4
exec 3<>/ports/org.example.data
head -c 1048576 <&3 >/tmp/data
md5sum /tmp/data
cat /tmp/data >&3
yes 0123456789abcde | head -c 196608 >/tmp/lines
dd if=/tmp/lines bs=4096 >&4 2>/dev/null
echo "and a line for the file" >/ports/log
"""


def test_hvc0_and_ports(host, platform, kernel, tmp_path):
    """hvc0 both ways; a port both ways with binary data; a port to a file; and what that costs in exits."""
    image = tmp_path / "initrd.cpio"
    image.write_bytes(initrd(["virtio_mmio", "virtio_console"], PORTS, platform.kernel))
    data = os.urandom(MIB)
    client, source, socket, log = (tmp_path / name for name in ("client.py", "data", "port.sock", "log"))
    client.write_text(CLIENT)
    source.write_bytes(data)
    done = host.run(
        client, socket, source, "boot", kernel, "--initrd", image, "--cmdline", platform.quiet, "--timeout", "150",
        "--console", "hvc", "--console", f"port=org.example.data,socket={socket}", "--console", f"port=log,file={log}",
        stdin=b"typed text\n", carry_out=[log],
    )  # fmt: skip
    assert done.code == 0, done
    assert "port: org.example.data" in done.console and "port: log" in done.console, done
    assert "hvc0 heard: typed text" in done.console, done
    digest = hashlib.md5(data).hexdigest()
    assert f"{digest}  /tmp/data" in done.console, done
    assert f"client: received {MIB} {digest}" in done.error, done
    assert "client: socket removed" in done.error, done
    assert log.read_bytes() == b"and a line for the file\n"
    printed = "0123456789abcde\r?\n"
    assert len(re.findall(printed, done.console)) == 196608 // 16
    devices = done.result["devices"]
    assert devices["console0"]["bytes_out"] >= 196608, devices
    assert devices["console1"] == {"bytes_in": MIB, "bytes_out": MIB}, devices
    check_device_exits(platform, done, "console0", "console1", "console2")


#: Linux reports a part of what is free every two seconds; arm64 in the lab needs fewer rounds.
FREEING = """\
dd if=/dev/zero of=/tmp/big bs=65536 count=3072 2>/dev/null || echo "no room"
rm /tmp/big
echo "freed"
sleep {seconds}
"""


def test_balloon(boot, platform, kernel, tmp_path):
    """It is inflated to its target; and of what the guest has written and freed, most comes back unasked."""
    image = tmp_path / "initrd.cpio"
    script = FREEING.format(seconds=20 if platform is X86_64 else 8)
    image.write_bytes(initrd(["virtio_mmio", "virtio_balloon"], script, platform.kernel))
    done = boot(
        kernel, "--initrd", image, "--memory", "512M", "--balloon", "64M", "--cmdline", platform.quiet,
        "--timeout", "150",
    )  # fmt: skip
    assert done.code == 0, done
    assert "freed" in done.console and "no room" not in done.console, done
    balloon = done.result["devices"]["balloon0"]
    # Not what its size is now: Linux resets its devices when it powers off.
    assert (balloon["inflated"], balloon["ignored"]) == (64 * MIB, 0), balloon
    assert balloon["reported"] >= 150 * MIB, balloon
    assert 300 * MIB <= balloon["guest_total"] <= 512 * MIB, balloon
    # It wrote 192 MiB: without its reports they, and what the kernel takes, would be in memory still.
    assert done.result["memory"]["guest_kib"] < 190 * 1024, (done.result["memory"], balloon)
    # The driver says how large the balloon is after each MiB, and looks how large it shall be.
    check_device_exits(platform, done, "balloon0", more=128 if platform.exits_for_interrupts else 64)
