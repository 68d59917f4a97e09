"""One KTAP document while it is read: its tests so far, and what becomes of it when it ends.

Documentation/dev-tools/ktap.rst, "Plan lines" and "Nested tests".  A status is what the log shows and not only what it
says: a suite that says "ok" with a failed test in it has failed, and tests that the plan has and the log has not are
tests too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from pyvmm.ktap.lines import Line
from pyvmm.ktap.result import BAD, Status, Test, overall

#: Lines of diagnostics kept for a test: so many of the first, and as many of the last.
KEPT_LINES = 1000
#: Missing tests of a log that are listed one by one; of more, only their number is said.
LISTED_MISSING = 1000

#: What the kselftest runner and its harness say when a test begins.
_BEGINS = re.compile(r"(?P<runner>selftests: \S.*)$|\s*RUN\s+(?P<harness>\S.*)$")

Note = Callable[[str], None]


class Budget:
    """What may still be made of a log: ``missing`` tests; a plan is a short line and may claim any number."""

    __slots__ = ("missing",)

    def __init__(self) -> None:
        self.missing = LISTED_MISSING


class Document:
    """A document at ``column``; ``tests`` in the order of the log."""

    __slots__ = (
        "_budget",
        "_dropped",
        "_last_number",
        "announced",
        "bail_out",
        "column",
        "ended",
        "hashed",
        "name",
        "pending",
        "plan",
        "tests",
    )

    def __init__(self, column: int, hashed: bool, announced: bool, budget: Budget) -> None:
        self._budget = budget
        self._last_number: int | None = None  # that the log has
        self.column = column
        self.hashed = hashed  # nested by "# "
        self.announced = announced  # it began with a version line or a plan
        self.name = ""  # what "# Subtest:" says
        self.plan: int | None = None
        self.tests: list[Test] = []
        self.pending: list[str] = []  # diagnostics of the test whose result comes next
        self.ended: list[Document] = []  # documents nested in that test, which are complete
        self.bail_out: str | None = None
        self._dropped = 0

    @property
    def untouched(self) -> bool:
        """Whether nothing but its version line has come."""
        return self.plan is None and not (self.tests or self.name or self.ended or self.bail_out is not None)

    @property
    def complete(self) -> bool:
        """Whether all came that the plan has, and no test has begun that it has not."""
        return self.plan is not None and len(self.tests) >= self.plan and not self.ended

    def remark(self, text: str) -> None:
        """A line printed while the next test runs."""
        self.pending.append(text)
        if len(self.pending) > 2 * KEPT_LINES + 1000:
            del self.pending[KEPT_LINES : KEPT_LINES + 1000]
            self._dropped += 1000

    def take_pending(self) -> list[str]:
        """The lines since the last result."""
        lines, self.pending = self.pending, []
        if self._dropped:
            lines.insert(KEPT_LINES, f"... {self._dropped} lines left out ...")
            self._dropped = 0
        return lines

    def result(self, line: Line, note: Note) -> Test:
        """Add the test whose result ``line`` is."""
        test = Test(line.name, _status(line, note), line.number, line.directive, line.reason)
        expected = self._next_number()
        if line.number is None:
            note(f"result without a number: {line.text.strip()!r}")
        else:
            if line.number != expected:
                note(f"test number {line.number} where {expected} was the next")
            self._last_number = line.number
        if self.plan is not None and len(self.tests) == self.plan:
            note(f"more results than the plan of {self.plan} has")
        if self.ended:
            self._adopt(test, note)
        test.diagnostics = [*self.take_pending(), *test.diagnostics]
        self.tests.append(test)
        return test

    def end(self, note: Note, stopped: bool) -> None:
        """No more lines come: add what is missing.  ``stopped``: the next test was running, and did not end."""
        running = False
        if self.ended:
            name = self.ended[-1].name or _begun(self.pending)
            suite = Test(name, "crashed", self._next_number())
            _nest(suite, self.ended, note, stopped=True)
            suite.diagnostics += self.take_pending()
            note(f"the suite {suite.title!r} has no result")
            self.tests.append(suite)
            self.ended = []
            running = True
        self._add_missing(note, stopped and not running and self.bail_out is None)

    def _adopt(self, test: Test, note: Note) -> None:
        """Give ``test`` the documents nested in it; those of suites whose own result never came are tests beside it."""
        own = [self.ended[-1]]
        for document in reversed(self.ended[:-1]):
            if document.name and document.name != test.name and document.name != self.ended[-1].name:
                break
            own.insert(0, document)
        for document in self.ended[: len(self.ended) - len(own)]:
            suite = Test(document.name, "crashed", None)
            _nest(suite, [document], note, stopped=True)
            note(f"the suite {suite.title!r} has no result")
            self.tests.append(suite)
        self.ended = []
        _nest(test, own, note, stopped=test.status in BAD)
        _judge(test, own, note)

    def _next_number(self) -> int:
        return (len(self.tests) if self._last_number is None else self._last_number) + 1

    def _add_missing(self, note: Note, stopped: bool) -> None:
        seen = {test.number for test in self.tests if test.number is not None}
        last = max(seen, default=0)
        # Without a plan the highest number says how many there were; one out of all proportion is a wrong number.
        expected = self.plan if self.plan is not None else last
        count = expected - len(self.tests)
        if count <= 0 or (self.plan is None and count > LISTED_MISSING):
            return
        listed = min(count, max(1, self._budget.missing))
        self._budget.missing -= listed
        numbers: list[int] = []
        number = 0
        while len(numbers) < listed:
            number += 1
            if number not in seen:
                numbers.append(number)
        plan = f"{expected} test{'' if expected == 1 else 's'} " + (
            "planned" if self.plan is not None else "by their numbers"
        )
        note(f"{plan}, {len(self.tests)} found" + (f": {self.name}" if self.name else ""))
        crashed = next((number for number in numbers if number > last), None) if stopped else None
        missing = []
        for number in numbers:
            test = Test("", "missing", number)
            if number == crashed:
                test.status = "crashed"
                test.name = _begun(self.pending)
                test.diagnostics = self.take_pending()
            missing.append(test)
        if count > len(numbers):
            missing[-1].diagnostics.append(f"and {count - len(numbers)} more that are not listed")
        self.tests = _merged(self.tests, missing)


def _status(line: Line, note: Note) -> Status:
    directive = line.directive
    if directive == "SKIP":
        return "skip"
    if directive in ("CRASHED", "MISSING"):  # as pyvmm.ktap.writer writes them
        return "crashed" if directive == "CRASHED" else "missing"
    if directive == "XFAIL" or (directive == "TODO" and not line.ok):
        return "todo"
    if directive in ("TIMEOUT", "ERROR") and line.ok:
        note(f"'ok' with {directive}, taken for a failure: {line.text.strip()!r}")
        return "fail"
    return "pass" if line.ok else "fail"


def _nest(test: Test, documents: Sequence[Document], note: Note, stopped: bool) -> None:
    """End ``documents`` and make their tests the children of ``test``."""
    for index, document in enumerate(documents):
        document.end(note, stopped and index == len(documents) - 1)
        test.children += document.tests
        test.diagnostics += document.take_pending()
        if document.bail_out is not None:
            test.diagnostics.append(f"bailed out: {document.bail_out}".rstrip(": "))


def _judge(test: Test, documents: Sequence[Document], note: Note) -> None:
    """Set the status of a suite that says better of itself than its tests do."""
    if test.status not in ("pass", "skip"):
        return
    if any(child.bad for child in test.children) or any(
        document.bail_out is not None for document in documents
    ):
        note(f"the suite {test.title!r} says ok, but not all of its tests do")
        test.status, test.directive = "fail", ""
    elif test.status == "pass" and overall(test.children) != "pass":
        if not test.children and all(document.plan is None for document in documents):
            note(f"the suite {test.title!r} says ok, but it ran no test")
        test.status, test.directive = "skip", "SKIP"


def _begun(lines: Sequence[str]) -> str:
    """The name of the test that ``lines`` say has begun; "" if they do not."""
    for line in reversed(lines):
        match = _BEGINS.match(line.rstrip())
        if match:
            return match["runner"] or match["harness"].removesuffix(" ...")
    return ""


def _merged(tests: list[Test], missing: list[Test]) -> list[Test]:
    """``missing`` put among ``tests`` at their numbers, if these are in order."""
    numbers = [test.number for test in tests]
    if any(b is None or a is None or a >= b for a, b in itertools.pairwise(numbers)):
        return tests + missing
    return sorted(tests + missing, key=lambda test: test.number or 0)
