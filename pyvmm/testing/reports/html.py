"""The results as one HTML file that needs nothing else: no script, no picture, no font from anywhere.

An overview (cases by kernel and machine), and for each case what happened: a timeline, its subtests, the splats with
links to where they stand in the console, the exits.  Everything that came from a guest is escaped; the file forbids
itself, by its Content-Security-Policy, to run or load anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from pyvmm.ktap.result import BAD
from pyvmm.testing.reports.console_marks import locate
from pyvmm.testing.reports.html_style import style
from pyvmm.testing.reports.text import duration, visible
from pyvmm.testing.reports.timeline import draw
from pyvmm.testing.result import CaseResult, RunReport

#: Rows of the table of exits.
MOST_DEVICES = 15

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write(report: RunReport) -> str:
    """``report`` as an HTML file."""
    return "\n".join(_page(report)) + "\n"


def _text(value: object) -> str:
    return escape(visible(str(value)))


def _page(report: RunReport) -> Iterator[str]:
    counts = report.counts()
    bad = [result for result in report.results if not result.ok]
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{_text(report.name)}: {_verdict(report)}</title>"
    yield f"<style>\n{style()}</style></head><body><div class=page>"
    yield f"<h1>{_text(report.name)}</h1>"
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.started))
    facts = (_verdict(report), when, duration(report.elapsed), f"exit code {report.exit_code}")
    yield f'<p class="verdict">{" · ".join(facts)}</p>'
    if report.results:
        shares = "".join(
            f'<i class="{status}" style="flex-grow: {count}" title="{count} {status}"></i>'
            for status, count in counts.items()
            if count
        )
        yield f'<div class="share">{shares}</div>'
    yield from _filters(counts, len(report.results), len(bad))
    yield from _matrix(report.results)
    yield '<h2>Cases</h2><div class="cases">'
    for number, result in enumerate(report.results):
        yield from _case(number, result)
    yield "</div>"
    if report.environment:
        yield "<h2>Environment</h2>"
        yield from _facts(list(report.environment.items()))
    yield "<footer>Written by pyvmm test.</footer></div></body></html>"


def _verdict(report: RunReport) -> str:
    counts = report.counts()
    total = len(report.results)
    if not total:
        return "nothing ran"
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{total} case{'' if total == 1 else 's'}: {told}"


def _filters(counts: dict[str, int], total: int, bad: int) -> Iterator[str]:
    """The choice of which cases are shown: radio buttons and the style sheet."""
    choices = [
        ("all", "all", total),
        ("bad", "not good", bad),
        *((name, name, count) for name, count in counts.items()),
    ]
    for name, _, _ in choices:
        checked = " checked" if name == "all" else ""
        yield f'<input class="filter" type="radio" name="only" id="only-{name}"{checked}>'
    labels = "".join(
        f'<label for="only-{name}" class="{name}{"" if count else " none"}"><b>{count}</b>{shown}</label>'
        for name, shown, count in choices
    )
    yield f'<div class="filters">{labels}</div>'


def _matrix(results: Sequence[CaseResult]) -> Iterator[str]:
    """Cases down, kernels and machines across."""
    columns = list(dict.fromkeys((result.kernel, result.machine) for result in results))
    rows = list(dict.fromkeys(result.case for result in results))
    cells = {(r.case, r.kernel, r.machine): (number, r) for number, r in enumerate(results)}
    if len(results) < 2:
        return
    yield '<h2>Overview</h2><div class="matrix scroll"><table><thead><tr><th>case</th>'
    for kernel, machine in columns:
        yield f"<th>{_text(kernel)}<br>{_text(machine)}</th>"
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr><th>{_text(row)}</th>"
        for column in columns:
            number, result = cells.get((row, *column), (0, None))
            if result is None:
                yield '<td class="dim">-</td>'
            else:
                title = _text(result.reason or result.status)
                yield (
                    f'<td><a class="{result.status}" href="#case-{number}" title="{title}">'
                    f"{result.status} {duration(result.elapsed)}</a></td>"
                )
        yield "</tr>"
    yield "</tbody></table></div>"


def _case(number: int, result: CaseResult) -> Iterator[str]:
    opened = "" if result.ok else " open"
    yield f'<details class="case {result.status}" id="case-{number}"{opened}><summary>'
    yield f'<span class="badge">{result.status}</span><span class="id">{_text(result.id)}</span>'
    tries = f" ({result.attempts} attempts)" if result.attempts > 1 else ""
    yield f'<span class="why">{_text(result.reason)}</span><span class="took">{duration(result.elapsed)}{tries}</span>'
    yield '</summary><div class="inside">'
    facts: list[tuple[str, object]] = [("outcome", result.outcome or "no machine ran")]
    if result.guest_status is not None:
        facts.append(("guest's status", result.guest_status))
    facts.append(("exit code", result.exit_code))
    facts += [(f"attempt {index}", reason) for index, reason in enumerate(result.attempt_reasons, 1)]
    facts += [
        (name, value) for name, value in (("worker", result.worker), ("log", result.console_log)) if value
    ]
    yield from _facts(facts)
    if result.timeline:
        yield f"<h3>Timeline</h3>{draw(result.timeline, result.elapsed)}"
    lines = visible(result.console).rstrip("\n").split("\n")
    places = locate(
        lines, [{**splat, "text": visible(str(splat.get("text", "")))} for splat in result.splats]
    )
    if result.splats:
        yield "<h3>Splats</h3>"
        yield from _splats(number, result.splats, places)
    if result.subtests:
        yield "<h3>Subtests</h3>"
        yield from _tests(result.subtests, 'class="tests"')
    yield from _exits(result.exits)
    yield from _streams(number, result, lines, places, opened)
    yield "</div></details>"


def _facts(facts: Sequence[tuple[str, object]]) -> Iterator[str]:
    yield (
        "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts) + "</dl>"
    )


def _splats(number: int, splats: Sequence[dict[str, Any]], places: Sequence[list[int]]) -> Iterator[str]:
    yield '<ul class="splats">'
    for index, (splat, indices) in enumerate(zip(splats, places, strict=True)):
        kind, line = f"<b>{_text(splat.get('kind', ''))}</b>", _text(splat.get("line", ""))
        allowed = ' <span class="dim">(allowed)</span>' if splat.get("allowed") else ""
        if indices:
            yield f'<li>{kind}{allowed} <a href="#splat-{number}-{index}">{line}</a></li>'
        else:
            yield f"<li>{kind}{allowed} {line}"
            yield f"<pre>{_text(splat.get('text', ''))}</pre></li>"
    yield "</ul>"


def _tests(tests: Sequence[dict[str, Any]], attributes: str = "") -> Iterator[str]:
    yield f"<ul {attributes}>"
    for test in tests:
        status = _text(test.get("status", ""))
        told = " ".join(str(test[key]) for key in ("directive", "reason") if test.get(key))
        note = f' <span class="dim">{_text(told)}</span>' if told else ""
        row = f'<span class="badge {status}">{status}</span> {_text(test.get("name", ""))}{note}'
        said = test.get("diagnostics")
        if said:
            opened = " open" if status in BAD and not test.get("children") else ""
            lines = f'<span class="dim lines">{len(said)} line{"" if len(said) == 1 else "s"}</span>'
            yield f"<li><details{opened}><summary>{row} {lines}</summary>"
            yield f"<pre>{_text(chr(10).join(map(str, said)))}</pre></details>"
        else:
            yield f"<li>{row}"
        if test.get("children"):
            yield from _tests(test["children"])
        yield "</li>"
    yield "</ul>"


def _exits(exits: dict[str, Any]) -> Iterator[str]:
    devices = sorted(exits.get("by_device", {}).items(), key=lambda item: -item[1])
    if not devices:
        return
    most = max(devices[0][1], 1)
    total = exits.get("total", sum(count for _, count in devices))
    yield f'<h3>Exits to userspace: {total}</h3><table class="bars">'
    for name, count in devices[:MOST_DEVICES]:
        bar = f'<i style="width: {100 * count / most:.1f}%"></i>'
        yield f'<tr><td>{_text(name)}</td><td class="n">{count}</td><td class="bar">{bar}</td></tr>'
    if len(devices) > MOST_DEVICES:
        rest = sum(count for _, count in devices[MOST_DEVICES:])
        yield f'<tr><td class="dim">{len(devices) - MOST_DEVICES} others</td><td class="n">{rest}</td><td></td></tr>'
    yield "</table>"


def _streams(
    number: int, result: CaseResult, lines: Sequence[str], places: Sequence[list[int]], opened: str
) -> Iterator[str]:
    """Standard output and error, and the console with its splats marked."""
    for name, said in (("Standard output", result.stdout), ("Standard error", result.stderr)):
        if said:
            yield f"<h3>{name}</h3><pre>{_text(said)}</pre>"
    if not result.console:
        yield "<h3>Console</h3><p class=dim>Nothing was printed.</p>"
        return
    marks: dict[int, tuple[int, bool]] = {}
    for index, (splat, indices) in enumerate(zip(result.splats, places, strict=True)):
        marks.update({line: (index, bool(splat.get("allowed"))) for line in indices})
    firsts = {indices[0] for indices in places if indices}
    parts = []
    for position, line in enumerate(lines):
        mark = marks.get(position)
        if mark is None:
            parts.append(escape(line) + "\n")
        else:
            anchor = f' id="splat-{number}-{mark[0]}"' if position in firsts else ""
            parts.append(f"<mark{anchor}{' class=allowed' if mark[1] else ''}>{escape(line) or ' '}</mark>")
    said = f"{len(lines)} line{'' if len(lines) == 1 else 's'}"
    shown = opened or (" open" if marks else "")
    yield f"<h3>Console</h3><details{shown}><summary>{said}</summary><pre>{''.join(parts)}</pre></details>"
