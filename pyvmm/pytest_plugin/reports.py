"""Reports of tests with machines: an error is what it says, and a failed test shows its consoles."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import pyvmm
from pyvmm.errors import CommandFailed, GuestError, PyvmmError
from pyvmm.text import printable_lines

if TYPE_CHECKING:
    from pyvmm.pytest_plugin.machines import Booted, Machines

#: Bytes and lines of a console, or of what a command printed, that a report shows.
TAIL_BYTES = 16 << 10
TAIL_LINES = 40

_PACKAGE = os.path.dirname(os.path.abspath(pyvmm.__file__)) + os.sep


class Told:
    """An error of pyvmm in a report: with its hint, the place in the test, and nothing of what is behind that.

    Made before the report is; then :meth:`mend` puts back what was changed of the error, and mends the report.
    ``has_section``: the console is shown in a section of its own, so that the error need not.
    """

    def __init__(self, item: pytest.Item, call: pytest.CallInfo[None], *, has_section: bool) -> None:
        assert call.excinfo is not None and isinstance(call.excinfo.value, PyvmmError)
        self._error = call.excinfo.value
        self._tail = ""
        if isinstance(self._error, GuestError):
            self._tail = self._error.console_tail
            if has_section:
                self._error.console_tail = ""
        elif self._error.hint and f"hint: {self._error.hint}" not in getattr(self._error, "__notes__", ()):
            self._error.add_note(f"hint: {self._error.hint}")
        self._is_bare = False
        if not item.config.getoption("fulltrace", False):
            kept = [each for each in _chain(self._error.__traceback__) if not _is_ours(each)]
            self._is_bare = not any(_is_of_a_test(each) for each in kept)
            if not self._is_bare:
                trace = None
                for each in reversed(kept):
                    trace = types.TracebackType(trace, each.tb_frame, each.tb_lasti, each.tb_lineno)
                call.excinfo = pytest.ExceptionInfo.from_exception(self._error.with_traceback(trace))

    def mend(self, report: pytest.TestReport) -> pytest.TestReport:
        """The report, once it is made."""
        error = self._error
        if self._is_bare and report.failed:  # nothing of the test was on the way: one of our fixtures failed
            notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
            report.longrepr = "\n".join(
                [f"{type(error).__module__}.{type(error).__qualname__}: {error}", *notes]
            )
        if isinstance(error, CommandFailed) and report.failed:
            for name, data in (("stdout", error.stdout), ("stderr", error.stderr)):
                if data:
                    report.sections.append((f"{name} of the command", tail(data)))
        if isinstance(error, GuestError):
            error.console_tail = self._tail
        return report


def _chain(trace: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_ours(trace: types.TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _is_of_a_test(trace: types.TracebackType) -> bool:
    """Whether a frame is the user's, and not pytest's."""
    path = trace.tb_frame.f_code.co_filename
    return not any(f"{os.sep}{name}{os.sep}" in path for name in ("_pytest", "pluggy"))


def add_consoles(report: pytest.TestReport, machines: Machines, call: pytest.CallInfo[None]) -> None:
    """Put the consoles of a failed test into its report, and note that it failed."""
    machines.failed = machines.failed or report.failed
    if machines.quiet or (report.when == "teardown" and machines.shown):
        return
    # A test whose subtests failed is reported as passed here, and turned into a failure later.
    if report.failed or (machines.failed and report.when == "call" and call.excinfo is None):
        machines.shown = True
        for each in machines.booted:
            report.sections.append((f"console of {each.name}", _console(each)))


def _console(each: Booted) -> str:
    """The last lines of a console, how the machine ended, and where the whole of the console is."""
    from pyvmm.pytest_plugin.machines import kvm_kind

    vm = each.vm
    lines = [tail(vm.console.log[-TAIL_BYTES:]) or "(nothing was printed)", ""]
    end = vm.end
    if end is None:
        lines.append("outcome: none, the machine was still running")
    else:
        lines.append(f"outcome: {end.outcome} ({end.describe()})")
        lines += end.report[:TAIL_LINES]
        if end.outcome in ("triple-fault", "internal-error") and not each.in_lab and kvm_kind() == "software":
            lines.append(
                "note: this host's KVM is software, which stock kernels do not run on; see --vmm-lab"
            )
    lines += [f"splat: {splat.kind}: {tail(splat.line.encode())}" for splat in each.splats()[:TAIL_LINES]]
    if each.log is not None:
        lines.append(f"log: {each.log}")
    return "\n".join(lines)


def tail(data: bytes) -> str:
    """The last lines of ``data`` as text that no terminal obeys."""
    text = data[-TAIL_BYTES:].decode("utf-8", "replace").replace("\r\n", "\n").rstrip()
    return printable_lines("\n".join(text.splitlines()[-TAIL_LINES:]))
