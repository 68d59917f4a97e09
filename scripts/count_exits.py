"""Run a command and count the exits to userspace that KVM makes meanwhile, whatever VMM they are for.

    count_exits.py RESULT.json COMMAND ...

Counts the tracepoint kvm:kvm_userspace_exit on all CPUs with perf_event_open(2), by exit reason, so needs root
and a machine on which nothing else uses KVM at the time.  The counts are exact; times are the wall clock's.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import subprocess
import sys
import time

TRACEFS = "/sys/kernel/tracing"
EVENT = f"{TRACEFS}/events/kvm/kvm_userspace_exit/id"
PERF_TYPE_TRACEPOINT = 2
PERF_EVENT_IOC_SET_FILTER = 0x4008_2406  # _IOW('$', 6, char *)
SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
PERF_FLAG_FD_CLOEXEC = 8
#: KVM_EXIT_* of include/uapi/linux/kvm.h, those that a boot makes.
REASONS = {2: "io", 5: "hlt", 6: "mmio", 8: "shutdown", 10: "intr", 17: "internal-error", 24: "system-event"}


class PerfEventAttr(ctypes.Structure):
    """struct perf_event_attr (include/uapi/linux/perf_event.h), as far as version 1 goes."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
    ]


def tracepoint_id() -> int:
    """The number of the tracepoint; mounts tracefs if it is not there."""
    if not os.path.exists(EVENT):
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACEFS], check=False)
    with open(EVENT) as file:
        return int(file.read())


def open_counters(number: int, reason: int | None) -> list[int]:
    """One counter for each CPU; with ``reason``, of that exit reason only."""
    libc = ctypes.CDLL(None, use_errno=True)
    attr = PerfEventAttr(type=PERF_TYPE_TRACEPOINT, size=ctypes.sizeof(PerfEventAttr), config=number)
    counters = []
    for cpu in sorted(os.sched_getaffinity(0)):
        call = SYS_PERF_EVENT_OPEN[os.uname().machine]
        fd = libc.syscall(call, ctypes.byref(attr), -1, cpu, -1, PERF_FLAG_FD_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), f"perf_event_open: {os.strerror(ctypes.get_errno())}")
        if reason is not None:
            fcntl.ioctl(fd, PERF_EVENT_IOC_SET_FILTER, f"reason=={reason}\0".encode())
        counters.append(fd)
    return counters


def total(counters: list[int]) -> int:
    """The sum over the CPUs."""
    return sum(int.from_bytes(os.read(fd, 8), "little") for fd in counters)


def main(arguments: list[str]) -> int:
    """Run and count; returns the command's exit status."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 125
    path, command = arguments[0], arguments[1:]
    number = tracepoint_id()
    every = open_counters(number, None)
    by_reason = {name: open_counters(number, reason) for reason, name in REASONS.items()}
    started = time.monotonic()
    status = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
    wall = time.monotonic() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    counts = {name: total(counters) for name, counters in by_reason.items()}
    result = {
        "status": status,
        "wall_s": round(wall, 4),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 4),
        "max_resident_kib": usage.ru_maxrss,
        "exits": total(every),
        "by_reason": {name: count for name, count in counts.items() if count},
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
