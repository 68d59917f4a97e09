"""KTAP written: as the specification has it, and read again as what it was."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.ktap import Ktap, Test, parse, write

WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=20).map(
    str.strip
)
#: What a result line cannot hold: a backslash before a hash, a dash that is taken for the separator.
NAMES = WORDS.filter(lambda text: "\\#" not in text and not text.startswith("-") and not text[:1].isdigit())
REASONS = NAMES.map(lambda text: "because " + text if text else "")
LINES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=30).map(
    str.rstrip
)


def leaves() -> st.SearchStrategy[Test]:
    return st.builds(
        Test,
        NAMES,
        st.sampled_from(["pass", "fail", "skip", "todo", "missing", "crashed"]),
        reason=REASONS,
        diagnostics=st.lists(LINES, max_size=3),
    )


def suites(children: st.SearchStrategy[Test]) -> st.SearchStrategy[Test]:
    return st.builds(
        Test, NAMES, reason=REASONS, children=st.lists(children, min_size=1, max_size=4), status=st.none()
    ).map(judged)


def judged(suite: Test) -> Test:
    """The status that such a suite has."""
    statuses = {child.status for child in suite.children}
    bad = statuses & {"fail", "missing", "crashed"}
    suite.status = "fail" if bad else "pass" if statuses & {"pass", "todo"} else "skip"
    return suite


TREES = st.lists(st.recursive(leaves(), suites, max_leaves=12), max_size=5)
DIRECTIVES = {"skip": "SKIP", "todo": "TODO", "missing": "MISSING", "crashed": "CRASHED"}


def expected(tests: list[Test]) -> list[Test]:
    """What comes back: numbered, and each with the directive that its status is written with."""
    return [
        replace(
            test,
            number=number,
            directive=DIRECTIVES.get(test.status, ""),
            children=expected(test.children),
            diagnostics=[],
        )
        for number, test in enumerate(tests, 1)
    ]


def bare(tests: list[Test]) -> list[Test]:
    return [replace(test, diagnostics=[], children=bare(test.children)) for test in tests]


@settings(deadline=None, max_examples=60)
@given(TREES)
def test_what_is_written_is_read_again(tests: list[Test]) -> None:
    found = parse(write(tests))
    assert found.errors == []
    assert bare(found.tests) == expected(tests)
    assert found.counts() == Ktap(tests).counts()
    assert str(found) == write(found.tests)


@settings(deadline=None, max_examples=60)
@given(st.lists(LINES, max_size=5))
def test_diagnostics_come_back_line_by_line(lines: list[str]) -> None:
    (test,) = parse(write([Test("a", "fail", diagnostics=lines)])).tests
    assert len(test.diagnostics) == len(lines)
    assert all(got in (line, f"| {line}") for got, line in zip(test.diagnostics, lines, strict=True))


def test_each_status_has_its_line() -> None:
    tests = [
        Test("a", "pass"),
        Test("b", "fail", directive="TIMEOUT", reason="45 seconds"),
        Test("c", "skip", reason="no device"),
        Test("d", "todo", directive="XFAIL"),
        Test("e #1", "missing", diagnostics=["two\nlines", "ok 1 no result"]),
        Test("", "crashed", children=[Test("f", "crashed")]),
    ]
    assert write(Ktap(tests, bail_out="enough")) == (
        "KTAP version 1\n1..6\nok 1 a\nnot ok 2 b # TIMEOUT 45 seconds\nok 3 c # SKIP no device\nok 4 d # XFAIL\n"
        "# two\n# lines\n# | ok 1 no result\nnot ok 5 e \\#1 # MISSING\n"
        "  KTAP version 1\n  1..1\n  not ok 1 f # CRASHED\nnot ok 6 # CRASHED\nBail out! enough\n"
    )


def test_a_name_cannot_make_another_line() -> None:
    assert write([Test("a\nok 2 b\r\x1b[2J", "fail")]) == "KTAP version 1\n1..1\nnot ok 1 a ok 2 b [2J\n"


def test_a_test_is_plain_data_and_back() -> None:
    (test,) = parse(
        "TAP version 13\n1..1\n# TAP version 13\n# 1..1\n# # hm\n# not ok 1 x # SKIP y\nok 1 suite\n"
    ).tests
    data = test.as_dict()
    assert data["children"][0] == {
        "name": "x",
        "status": "skip",
        "directive": "SKIP",
        "reason": "y",
        "diagnostics": ["hm"],
        "children": [],
    }
    assert write([Test.from_dict(data)]) == write([test])


def test_a_suite_that_failed_by_itself_counts_as_one() -> None:
    found = parse("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 a\nnot ok 1 suite # exit=1\n")
    assert found.counts()["fail"] == 1
    assert found.counts()["total"] == 2


def test_lines_of_a_console_that_are_quoted_are_no_results() -> None:
    stamped = "[    1.234567] not ok 7 x"
    text = write(
        [Test(f"a {stamped}", "pass", reason=stamped, diagnostics=[stamped, f"hm {stamped}", "[    1.2] x"])]
    )
    found = parse(text)
    assert found.errors == []
    assert found.counts() == {**Ktap([Test("a", "pass")]).counts()}
    assert found.tests[0].diagnostics == [f"| {stamped}", f"| hm {stamped}", "[    1.2] x"]
