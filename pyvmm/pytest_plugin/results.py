"""KTAP results as pytest's subtests; where pytest has none, as one assertion about all of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from pyvmm.ktap.result import counted
from pyvmm.text import printable_lines

if TYPE_CHECKING:
    from pyvmm.ktap import Ktap, Test

#: Lines that a test printed before its result which are shown.
_DIAGNOSTICS = 40


def report(found: Ktap, request: pytest.FixtureRequest) -> None:
    """Report each test of ``found`` in the test that ``request`` is of; fail or skip that by all of them together."""
    if found.status == "empty":
        pytest.fail(
            "there are no test results (KTAP) in what was printed\nhint: did the tests run, and print to this console?",
            pytrace=False,
        )
    tests = list(counted(found.tests))
    subtests = _subtests(request)
    bad = []
    for titles, test in tests:
        name = printable_lines(": ".join(titles))
        if test.bad:
            bad.append(_why(name, test) if subtests is None else name)
        if subtests is not None:
            with subtests.test(msg=name):
                _verdict(name, test)
    if found.bail_out is not None:
        pytest.fail(f"the tests bailed out: {printable_lines(found.bail_out)}", pytrace=False)
    if bad:
        pytest.fail("\n".join([f"{len(bad)} of {len(tests)} tests failed:", *bad]), pytrace=False)
    if found.status == "fail":
        errors = map(printable_lines, found.errors)
        pytest.fail("\n".join(["the test results are not whole", *errors]), pytrace=False)
    if found.status == "skip":
        pytest.skip(f"all {len(tests)} tests were skipped")


def _verdict(name: str, test: Test) -> None:
    if test.bad:
        pytest.fail(_why(name, test), pytrace=False)
    if test.status == "skip":
        pytest.skip(printable_lines(test.reason) or "skipped")
    if test.status == "todo":
        pytest.xfail(printable_lines(test.reason) or "expected to fail")


def _why(name: str, test: Test) -> str:
    """Why it is bad, in a line or more."""
    words = {"fail": "failed", "missing": "has no result", "crashed": "did not end"}[test.status]
    reason = " ".join(part for part in (test.directive, test.reason) if part)
    lines = [f"{name} {words}{f': {reason}' if reason else ''}"]
    lines += (f"    {line}" for line in test.diagnostics[-_DIAGNOSTICS:])
    return printable_lines("\n".join(lines))


def _subtests(request: pytest.FixtureRequest) -> Any:
    """pytest's fixture of that name (of pytest 9, or of the plugin pytest-subtests); None where there is none."""
    with contextlib.suppress(pytest.FixtureLookupError):
        return request.getfixturevalue("subtests")
    return None
