"""TAP interfaces, real ones: each test in a network namespace of its own, in a child process (as root only)."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import time

import pytest
from conftest import cannot
from net_namespace import checksum, ip, ipv4, run_isolated, tcp, udp, until
from virtio_driver import Driver

from pyvmm.devices.virtio import net_features as nf
from pyvmm.devices.virtio import tap as tap_module
from pyvmm.devices.virtio.net import NetDevice
from pyvmm.devices.virtio.tap import Tap
from pyvmm.errors import HostError, PyvmmError
from pyvmm.machine.attachments.base import Host
from pyvmm.machine.attachments.net import Net

MAC = bytes.fromhex("525400abcdef")
RX, TX = 0, 1


@pytest.fixture
def isolated():
    """Run a function in a child process with a network namespace of its own; its assertions are the test's."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces and TAP interfaces")
    if not os.path.exists("/dev/net/tun"):
        cannot("there is no /dev/net/tun")

    return run_isolated


def connected(host: socket.socket) -> bool:
    try:
        host.getpeername()
    except OSError:
        return False
    return True


class Guest:
    """A driver of a card on the TAP interface ``name``, with buffers to receive; and an address of the host."""

    def __init__(
        self, name: str = "tap0", features: int | None = None, buffers: int = 100, size: int = 2000
    ) -> None:
        self.tap = Tap(name)
        self.device = NetDevice("net0", self.tap, MAC)
        self.driver = Driver(self.device, features=features)
        self.size = size
        for _ in range(buffers):
            self.driver.queue(RX).add([], [size])
        self.driver.kick(RX)
        ip("addr", "replace", "192.0.2.1/24", "dev", name)
        ip("neigh", "replace", "192.0.2.2", "lladdr", MAC.hex(":"), "dev", name)
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
            file.write("1")  # no neighbour discovery in between

    def transmit(self, frame: bytes, header: bytes = bytes(12)) -> None:
        self.driver.queue(TX).add([header, frame], [])
        self.driver.kick(TX)

    def frames(self, kind: bytes = b"\x08\x00", timeout: float = 5) -> list[tuple[bytes, bytes]]:
        """The next received frames of the EtherType ``kind``, as (header, frame): those that came together."""
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            found = []
            used = self.driver.wait(RX, timeout=0.5)
            while used:
                token, size = used.pop(0)
                data = self.driver.written(token)[0][:size]
                for _ in range(struct.unpack("<H", data[10:12])[0] - 1):
                    if not used:
                        used += self.driver.wait(RX)
                    token, size = used.pop(0)
                    data += self.driver.written(token)[0][:size]
                if data[24:26] == kind:
                    found.append((data[:12], data[12:]))
            if found:
                return found
        raise AssertionError("no frame came")


HOST, GUEST = b"\xc0\0\2\1", b"\xc0\0\2\2"  # 192.0.2.1 and .2


def datagram(payload: bytes) -> bytes:
    """A frame with a datagram to port 5000 of the host."""
    return b"\xff" * 6 + MAC + b"\x08\x00" + udp(GUEST, 4321, HOST, 5000, payload)


def test_ping(isolated):
    """The host's kernel answers a ping of the guest's, and resolves its address before that."""

    def guest():
        guest = Guest()
        echo = struct.pack(">BBHHH", 8, 0, 0, 7, 1) + b"pingping"
        echo = echo[:2] + struct.pack(">H", checksum(echo)) + echo[4:]
        packet = ipv4(1, GUEST, HOST, echo)
        arp = (
            b"\xff" * 6
            + MAC
            + bytes.fromhex("0806 0001 0800 06 04 0001")
            + MAC
            + b"\xc0\0\2\2"
            + bytes(6)
            + b"\xc0\0\2\1"
        )
        guest.transmit(arp)
        ((_, answer),) = guest.frames(b"\x08\x06")
        host = answer[6:12]
        guest.transmit(host + MAC + b"\x08\x00" + packet)
        ((_, answer),) = guest.frames()
        assert answer[:6] == MAC and answer[34:36] == b"\0\0" and answer[42:50] == b"pingping"
        guest.driver.close()

    isolated(guest)


def test_a_datagram_each_way(isolated):
    def guest():
        guest = Guest(features=~(nf.GUEST_CSUM | nf.GUEST_TSO4 | nf.GUEST_TSO6))
        host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        host.bind(("192.0.2.1", 5000))
        host.settimeout(5)
        guest.transmit(datagram(b"from the guest"))
        data, peer = host.recvfrom(2000)
        assert (data, peer) == (b"from the guest", ("192.0.2.2", 4321))
        host.sendto(b"from the host", peer)
        ((header, frame),) = guest.frames()
        assert frame[42:] == b"from the host"
        assert header == bytes(10) + b"\1\0", "the guest did not agree to finish checksums"
        counts = guest.device.statistics()
        assert counts["tx_packets"] == 1 and counts["tx_bytes"] == 14 + 28 + 14
        guest.driver.close()

    isolated(guest)


def test_the_guest_finishes_checksums_if_it_agreed_to(isolated):
    def guest():
        guest = Guest()
        host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        host.sendto(b"checksum to be done", ("192.0.2.2", 5000))
        ((header, _),) = guest.frames()
        assert header[0] == 1, "VIRTIO_NET_HDR_F_NEEDS_CSUM"
        assert struct.unpack("<HH", header[6:10]) == (34, 6), "where UDP's checksum begins, and stands"
        guest.driver.close()

    isolated(guest)


def test_the_host_finishes_checksums_the_guest_left_undone(isolated):
    """A checksum: with the header it is completed, without it the datagram is damaged."""

    def guest():
        guest = Guest()
        host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        host.bind(("192.0.2.1", 5000))
        host.settimeout(5)
        frame = datagram(b"x" * 400)
        pseudo = frame[26:34] + b"\0\x11" + frame[38:40]
        frame = frame[:40] + struct.pack(">H", ~checksum(pseudo) & 0xFFFF) + frame[42:]
        guest.transmit(frame, struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 6, 0))
        assert host.recv(2000) == b"x" * 400
        guest.transmit(frame[:40] + b"\x12\x34" + frame[42:])
        host.settimeout(0.2)
        with pytest.raises(TimeoutError):
            host.recv(2000)
        guest.driver.close()

    isolated(guest)


def test_segments_the_host_left_together(isolated):
    """With TSO a frame is larger than any buffer, and its header says how to cut it."""

    def guest():
        guest = Guest(buffers=120, size=1600)
        with open("/proc/sys/net/ipv4/tcp_syn_retries", "w") as file:
            file.write("1")
        host = socket.socket()
        host.setblocking(False)
        host.connect_ex(("192.0.2.2", 80))
        ((_, syn),) = guest.frames()
        port, _, number = struct.unpack(">HHI", syn[34:42])

        guest.transmit(syn[6:12] + MAC + b"\x08\x00" + tcp(GUEST, 80, HOST, port, 1000, number + 1, 0x12))
        assert until(lambda: connected(host))
        host.send(data := os.urandom(1448 * 8))
        frames = []
        while sum(len(frame) - 54 for _, frame in frames) < len(data) and len(frames) < 20:
            frames += [each for each in guest.frames() if len(each[1]) > 60]
        sizes = [len(frame) for _, frame in frames]
        header, frame = max(frames, key=lambda each: len(each[1]))
        assert len(frame) > 2000, sizes
        assert header[1] == 1, "VIRTIO_NET_HDR_GSO_TCPV4"
        assert struct.unpack("<H", header[4:6])[0] == 1460, "the size of a segment"
        assert struct.unpack("<H", header[10:12])[0] == -(-(12 + len(frame)) // 1600), "num_buffers"
        assert b"".join(frame[54:] for _, frame in frames)[: len(data)] == data
        guest.driver.close()

    isolated(guest)


def test_counts_of_the_kernel_begin_with_the_card(isolated):
    """What vhost moves is counted by the interface, which may be older than the card."""

    def guest():
        if not os.path.ismount("/sys") or ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
            return
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(
            ["mount", "-t", "sysfs", "sysfs", "/sys"], check=True
        )  # that of this network namespace
        ip("tuntap", "add", "dev", "tap0", "mode", "tap")
        for _ in range(2):
            guest = Guest()
            guest.transmit(datagram(b"one"))
            assert until(lambda guest=guest: guest.tap.statistics()["tx_packets"] == 1), (
                guest.tap.statistics()
            )
            assert guest.tap.statistics()["tx_bytes"] == 14 + 28 + 3
            guest.driver.close()

    isolated(guest)


def test_made_up_and_gone(isolated):
    def guest():
        tap = Tap("tap9")
        assert tap.made and tap.up
        assert socket.if_nametoindex("tap9")
        assert tap.set_mtu(1400)
        tap.close()
        tap.close()
        with pytest.raises(OSError):
            socket.if_nametoindex("tap9")

    isolated(guest)


@pytest.mark.parametrize("kind", [[], ["multi_queue"]])
def test_one_that_was_there_stays(isolated, kind):
    def guest():
        ip("tuntap", "add", "dev", "tap3", "mode", "tap", *kind)
        tap = Tap("tap3")
        assert not tap.made and tap.up, "it was not brought up"
        tap.close()
        assert socket.if_nametoindex("tap3")

    isolated(guest)


def test_stale_frames_are_not_for_the_next_driver(isolated):
    def guest():
        guest = Guest()
        host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        guest.driver.reset()
        for _ in range(50):
            host.sendto(b"stale", ("192.0.2.2", 5000))
        guest.driver.negotiate()
        for _ in range(100):
            guest.driver.queue(RX).add([], [2000])
        guest.driver.kick(RX)
        host.sendto(b"fresh", ("192.0.2.2", 5000))
        ((_, frame), *_) = guest.frames()
        assert frame[42:47] == b"fresh"
        guest.driver.close()

    isolated(guest)


def test_an_interface_that_goes_down_or_away(isolated):
    def guest():
        guest = Guest()
        ip("link", "set", "tap0", "down")
        guest.transmit(datagram(b"lost"))
        assert until(lambda: guest.device.statistics()["tx_dropped"] == 1)
        ip("link", "del", "tap0")
        assert until(lambda: guest.driver.config(6, 2) == b"\0\0"), "the link is still up"
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.1, "it spins on the interface that is gone"
        guest.transmit(datagram(b"lost"))
        assert until(lambda: guest.device.statistics()["tx_dropped"] == 2)
        guest.driver.close()

    isolated(guest)


def refusal(name: str) -> HostError:
    with pytest.raises(HostError) as error:
        Tap(name)
    assert "\n" not in error.value.message and error.value.hint
    return error.value


def test_refusals_say_why_and_what_to_do(isolated):
    def guest():
        tap = Tap("tap0")
        assert "in use: another process is attached" in refusal("tap0").message
        tap.close()
        ip("tuntap", "add", "dev", "tun0", "mode", "tun")
        assert "tun0 is no TAP interface" in refusal("tun0").message
        assert "lo is no TAP interface" in refusal("lo").message

    isolated(guest)


@pytest.mark.parametrize("accessible", [False, True])
def test_refusals_without_rights(isolated, monkeypatch, accessible):
    def guest():
        ip("tuntap", "add", "dev", "tap1", "mode", "tap", "user", "0")
        ip("tuntap", "add", "dev", "tap2", "mode", "tap", "user", "12345")
        folder = tempfile.mkdtemp()
        try:
            node = f"{folder}/tun"  # the real one may be for everybody or for root only
            os.chmod(folder, 0o755)
            os.mknod(node, stat.S_IFCHR, os.makedev(10, 200))
            os.chmod(node, 0o666 if accessible else 0o600)
            monkeypatch.setattr(tap_module, "DEVICE", node)
            os.setgroups([])
            os.setresgid(12345, 12345, 12345)
            os.setresuid(12345, 12345, 0)
            if accessible:
                Tap("tap2").close()
                assert "tap1 belongs to somebody else" in refusal("tap1").message
                error = refusal("tap7")
                assert "no TAP interface tap7" in error.message
                assert "ip tuntap add dev tap7 mode tap user 12345" in error.hint
            else:
                error = refusal("tap2")
                assert "cannot be opened: Permission denied" in error.message
                assert "--net user" in error.hint
        finally:
            os.setresuid(0, 0, 0)
            shutil.rmtree(folder)

    isolated(guest)


def test_no_device(monkeypatch, tmp_path):
    monkeypatch.setattr(tap_module, "DEVICE", str(tmp_path / "tun"))
    error = refusal("tap0")
    assert "No such file" in error.message and "modprobe tun" in error.hint
    with pytest.raises(HostError):
        Net.parse("tap=tap0").check()


def host_for(said: list[str]) -> Host:
    return Host("net0", None, None, [], said.append)


def test_from_the_option(isolated, monkeypatch):
    """vhost=auto falls back and says so, vhost=off says nothing, vhost=on is an error."""
    monkeypatch.setattr("pyvmm.machine.attachments.net.VHOST", "/nonexistent/vhost-net")

    def guest():
        said: list[str] = []
        device = Net.parse("tap=tap0,mtu=1300").create(host_for(said))
        assert len(said) == 2 and "there was no interface tap0" in said[0], said
        assert "modprobe vhost_net" in said[1], said
        with Driver(device) as driver:
            assert driver.config(10, 2) == struct.pack("<H", 1300)
            assert driver.offered() & nf.GUEST_TSO4
            shown = subprocess.run(["ip", "link", "show", "tap0"], capture_output=True, text=True, check=True)
            assert " mtu 1300 " in shown.stdout
        said.clear()
        Net.parse("tap=tap0,vhost=off").create(host_for(said)).close()
        assert [text for text in said if "vhost" in text] == []
        with pytest.raises(PyvmmError) as error:
            Net.parse("tap=tap0,vhost=on").create(host_for(said))
        assert "vhost" in error.value.message
        Tap("tap0").close()  # it was let go

    isolated(guest)
