"""Network namespaces for tests: a function in a child process that has a network of its own (as root only)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
import traceback
from collections.abc import Callable

_CLONE_NEWNET = 0x40000000  # linux/sched.h; os.unshare only from Python 3.12


def run_isolated(function: Callable[[], None]) -> None:
    """Call ``function`` in a child process, in a network namespace of its own; its failure is the caller's."""
    run_in_child(function, namespace=True)


def run_in_child(function: Callable[[], None], *, namespace: bool = False) -> None:
    """Call ``function`` in a child process; its failure is the caller's."""
    report, say = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(report)
            if namespace:
                assert ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0, "unshare(CLONE_NEWNET) failed"
                ip("link", "set", "lo", "up")
            function()
            status = 0
        except BaseException:
            os.write(say, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(say)
    text = b""
    while data := os.read(report, 65536):
        text += data
    os.close(report)
    _, status = os.waitpid(child, 0)
    assert status == 0, text.decode() or f"wait status {status}"


def ip(*arguments: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *arguments], check=True)


def until(condition: Callable[[], bool], timeout: float = 5) -> bool:
    """Whether ``condition`` comes true within ``timeout`` seconds."""
    limit = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.002)
    return True


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ipv4(protocol: int, source: bytes, destination: bytes, payload: bytes) -> bytes:
    """An IPv4 packet."""
    header = (
        bytes((0x45, 0)) + (20 + len(payload)).to_bytes(2, "big") + bytes((0, 1, 0, 0, 64, protocol, 0, 0))
    )
    header += source + destination
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def udp(source: bytes, source_port: int, destination: bytes, port: int, payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram, without its checksum."""
    ports = source_port.to_bytes(2, "big") + port.to_bytes(2, "big")
    datagram = ports + (8 + len(payload)).to_bytes(2, "big") + bytes(2) + payload
    return ipv4(17, source, destination, datagram)


def tcp(
    source: bytes, source_port: int, destination: bytes, port: int, number: int, acknowledged: int, flags: int,
    payload: bytes = b"",
) -> bytes:  # fmt: skip
    """An IPv4 packet with a TCP segment, with a maximum segment size of 1460 where ``flags`` has SYN (2)."""
    options = b"\2\4\x05\xb4" if flags & 2 else b""
    segment = source_port.to_bytes(2, "big") + port.to_bytes(2, "big")
    segment += number.to_bytes(4, "big") + acknowledged.to_bytes(4, "big")
    segment += bytes(((20 + len(options)) << 2, flags)) + b"\xff\xff" + bytes(4) + options + payload
    pseudo = source + destination + b"\0\6" + len(segment).to_bytes(2, "big")
    sum_of = checksum(pseudo + segment + bytes(len(segment) % 2))
    return ipv4(6, source, destination, segment[:16] + sum_of.to_bytes(2, "big") + segment[18:])
