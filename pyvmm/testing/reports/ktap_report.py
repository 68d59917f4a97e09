"""The results as one KTAP document: a test for each case, with its subtests below it.

``pyvmm.ktap.parse`` reads it back with the same counts.
"""

from __future__ import annotations

from pyvmm import ktap
from pyvmm.ktap.result import Status, Test
from pyvmm.testing.result import CaseResult, RunReport

#: Lines of the console that stand with a case that did not pass.
TAIL = 20

_STATUS: dict[str, tuple[Status, str]] = {
    "pass": ("pass", ""),
    "fail": ("fail", ""),
    "timeout": ("fail", "TIMEOUT"),
    "error": ("fail", "ERROR"),
    "skip": ("skip", "SKIP"),
}


def tests(report: RunReport) -> list[Test]:
    """The cases as KTAP's tests."""
    return [_test(result) for result in report.results]


def write(report: RunReport) -> str:
    """``report`` as KTAP."""
    return ktap.write(tests(report))


def _test(result: CaseResult) -> Test:
    status, directive = _STATUS[result.status]
    remarks = [f"attempt {number}: {reason}" for number, reason in enumerate(result.attempt_reasons, 1)]
    remarks += [
        f"{splat['kind']}{' (allowed)' if splat.get('allowed') else ''}: {splat['line']}"
        for splat in result.splats
    ]
    if not result.ok:
        remarks += result.console.splitlines()[-TAIL:]
        if result.console_log:
            remarks.append(f"console: {result.console_log}")
    children = [Test.from_dict(data) for data in result.subtests]
    # A passing case may have a reason too ("2 of 3 attempts"), which KTAP has no place for but behind a hash.
    return Test(result.id, status, None, directive, result.reason, remarks, children)
