"""All cases of a matrix over an executor: no more at once than asked for, each counted once, retried only if asked.

Any :class:`concurrent.futures.Executor` will do; :class:`pyvmm.testing.processes.CaseProcesses` is used where none is
given.  A future that fails is a case that could not be tested, whatever took it away.
"""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from dataclasses import dataclass, replace
from typing import Any, Literal

from pyvmm.testing.case import CaseSpec
from pyvmm.testing.matrix import Matrix
from pyvmm.testing.result import EXIT_UNTESTABLE, CaseResult, RunReport
from pyvmm.text import printable

#: ``RunReport.environment`` has this key if the run was interrupted; its value is the reason.
INTERRUPTED = "interrupted"


@dataclass
class Event:
    """What happened: a case ``started``, one that did not pass will be tried again (``retry``), one ``finished``."""

    kind: Literal["started", "retry", "finished"]
    id: str
    done: int  #: how many have finished
    total: int
    result: CaseResult | None = None  #: of the attempt; the final one for ``finished``


class Interrupted(KeyboardInterrupt):
    """The run is to end, and to report what is known; ``str()`` is the name of the signal that says so."""


def run(
    matrix: Matrix,
    executor: Executor | None = None,
    *,
    jobs: int = 1,
    retries: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    fail_fast: bool = False,
    function: Callable[[CaseSpec], CaseResult] | None = None,
) -> RunReport:
    """Run every case and return all results, in the matrix's order.

    ``jobs`` cases are with the executor at a time.  A case that did not pass is tried ``retries`` times more (default:
    as the matrix says); what it failed of before stays in its result.  ``fail_fast``: start nothing after a case that
    did not pass.  ``function``: what makes a result of a spec (default: :func:`pyvmm.testing.run_case.run_case`).

    Ctrl-C ends what runs: its cases are errors, those that had not begun are skipped, and the report says so.
    """
    from pyvmm.testing.run_case import run_case

    own = None
    if executor is None:
        from pyvmm.testing.processes import CaseProcesses

        executor = own = CaseProcesses(jobs, keep=any(case.lab for case in matrix.cases))
    tries = 1 + (matrix.retries if retries is None else retries)
    running = _Run(
        matrix, executor, jobs, tries, on_event or (lambda event: None), fail_fast, function or run_case
    )
    began, started = time.monotonic(), time.time()
    environment = _environment()
    try:
        running.all()
    except KeyboardInterrupt as interrupt:
        environment[INTERRUPTED] = str(interrupt) or "SIGINT"
        _kill(executor)
        running.give_up(f"interrupted by {environment[INTERRUPTED]}")
    except BaseException:
        _kill(executor)
        raise
    finally:
        if own is not None:
            own.shutdown()
    return RunReport(matrix.name, started, time.monotonic() - began, running.in_order(), environment)


class _Run:
    """A run under way."""

    def __init__(
        self,
        matrix: Matrix,
        executor: Executor,
        jobs: int,
        tries: int,
        on_event: Callable[[Event], None],
        fail_fast: bool,
        function: Callable[[CaseSpec], CaseResult],
    ) -> None:
        self._executor = executor
        self._jobs = jobs
        self._tries = tries
        self._on_event = on_event
        self._fail_fast = fail_fast
        self._function = function
        self._cases = matrix.cases
        if len({case.id for case in matrix.cases}) != len(matrix.cases):
            raise ValueError("two cases have the same id")
        self._waiting = deque(matrix.cases)
        self._pending: dict[Future[CaseResult], CaseSpec] = {}
        self._before: dict[str, list[CaseResult]] = {}  # attempts that did not pass
        self._results: dict[str, CaseResult] = {}
        self._began: dict[str, float] = {}  # when the attempt was handed out; time.monotonic()

    def all(self) -> None:
        while self._waiting or self._pending:
            while self._waiting and len(self._pending) < self._jobs:
                self._start(self._waiting.popleft())
            done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                self._take(self._pending[future], _result(future, self._pending[future]))
                del self._pending[future]
            if self._fail_fast and (bad := self._first_bad()) is not None and self._waiting:
                while self._waiting:
                    self._finish(
                        _untested(self._waiting.popleft(), "skip", f"not run, as {bad} did not pass")
                    )

    def give_up(self, reason: str) -> None:
        """Results for what has none."""
        for future, case in self._pending.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self._take(case, future.result(), last=True)
            else:
                self._take(case, _untested(case, "error", reason), last=True)
        self._pending.clear()
        for case in self._waiting:
            if case.id in self._before:  # it was to be tried again
                self._take(case, _untested(case, "error", reason), last=True)
            else:
                self._finish(_untested(case, "skip", f"not run: {reason}"))
        self._waiting.clear()
        for case in self._cases:
            if case.id not in self._results:  # it was about to be started
                self._finish(_untested(case, "error", reason))

    def in_order(self) -> list[CaseResult]:
        return [self._results[case.id] for case in self._cases]

    def _start(self, case: CaseSpec) -> None:
        self._began[case.id] = time.monotonic()
        self._on_event(Event("started", case.id, len(self._results), len(self._cases)))
        try:
            future = self._executor.submit(self._function, case)
        except Exception as error:  # the executor is broken
            future = Future()
            future.set_exception(error)
        self._pending[future] = case

    def _take(self, case: CaseSpec, result: CaseResult, *, last: bool = False) -> None:
        """An attempt has ended: try again, or make it final."""
        if case.id in self._results:
            return
        began = self._began.pop(case.id, None)
        if began is not None and not result.elapsed:  # it could not say so itself
            result.elapsed = time.monotonic() - began
            result.started -= result.elapsed
        before = self._before.get(case.id, [])
        result.attempts = len(before) + 1
        if not result.ok and result.attempts < self._tries and not last:
            self._before[case.id] = [*before, replace(result, console="", stdout="", stderr="", subtests=[])]
            self._waiting.append(replace(case, attempt=result.attempts + 1))
            self._on_event(Event("retry", case.id, len(self._results), len(self._cases), result))
            return
        if before:
            result.attempt_reasons = [f"{each.status}: {each.reason}" for each in before]
            result.elapsed += sum(each.elapsed for each in before)
            result.started = before[0].started
            if result.ok:
                kept = f"; {result.reason}" if result.reason else ""
                first = result.attempt_reasons[0]
                result.reason = f"flaky: attempt {result.attempts} passed, the first did not ({first}){kept}"
        self._before.pop(case.id, None)
        self._finish(result)

    def _finish(self, result: CaseResult) -> None:
        self._results[result.id] = result
        self._on_event(Event("finished", result.id, len(self._results), len(self._cases), result))

    def _first_bad(self) -> str | None:
        return next((id for id, result in self._results.items() if not result.ok), None)


def _result(future: Future[CaseResult], case: CaseSpec) -> CaseResult:
    """What became of a future: its result, or an error that says what took it away."""
    try:
        result: Any = future.result()
    except CancelledError:
        return _untested(case, "error", "it was cancelled")
    except Exception as error:
        message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        return _untested(case, "error", str(message))
    if not isinstance(result, CaseResult) or result.id != case.id:
        return _untested(case, "error", f"its result is none: {result!r}"[:500])
    return result


def _untested(case: CaseSpec, status: Literal["error", "skip"], reason: str) -> CaseResult:
    code = EXIT_UNTESTABLE if status == "error" else 0
    reason = printable(" ".join(reason.split()))
    return CaseResult(
        case.id, case.kernel, case.machine, case.case, status, reason, "error" if status == "error" else "",
        exit_code=code, started=time.time(), attempts=case.attempt,
    )  # fmt: skip


def _kill(executor: Executor) -> None:
    """End what runs, as far as the executor can."""
    end: Callable[[], None] | None = getattr(executor, "kill", None)
    if end is not None:
        end()
    else:
        executor.shutdown(wait=False, cancel_futures=True)


def _environment() -> dict[str, str]:
    """Where this runs, for reports."""
    from pyvmm import __version__

    system = os.uname()
    return {
        "pyvmm": __version__,
        "python": platform.python_version(),
        "host": system.nodename,
        "host kernel": f"{system.sysname} {system.release} {system.machine}",
        "host cpus": str(os.cpu_count() or 1),
    }
