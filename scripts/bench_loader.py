#!/usr/bin/env python3
"""How long loading and relocating a vmlinux takes, beside a plain preadv of the same bytes.

All ways run in turn, in one process, into fresh guest memory each; the best and the median of the rounds are
shown, and ratios to preadv within this run.  "touched" is the time after which every page has been read, too,
so that what a mapping puts off is seen.  Import times are taken in fresh interpreters.

    scripts/bench_loader.py vmlinux [--rounds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from loader import elf, machine_code, relocation  # noqa: E402
from loader.kernel_file import KernelFile, open_kernel  # noqa: E402
from loader.result import KernelLoaderResult  # noqa: E402
from pyvmm.memory import GuestMemory  # noqa: E402

OFFSET = 0x1260_0000
LIMITS = {"load, copied / preadv": 1.2, "load, mapped ms": 3.0, "relocate ms": 30.0}


def timed(action: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def touch(memory: GuestMemory, start: int, end: int) -> None:
    bytes(memory.slice(start, end - start)[::4096])


def one_round(kernel: KernelFile, image: elf.ElfImage, size: int, python: bool) -> dict[str, float]:
    """Each way once, each into memory of its own."""
    times: dict[str, float] = {}

    def plain(memory: GuestMemory) -> None:
        for segment in image.segments:
            kernel.read_into(memory.slice(segment.paddr, segment.file_size), segment.offset)

    def load(memory: GuestMemory, may_map: bool) -> KernelLoaderResult:
        kernel.may_map = may_map
        return elf.load(memory, kernel, image=image, memory_is_zero=True)

    with GuestMemory([(0, size)]) as memory:
        times["preadv"] = timed(lambda: plain(memory))
    for name, may_map in (("copied", False), ("mapped", True)):
        with GuestMemory([(0, size)]) as memory:
            times[f"load, {name}"] = timed(lambda: load(memory, may_map))  # noqa: B023
            result = load(memory, may_map)
            rest = timed(lambda: touch(memory, result.load_base, result.kernel_end))  # noqa: B023
            times[f"load, {name}, touched"] = times[f"load, {name}"] + rest
        table = relocation.read_table(kernel, image)
        if table is None:
            continue
        with GuestMemory([(0, size)]) as memory:
            result = load(memory, may_map)
            times[f"relocate, {name}"] = timed(
                lambda: relocation.kaslr(memory, kernel, image, result, offset=OFFSET)  # noqa: B023
            )
            times[f"load and relocate, {name}"] = times[f"load, {name}"] + times[f"relocate, {name}"]
        if python and name == "copied":
            with GuestMemory([(0, size)]) as memory:
                result = load(memory, may_map)
                routines, machine_code.routines = machine_code.routines, lambda: None
                try:
                    times["relocate, copied, in Python alone"] = timed(
                        lambda: relocation.kaslr(memory, kernel, image, result, offset=OFFSET)  # noqa: B023
                    )
                finally:
                    machine_code.routines = routines
    return times


def import_time(after: str, module: str) -> float:
    """Milliseconds that importing ``module`` takes in an interpreter that has imported ``after``."""
    code = (
        f"import {after}, time; start = time.perf_counter(); import {module};"
        " print((time.perf_counter() - start) * 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure loading and relocating a vmlinux.")
    parser.add_argument("vmlinux")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with open_kernel(arguments.vmlinux, machine="x86_64") as kernel:
        image = elf.read_image(kernel)
        size = -(-image.segments[-1].end // (2 << 20)) * (2 << 20)
        loaded = sum(segment.file_size for segment in image.segments)
        os.posix_fadvise(kernel.fd, 0, 0, os.POSIX_FADV_WILLNEED)
        one_round(kernel, image, size, False)
        rounds = [one_round(kernel, image, size, i < 3) for i in range(arguments.rounds)]
        table = relocation.read_table(kernel, image)
    rows = {}
    for name in rounds[0]:
        values = [times[name] for times in rounds if name in times]
        rows[name] = {"best_ms": min(values), "median_ms": statistics.median(values)}
    modules = [import_time("loader.elf, pyvmm.memory", "loader.relocation") for _ in range(5)]
    rows["import loader.relocation"] = {"best_ms": min(modules), "median_ms": statistics.median(modules)}
    total = rows["import loader.relocation"]["median_ms"]
    checks = {
        "load, copied / preadv": statistics.median(t["load, copied"] / t["preadv"] for t in rounds),
        "load, mapped ms": rows["load, mapped"]["median_ms"],
    }
    if table is not None:
        checks["relocate ms"] = rows["relocate, copied"]["median_ms"] + total
    if arguments.json:
        print(
            json.dumps(
                {"bytes": loaded, "sites": table.count if table else 0, "rows": rows, "checks": checks}
            )
        )
        return 0
    print(
        f"{loaded / 1e6:.1f} MB in {len(image.segments)} segments, {table.count if table else 0} relocations"
    )
    base = rows["preadv"]["median_ms"]
    print(f"{'':36}{'best':>9} {'median':>9} {'/ preadv':>9}")
    for name, row in rows.items():
        print(f"{name:36}{row['best_ms']:9.2f} {row['median_ms']:9.2f} {row['median_ms'] / base:9.2f}")
    print()
    for name, value in checks.items():
        verdict = "met" if value <= LIMITS[name] else "MISSED"
        print(
            f"{name + ' (with its import)' * (name == 'relocate ms'):36}{value:9.2f}, at most {LIMITS[name]}: {verdict}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
