"""The host's side of scripts/bench_devices.py: runs where KVM is, with the standard library alone.

    bench_devices_host.py PLAN.json RESULT.json

Starts the machines of the plan side by side and gives them the same work in turns: while one works the others sleep.
Their shells are on the serial console, and a network server here serves them all.  How long something took is what
the guest's program says; the exits to userspace of a machine are counted by the kernel for its threads.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import count_exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PORT = 5000
#: Seconds for a machine to be up, and for one piece of work.
UP, WORK = 400.0, 200.0
_MMIO = 6  # KVM_EXIT_MMIO


class Exits:
    """The exits to userspace of a process's threads: all of them, and those that are MMIO, a device's registers."""

    def __init__(self, pid: int) -> None:
        number = count_exits.tracepoint_id()
        tasks = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        self._all = [self._counter(number, task, None) for task in tasks]
        self._mmio = [self._counter(number, task, _MMIO) for task in tasks]

    @staticmethod
    def _counter(number: int, task: int, reason: int | None) -> int:
        attr = count_exits.PerfEventAttr(
            type=count_exits.PERF_TYPE_TRACEPOINT,
            size=ctypes.sizeof(count_exits.PerfEventAttr),
            config=number,
        )
        call = count_exits.SYS_PERF_EVENT_OPEN[os.uname().machine]
        fd: int = ctypes.CDLL(None).syscall(
            call, ctypes.byref(attr), task, -1, -1, count_exits.PERF_FLAG_FD_CLOEXEC
        )
        if fd < 0:
            raise SystemExit("the exits of a thread cannot be counted: perf_event_open failed")
        if reason is not None:
            fcntl.ioctl(fd, count_exits.PERF_EVENT_IOC_SET_FILTER, f"reason=={reason}\0".encode())
        return fd

    def now(self) -> tuple[int, int]:
        """All, and MMIO."""
        return count_exits.total(self._all), count_exits.total(self._mmio)


class Machine:
    """A running VMM whose guest has a shell on its standard input and output."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._seen = b""
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self.pid = self._process.pid

    def until(self, text: bytes, seconds: float) -> str:
        """What the guest prints, up to the line that starts with ``text``, and the rest of that line."""
        deadline = time.monotonic() + seconds
        while True:
            start = (b"\n" + self._seen).find(b"\n" + text)
            if start >= 0 and (end := self._seen.find(b"\n", start)) >= 0:
                found, self._seen = self._seen[:end], self._seen[end + 1 :]
                return found.decode(errors="replace").replace("\r", "")
            left = deadline - time.monotonic()
            data = b""
            if left > 0 and select.select([self._output], [], [], left)[0]:
                data = os.read(self._output.fileno(), 65536)
            if not data:
                why = "ended" if left > 0 else "does not answer"
                raise SystemExit(f"{self.name} {why}: {self._seen[-500:]!r}")
            self._seen += data

    def ask(self, command: str) -> str:
        """What ``command`` prints in the guest."""
        self._input.write(f"{command}\n".encode())
        self._input.flush()
        said, _, status = self.until(b"done ", WORK).rpartition("done ")
        if status != "0":
            raise SystemExit(f"{self.name}: {command}: {said}")
        return said

    def end(self) -> None:
        """Power off."""
        self._input.write(b"poweroff -f\n")
        self._input.flush()
        try:
            self._process.communicate(timeout=WORK)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """By force."""
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """The other end of kernels/bench/netio.c, in threads."""
    listener = socket.create_server(("", PORT))

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def answer(connection: socket.socket) -> None:
    """Do what one connection asks for."""
    buffer = memoryview(bytearray(1 << 20))
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.recv_into(buffer, 9, socket.MSG_WAITALL)
        what, count = struct.unpack_from("<cQ", buffer)
        if what == b"p":
            while size := connection.recv_into(buffer, 64):
                connection.sendall(buffer[:size])
        elif what == b"r":
            for _ in range(count):
                connection.sendall(buffer)
        else:
            left = count << 20
            while left and (size := connection.recv_into(buffer)):
                left -= size
            connection.sendall(b"!")


def interface(name: str, address: str) -> None:
    """A TAP interface that stays."""
    if os.path.exists(f"/sys/class/net/{name}"):
        subprocess.run(["ip", "link", "del", name], check=False)
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(
        fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002)
    )  # TUNSETIFF: TAP, with vnet headers
    fcntl.ioctl(fd, 0x400454CB, 1)  # TUNSETPERSIST
    os.close(fd)
    subprocess.run(["ip", "addr", "add", f"{address}/24", "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)


def measure(machines: list[Machine], plan: dict[str, Any]) -> dict[str, Any]:
    """All the work of ``plan``, in turns: for each piece of work and each machine a list of runs."""
    for machine in machines:
        machine.until(b"ready", UP)
        print(f"{machine.name} is up", file=sys.stderr, flush=True)
    exits = {machine.name: Exits(machine.pid) for machine in machines}
    found: dict[str, Any] = {}
    started = time.monotonic()
    for turn in range(plan["rounds"]):
        if time.monotonic() - started > plan["seconds"]:
            break
        for name, command in plan["work"].items():
            runs = found.setdefault(name, {machine.name: [] for machine in machines})
            for machine in machines if turn % 2 == 0 else machines[::-1]:
                every, mmio = exits[machine.name].now()
                words = machine.ask(command).split()
                after = exits[machine.name].now()
                count, seconds = int(words[-2]), float(words[-1])
                runs[machine.name].append(
                    {"count": count, "seconds": seconds, "exits": after[0] - every, "mmio": after[1] - mmio}
                )
                print(f"{name:28}{machine.name:14}{seconds:9.3f} s", file=sys.stderr, flush=True)
    return found


def main(plan_path: str, result_path: str) -> int:
    """Run the plan."""
    with open(plan_path) as file:
        plan = json.load(file)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, address in plan["interfaces"].items():
        interface(name, address)
    for disk in plan["disks"]:
        with open(disk, "wb") as image:
            for _ in range(plan["disk_mib"]):
                image.write(os.urandom(1 << 20))
    serve()
    machines = []
    try:
        for name, command in plan["machines"].items():
            machines.append(Machine(name, command))
        found = measure(machines, plan)
        for machine in machines:
            machine.end()
    finally:
        for machine in machines:
            machine.kill()
    with open(result_path, "w") as file:
        json.dump(found, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
