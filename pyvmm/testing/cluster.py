"""The cases of a matrix on the workers of a Dask cluster: ``pyvmm test --cluster tcp://HOST:PORT``.

:class:`Cluster` is an executor as :mod:`concurrent.futures` has them, so the runner does not know.  What a case needs
goes to the workers by content: each content is a task of its own, so that Dask brings it to each worker once, and makes
it again where a worker took it along.  A case is a task that depends on them; when its worker is lost Dask runs it
elsewhere, and gives up when that has happened too often.  On the worker a case has a process of its own, as here.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any

from pyvmm.errors import HostError, UsageError
from pyvmm.testing.case import CaseSpec
from pyvmm.testing.result import CaseResult
from pyvmm.testing.shipping import pack, read_file, unpack

#: Seconds to wait for the scheduler, and for the first worker.
PATIENCE = 20.0
#: Bytes of a whole console that come back.
MOST_LOG = 16 << 20
#: Seconds between two looks at whether a case is still wanted.
_LOOK = 0.5


class CaseLost(HostError):
    """The workers that ran a case were lost, too many of them."""


@functools.cache  # what is loaded does not change, whatever becomes of the files
def fingerprint() -> str:
    """What tells this pyvmm from another: a digest of its Python files."""
    import loader
    import pyvmm

    digest = hashlib.sha256()
    for package in (pyvmm, loader):
        root = os.path.dirname(os.path.abspath(str(package.__file__)))
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                if name.endswith(".py"):
                    with open(os.path.join(folder, name), "rb") as file:
                        digest.update(name.encode() + b"\0" + file.read())
    return digest.hexdigest()


class Cluster(Executor):
    """The workers behind the scheduler at ``address``.

    :raises UsageError: Dask is not here, or the workers have another pyvmm
    :raises HostError: nobody answers at ``address``, or there is no worker
    """

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError:
            raise UsageError("--cluster needs dask.distributed", "pip install 'pyvmm[cluster]'") from None
        try:
            make: Any = distributed.Client  # has no types of its own
            self._client = make(address, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise HostError(
                f"there is no Dask scheduler at {address}: {reason}", "start one: dask scheduler --port 8786"
            ) from None
        self._fingerprint = fingerprint()
        self._sent: dict[
            str, Any
        ] = {}  # contents by digest, as Dask's futures: they are kept as long as these are
        self._files: dict[str, bytes] = {}
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        try:
            self.jobs = self._look_at_workers(address)
        except BaseException:
            self._client.close()
            raise

    def _look_at_workers(self, address: str) -> int:
        """How many cases the workers run at a time."""
        try:
            self._client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise HostError(
                f"the scheduler at {address} has no workers",
                f"start some: dask worker {address} --nthreads 1",
            ) from None
        try:
            theirs = self._client.run(fingerprint)
        except Exception as error:  # a worker without pyvmm cannot even say so
            raise UsageError(
                f"a worker cannot run pyvmm: {type(error).__name__}: {error}",
                "install this pyvmm on all workers",
            ) from None
        for worker, other in theirs.items():
            if other != self._fingerprint:
                raise UsageError(
                    f"the worker {worker} has another pyvmm than this one", "install the same on all workers"
                )
        return sum(self._client.nthreads().values())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn``, which makes a result of the one case in ``args``, on some worker."""
        (spec,) = args
        shipment = pack(spec, self._read)
        contents = {digest: self._send(digest, data) for digest, data in shipment.contents.items()}
        there = self._client.submit(
            run_on_worker, fn, shipment.spec, contents, self._fingerprint, pure=False,
            key=f"pyvmm-case-{spec.id}-{spec.attempt}-{time.time_ns()}",
        )  # fmt: skip
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            self._running.add(there)
        there.add_done_callback(lambda done: self._done(done, spec, future))
        return future

    def kill(self) -> None:
        """End what runs, and hang up."""
        with self._lock:
            running = list(self._running)
        with suppress(Exception):
            self._client.cancel(running, force=True)
        self.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Hang up; what still runs is ended by the workers."""
        self._sent.clear()
        with suppress(Exception):
            self._client.close(timeout=5)

    def _read(self, path: str) -> bytes:
        """The content of a file: each is read once in a run."""
        data = self._files.get(path)
        if data is None:
            data = self._files[path] = read_file(path)
        return data

    def _send(self, digest: str, data: bytes) -> Any:
        with self._lock:
            if digest not in self._sent:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # "Sending large graph": it is large, and sent once
                    self._sent[digest] = self._client.submit(_content, data, key=f"pyvmm-content-{digest}")
            return self._sent[digest]

    def _done(self, there: Any, spec: CaseSpec, future: Future[Any]) -> None:
        with self._lock:
            self._running.discard(there)
        try:
            result, log = there.result(timeout=PATIENCE)
            if spec.log_dir is not None and result.console_log is not None:
                result.console_log = os.path.join(spec.log_dir, os.path.basename(result.console_log))
                with open(result.console_log, "wb") as file:
                    file.write(log)
            future.set_result(result)
        except Exception as error:
            if type(error).__name__ == "KilledWorker":
                error = CaseLost(
                    "the workers that ran it were lost, one after the other", "does the case kill them?"
                )
            elif type(error).__name__ in ("FutureCancelledError", "CancelledError"):
                error = CaseLost("the cluster gave it up", "is the scheduler still there?")
            future.set_exception(error)


# -- on the worker ----------------------------------------------------------------------------------------------


def _content(data: bytes) -> bytes:
    """A content as a task of its own."""
    return data


def run_on_worker(
    function: Callable[[CaseSpec], CaseResult], spec: CaseSpec, contents: dict[str, bytes], expected: str
) -> tuple[CaseResult, bytes]:
    """Run a case in a process of its own; its result, and its console as far as it is not too long.

    It is ended when nobody waits for it any more.
    """
    from pyvmm.testing import content
    from pyvmm.testing.processes import CaseProcesses

    if fingerprint() != expected:
        raise HostError("this worker has another pyvmm", "install the same on all workers")
    paths = {digest: content.put(digest, data) for digest, data in contents.items()}
    here = unpack(spec, paths)
    with tempfile.TemporaryDirectory(prefix="pyvmm-worker-") as folder:
        here.log_dir = folder if spec.log_dir is not None else None
        processes = CaseProcesses(1)
        try:
            running = processes.submit(function, here)
            while True:
                try:
                    result: CaseResult = running.result(timeout=_LOOK)
                    break
                except TimeoutError:
                    if not running.done() and not _is_wanted():
                        processes.kill()
        finally:
            processes.shutdown()
        log = b""
        if result.console_log is not None:
            with suppress(OSError), open(result.console_log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_LOG))
                log = file.read()
    return result, log


def _is_wanted() -> bool:
    """Whether somebody still waits for the task that runs in this thread."""
    from distributed import get_worker

    try:
        worker: Any = get_worker()
        key = worker.get_current_task()
    except (ValueError, AttributeError):  # no worker's thread, or none any more
        return True
    task = worker.state.tasks.get(key)
    return task is not None and task.state not in ("cancelled", "released", "forgotten")
