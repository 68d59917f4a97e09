"""One case from spec to result: boot the kernel, have it do what it has to, and judge what came.

:func:`run_case` is a plain function, which any executor can run anywhere; the machine is a process below it.  What is
judged, in order: panic and other bad ends, the time, splats, test results, exit statuses, expected texts, and whether
anything was printed at all.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from loader.errors import LoaderError
from pyvmm.api.complaints import Complaints
from pyvmm.errors import CommandTimeout, ExpectTimeout, GuestError, PyvmmError, UsageError
from pyvmm.machine.outcome import (
    EXIT_ABSENT,
    EXIT_ERROR,
    EXIT_FAULT,
    EXIT_PANIC,
    EXIT_TIMEOUT,
    Outcome,
    guest_exit_code,
)
from pyvmm.testing.case import CaseSpec
from pyvmm.testing.factory import machine_for
from pyvmm.testing.result import EXIT_FAILED, CaseResult, Status
from pyvmm.text import printable

if TYPE_CHECKING:
    from pyvmm.api.console import Console
    from pyvmm.api.machine import Machine
    from pyvmm.ktap import Ktap

#: Bytes of console, standard output and standard error in a result.
KEPT = 64 << 10
#: Seconds after the machine's own timeout within which it has to say that it ended by it.
_END_SECONDS = 15.0
#: Seconds that a guest which may have written to the host's files has to end in order.
_SHUTDOWN_SECONDS = 30.0
#: Names of bad subtests in a reason.
_NAMED = 3

Factory = Callable[[CaseSpec, "str | None"], "Machine"]


def run_case(spec: CaseSpec, factory: Factory | None = None) -> CaseResult:
    """Run ``spec`` and return how it went; never raises for what the guest, the host or the user did.

    ``factory(spec, log)`` makes the machine, not yet started, whose console goes to the file ``log`` too.
    """
    return _Case(spec, factory or machine_for).result()


class _Case:
    """A case that runs, and what is known of it so far."""

    def __init__(self, spec: CaseSpec, factory: Factory) -> None:
        self.spec = spec
        self._factory = factory
        self._begun = time.monotonic()
        self._deadline = self._begun + spec.timeout
        self._absent = list(spec.expect)
        self._status: int | None = None  # the command's
        self._is_ready = False
        self._stdout = self._stderr = b""
        self._complaint: GuestError | None = None
        self._found = CaseResult(
            spec.id, spec.kernel, spec.machine, spec.case, "error", started=time.time(), attempts=spec.attempt,
            worker=f"{socket.gethostname()}/{os.getpid()}",
        )  # fmt: skip

    def result(self) -> CaseResult:
        found, spec = self._found, self.spec
        if spec.skip_reason:
            found.status, found.reason = "skip", printable(spec.skip_reason)
            return found
        try:
            self._run()
        except (PyvmmError, LoaderError) as error:
            self._say("error", EXIT_ERROR, getattr(error, "message", str(error)), getattr(error, "hint", ""))
            found.outcome = Outcome.ERROR.value
        except Exception as error:  # a bug of ours is no verdict about the kernel
            self._say("error", EXIT_ERROR, f"internal error: {type(error).__name__}: {error}")
            found.outcome = Outcome.ERROR.value
        found.elapsed = time.monotonic() - self._begun
        return found

    def _run(self) -> None:
        spec = self.spec
        if not os.path.exists(spec.path):
            raise UsageError(f"{spec.path}: no such file", "build the kernel first")
        complaints = Complaints(spec.allow_splat)
        log = _log_path(spec)
        self._found.console_log = log
        self._note("start")
        vm = self._factory(spec, log)
        with vm:
            complaints.watch(vm.console)
            self._note("the guest runs")
            self._deadline = time.monotonic() + spec.timeout
            try:
                self._drive(vm)
            except GuestError as error:
                self._complaint = error
            stopped = vm.end is None
            if stopped:
                self._note("stopped")
                self._stop(vm)
            console = vm.console
            try:
                end = vm.wait(_END_SECONDS)
            except GuestError as error:  # its process went away, or hangs
                self._keep(console, complaints)
                raise PyvmmError(error.message, error.hint) from None
            self._note(f"ended: {end.outcome}")
            self._keep(console, complaints)
            self._found.exits = {key: end.exits[key] for key in ("total", "by_device") if key in end.exits}
            self._found.guest_status = end.status if self._status is None else self._status
            if end.outcome == Outcome.EXPECTED:
                self._absent.clear()
            elif self._absent:  # one text may have been within another that was found first
                seen = console.log
                self._absent = [text for text in self._absent if text.encode() not in seen]
            self._judge(vm, stopped and end.outcome in (Outcome.INTERRUPTED, Outcome.SHUTDOWN))

    def _stop(self, vm: Machine) -> None:
        """End the machine: at once, unless the guest may have written to files of the host's."""
        if vm.guest_writes and self._complaint is None:
            with suppress(GuestError):
                vm.shut_down(_SHUTDOWN_SECONDS)
        if vm.end is None:
            vm.kill()

    # -- what the guest has to do -------------------------------------------------------------------------------

    def _drive(self, vm: Machine) -> None:
        spec = self.spec
        if spec.command is not None:
            vm.wait_ready(self._left())
            self._is_ready = True
            self._note("the agent is ready")
            try:
                done = vm.run(spec.command, timeout=self._left(), env=spec.env or None, cwd=spec.cwd)
            except CommandTimeout as error:
                self._stdout, self._stderr = error.stdout, error.stderr
                raise
            self._stdout, self._stderr, self._status = done.stdout, done.stderr, done.returncode
            self._note(f"the command ended: {done.returncode}")
            while self._absent:
                match = vm.console.expect_exact(list(self._absent), self._left() + _END_SECONDS)
                self._note(f"the console showed {self._absent.pop(match.index)!r}")
        else:
            vm.wait(self._left() + _END_SECONDS)

    def _left(self) -> float:
        return max(0.1, self._deadline - time.monotonic())

    def _note(self, event: str) -> None:
        self._found.timeline.append((round(time.monotonic() - self._begun, 4), event))

    def _keep(self, console: Console, complaints: Complaints) -> None:
        """Put what was printed into the result: the end of it, and the splats of all of it."""
        found = self._found
        found.console = console.tail(KEPT)
        found.stdout = self._stdout[-KEPT:].decode("utf-8", "replace")
        found.stderr = self._stderr[-KEPT:].decode("utf-8", "replace")
        found.splats = [each.as_dict() for each in complaints.all_of(console)]

    # -- what is thought of it ----------------------------------------------------------------------------------

    def _judge(self, vm: Machine, stopped: bool) -> None:
        """The verdict; ``stopped``: we ended the machine."""
        spec, found, end = self.spec, self._found, vm.end
        assert end is not None
        found.outcome = end.outcome
        splats = [splat for splat in found.splats if not splat["allowed"]]
        if end.outcome == Outcome.PANIC and not self._panic_is_allowed():
            advice = "give it an initrd" if "mount root fs" in end.panic and not spec.initrd else ""
            return self._say("fail", EXIT_PANIC, f"kernel panic: {_short(end.panic)}", advice)
        if end.outcome in (Outcome.TRIPLE_FAULT, Outcome.INTERNAL_ERROR):
            return self._say("fail", EXIT_FAULT, end.describe(), *end.report[:1])
        if end.outcome == Outcome.TIMEOUT or isinstance(self._complaint, (ExpectTimeout, CommandTimeout)):
            found.outcome = Outcome.TIMEOUT.value
            return self._say(
                "timeout", EXIT_TIMEOUT, self._what_took_so_long(), *(s["line"] for s in splats[:1])
            )
        if end.outcome == Outcome.ERROR or (end.outcome == Outcome.INTERRUPTED and not stopped):
            return self._say("error", EXIT_ERROR, end.describe())
        if splats:
            return self._say("fail", EXIT_PANIC, f"splat: {splats[0]['line']}")
        if stopped:
            found.outcome = (Outcome.EXPECTED if spec.command is None else Outcome.EXIT).value
        skipped = ""
        if spec.ktap and (spec.command is None or self._status is not None):
            from pyvmm.ktap import parse

            tests = parse(self._stdout if spec.command is not None else vm.console.log)
            found.subtests = [test.as_dict() for test in tests.tests]
            if tests.status in ("fail", "empty"):
                code = guest_exit_code(max(self._status or 0, 0)) or EXIT_FAILED
                return self._say("fail", code, _bad(tests))
            if spec.command is None and vm.console.forgotten:
                return self._say(
                    "error", EXIT_ERROR, "the console is too long to be read for its test results"
                )
            skipped = "all its tests were skipped" if tests.status == "skip" else ""
        if self._complaint is not None and spec.command is not None and self._status is None:
            # An agent that gave up, for want of a driver say, is no verdict on the kernel.
            if end.outcome == Outcome.SHUTDOWN and not self._is_ready:
                return self._say("error", EXIT_ERROR, self._complaint.message, *self._last_line())
            return self._say("fail", EXIT_FAILED, self._complaint.message)
        if self._absent:
            shown = ", ".join(map(repr, self._absent))
            code = guest_exit_code(end.status) if end.outcome == Outcome.EXIT and end.status else EXIT_ABSENT
            return self._say("fail", code, f"the console never showed {shown}: {end.describe()}")
        if (bad := self._wrong_status(None if stopped else end.status)) is not None:
            return self._say("fail", *bad)
        if not (found.console.strip() or found.stdout or found.stderr or self._status is not None):
            return self._say("fail", EXIT_FAILED, f"nothing was printed: {end.describe()}")
        if skipped:
            return self._say("skip", 0, skipped)
        return self._say("pass", 0, "")

    def _panic_is_allowed(self) -> bool:
        panics = [splat for splat in self._found.splats if splat["kind"] == "panic"]
        return bool(panics) and all(splat["allowed"] for splat in panics)

    def _wrong_status(self, ended_with: int | None) -> tuple[int, str] | None:
        """(exit code, reason) if the command or the guest ended with another status than wanted."""
        spec = self.spec
        if spec.command is not None:
            wanted, actual, who = spec.status or 0, self._status, "the command"
        elif spec.status is None and spec.expect:
            return None
        else:
            wanted, actual, who = spec.status or 0, ended_with or 0, "the guest"
        if actual is None or actual == wanted:
            return None
        if actual < 0:
            how, code = f"was ended by signal {-actual}", guest_exit_code(128 - actual)
        else:
            how, code = f"ended with status {actual}", guest_exit_code(actual) or EXIT_FAILED
        expected = f", not {wanted}" if wanted else ""
        last = self._found.stderr.strip().splitlines()[-1:]
        return code, f"{who} {how}{expected}{f': {last[0]}' if last else ''}"

    def _what_took_so_long(self) -> str:
        spec = self.spec
        if spec.command is not None and self._status is None:
            what = "the command did not end" if self._is_ready else "the guest's agent did not answer"
        elif self._absent:
            what = f"the console did not show {', '.join(map(repr, self._absent))}"
        else:
            what = "the guest did not end"
        return f"{what} within {spec.timeout:g} s"

    def _last_line(self) -> list[str]:
        return self._found.console.strip().splitlines()[-1:]

    def _say(self, status: Status, code: int, reason: str, *more: str) -> None:
        found = self._found
        found.status, found.exit_code = status, code
        found.reason = printable("; ".join(" ".join(part.split()) for part in (reason, *more) if part))[:1000]


def _bad(tests: Ktap) -> str:
    """Why test results are no success, in a line."""
    if not tests.tests and tests.bail_out is None:
        return "there are no test results (KTAP) in what was printed"
    counts = tests.counts()
    # A suite is named only where none of its own tests is to blame.
    names = [" ".join(titles) for titles, test in tests.walk() if test.bad_itself]
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    if tests.bail_out is not None:
        return f"the tests bailed out: {tests.bail_out}"
    return f"{len(names) or 'some'} of {counts['total']} tests failed: {shown or '; '.join(tests.errors[:1])}"


def _short(panic: str) -> str:
    """A panic's line without its time stamp and its usual beginning."""
    return panic.partition("Kernel panic - not syncing:")[2].strip() or panic


def _log_path(spec: CaseSpec) -> str | None:
    if spec.log_dir is None:
        return None
    name = "--".join(
        "".join(c if c.isalnum() or c in "._-" else "_" for c in part)[:80]
        for part in (spec.kernel, spec.machine, spec.case)
    )
    return os.path.join(spec.log_dir, f"{name}{f'--{spec.attempt}' if spec.attempt > 1 else ''}.log")
