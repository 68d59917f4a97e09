"""What a person sees of a run: a line for each case that has ended, what runs now (on a terminal), and the failures.

``rich`` is used where it is installed and the output is a terminal that can be drawn on; lines elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import IO, Any, Protocol

from pyvmm.testing.result import CaseResult, RunReport
from pyvmm.testing.runner import INTERRUPTED, Event
from pyvmm.text import printable

#: Failures shown with their consoles, lines of console shown of each, and characters of each line.
FAILURES = 10
TAIL_LINES = 20
LINE_WIDTH = 200

#: How a status is written, and its colour.
_LABELS = {"pass": "PASS", "fail": "FAIL", "timeout": "TIME", "error": "ERROR", "skip": "SKIP"}
_COLOURS = {"pass": "32", "fail": "31;1", "timeout": "31;1", "error": "35;1", "skip": "33"}
_WORDS = {
    "pass": "passed",
    "fail": "failed",
    "timeout": "timed out",
    "error": "not testable",
    "skip": "skipped",
}


class Progress(Protocol):
    """Shows events as they come, and the whole at the end."""

    def __call__(self, event: Event) -> None: ...
    def finish(self, report: RunReport | None) -> None:
        """The run is over; None: by an error."""
        ...


def progress(stream: IO[str], *, color: bool | None = None) -> Progress:
    """What suits ``stream``.  ``color``: False for none (None: on a terminal, unless NO_COLOR is set)."""
    terminal = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if color is None:
        color = terminal and not os.environ.get("NO_COLOR")
    if terminal and color:
        try:
            return Live(stream)
        except ImportError:
            pass
    return Lines(stream, color=color)


class Lines:
    """A line for each case that has ended."""

    def __init__(self, stream: IO[str], *, color: bool = False) -> None:
        self._stream = stream
        self._color = color

    def __call__(self, event: Event) -> None:
        if event.result is None:
            return
        self._write(line_of(event, self._label(event)))

    def finish(self, report: RunReport | None) -> None:
        if report is None:
            return
        for line in epilogue(report):
            self._write(line)

    def _label(self, event: Event) -> str:
        assert event.result is not None
        label = label_of(event)
        return f"\x1b[{_COLOURS[event.result.status]}m{label}\x1b[0m" if self._color else label

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class Live:
    """The same lines, and below them what runs now and how far the run is.  ImportError without rich."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._console = Console(file=stream, highlight=False)
        self._running: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._done = self._total = 0
        self._live = RichLive(
            get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True
        )
        self._live.start()

    def __call__(self, event: Event) -> None:
        from rich.text import Text

        self._done, self._total = event.done, event.total
        if event.result is None:
            self._running[event.id] = time.monotonic()
            return
        self._running.pop(event.id, None)
        if event.kind == "finished":
            status = event.result.status
            self._counts[status] = self._counts.get(status, 0) + 1
        label = label_of(event)
        line = line_of(event, label)
        text = Text(line)
        text.stylize(_style(event.result), 0, len(label))
        self._console.print(text, soft_wrap=True)
        self._live.refresh()

    def finish(self, report: RunReport | None) -> None:
        from rich.text import Text

        self._live.stop()
        for line in epilogue(report) if report is not None else ():
            self._console.print(Text(line), soft_wrap=True)

    def _render(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        running = list(self._running.items())
        rows: list[Any] = [
            Text(f"  {id}  {now - since:.0f} s", style="dim", overflow="ellipsis", no_wrap=True)
            for id, since in running[:8]
        ]
        table = Table.grid(padding=(0, 1))
        table.add_row(
            ProgressBar(total=max(1, self._total), completed=self._done, width=30),
            Text(f"{self._done} of {self._total}: {_counted(self._counts) or 'none has ended'}"),
        )
        return Group(*rows, table)


def label_of(event: Event) -> str:
    """How a line begins."""
    assert event.result is not None
    return "RETRY" if event.kind == "retry" else _LABELS[event.result.status].ljust(5)


def line_of(event: Event, label: str) -> str:
    """The line about an event with a result."""
    result = event.result
    assert result is not None
    reason = f"  {result.reason}" if result.reason else ""
    return f"{label} {printable(result.id)}  {result.elapsed:.2f} s  [{event.done}/{event.total}]{reason}"


def epilogue(report: RunReport) -> Iterable[str]:
    """What is said at the end: the failures with the consoles' last lines, and the counts."""
    interrupted = INTERRUPTED in report.environment
    # What an interruption took away is no news: it had no chance.
    bad = [each for each in report.results if not each.ok and (each.timeline or not interrupted)]
    for result in bad[:FAILURES]:
        yield from _failure(result)
    if len(bad) > FAILURES:
        yield ""
        yield f"... and {len(bad) - FAILURES} more that did not pass"
    counts = {status: count for status, count in report.counts().items() if count}
    total = len(report.results)
    flaky = sum(result.status == "pass" and result.attempts > 1 for result in report.results)
    yield ""
    if interrupted:
        yield f"interrupted by {report.environment[INTERRUPTED]}"
    yield (
        f"{total} {'case' if total == 1 else 'cases'}: {_counted(counts) or 'nothing was run'}"
        f"{f' ({flaky} of them only after a retry)' if flaky else ''} in {report.elapsed:.1f} s"
    )


def _failure(result: CaseResult) -> Iterable[str]:
    yield ""
    yield f"--- {_LABELS[result.status]} {printable(result.id)}"
    yield f"    {result.reason}"
    for number, reason in enumerate(result.attempt_reasons, 1):
        yield f"    attempt {number} before it: {reason}"
    for name, text in (("console", result.console), ("stdout", result.stdout), ("stderr", result.stderr)):
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        if lines:
            more = f", the last {TAIL_LINES} lines of {len(lines)}" if len(lines) > TAIL_LINES else ""
            yield f"    {name}{more}:"
            for line in lines[-TAIL_LINES:]:
                yield f"    | {printable(line[:LINE_WIDTH])}"
    if result.console_log is not None:
        yield f"    the whole console: {printable(result.console_log)}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[status]} {word}" for status, word in _WORDS.items() if counts.get(status))


def _style(result: CaseResult) -> str:
    return {"pass": "green", "skip": "yellow", "error": "bold magenta"}.get(result.status, "bold red")
