"""JUnit XML, as Jenkins, GitLab and the others take it (the schema of Maven's surefire and Jenkins' junit-10.xsd).

    <testsuites>
      <testsuite name="KERNEL/MACHINE">                 the cases, a <testcase> each
      <testsuite name="KERNEL/MACHINE/CASE: SUITE">     the subtests that KTAP told of, a suite for each of its suites

A case that took too long is a <failure> of type "timeout"; one that could not be tested is an <error>.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from xml.etree import ElementTree

from pyvmm.ktap.result import Test
from pyvmm.testing.reports.text import visible
from pyvmm.testing.result import CaseResult, RunReport

_ELEMENTS = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def write(report: RunReport) -> str:
    """``report`` as one JUnit file."""
    root = ElementTree.Element("testsuites", name=visible(report.name))
    groups: dict[str, list[CaseResult]] = {}
    for result in report.results:
        groups.setdefault(f"{result.kernel}/{result.machine}", []).append(result)
    for name, results in groups.items():
        suite = _suite(root, name, min(result.started for result in results), results[0].worker)
        _properties(suite, report.environment)
        for result in results:
            _case(suite, name, result)
        _count(suite)
        for result in results:
            tests = [Test.from_dict(data) for data in result.subtests]
            for path, leaves in _suites(tests, ()):
                _subtests(root, result, path, leaves)
    _total(root, report.elapsed)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(root: ElementTree.Element, name: str, started: float, worker: str) -> ElementTree.Element:
    stamp = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    host = worker.partition("/")[0] or "localhost"
    return ElementTree.SubElement(
        root, "testsuite", name=visible(name), timestamp=stamp, hostname=visible(host)
    )


def _properties(parent: ElementTree.Element, values: dict[str, str]) -> None:
    if values:
        properties = ElementTree.SubElement(parent, "properties")
        for name, value in values.items():
            ElementTree.SubElement(properties, "property", name=visible(name), value=visible(str(value)))


def _case(suite: ElementTree.Element, classname: str, result: CaseResult) -> None:
    case = _testcase(suite, classname, result.case, result.elapsed)
    kind = {"fail": "failure", "timeout": "failure", "error": "error", "skip": "skipped"}.get(result.status)
    if kind:
        lines = [
            result.reason,
            *(f"{splat['kind']}: {splat['line']}" for splat in result.splats if not splat.get("allowed")),
        ]
        lines += [f"attempt {number}: {reason}" for number, reason in enumerate(result.attempt_reasons, 1)]
        if result.console_log:
            lines.append(f"console: {result.console_log}")
        _outcome(
            case, kind, result.reason or result.status, result.outcome or result.status, "\n".join(lines)
        )
    _text(
        case,
        "system-out",
        result.console + (f"\n--- standard output ---\n{result.stdout}" if result.stdout else ""),
    )
    _text(case, "system-err", result.stderr)


def _suites(tests: list[Test], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[Test]]]:
    """Each suite that has tests without children, with these; a suite that is bad by itself is one of its own tests."""
    leaves = [test for test in tests if not test.children]
    if leaves:
        yield path, leaves
    for test in tests:
        if test.children:
            below = (*path, test.title)
            if test.bad_itself:
                yield (
                    below,
                    [Test(test.title, test.status, None, test.directive, test.reason, test.diagnostics)],
                )
            yield from _suites(test.children, below)


def _subtests(
    root: ElementTree.Element, result: CaseResult, path: tuple[str, ...], leaves: list[Test]
) -> None:
    name = ": ".join((result.id, *path))
    suite = _suite(root, name, result.started, result.worker)
    for test in leaves:
        case = _testcase(suite, name, test.title, 0.0)
        message = " ".join(part for part in (test.directive, test.reason) if part) or test.status
        text = "\n".join(test.diagnostics)
        if test.bad:
            _outcome(case, "failure", message, test.status, text)
        elif test.status == "skip":
            _outcome(case, "skipped", message, "", "")
        elif test.status == "todo":
            _outcome(case, "skipped", f"expected to fail: {message}", "", "")
        if text and not test.bad:
            _text(case, "system-out", text)
    _count(suite)


def _testcase(suite: ElementTree.Element, classname: str, name: str, seconds: float) -> ElementTree.Element:
    attributes = {"classname": visible(classname), "name": visible(name), "time": f"{seconds:.3f}"}
    return ElementTree.SubElement(suite, "testcase", attributes)


def _outcome(case: ElementTree.Element, kind: str, message: str, what: str, text: str) -> None:
    attributes = {"message": visible(message)}
    if what:
        attributes["type"] = visible(what)
    ElementTree.SubElement(case, kind, attributes).text = visible(text) or None


def _text(case: ElementTree.Element, kind: str, text: str) -> None:
    if text:
        ElementTree.SubElement(case, kind).text = visible(text)


def _count(suite: ElementTree.Element) -> None:
    """Set the suite's numbers from its test cases."""
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for kind, attribute in _ELEMENTS.items():
        suite.set(attribute, str(sum(case.find(kind) is not None for case in cases)))
    suite.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")


def _total(root: ElementTree.Element, elapsed: float) -> None:
    for attribute in ("tests", *_ELEMENTS.values()):
        root.set(attribute, str(sum(int(suite.get(attribute, 0)) for suite in root)))
    root.set("time", f"{elapsed:.3f}")
