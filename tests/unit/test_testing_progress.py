"""What a person sees of a run, and the files that it writes."""

from __future__ import annotations

import io
import re

import pytest

from pyvmm.errors import UsageError
from pyvmm.testing import outputs
from pyvmm.testing.progress import FAILURES, TAIL_LINES, Lines, Live, progress
from pyvmm.testing.result import CaseResult, RunReport
from pyvmm.testing.runner import INTERRUPTED, Event


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def result(name: str, status: str = "pass", reason: str = "", **values) -> CaseResult:
    return CaseResult(
        f"k/m/{name}", "k", "m", name, status, reason, elapsed=1.234, timeline=[(0.0, "start")], **values
    )


def shown(show, stream, *results: CaseResult, **environment: str) -> str:
    for number, each in enumerate(results, 1):
        show(Event("started", each.id, number - 1, len(results)))
        show(Event("finished", each.id, number, len(results), each))
    show.finish(RunReport("run", 0.0, 9.87, list(results), environment))
    return stream.getvalue()


def lines(*results: CaseResult, **environment: str) -> str:
    stream = io.StringIO()
    return shown(progress(stream), stream, *results, **environment)


class TestLines:
    def test_a_line_for_each_case_and_the_counts(self):
        text = lines(result("a"), result("b", "skip", "why"))
        assert text.splitlines() == [
            "PASS  k/m/a  1.23 s  [1/2]",
            "SKIP  k/m/b  1.23 s  [2/2]  why",
            "",
            "2 cases: 1 passed, 1 skipped in 9.9 s",
        ]

    def test_a_failure_shows_the_end_of_what_was_printed(self):
        console = "".join(f"line {n}\r\n" for n in range(100))
        text = lines(result("a", "fail", "why", console=console, stderr="told\n", console_log="/logs/a"))
        assert f"console, the last {TAIL_LINES} lines of 100:" in text
        assert "    | line 99\n" in text
        assert f"    | line {100 - TAIL_LINES}\n" in text
        assert f"line {99 - TAIL_LINES}\n" not in text
        assert "    stderr:\n    | told\n" in text
        assert "the whole console: /logs/a" in text

    def test_a_guest_cannot_draw_on_the_terminal(self):
        text = lines(result("a", "fail", "why", console="\x1b[2Jgone\x07\n"))
        assert "\x1b" not in text
        assert "\x07" not in text
        assert r"\x1b[2Jgone\x07" in text

    def test_many_failures_do_not_flood(self):
        text = lines(*(result(str(n), "fail", "why") for n in range(FAILURES + 5)))
        assert text.count("--- FAIL") == FAILURES
        assert "... and 5 more that did not pass" in text

    def test_a_flaky_pass_is_told(self):
        text = lines(result("a", reason="flaky: attempt 2 passed", attempts=2, attempt_reasons=["fail: x"]))
        assert "flaky: attempt 2 passed" in text
        assert "1 case: 1 passed (1 of them only after a retry)" in text

    def test_an_interruption_is_told_and_its_victims_are_not(self):
        victim = result("a", "error", "interrupted by SIGINT")
        victim.timeline = []
        text = lines(victim, result("b", "fail", "why"), **{INTERRUPTED: "SIGINT"})
        assert text.count("--- ") == 1
        assert "interrupted by SIGINT\n2 cases: 1 failed, 1 not testable" in text


class TestTerminal:
    def test_lines_and_what_runs_on_a_terminal(self, monkeypatch):
        pytest.importorskip("rich")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        stream = Terminal()
        show = progress(stream)
        assert isinstance(show, Live)
        text = shown(show, stream, result("a[red]"), result("b", "fail", "why"))
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        assert "PASS  k/m/a[red]  1.23 s  [1/2]" in plain
        assert "1 of 2: 1 passed" in plain
        assert plain.rstrip().endswith("2 cases: 1 passed, 1 failed in 9.9 s")

    @pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
    def test_no_escapes_where_they_are_not_wanted(self, monkeypatch, variables):
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        stream = Terminal()
        assert "\x1b" not in shown(progress(stream), stream, result("a"), result("b", "fail", "x"))

    def test_without_rich_there_are_lines_in_colour(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
        stream = Terminal()
        show = progress(stream)
        assert isinstance(show, Lines)
        assert "\x1b[32mPASS \x1b[0m k/m/a" in shown(show, stream, result("a"))


class TestOutputs:
    def test_what_cannot_be_written_is_told_before(self, tmp_path):
        for path, words in (
            (tmp_path, "is a directory"),
            (tmp_path / "no" / "file", "there is no directory"),
        ):
            with pytest.raises(UsageError, match=words):
                outputs.check({"junit": str(path)})
        with pytest.raises(UsageError, match="the file of --junit too"):
            outputs.check({"junit": str(tmp_path / "a"), "html": f"{tmp_path}/./a"})
        outputs.check({"junit": str(tmp_path / "a"), "html": None})
        outputs.check({"junit": "/dev/null", "html": "/dev/null"})

    def test_files_are_replaced_whole_and_the_rest_is_written_in_any_case(self, tmp_path):
        report = RunReport("run", 0.0, 1.0, [result("a")])
        (tmp_path / "k").write_text("old")
        with pytest.raises(UsageError, match="cannot write --html"):
            outputs.write({"html": str(tmp_path / "no" / "h"), "ktap": str(tmp_path / "k")}, report)
        assert (tmp_path / "k").read_text().startswith("KTAP version 1")
        assert [path.name for path in tmp_path.iterdir()] == ["k"]
