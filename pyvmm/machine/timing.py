"""When this process was started, for figures that count from exec."""

from __future__ import annotations

import os
import time


def process_start() -> float:
    """The time.monotonic() at which this process was executed, in seconds.

    /proc/self/stat gives it in clock ticks (usually 10 ms) since boot (proc_pid_stat(5), field 22); the CPU
    time used so far bounds it from the other side, which on a quiet host is good to a millisecond or two.
    """
    now, boot = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
    latest = now - time.process_time()
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        tick = 1 / os.sysconf("SC_CLK_TCK")
        started = now - boot + int(fields[19]) * tick
    except (OSError, ValueError, IndexError):
        return latest
    return min(max(started, latest), started + tick)
