"""The runner: each case counted once, whatever becomes of it; the processes that cases run in, without any KVM."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from conftest import ROOT

from pyvmm.testing import processes, runner
from pyvmm.testing.case import CaseSpec, Limits
from pyvmm.testing.matrix import Matrix
from pyvmm.testing.processes import CaseCrashed, CaseInterrupted, CaseOverdue, CaseProcesses
from pyvmm.testing.result import CaseResult, RunReport


def spec(name: str, **values) -> CaseSpec:
    return CaseSpec("k", "m", name, "/nowhere", **values)


def result(case: CaseSpec, status: str = "pass", reason: str = "", code: int = 0) -> CaseResult:
    return CaseResult(
        case.id, case.kernel, case.machine, case.case, status, reason, exit_code=code, elapsed=0.5
    )


# What runs in place of a real case; the case's name says what it does.


def act(case: CaseSpec) -> CaseResult:
    kind, _, rest = case.case.partition("-")
    if kind == "fail":
        return result(case, "fail", f"failed {rest}", 1)
    if kind == "flaky":
        return result(case, "pass") if case.attempt == 3 else result(case, "fail", f"try {case.attempt}", 1)
    if kind == "crash":
        print("last words of a case", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(3)
    if kind == "raise":
        raise ValueError("a bug")
    if kind == "sleep":
        time.sleep(60)
    if kind == "noise":
        print("this is on standard output")
        os.write(1, b"and this\n")
    return result(case)


class Specs:
    """A first argument with limits, as CaseSpec has them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits


def own_limits(_: Specs) -> dict[str, int]:
    names = ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_CORE")
    return {name: resource.getrlimit(getattr(resource, name))[0] for name in names}


def own_pid(_: object = None) -> int:
    return os.getpid()


def hang(_: Specs) -> None:
    """Never ends, and has a child in a session of its own that does not either."""
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print(f"child {child.pid}", file=sys.stderr, flush=True)
    time.sleep(1000)


def leave(_: object) -> int:
    """Ends, but not what it started."""
    return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid


def eat(_: Specs) -> int:
    return len(bytearray(1 << 30))


def spin(_: Specs) -> None:
    while True:
        pass


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture
def executor():
    with CaseProcesses(2) as made:
        yield made


def run(names, executor=None, **options) -> RunReport:
    cases = [spec(name) for name in names]
    with executor or ThreadPoolExecutor(2) as pool:
        return runner.run(Matrix("run", cases), pool, jobs=2, function=act, **options)


class TestRun:
    @pytest.mark.parametrize(
        "make", [lambda: ThreadPoolExecutor(2), lambda: ProcessPoolExecutor(2), lambda: CaseProcesses(2)]
    )
    def test_all_results_once_and_in_order_with_any_executor(self, make):
        names = [f"{'fail' if n % 7 == 0 else 'ok'}-{n}" for n in range(30)]
        report = run(names, make())
        assert [each.case for each in report.results] == names
        assert report.counts()["fail"] == 5
        assert report.counts()["pass"] == 25
        assert report.exit_code == 1

    def test_no_more_at_once_than_asked(self):
        at_once, most, lock = 0, 0, threading.Lock()

        def watched(case):
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.02)
            with lock:
                at_once -= 1
            return result(case)

        with ThreadPoolExecutor(8) as pool:
            runner.run(Matrix("run", [spec(str(n)) for n in range(12)]), pool, jobs=3, function=watched)
        assert most == 3

    def test_retries_only_if_asked(self):
        (found,) = run(["flaky"]).results
        assert (found.status, found.attempts, found.attempt_reasons) == ("fail", 1, [])

    def test_a_pass_after_a_failure_says_so(self):
        events = []
        (found,) = run(["flaky"], retries=4, on_event=events.append).results
        assert (found.status, found.attempts) == ("pass", 3)
        assert found.attempt_reasons == ["fail: try 1", "fail: try 2"]
        assert found.reason.startswith("flaky: attempt 3 passed")
        assert found.elapsed == 1.5, "of all attempts"
        assert [event.kind for event in events] == ["started", "retry"] * 2 + ["started", "finished"]

    def test_what_never_passes_is_tried_no_more_often_than_asked(self):
        (found,) = run(["fail"], retries=2).results
        assert (found.status, found.attempts, len(found.attempt_reasons)) == ("fail", 3, 2)

    def test_fail_fast_starts_nothing_more_and_loses_nothing(self):
        report = run(["ok-1", "fail", *(f"ok-{n}" for n in range(2, 20))], fail_fast=True)
        assert len(report.results) == 20
        assert report.counts()["skip"] > 10
        assert "k/m/fail did not pass" in report.results[-1].reason
        assert report.exit_code == 1

    def test_an_exception_is_an_error_not_a_verdict(self):
        report = run(["raise", "ok"])
        assert [(each.status, each.exit_code) for each in report.results] == [("error", 125), ("pass", 0)]
        assert "ValueError: a bug" in report.results[0].reason
        assert report.exit_code == 125

    def test_an_executor_that_breaks_takes_no_case_with_it(self):
        class Broken(Executor):
            def submit(self, fn, /, *args, **kwargs):
                if args[0].case == "b":
                    raise RuntimeError("no worker is left")
                future: Future = Future()
                future.set_result(fn(*args))
                return future

        report = run("abc", Broken())
        assert [each.status for each in report.results] == ["pass", "error", "pass"]
        assert "no worker is left" in report.results[1].reason

    def test_a_wrong_result_is_none(self):
        with ThreadPoolExecutor(1) as pool:
            report = runner.run(Matrix("run", [spec("a")]), pool, function=lambda case: result(spec("b")))
        assert [(each.id, each.status) for each in report.results] == [("k/m/a", "error")]

    @pytest.mark.parametrize("kind", ["started", "finished"])
    def test_interrupted_at_any_moment_each_case_has_its_one_result(self, kind):
        for moment in range(1, 7):
            seen = []

            def interrupt(event, moment=moment, seen=seen):
                seen.extend([event.id] if event.kind == kind else [])
                if len(seen) == moment and event.kind == kind:
                    raise KeyboardInterrupt

            report = run([f"ok-{n}" for n in range(6)], on_event=interrupt)
            assert [each.case for each in report.results] == [f"ok-{n}" for n in range(6)]
            assert report.environment[runner.INTERRUPTED] == "SIGINT"

    @pytest.mark.parametrize("raised", [KeyboardInterrupt, runner.Interrupted("SIGTERM")])
    def test_interrupted_all_that_is_known_is_kept(self, raised):
        def interrupt(event):
            if event.done == 2:
                raise raised

        names = ["ok-1", "ok-2", "sleep-1", "sleep-2", "ok-3"]
        begun = time.monotonic()
        report = run(names, CaseProcesses(2), on_event=interrupt)
        assert time.monotonic() - begun < 20
        assert [each.case for each in report.results] == names
        assert [each.status for each in report.results[:2]] == ["pass", "pass"]
        assert {each.status for each in report.results[2:]} <= {"error", "skip"}
        assert report.environment[runner.INTERRUPTED] in ("SIGINT", "SIGTERM")


class TestExitCode:
    @pytest.mark.parametrize(
        ("results", "code"),
        [
            ([("pass", 0)], 0),
            ([("fail", 42)], 42),
            ([("timeout", 124)], 124),
            ([("error", 125)], 125),
            ([("pass", 0), ("fail", 42)], 1),
            ([("error", 125), ("fail", 42)], 1),
            ([("error", 125), ("pass", 0)], 125),
            ([("pass", 0), ("skip", 0)], 0),
            ([("skip", 0)], 125),
            ([], 125),
        ],
    )
    def test_table(self, results, code):
        made = [result(spec(str(n)), status, "", each) for n, (status, each) in enumerate(results)]
        assert RunReport("run", 0, 0, made).exit_code == code


class TestProcesses:
    def test_each_case_has_a_process_of_its_own(self, executor):
        pids = [executor.submit(own_pid).result() for _ in range(3)]
        assert len({*pids, os.getpid()}) == 4
        assert all(gone(pid) for pid in pids)

    def test_kept_processes_take_one_case_after_the_other(self):
        with CaseProcesses(1, keep=True) as kept:
            first, second = (kept.submit(own_pid).result() for _ in range(2))
            assert first == second
            with pytest.raises(CaseCrashed):
                kept.submit(act, spec("exit")).result()
            third = kept.submit(own_pid).result()
            assert third != first
        assert gone(third)

    def test_a_crash_is_told_with_its_last_words(self, executor):
        with pytest.raises(CaseCrashed, match=r"killed by SIGSEGV.*last words of a case"):
            executor.submit(act, spec("crash")).result()
        with pytest.raises(CaseCrashed, match="ended with status 3 and no result"):
            executor.submit(act, spec("exit")).result()

    def test_what_a_case_prints_is_no_result(self, executor):
        assert executor.submit(act, spec("noise")).result().status == "pass"

    def test_exceptions_come_through(self, executor):
        with pytest.raises(ValueError, match="a bug"):
            executor.submit(act, spec("raise")).result()

    def test_limits(self, executor):
        limits = Limits(wall=30, cpu=77, address_space=3 << 30, files=99)
        found = executor.submit(own_limits, Specs(limits)).result()
        assert found == {"RLIMIT_CPU": 77, "RLIMIT_AS": 3 << 30, "RLIMIT_NOFILE": 99, "RLIMIT_CORE": 0}
        assert resource.getrlimit(resource.RLIMIT_CPU)[0] != 77, "not those of the runner"

    def test_too_much_memory_or_time_of_the_processor_ends_it(self, executor):
        with pytest.raises(MemoryError):
            executor.submit(eat, Specs(Limits(address_space=1 << 29))).result()
        with pytest.raises(CaseCrashed, match=r"killed by SIG(XCPU|KILL)"):
            executor.submit(spin, Specs(Limits(wall=30, cpu=1))).result()

    def test_after_its_time_it_is_killed_with_what_it_started(self, executor):
        with pytest.raises(
            CaseOverdue, match=r"did not end within 1\.5 s and was killed; it said last: child (\d+)"
        ) as caught:
            executor.submit(hang, Specs(Limits(wall=1.5))).result()
        assert gone(int(str(caught.value).split()[-1]))

    def test_what_a_case_leaves_behind_is_ended(self, executor):
        assert gone(executor.submit(leave, None).result())

    def test_kill_ends_what_runs_and_cancels_the_rest(self):
        executor = CaseProcesses(1)
        futures = [executor.submit(act, spec("sleep")) for _ in range(3)]
        while not futures[0].running():
            time.sleep(0.01)
        executor.kill()
        with pytest.raises(CaseInterrupted):
            futures[0].result(5)
        assert all(future.cancelled() for future in futures[1:])

    def test_nothing_is_left_when_the_runner_is_killed(self):
        code = (
            f"import sys; sys.path[:0] = [{str(ROOT)!r}, {os.path.dirname(__file__)!r}]\n"
            "from pyvmm.testing.processes import CaseProcesses; from test_testing_runner import leave, hang, own_pid\n"
            "executor = CaseProcesses(2, keep=True)\n"
            "print(executor.submit(own_pid).result(), flush=True)\n"
            "print(executor.submit(own_pid).result(), flush=True)\n"
            "import time; executor.submit(time.sleep, 1000); time.sleep(1000)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT / "tests",
                                   env={**os.environ, "PYTHONPATH": str(ROOT / "tests")})  # fmt: skip
        assert process.stdout is not None
        pids = {int(process.stdout.readline()) for _ in range(2)}
        assert all(alive(pid) for pid in pids)
        process.kill()
        process.wait()
        assert all(gone(pid) for pid in pids)
        process.stdout.close()

    def test_a_result_that_cannot_be_sent_is_told(self, executor):
        with pytest.raises(RuntimeError, match="cannot be sent"):
            executor.submit(threading.Lock).result()

    def test_no_descriptor_or_thread_is_left(self):
        before = set(os.listdir("/proc/self/fd")), threading.active_count()
        with CaseProcesses(2) as executor:
            for _ in range(3):
                executor.submit(own_pid).result()
        assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before

    def test_end_all_spares_others(self):
        other = subprocess.Popen(["sleep", "100"], env={**os.environ, processes.TOKEN: "another"})
        try:
            assert processes.end_all("none") == 0
            assert other.poll() is None
            assert processes.end_all("another") == 1
            assert other.wait(5) == -signal.SIGKILL
        finally:
            other.kill()
            other.wait()
