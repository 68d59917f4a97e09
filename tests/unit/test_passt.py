"""passt: started, asked, forwarded through, refused and ended.

As root in a network namespace whose only way out is a TAP interface that leads nowhere: no host matters.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import time

import pytest
from conftest import ROOT, cannot
from net_namespace import checksum, ip, ipv4, run_in_child, run_isolated, tcp, udp, until
from virtio_driver import Driver

from pyvmm.devices.virtio.net import NetDevice
from pyvmm.devices.virtio.passt import Forward, Passt
from pyvmm.errors import HostError, UsageError
from pyvmm.machine.attachments.base import Host
from pyvmm.machine.attachments.net import Net

MAC = bytes.fromhex("525400abcdef")
RX, TX = 0, 1


def run_routed(function) -> None:
    """Run a function in a namespace with a default route; the host's address is 192.0.2.2, as the guest's will be."""

    def routed() -> None:
        ip("tuntap", "add", "dev", "out0", "mode", "tap")
        ip("addr", "add", "192.0.2.2/24", "dev", "out0")
        ip("link", "set", "out0", "up")
        ip("route", "add", "default", "via", "192.0.2.1")
        function()

    run_isolated(routed)


@pytest.fixture
def passt():
    """Run a function where passt can be started."""
    if shutil.which("passt") is None:
        cannot("passt is not installed")
    if os.geteuid() == 0:
        return run_routed
    routes = subprocess.run(["ip", "route", "show", "default"], capture_output=True, check=False).stdout
    if not routes:
        pytest.skip("without root, passt needs a host with a default route")
    return run_in_child


class Guest:
    """A driver of a card behind passt, with buffers to receive."""

    def __init__(self, option: str) -> None:
        self.said: list[str] = []
        self.device = Net.parse(option).create(Host("net0", None, None, [], self.said.append))
        assert isinstance(self.device, NetDevice)
        self.mac = bytes(self.device.config[:6])
        self.driver = Driver(self.device)
        for _ in range(100):
            self.driver.queue(RX).add([], [2000])
        self.driver.kick(RX)
        self.gateway = b"\xff" * 6
        self.frames: list[bytes] = []

    def transmit(self, packet: bytes, kind: bytes = b"\x08\x00") -> None:
        self.driver.queue(TX).add([bytes(12), self.gateway + self.mac + kind + packet], [])
        self.driver.kick(TX)

    def packet(self, kind: bytes, is_it=lambda packet: True) -> bytes:
        """The next packet of an EtherType that ``is_it``."""
        limit = time.monotonic() + 5
        while time.monotonic() < limit:
            if not self.frames:
                for token, size in self.driver.wait(RX, timeout=0.5):
                    self.frames.append(self.driver.written(token)[0][12:size])
                continue
            frame = self.frames.pop(0)
            if frame[12:14] == kind and is_it(frame[14:]):
                self.gateway = frame[6:12]
                return frame[14:]
        raise AssertionError("no such packet came")

    def ipv4(self, protocol: int, port: int) -> bytes:
        """The next packet of a protocol to the guest's ``port``."""
        return self.packet(
            b"\x08\x00", lambda packet: packet[9] == protocol and packet[22:24] == port.to_bytes(2, "big")
        )


def dhcp(guest: Guest) -> tuple[bytes, bytes, dict[int, bytes]]:
    """Ask for an address: the guest's, the router's, and all options."""
    request = struct.pack(">BBBBIHH16x6s10x192x", 1, 1, 6, 0, 0x1234, 0, 0x8000, guest.mac)
    request += b"\x63\x82\x53\x63" + bytes((53, 1, 1, 55, 3, 1, 3, 26, 255)) + bytes(60)
    guest.transmit(udp(bytes(4), 68, b"\xff" * 4, 67, request))
    answer = guest.ipv4(17, 68)[28:]
    options: dict[int, bytes] = {}
    at = 240
    while answer[at] != 255:
        if answer[at]:
            options[answer[at]] = answer[at + 2 : at + 2 + answer[at + 1]]
            at += 1 + answer[at + 1]
        at += 1
    return answer[16:20], options[3], options


def gone(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_address_by_dhcp_and_datagrams_out(passt):
    def guest():
        guest = Guest("user,mtu=1400")
        address, router, options = dhcp(guest)
        assert options[53] == b"\2", "DHCPOFFER"
        assert options[26] == (1400).to_bytes(2, "big"), "the MTU"
        host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        host.bind(("127.0.0.1", 0))
        host.settimeout(5)
        port = host.getsockname()[1]
        guest.transmit(
            udp(address, 4321, router, port, b"from the guest")
        )  # the router's is the host's loopback
        data, peer = host.recvfrom(2000)
        assert data == b"from the guest"
        host.sendto(b"from the host", peer)
        assert guest.ipv4(17, 4321)[28:] == b"from the host"
        guest.driver.close()

    passt(guest)


def test_ping(passt):
    if os.geteuid() != 0:
        pytest.skip("without root, what answers a ping is not ours to say")

    def guest():
        with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
            file.write("0 2147483647")
        ip("addr", "add", "198.51.100.1/32", "dev", "lo")
        guest = Guest("user")
        address, _, _ = dhcp(guest)
        echo = struct.pack(">BBHHH", 8, 0, 0, 7, 1) + b"pingping"
        echo = echo[:2] + struct.pack(">H", checksum(echo)) + echo[4:]
        guest.transmit(ipv4(1, address, b"\xc6\x33\x64\1", echo))
        answer = guest.packet(b"\x08\x00", lambda packet: packet[9] == 1)
        assert answer[20] == 0 and answer[28:] == b"pingping"
        guest.driver.close()

    passt(guest)


def test_forwarded_connection_and_datagram(passt):
    def guest():
        guest = Guest("user,forward=tcp:18080:80,forward=udp:15353:53,forward=tcp:127.0.0.1:18081:81")
        address, _, _ = dhcp(guest)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            host.settimeout(5)
            host.sendto(b"question", ("127.0.0.1", 15353))
            packet = guest.ipv4(17, 53)
            assert packet[28:] == b"question"
            guest.transmit(udp(address, 53, packet[12:16], int.from_bytes(packet[20:22], "big"), b"answer"))
            assert host.recv(2000) == b"answer"
        for outside, inside in ((18080, 80), (18081, 81)):
            with socket.create_connection(("127.0.0.1", outside), timeout=5) as host:
                syn = guest.ipv4(6, inside)
                peer, port, number = (
                    syn[12:16],
                    int.from_bytes(syn[20:22], "big"),
                    int.from_bytes(syn[24:28], "big"),
                )
                assert syn[33] & 0x12 == 2, "SYN"
                guest.transmit(tcp(address, inside, peer, port, 1000, number + 1, 0x12))
                host.sendall(b"question")
                while not (data := (segment := guest.ipv4(6, inside))[20 + (segment[32] >> 4) * 4 :]):
                    pass
                assert data == b"question"
                guest.transmit(tcp(address, inside, peer, port, 1001, number + 9, 0x18, b"the answer"))
                assert host.recv(100) == b"the answer"
        guest.driver.close()

    passt(guest)


def test_it_ends_with_the_device(passt):
    def guest():
        device = Passt(MAC)
        pid = device._process.pid
        assert not gone(pid)
        device.close()
        assert gone(pid) and device._process.returncode == 0
        device.close()

    passt(guest)


def test_it_ends_with_a_process_that_was_killed(passt):
    def guest():
        script = "import sys, time; from pyvmm.devices.virtio.passt import Passt; "
        script += "p = Passt(bytes(range(6))); print(p._process.pid, flush=True); time.sleep(60)"
        owner = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not gone(pid)
        owner.kill()
        owner.wait()
        assert until(lambda: gone(pid)), "passt outlived the process that it served"

    passt(guest)


def test_its_end_takes_the_link_down(passt):
    def guest():
        guest = Guest("user")
        guest.device.backend._process.kill()
        assert until(lambda: guest.driver.config(6, 2) == b"\0\0")
        assert guest.said == ["note: net0: passt: it has ended; the link is down"]
        guest.driver.close()

    passt(guest)


def refusal(*forwards: str) -> HostError:
    with pytest.raises(HostError) as error:
        Passt(MAC, [Forward(text) for text in forwards]).close()
    assert error.value.hint and "\n" not in error.value.message + error.value.hint
    return error.value


def test_a_port_that_is_taken(passt):
    def guest():
        with socket.create_server(("127.0.0.1", 18080)):
            assert "tcp port 18080 of this host is in use" in refusal("tcp:18080:80").message
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("0.0.0.0", 15353))
            assert "udp port 15353 of this host is in use" in refusal("udp:15353:53").message
        assert "Cannot assign" in refusal("tcp:198.51.100.9:18080:80").message
        Passt(MAC, [Forward("tcp:18080:80"), Forward("udp:15353:53")]).close()

    passt(guest)


def test_a_port_that_passt_does_not_get(passt, tmp_path, monkeypatch):
    """Not every passt says that it could not listen: it is asked."""
    fake = tmp_path / "passt"
    fake.write_text(
        f'#!/bin/sh\nfor last; do :; done\nexec {shutil.which("passt")} --foreground --quiet --stderr --fd "$last"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def guest():
        assert "passt could not listen on port 18080" in refusal("tcp:18080:80").message

    passt(guest)


def test_a_host_without_a_route():
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace")
    if shutil.which("passt") is None:
        cannot("passt is not installed")

    def guest():
        error = refusal()
        assert error.message.startswith("passt did not start: ") and "interface" in error.message
        assert "default route" in error.hint

    run_isolated(guest)


@pytest.mark.parametrize("script", ["exit 3", "echo Bad thing happened >&2; exit 1", "exec sleep 60"])
def test_a_program_that_is_no_passt(tmp_path, monkeypatch, script):
    fake = tmp_path / "passt"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("pyvmm.devices.virtio.passt.PATIENCE", 0.3)
    if "sleep" in script:  # it does not answer: perhaps it will; it is ended in any case
        backend = Passt(MAC)
        pid = backend._process.pid
        backend.close()
        assert gone(pid)
        return
    expected = "exit status 3" if "3" in script else "Bad thing happened"
    assert refusal().message == f"passt did not start: {expected}"


def test_a_passt_that_cannot_be_run(tmp_path, monkeypatch):
    fake = tmp_path / "passt"
    fake.write_bytes(b"\x7fELF nonsense")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "cannot be run" in refusal().message


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("tcp:8080:80", ["--tcp-ports", "8080:80"]),
        ("udp:53", ["--udp-ports", "53:53"]),
        ("tcp:127.0.0.1:8080:80", ["--tcp-ports", "127.0.0.1/8080:80"]),
        ("udp:[::1]:5353:53", ["--udp-ports", "::1/5353:53"]),
    ],
)
def test_forwards(text, options):
    assert Forward(text).options() == options


@pytest.mark.parametrize(
    "text",
    [
        "", "tcp", "tcp:", "8080:80", "icmp:1:2", "tcp:0:1", "tcp:1:65536", "tcp:-1:2", "tcp:1:2:3", "tcp:1.2.3:4:5",
        "tcp:[::1:4:5", "tcp:[name]:4:5", "tcp:\N{SUPERSCRIPT TWO}:3", "tcp:8080-8090:80", "tcp:1,2:3",
    ],
)  # fmt: skip
def test_no_forwards(text):
    with pytest.raises(UsageError) as error:
        Forward(text)
    assert f"forward={text}: " in error.value.message and error.value.hint
