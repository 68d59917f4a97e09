"""Labs for machines: one machine at a time has a lab; it is kept for the next one, until this process ends.

A lab's QEMU dies with the thread that started it, so each lab has a thread for all its life.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections.abc import Callable

from pyvmm.errors import PyvmmError
from pyvmm.lab import Lab

_idle: list[LabHost] = []
_all: set[LabHost] = set()
_lock = threading.Lock()


class LabHost:
    """A lab and its thread."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.lab = Lab(architecture)
        self.stopped = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="pyvmm-lab", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Run ``job``, which uses the lab, in its thread, after those before it."""
        self._jobs.put(job)

    def stop(self) -> None:
        """Stop the lab, whatever runs in it.  Any thread; idempotent."""
        self.stopped = True
        with _lock:
            _all.discard(self)
            if self in _idle:
                _idle.remove(self)
        self.lab.close()
        self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            with contextlib.suppress(PyvmmError):  # the job finds out, and says why
                self.lab.start()  # to stay, and not for one run alone
            job()


def take(architecture: str) -> LabHost:
    """An idle lab of ``architecture``, or a new one, which starts with its first job."""
    with _lock:
        for host in _idle:
            if host.architecture == architecture:
                _idle.remove(host)
                return host
    host = LabHost(architecture)
    with _lock:
        _all.add(host)
    return host


def give_back(host: LabHost) -> None:
    """Keep a lab, in which nothing runs any more, for the next machine."""
    with _lock:
        if not host.stopped:
            _idle.append(host)


def close() -> None:
    """Stop every lab."""
    for host in list(_all):
        host.stop()


atexit.register(close)
