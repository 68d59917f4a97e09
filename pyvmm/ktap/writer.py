"""KTAP written from tests, by Documentation/dev-tools/ktap.rst: two spaces a level, a version line and a plan for each.

What the specification has no word for is written as a directive that other readers take for the plain "not ok" it
follows: ``# CRASHED``, ``# MISSING``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pyvmm.ktap.lines import QUOTE, structural, unstamped
from pyvmm.ktap.result import Ktap, Test

#: Everything that would begin another line somewhere, and the rest of the control characters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def write(ktap: Ktap | Sequence[Test]) -> str:
    """The tests as one KTAP document, numbered from 1."""
    tests, bail_out = (ktap.tests, ktap.bail_out) if isinstance(ktap, Ktap) else (ktap, None)
    lines = list(_document(tests, ""))
    if bail_out is not None:
        lines.append(f"Bail out! {_clean(bail_out)}".rstrip())
    return "\n".join(lines) + "\n"


def _document(tests: Sequence[Test], indent: str) -> Iterator[str]:
    yield f"{indent}KTAP version 1"
    yield f"{indent}1..{len(tests)}"
    for number, test in enumerate(tests, 1):
        if test.children:
            yield from _document(test.children, indent + "  ")
        for diagnostic in test.diagnostics:
            for line in diagnostic.split("\n"):
                yield f"{indent}{_remark(line)}"
        yield f"{indent}{_result(number, test)}"


def _remark(text: str) -> str:
    """A diagnostic line; one that would be read as a result is set off by a bar."""
    text = _CONTROL.sub(" ", text).rstrip()
    line = f"# {text}".rstrip()
    return f"{QUOTE}{text}" if structural(line) or structural(text) else line


def _result(number: int, test: Test) -> str:
    ok = test.status in ("pass", "skip") or (test.status == "todo" and test.directive == "XFAIL")
    directive = test.directive
    if test.status in ("crashed", "missing", "skip"):
        directive = {"crashed": "CRASHED", "missing": "MISSING", "skip": "SKIP"}[test.status]
    elif test.status == "todo":
        directive = directive if directive in ("TODO", "XFAIL") else "TODO"
    elif directive not in ("TIMEOUT", "ERROR") or test.status == "pass":
        directive = ""
    name = re.sub(r"(^|\s)#", r"\1\\#", _clean(test.name))
    parts = ["ok" if ok else "not ok", str(number), name]
    reason = _clean(test.reason)
    if directive or reason:
        parts += ["#", directive, reason]
    return " ".join(part for part in parts if part)


def _clean(text: str) -> str:
    return unstamped(_CONTROL.sub(" ", text)).strip()
