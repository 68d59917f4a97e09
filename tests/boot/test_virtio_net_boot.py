"""Network cards under a stock kernel's own driver: on a TAP interface, by vhost-net and by pyvmm, and behind passt.

The host's side is a script that runs in the lab, or in a network namespace where KVM is real: it makes the
interfaces, serves the guest, and runs pyvmm.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
from conftest import ROOT, cannot
from guest_initrd import initrd
from test_debian import QUIET, Boot, kernel, lab, lost_by_the_emulator  # noqa: F401

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

#: Exits that a device may add to a boot, however much it does.
DEVICE_EXITS = 60

#: Run with the arguments of ``pyvmm boot``.  It keeps an interface with an address, serves HTTP there and on the
#: loopback (GET: 2 MB that are always the same; POST: the MD5 of what came), and gets /hello from a forwarded port.
HOST = """\
import hashlib, os, socket, struct, subprocess, sys, threading, time
from fcntl import ioctl

BLOB = b"".join(hashlib.md5(b"%d" % at).digest() for at in range(1 << 17))

def interface(name, address):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))  # TUNSETIFF: a TAP
    ioctl(fd, 0x400454CB, 1)  # TUNSETPERSIST
    os.close(fd)
    ip("addr", "add", address + "/24", "dev", name)
    ip("link", "set", name, "up")

def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)

def serve(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            head = b""
            while b"\\r\\n\\r\\n" not in head:
                head += connection.recv(65536)
            head, _, body = head.partition(b"\\r\\n\\r\\n")
            answer = BLOB
            if head.startswith(b"POST"):
                size = int(head.lower().partition(b"content-length:")[2].split()[0])
                total = hashlib.md5(body)
                size -= len(body)
                while size:
                    data = connection.recv(min(size, 1 << 20))
                    total.update(data)
                    size -= len(data)
                answer = total.hexdigest().encode()
            connection.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(answer) + answer)

def ask():
    while True:
        try:
            with socket.create_connection(("127.0.0.1", 18080), timeout=20) as connection:
                connection.sendall(b"GET /hello HTTP/1.0\\r\\n\\r\\n")
                answer = b""
                while data := connection.recv(65536):
                    answer += data
            if b"hello from the guest" in answer:
                print("host: the forwarded port answered", flush=True)
                return
        except OSError:
            pass
        time.sleep(0.5)

ip("link", "set", "lo", "up")
name = "tap0" if "tap=tap0" in " ".join(sys.argv) else "out0"
if not os.path.exists("/proc/sys/net/ipv4/conf/" + name):
    interface(name, "192.0.2.1")
    if name == "out0":
        ip("route", "add", "default", "via", "192.0.2.254")
threading.Thread(target=serve, args=(socket.create_server(("", 8000)),), daemon=True).start()
if name == "out0":
    threading.Thread(target=ask, daemon=True).start()
sys.exit(subprocess.run([sys.executable, "-m", "pyvmm", "boot", *sys.argv[1:]]).returncode)
"""

TRANSFER = """\
wget -q -O /tmp/blob http://$HOST:8000/blob && md5sum /tmp/blob
dd if=/dev/urandom bs=1M count=2 2>/dev/null | base64 > /tmp/data  # text: busybox sends nothing else
wget -q -O /tmp/answer --post-file=/tmp/data http://$HOST:8000/ && echo "received $(cat /tmp/answer)"
md5sum /tmp/data
"""

TAP = (
    """\
ip link set eth0 up && ip addr add 192.0.2.2/24 dev eth0
echo "card $(cat /sys/class/net/eth0/address) $(cat /sys/class/net/eth0/mtu) $(cat /sys/class/net/eth0/carrier)"
echo "features $(cat /sys/bus/virtio/devices/virtio0/features)"
ping -c 3 -W 5 192.0.2.1 | grep received
HOST=192.0.2.1
"""
    + TRANSFER
)

USER = (
    """\
ip link set eth0 up
cat > /tmp/bound <<'END'
#!/bin/sh
[ "$1" = bound ] && ip addr add $ip/$mask dev eth0 && ip route add default via $router && echo $router > /tmp/router
exit 0
END
chmod +x /tmp/bound
udhcpc -q -n -t 10 -T 2 -i eth0 -s /tmp/bound && HOST=$(cat /tmp/router)
echo "router $HOST"
mkdir /tmp/www && echo "hello from the guest" > /tmp/www/hello && httpd -p 80 -h /tmp/www
"""
    + TRANSFER
    + """\
sleep 4
"""
)
#: MD5 of BLOB.
BLOB = "167a1ee94123c91e27344a73312a1674"


@pytest.fixture
def boot(lab, tmp_path):  # noqa: F811
    """Run ``pyvmm boot`` by the script HOST."""
    if lab is None and os.geteuid() != 0:
        pytest.skip("only root can make network namespaces and TAP interfaces")

    def run(*arguments: object, carry: tuple = ()) -> Boot:
        done = once(*arguments, carry=carry)
        if lab is not None and lost_by_the_emulator(done, arguments):
            warnings.warn(
                f"booted again, the emulator lost the guest: {done.result.get('report')}", stacklevel=2
            )
            done = once(*arguments, carry=carry)
        return done

    def once(*arguments: object, carry: tuple = ()) -> Boot:
        script, result = tmp_path / "host.py", tmp_path / "result.json"
        script.write_text(HOST)
        result.unlink(missing_ok=True)
        command = [str(script), *map(str, arguments), "--result", str(result)]
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            if lab is None:
                code = subprocess.run(
                    ["unshare", "-n", sys.executable, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                    check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=200,
                ).returncode  # fmt: skip
            else:
                code = lab.run(
                    ["python3", *command], stdin=None, stdout=out.fileno(), stderr=err.fileno(),
                    carry_in=[str(path) for path in carry], carry_out=[str(result)], timeout=200,
                )  # fmt: skip
        return Boot(
            code, (tmp_path / "out").read_text(errors="replace").replace("\r", ""),
            (tmp_path / "err").read_text(errors="replace"),
            json.loads(result.read_text()) if result.exists() else {},
        )  # fmt: skip

    return run


def check_transfer(done: Boot) -> None:
    """Both directions, byte for byte, and no exit for any of it."""
    assert done.code == 0, done
    assert "script: exit 0" in done.console, done
    assert f"{BLOB}  /tmp/blob\n" in done.console, done
    (sent,) = [line.split()[0] for line in done.console.splitlines() if line.endswith("  /tmp/data")]
    assert f"received {sent}\n" in done.console, done
    counts, exits = done.result["devices"]["net0"], done.result["exits"]
    assert counts["rx_bytes"] > 2 << 20 and counts["tx_bytes"] > 2 << 20, counts
    assert exits["by_device"]["net0"] <= DEVICE_EXITS, exits
    assert exits["unhandled"] == {}, exits


@pytest.mark.parametrize("vhost", ["off", "on"])
def test_tap(boot, kernel, lab, tmp_path, vhost):  # noqa: F811
    if vhost == "on" and lab is None and not os.path.exists("/dev/vhost-net"):
        cannot("there is no /dev/vhost-net")
    image = tmp_path / "initrd.cpio"
    image.write_bytes(initrd(["virtio_mmio", "virtio_net"], TAP))
    option = f"tap=tap0,mac=52:54:00:01:02:03,vhost={vhost}"
    done = boot(
        kernel,
        "--initrd",
        image,
        "--cmdline",
        QUIET,
        "--timeout",
        "150",
        "--net",
        option,
        carry=(kernel, image),
    )
    assert "card 52:54:00:01:02:03 1500 1\n" in done.console, done
    assert "3 packets received" in done.console, done
    features = done.console.partition("features ")[2][:64]
    wanted = {"CSUM": 0, "GUEST_CSUM": 1, "GUEST_TSO4": 7, "HOST_TSO4": 11, "MRG_RXBUF": 15, "EVENT_IDX": 29}
    assert [name for name, bit in wanted.items() if features[bit] != "1"] == [], features
    check_transfer(done)
    packets = done.result["devices"]["net0"]["rx_packets"]
    assert packets < 1200, "2 MB came in frames of 1500 bytes: the guest's TSO is not used"


def test_user(boot, kernel, lab, tmp_path):  # noqa: F811
    if lab is not None:
        pytest.skip("passt cannot put itself into a sandbox where the root is an initramfs, as in the lab")
    if shutil.which("passt") is None:
        cannot("passt is not installed")
    image = tmp_path / "initrd.cpio"
    image.write_bytes(initrd(["virtio_mmio", "virtio_net", "?af_packet"], USER))
    done = boot(
        kernel, "--initrd", image, "--cmdline", QUIET, "--timeout", "150", "--net", "user,forward=tcp:18080:80",
    )  # fmt: skip
    assert "router 192.0.2.254\n" in done.console, done
    assert "host: the forwarded port answered\n" in done.console, done
    check_transfer(done)
