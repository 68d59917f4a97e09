"""The process that cases run in: jobs come over standard input, answers go over standard output, both pickled.

``python -m pyvmm.testing.case_process PARENT``, started by :mod:`pyvmm.testing.processes`.  It ends with its parent.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import queue
import resource
import signal
import sys
import threading
from typing import Any, BinaryIO

from pyvmm.testing.processes import FRAME

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Serve jobs until standard input ends."""
    _end_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees to our end
    answers = open(os.dup(1), "wb", closefd=True)  # noqa: SIM115
    os.dup2(2, 1)  # what is printed by accident is no answer
    requests = open(os.dup(0), "rb", closefd=True)  # noqa: SIM115
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    jobs: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_receive, args=(requests, jobs, busy), daemon=True).start()
    while (job := jobs.get()) is not None:
        answer = _run(job)
        busy.clear()
        answers.write(FRAME.pack(len(answer)) + answer)
        answers.flush()


def _end_with(parent: int) -> None:
    """Be killed when the thread that started this process ends (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _receive(requests: BinaryIO, jobs: queue.SimpleQueue[bytes | None], busy: threading.Event) -> None:
    """In a thread of its own: take in jobs.  When there will be no more, what runs is of no use to anybody."""
    while len(head := requests.read(FRAME.size)) == FRAME.size:
        busy.set()
        jobs.put(requests.read(FRAME.unpack(head)[0]))
    if busy.is_set():
        os._exit(1)
    jobs.put(None)


def _run(job: bytes) -> bytes:
    """Run a job; its pickled result or exception."""
    answer: Any
    try:
        function, args, kwargs, limits = pickle.loads(job)
        if limits is not None:
            _limit(limits)
        answer = function(*args, **kwargs)
    except Exception as error:
        answer = error
    try:
        return pickle.dumps(answer)
    except Exception as error:
        return pickle.dumps(RuntimeError(f"its result cannot be sent: {error}; it is {answer!r}"[:2000]))


def _limit(limits: Any) -> None:
    """Set resource limits (setrlimit(2)), never above those there are; a core dump of a guest's RAM is of no use."""
    for which, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits.cpu),
        (resource.RLIMIT_AS, limits.address_space),
        (resource.RLIMIT_NOFILE, limits.files),
    ):
        if value is None:
            continue
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(which, (value, value))


if __name__ == "__main__":
    main()
