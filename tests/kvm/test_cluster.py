"""The cases of a matrix on two real Dask workers, one of which is killed in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, cannot

from pyvmm.testing.content import digest_of

pytestmark = [pytest.mark.usefixtures("kvm"), pytest.mark.timeout(200)]

CASES = 14
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"}


class Processes:
    """A scheduler and its workers, each a process that is ended by its number."""

    def __init__(self, folder: Path) -> None:
        try:
            import distributed  # noqa: F401
        except ImportError:
            cannot("dask.distributed is not installed")
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []
        log = folder / "scheduler.log"
        options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show")
        self._start("scheduler", *options, log=log, cwd=folder)
        self.address = self._wait_for(log, r"Scheduler at:\s+(tcp://\S+)")

    def worker(self, name: str) -> subprocess.Popen[bytes]:
        """A worker that runs one case at a time, with a cache of its own."""
        log = self.folder / f"{name}.log"
        cache = self.folder / f"cache-{name}"
        process = self._start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", name,
            "--memory-limit", "0", "--local-directory", str(self.folder / f"local-{name}"), log=log, cwd=self.folder,
            env={**ENVIRONMENT, "PYVMM_CACHE": str(cache)},
        )  # fmt: skip
        self._wait_for(log, r"Registered to:\s+(\S+)")
        return process

    def _start(self, what: str, *arguments: str, log: Path, **options) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments],
                stdout=file, stderr=file, stdin=subprocess.DEVNULL, **{"env": ENVIRONMENT, **options},
            )  # fmt: skip
        self.running.append(process)
        return process

    def _wait_for(self, log: Path, pattern: str) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if found := re.search(pattern, log.read_text(errors="replace")):
                return found[1]
            time.sleep(0.1)
        raise AssertionError(log.read_text(errors="replace"))

    def contents(self, name: str) -> list[str]:
        """What the worker has been sent, by digest."""
        folder = self.folder / f"cache-{name}" / "content"
        return sorted(path.name for path in folder.glob("?" * 64)) if folder.is_dir() else []


@contextmanager
def cluster(folder: Path) -> Iterator[Processes]:
    processes = Processes(folder)
    try:
        yield processes
    finally:
        for process in reversed(processes.running):
            process.terminate()
        for process in processes.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def matrix(folder: Path, guests: Path) -> Path:
    lines = [f'[[kernel]]\npath = "{guests}/echo.elf"\n', f'[[kernel]]\npath = "{guests}/hello.elf"\n']
    lines += [
        f'[[case]]\nname = "hello{number}"\nexpect = ["hello"]\nkernels = ["hello.elf"]\n'
        for number in range(CASES)
    ]
    lines += ['[[case]]\nname = "absent"\nexpect = ["never printed"]\nkernels = ["echo.elf"]\ntimeout = 2\n']
    path = folder / "pyvmm-test.toml"
    path.write_text("\n".join(lines))
    return path


def left_of(folder: Path) -> list[str]:
    """Processes that belong to the machines of these tests."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            pass
    return found


def test_two_workers_one_of_which_is_killed(guests: Path, tmp_path: Path) -> None:
    """Every case is counted once; what was sent was sent to each worker once; nothing is left."""
    with cluster(tmp_path) as processes:
        processes.worker("one")
        second = processes.worker("two")
        report = tmp_path / "report.json"
        tested = subprocess.Popen(
            [sys.executable, "-m", "pyvmm", "test", str(matrix(tmp_path, guests)), "--cluster", processes.address,
             "--json", str(report), "--log-dir", str(tmp_path / "logs")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT, cwd=tmp_path,
        )  # fmt: skip
        assert tested.stdout is not None
        output = b""
        for line in tested.stdout:
            output += line
            if line.count(b"pass") and output.count(b"\n") >= 8 and second.poll() is None:
                second.send_signal(signal.SIGKILL)
                second.wait()
        assert tested.wait(60) == 1, output
        results = json.loads(report.read_text())["results"]
        ids = [result["id"] for result in results]
        assert len(ids) == len(set(ids)) == CASES + 1
        by_status = {
            status: [r["id"] for r in results if r["status"] == status]
            for status in ("pass", "timeout", "error")
        }
        assert len(by_status["pass"]) == CASES, output
        assert by_status["timeout"] == ["echo.elf/default/absent"] and by_status["error"] == []
        assert second.returncode == -signal.SIGKILL, "the worker was killed before the end"
        workers = {result["worker"] for result in results}
        assert len(workers) >= 2, "each case has a process of its own"
        hello = digest_of((guests / "hello.elf").read_bytes())
        echo = digest_of((guests / "echo.elf").read_bytes())
        sent = [*processes.contents("one"), *processes.contents("two")]
        assert sent.count(hello) == 2 and 1 <= sent.count(echo) <= 2 and set(sent) == {hello, echo}
        logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
        assert len(logs) == CASES + 1
        assert b"hello from a guest" in (tmp_path / "logs" / "hello.elf--default--hello0.log").read_bytes()
    assert left_of(tmp_path) == []


def test_what_cannot_be_done(pyvmm, guests: Path, tmp_path: Path) -> None:
    """One line and a hint: no scheduler there, a case that needs a directory of this host's."""
    done = pyvmm("test", guests / "hello.elf", "--expect", "hello", "--cluster", "tcp://127.0.0.1:1")
    assert done.returncode == 125
    message, hint = done.stderr.splitlines()[-2:]
    assert message.startswith("pyvmm: there is no Dask scheduler at tcp://127.0.0.1:1") and hint.startswith(
        "hint: "
    )
    with cluster(tmp_path) as processes:
        done = pyvmm(
            "test", guests / "hello.elf", "--expect", "x", "--cluster", processes.address, timeout=100
        )
        assert done.returncode == 125 and "has no workers" in done.stderr
