"""An executor for cases: each runs in a process of its own, which has limits and takes everything it started with it.

The interface is that of :class:`concurrent.futures.Executor`.  The processes (:mod:`pyvmm.testing.case_process`) end
with this one, even if it is killed: the kernel tells them (prctl(2), PR_SET_PDEATHSIG), and so does the end of their
standard input.  What a case started is known by a word in its environment (proc_pid_environ(5)), which its children
inherit wherever they went.
"""

from __future__ import annotations

import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any

from pyvmm.errors import HostError

#: The variable by which everything that a case started is found.
TOKEN = "PYVMM_CASE_TOKEN"
FRAME = struct.Struct("<Q")
#: Bytes of what a process said last, and seconds that one without work has to end.
LAST_WORDS = 4096
END_SECONDS = 10.0


class CaseCrashed(HostError):
    """The case's process ended without a result."""


class CaseOverdue(HostError):
    """The case's process did not end long after its time was up, and was killed."""


class CaseInterrupted(HostError):
    """The case was ended because the run was."""


class CaseProcesses(Executor):
    """At most ``jobs`` processes at once.  With ``keep`` a process takes one case after the other, for what is dear to
    start (a lab); it is replaced after a crash.

    The first argument of a function may have ``limits`` (:class:`pyvmm.testing.case.Limits`).
    """

    def __init__(self, jobs: int, *, keep: bool = False) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Any, tuple[Any, ...], dict[str, Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._keep = keep
        self._lock = threading.Lock()
        self._running: set[_CaseProcess] = set()
        self._closed = self._killed = False
        # A child is told of the end of the thread that made it: these threads live as long as the executor.
        self._threads = [
            threading.Thread(target=self._serve, name=f"pyvmm-case-{n}", daemon=True) for n in range(jobs)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn``, which a process can import, in a process of its own.  The future fails with CaseCrashed,
        CaseOverdue or CaseInterrupted, or with what the function raised."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the executor has been shut down")
            future: Future[Any] = Future()
            self._jobs.put((future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; with ``wait``, return when all has ended."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._jobs.put(None)
        if cancel_futures:
            self._cancel()
        if wait:
            for thread in self._threads:
                thread.join()

    def kill(self) -> None:
        """End what runs, at once, and start nothing more; the futures fail with CaseInterrupted."""
        self._killed = True
        with self._lock:
            running = list(self._running)
        for process in running:
            process.kill()
        self.shutdown(cancel_futures=True)

    def _cancel(self) -> None:
        with suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is None:
                    self._jobs.put(None)  # another thread's
                    break
                job[0].cancel()

    def _serve(self) -> None:
        process: _CaseProcess | None = None
        while (job := self._jobs.get()) is not None:
            future, function, args, kwargs = job
            if self._killed or not future.set_running_or_notify_cancel():
                future.cancel()
                continue
            try:
                process = process or self._start()
                limits = getattr(args[0], "limits", None) if args else None
                answer = process.ask(function, args, kwargs, limits)
            except Exception as error:
                self._end(process)
                process = None
                future.set_exception(CaseInterrupted("interrupted", "") if self._killed else error)
            else:
                if not self._keep:
                    self._end(process)
                    process = None
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
            del job, future, args, kwargs
        self._end(process)

    def _start(self) -> _CaseProcess:
        process = _CaseProcess(self._keep)
        with self._lock:
            self._running.add(process)
        if self._killed:
            process.kill()
        return process

    def _end(self, process: _CaseProcess | None) -> None:
        if process is not None:
            process.close()
            with self._lock:
                self._running.discard(process)


class _CaseProcess:
    """The process at the other end of two pipes: requests, and answers."""

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._token = f"{os.getpid()}-{os.urandom(8).hex()}"
        self._said = tempfile.TemporaryFile(prefix="pyvmm-case-")  # noqa: SIM115
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(part for part in (root, *sys.path) if part)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pyvmm.testing.case_process", str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
                env={**os.environ, "PYTHONPATH": path, TOKEN: self._token}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._said.close()
            hint = "free some memory, or lower -j"
            raise HostError(f"cannot start a case's process: {error.strerror}", hint) from None

    def ask(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], limits: Any) -> Any:
        """Send a job and wait for its answer: what the function returned, or the exception it raised."""
        job = pickle.dumps((function, args, kwargs, None if self._keep else limits))
        assert self._process.stdin is not None and self._process.stdout is not None
        wall = getattr(limits, "wall", None)
        deadline = None if wall is None else time.monotonic() + wall
        with suppress(BrokenPipeError):  # it is gone, as its answer says
            self._process.stdin.write(FRAME.pack(len(job)) + job)
            self._process.stdin.flush()
        answer = bytearray()
        wanted = FRAME.size
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        while len(answer) < wanted:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and (left <= 0 or not poll.poll(left * 1000)):
                self.kill()
                raise CaseOverdue(
                    f"its process did not end within {wall:g} s and was killed{self._last_words()}",
                    "the limit is beyond the case's own timeout: is the host overloaded?",
                )
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            if not data:
                raise CaseCrashed(f"its process {self._how_it_ended()}{self._last_words()}", "")
            answer += data
            if len(answer) >= FRAME.size:
                wanted = FRAME.size + FRAME.unpack_from(answer)[0]
        return pickle.loads(memoryview(answer)[FRAME.size :])

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its output without a result"
        if status >= 0:
            return f"ended with status {status} and no result"
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"was killed by {name}"

    def _last_words(self) -> str:
        """The last line that it printed on standard error, to stand at the end of a message."""
        size = os.fstat(self._said.fileno()).st_size
        text = os.pread(self._said.fileno(), LAST_WORDS, max(0, size - LAST_WORDS)).decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"; it said last: {lines[-1]}" if lines else ""

    def kill(self) -> None:
        """End it at once; what it started ends when this is closed, if not before."""
        self._process.kill()  # does nothing once it has been waited for

    def close(self) -> None:
        """Let it end by itself, if it runs, and give everything back; whatever it left behind is ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._process.stdout.close()
        end_all(self._token)
        self._said.close()


def end_all(token: str) -> int:
    """Kill every process with ``token`` in its environment; returns how many there were."""
    word = f"{TOKEN}={token}".encode()
    ended = 0
    for _ in range(10):  # again, for what these have started meanwhile
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has(pid, word)]
        for pid in found:
            with suppress(OSError):
                descriptor = os.pidfd_open(pid)
                try:
                    if _has(pid, word):  # still the same process
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                        ended += 1
                        select.select([descriptor], [], [], 1.0)
                finally:
                    os.close(descriptor)
        if not found:
            break
    return ended


def _has(pid: int, word: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return word in file.read().split(b"\0")
    except OSError:
        return False
