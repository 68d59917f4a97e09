"""Test results as KTAP has them: a tree of :class:`Test`, and :class:`Ktap` for all that a log holds.

Statuses (Documentation/dev-tools/ktap.rst, "Test case result lines"; the last two are those of a log that ends early):

    pass     it ran, and was as it should be
    fail     it was not
    skip     it did not run
    todo     it failed, and was expected to: the directives TODO and XFAIL
    missing  the plan has it, the log has not
    crashed  it had begun, or was the next, when the output stopped
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["pass", "fail", "skip", "todo", "missing", "crashed"]

#: In the order in which they are counted and shown.
STATUSES: tuple[Status, ...] = ("pass", "fail", "crashed", "missing", "skip", "todo")

#: The statuses that make a run fail.
BAD: frozenset[str] = frozenset({"fail", "missing", "crashed"})


@dataclass
class Test:
    """One test, or a suite with its tests as ``children``."""

    __test__ = False  # not one of pytest's

    name: str
    status: Status
    number: int | None = None  #: as printed; None if there was none
    directive: str = ""  #: SKIP, TODO, XFAIL, TIMEOUT, ERROR, ... in capitals
    reason: str = ""  #: what stands behind the directive, or behind the # without one
    diagnostics: list[str] = field(
        default_factory=list
    )  #: lines printed while it ran, without "# " and time stamps
    children: list[Test] = field(default_factory=list)

    @property
    def title(self) -> str:
        """A name in any case: kselftest prints some tests with a reason alone, and a missing one has none."""
        if self.name:
            return self.name
        if self.reason and self.directive in ("SKIP", "XFAIL", "ERROR"):
            return self.reason
        return "test" if self.number is None else f"test {self.number}"

    @property
    def bad(self) -> bool:
        """Whether it makes the run fail."""
        return self.status in BAD

    @property
    def bad_itself(self) -> bool:
        """Whether it is bad, and none of its own tests is to blame for that."""
        return self.bad and not any(child.bad for child in self.children)

    def as_dict(self) -> dict[str, Any]:
        """The test as plain data, as it stands in :attr:`pyvmm.testing.result.CaseResult.subtests`."""
        return {
            "name": self.title,
            "status": self.status,
            "directive": self.directive,
            "reason": self.reason,
            "diagnostics": list(self.diagnostics),
            "children": [child.as_dict() for child in self.children],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Test:
        """The inverse of :meth:`as_dict`; only ``name`` and ``status`` have to be there."""
        return cls(
            name=str(data["name"]),
            status=data["status"],
            directive=str(data.get("directive", "")),
            reason=str(data.get("reason", "")),
            diagnostics=[str(line) for line in data.get("diagnostics", ())],
            children=[cls.from_dict(child) for child in data.get("children", ())],
        )


@dataclass
class Ktap:
    """What a log holds: the tests of all its KTAP documents, in the order in which these began."""

    tests: list[Test] = field(default_factory=list)
    plan: int | None = (
        None  #: how many tests were announced at the top level; None where a document does not say
    )
    errors: list[str] = field(default_factory=list)  #: what is wrong with the log, a line each
    bail_out: str | None = None  #: the reason given with "Bail out!" at the top level

    @property
    def status(self) -> Literal["pass", "fail", "skip", "empty"]:
        """``pass`` only if something ran and nothing is bad; ``skip`` if all was skipped; ``empty`` without a test."""
        return "fail" if self.bail_out is not None else overall(self.tests, self.plan)

    def counts(self) -> dict[str, int]:
        """How many tests there are of each status, and their ``total``; see :func:`counts`."""
        return counts(self.tests)

    def walk(self) -> Iterator[tuple[tuple[str, ...], Test]]:
        """Each test with the titles that lead to it, its own the last; a suite before its tests."""
        yield from _walk(self.tests, ())

    def __str__(self) -> str:
        from pyvmm.ktap.writer import write

        return write(self)


def counts(tests: Iterable[Test]) -> dict[str, int]:
    """How many of ``tests`` have each status, and their ``total``.

    A suite is not counted, its tests are; but one that is bad although none of its tests is counts as one of its own.
    """
    found = dict.fromkeys(map(str, STATUSES), 0)
    for _, test in counted(tests):
        found[test.status] += 1
    found["total"] = sum(found.values())
    return found


def counted(tests: Iterable[Test], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Test]]:
    """The tests that :func:`counts` counts, each with ``above`` and the titles that lead to it, its own the last."""
    for test in tests:
        titles = (*above, test.title)
        below = list(counted(test.children, titles))
        yield from below
        if not test.children or (test.bad and not any(each.bad for _, each in below)):
            yield titles, test


def overall(tests: Sequence[Test], plan: int | None = None) -> Literal["pass", "fail", "skip", "empty"]:
    """The status of all of ``tests`` together; a ``plan`` of 0 tests is a skip."""
    statuses = {test.status for test in tests}
    if statuses & BAD:
        return "fail"
    if statuses & {"pass", "todo"}:
        return "pass"
    return "skip" if statuses or plan == 0 else "empty"


def _walk(tests: Iterable[Test], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Test]]:
    for test in tests:
        here = (*path, test.title)
        yield here, test
        yield from _walk(test.children, here)
