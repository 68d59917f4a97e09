"""Network cards under a stock kernel's own driver: on a TAP interface, by vhost-net and by pyvmm, and behind passt.

The host's side is a script that runs in the lab, or in a network namespace where KVM is real: it makes the
interfaces, serves the guest, and runs pyvmm.
"""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import os
import shutil

import pytest
from conftest import cannot
from guest_initrd import initrd
from lab_boot import Boot, check_device_exits, host, kernel, lab, platform

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

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
def boot(host, lab, tmp_path):
    """Run ``pyvmm boot`` by the script HOST."""
    if lab is None and os.geteuid() != 0:
        pytest.skip("only root can make network namespaces and TAP interfaces")
    script = tmp_path / "host.py"
    script.write_text(HOST)

    def run(*arguments: object) -> Boot:
        done = host.run(script, *arguments, own_network=True)
        done.console = done.console.replace("\r", "")
        return done

    return run


def check_transfer(platform, done: Boot) -> None:
    """Both directions, byte for byte, and no exit for any of it."""
    assert done.code == 0, done
    assert "script: exit 0" in done.console, done
    assert f"{BLOB}  /tmp/blob\n" in done.console, done
    (sent,) = [line.split()[0] for line in done.console.splitlines() if line.endswith("  /tmp/data")]
    assert f"received {sent}\n" in done.console, done
    counts = done.result["devices"]["net0"]
    assert counts["rx_bytes"] > 2 << 20 and counts["tx_bytes"] > 2 << 20, counts
    check_device_exits(platform, done, "net0")
    assert done.result["exits"]["unhandled"] == {}, done.result["exits"]


@pytest.mark.parametrize("vhost", ["off", "on"])
def test_tap(boot, platform, kernel, lab, tmp_path, vhost):
    if vhost == "on" and lab is None and not os.path.exists("/dev/vhost-net"):
        cannot("there is no /dev/vhost-net")
    image = tmp_path / "initrd.cpio"
    image.write_bytes(initrd(["virtio_mmio", "virtio_net"], TAP, platform.kernel))
    option = f"tap=tap0,mac=52:54:00:01:02:03,vhost={vhost}"
    done = boot(kernel, "--initrd", image, "--cmdline", platform.quiet, "--timeout", "150", "--net", option)
    assert "card 52:54:00:01:02:03 1500 1\n" in done.console, done
    assert "3 packets received" in done.console, done
    features = done.console.partition("features ")[2][:64]
    wanted = {"CSUM": 0, "GUEST_CSUM": 1, "GUEST_TSO4": 7, "HOST_TSO4": 11, "MRG_RXBUF": 15, "EVENT_IDX": 29}
    assert [name for name, bit in wanted.items() if features[bit] != "1"] == [], features
    check_transfer(platform, done)
    packets = done.result["devices"]["net0"]["rx_packets"]
    # How many segments go into a frame depends on how busy the host is; without TSO each frame has one, of 1448 bytes.
    assert packets < (2 << 20) // 1448, "2 MB came in frames of 1500 bytes: the guest's TSO is not used"


def test_user(boot, platform, kernel, lab, tmp_path):
    if lab is not None:
        pytest.skip("passt cannot put itself into a sandbox where the root is an initramfs, as in the lab")
    if shutil.which("passt") is None:
        cannot("passt is not installed")
    image = tmp_path / "initrd.cpio"
    image.write_bytes(initrd(["virtio_mmio", "virtio_net", "?af_packet"], USER, platform.kernel))
    done = boot(
        kernel, "--initrd", image, "--cmdline", platform.quiet, "--timeout", "150",
        "--net", "user,forward=tcp:18080:80",
    )  # fmt: skip
    assert "router 192.0.2.254\n" in done.console, done
    assert "host: the forwarded port answered\n" in done.console, done
    check_transfer(platform, done)
