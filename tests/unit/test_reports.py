"""The reports of a run: JUnit of the shape that Jenkins takes, JSON by its schema, KTAP that is read again, HTML."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import jsonschema
import pytest
import report_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import ktap
from pyvmm.testing.reports import html, json_report, junit, ktap_report
from pyvmm.testing.reports.console_marks import locate
from pyvmm.testing.reports.text import duration, visible
from pyvmm.testing.reports.timeline import MOST_ROWS, draw
from pyvmm.testing.result import CaseResult, RunReport

ANY_TEXT = st.text(max_size=20) | st.sampled_from(
    [
        "\x00\x1b[31m\x07",
        "\ud800",
        "]]>",
        "<script>alert(1)</script>",
        '"onload=',
        "ok 1 x",
        "\u202eabc",
        "a\r\nb\rc",
    ]
)
TESTS = st.recursive(
    st.fixed_dictionaries(
        {
            "name": ANY_TEXT,
            "status": st.sampled_from(ktap.STATUSES),
            "diagnostics": st.lists(ANY_TEXT, max_size=2),
            "reason": ANY_TEXT,
        }
    ),
    lambda tests: st.fixed_dictionaries(
        {
            "name": ANY_TEXT,
            "status": st.sampled_from(ktap.STATUSES),
            "diagnostics": st.just([]),
            "children": st.lists(tests, min_size=1, max_size=3),
        }
    ),
    max_leaves=6,
)
SPLATS = st.fixed_dictionaries(
    {
        "kind": ANY_TEXT,
        "line": ANY_TEXT,
        "text": ANY_TEXT,
        "allowed": st.booleans(),
        "offset": st.integers(0, 99),
    }
)
RESULTS = st.builds(
    CaseResult,
    *[ANY_TEXT] * 4,
    status=st.sampled_from(["pass", "fail", "error", "skip", "timeout"]),
    reason=ANY_TEXT,
    console=ANY_TEXT,
    stdout=ANY_TEXT,
    timeline=st.lists(st.tuples(st.floats(0, 100), ANY_TEXT), max_size=3),
    subtests=st.lists(TESTS, max_size=3),
    splats=st.lists(SPLATS, max_size=2),
    exits=st.just({}) | st.just({"total": 3, "by_device": {"<serial>": 3}}),
    worker=ANY_TEXT,
)
REPORTS = st.builds(
    RunReport,
    ANY_TEXT,
    st.just(report_sample.STARTED),
    st.floats(0, 1000),
    st.lists(RESULTS, max_size=4),
    st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=2),
)


def check_junit(text: str) -> ElementTree.Element:
    """What surefire's schema and Jenkins' ask for: elements, their order, attributes, numbers that add up."""
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites"
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in root:
        assert suite.tag == "testsuite"
        assert {"name", "timestamp", "hostname", "time", *totals} == set(suite.keys())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp", ""))
        tags = [child.tag for child in suite]
        assert tags == sorted(tags, key=["properties", "testcase"].index)
        cases = suite.findall("testcase")
        assert cases
        for case in cases:
            assert set(case.keys()) == {"classname", "name", "time"}
            float(case.get("time", ""))
            inner = [child.tag for child in case]
            assert len(inner) == len(set(inner))
            assert inner == sorted(
                inner, key=["skipped", "error", "failure", "system-out", "system-err"].index
            )
            assert len(set(inner) & {"skipped", "error", "failure"}) <= 1
            for child in case:
                assert set(child.keys()) <= (
                    {"message", "type"} if not child.tag.startswith("system") else set()
                )
        numbers = {
            "tests": len(cases),
            "failures": len(suite.findall("testcase/failure")),
            "errors": len(suite.findall("testcase/error")),
            "skipped": len(suite.findall("testcase/skipped")),
        }
        for key, number in numbers.items():
            assert suite.get(key) == str(number)
            totals[key] += number
    assert {key: int(root.get(key, "")) for key in totals} == totals
    return root


class Page(HTMLParser):
    """Collects the tags, anchors and links of a page, and checks that every tag is closed."""

    VOID = {"meta", "input", "br", "line", "rect"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def links(self) -> list[str]:
        return [value or "" for name, value in self.attributes if name in ("href", "src")]


def check_html(text: str) -> Page:
    page = Page(text)
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "b-"}
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "url(" not in text[: text.index("</style>")]
    return page


@pytest.fixture
def report() -> RunReport:
    return report_sample.report()


def test_junit_of_a_run(report: RunReport) -> None:
    root = check_junit(junit.write(report))
    suites = {suite.get("name"): suite for suite in root}
    first = suites["linux-6.12/small"]
    assert [case.get("name") for case in first.findall("testcase")] == ["uname", "kunit", "net", "boot"]
    assert (first.get("tests"), first.get("failures"), first.get("skipped")) == ("4", "1", "1")
    patched = suites["patched/small"]
    assert (patched.get("failures"), patched.get("errors")) == ("2", "1")
    by_name = {case.get("name"): case for case in patched.findall("testcase")}
    timeout = by_name["kselftest"].find("failure")
    assert timeout is not None
    assert timeout.get("message") == "60 s were not enough"
    net = by_name["net"].find("failure")
    assert net is not None
    assert "console: logs/patched-small-net.log" in (net.text or "")


def test_junit_has_subtests_as_suites_of_their_own(report: RunReport) -> None:
    suites = {suite.get("name"): suite for suite in check_junit(junit.write(report))}
    kunit = suites["linux-6.12/small/kunit: list_ops"]
    assert [(case.get("name"), [child.tag for child in case]) for case in kunit] == [
        ("list_ops_init", ["system-out"]),
        ("list_ops_splice", ["failure"]),
        ("list_ops_rcu", ["skipped"]),
    ]
    assert "linux-6.12/small/kunit: list_ops: list_ops_sizes" in suites
    slow = suites["patched/small/kselftest"].find("testcase[@name='selftests: net: slow.sh']/failure")
    assert slow is not None
    assert slow.get("message") == "TIMEOUT 45 seconds"


def test_a_suite_that_is_bad_by_itself_is_a_failure_in_junit() -> None:
    found = ktap.parse(
        "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 a\nnot ok 1 suite # exit=139\n"
    )
    result = report_sample.case("k", "c", "fail", subtests=[test.as_dict() for test in found.tests])
    root = check_junit(junit.write(RunReport("r", 0.0, 1.0, [result])))
    assert [failure.get("message") for failure in root.findall("testsuite/testcase/failure")] == [
        "fail",
        "exit=139",
    ]


@settings(deadline=None, max_examples=40)
@given(REPORTS)
def test_junit_takes_any_text(report: RunReport) -> None:
    check_junit(junit.write(report).encode("utf-8").decode())


def test_json_by_its_schema(report: RunReport) -> None:
    jsonschema.Draft202012Validator.check_schema(json_report.SCHEMA)
    data = json.loads(json_report.write(report))
    jsonschema.validate(data, json_report.SCHEMA)
    assert data["counts"] == {"pass": 3, "fail": 2, "timeout": 1, "error": 1, "skip": 1}
    assert data["exit_code"] == 1
    assert data["results"][5]["splats"][0]["kind"] == "WARNING"
    assert data["results"][0]["timeline"][0] == [0.004, "machine built"]
    fields = set(json_report.SCHEMA["$defs"]["result"]["properties"])
    assert fields == set(CaseResult.__dataclass_fields__)
    for field in fields:
        assert re.search(rf"\b{field}\b", json_report.__doc__ or ""), field
    data["results"][0]["status"] = "good"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json_report.SCHEMA)


@settings(deadline=None, max_examples=40)
@given(REPORTS)
def test_json_takes_any_text(report: RunReport) -> None:
    jsonschema.validate(json.loads(json_report.write(report)), json_report.SCHEMA)


def test_ktap_of_a_run_is_read_again_with_the_same_counts(report: RunReport) -> None:
    text = ktap_report.write(report)
    found = ktap.parse(text)
    assert found.errors == []
    assert found.plan == 8
    assert found.counts() == ktap.counts(ktap_report.tests(report))
    assert [(test.name, test.status) for test in found.tests][:4] == [
        ("linux-6.12/small/uname", "pass"),
        ("linux-6.12/small/kunit", "fail"),
        ("linux-6.12/small/net", "pass"),
        ("linux-6.12/small/boot", "skip"),
    ]
    assert [(test.directive, test.reason) for test in found.tests][6:] == [
        ("TIMEOUT", "60 s were not enough"),
        ("ERROR", "there is no /dev/kvm"),
    ]
    assert "WARNING (allowed): WARNING: CPU: 0 PID: 77 at net/core/dev.c:123 dev_close+0x12/0x40" in (
        found.tests[2].diagnostics
    )
    assert found.tests[4].diagnostics == ["attempt 1: no READY in 10 s"]


@settings(deadline=None, max_examples=40)
@given(REPORTS)
def test_ktap_of_any_text_has_the_same_counts(report: RunReport) -> None:
    assert ktap.parse(ktap_report.write(report)).counts() == ktap.counts(ktap_report.tests(report))


def test_html_of_a_run(report: RunReport) -> None:
    text = html.write(report)
    page = check_html(text)
    said = "".join(page.text)
    assert "net-next: <smoke> & more" in said
    assert "8 cases: 3 pass, 2 fail, 1 timeout, 1 error, 1 skip" in said
    assert page.tags.count("svg") == 6
    assert "hello from <b>a program</b> & its ␇ bell" in said
    assert "prefers-color-scheme: dark" in text
    assert [text.count(f'class="case {status}"') for status in ("pass", "fail", "skip")] == [3, 2, 1]
    assert "Exits to userspace: 5321" in said


def test_html_marks_the_splats_and_links_to_them(report: RunReport) -> None:
    text = html.write(report)
    assert '<a href="#splat-5-0">WARNING: CPU: 0 PID: 77' in text
    marks = re.findall(r"<mark( id=\S+)?( class=allowed)?>(.*?)</mark>", text)
    assert len(marks) == 14, "7 lines of a splat, in two consoles; not the line of the program in between"
    assert [mark[0] for mark in marks if mark[0]] == [' id="splat-2-0"', ' id="splat-5-0"']
    assert [bool(mark[1]) for mark in marks] == [True] * 7 + [False] * 7


def test_html_of_a_splat_that_has_left_the_console_shows_its_text(report: RunReport) -> None:
    report.results = [replace(report.results[5], console="[    9.000000] late\n")]
    text = html.write(report)
    check_html(text)
    assert "<pre>------------[ cut here ]------------\n" in text
    assert "<mark" not in text


def test_html_of_nothing(report: RunReport) -> None:
    text = html.write(RunReport("empty", 0.0, 0.0))
    check_html(text)
    assert "nothing ran" in text


@settings(deadline=None, max_examples=40)
@given(REPORTS)
def test_html_takes_any_text(report: RunReport) -> None:
    text = html.write(report)
    text.encode("utf-8")
    check_html(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", text)


def test_lines_of_two_splats_with_the_same_text_are_two_places() -> None:
    lines = ["x", "[ 1.0] BUG: a", "[ 1.0]  trace", "[ 2.0] BUG: a", "[ 2.0]  trace"]
    splat = {"line": "BUG: a", "text": "BUG: a\n trace"}
    assert locate(lines, [splat, splat]) == [[1, 2], [3, 4]]
    assert locate(lines, [splat, splat, splat])[2] == []


def test_control_characters_are_shown() -> None:
    assert (
        visible("a\x1b[31mred\x1b[0m\x1b[2J\x00\x7f\x85\u202e\r\nb\tc\n")
        == "ared␛[2J␀␡<U+0085><U+202E>\nb\tc\n"
    )


def test_durations_for_people() -> None:
    assert [duration(s) for s in (0, 0.0123, 1.5, 75.3, 123, 3723)] == [
        "0 ms",
        "12 ms",
        "1.50 s",
        "75.30 s",
        "2 min 3 s",
        "1 h 2 min",
    ]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1e6), ANY_TEXT), max_size=80), st.floats(0, 1e6))
def test_a_timeline_is_well_formed_and_within_its_frame(
    events: list[tuple[float, str]], elapsed: float
) -> None:
    drawn = draw(events, elapsed)
    if not events:
        assert drawn == ""
        return
    svg = ElementTree.fromstring(drawn.encode())
    rects = svg.findall("g/rect")
    assert 1 <= len(rects) <= MOST_ROWS
    for rect in rects:
        assert 250 <= float(rect.get("x", "")) <= 900
        assert float(rect.get("x", "")) + float(rect.get("width", "")) <= 902
    assert len(svg.findall("line")) <= 12


def test_a_timeline_goes_to_the_end_of_the_run() -> None:
    assert ">end</text>" in draw([(1.0, "hung")], 60.0)
    assert ">end</text>" not in draw([(1.0, "off")], 1.001)
    assert draw([(float("nan"), "x")], 1.0) == ""
