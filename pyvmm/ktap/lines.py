"""One line of a console's log, and what it is in KTAP (Documentation/dev-tools/ktap.rst).

A level of nesting is two spaces in the specification, four in KUnit, "# " in kselftest; here it is the column at which
the line's matter begins, which is the same for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

Kind = Literal["version", "plan", "result", "bail", "subtest", "diagnostic", "other"]

#: What a terminal would obey: control sequences, and the shorter escapes.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-_])")

#: What the console, dmesg or the journal puts before the kernel's lines: "<6>", "[    1.234567]", "[   T12]".
_STAMP = r"\[ *\d{1,10}\.\d{6}\](?:\[ *[TC]\d{1,9}\])? ?"
_PRINTK = re.compile(
    r"\w{3} [ \d]\d \d\d:\d\d:\d\d \S{1,255} kernel: (?:" + _STAMP + r")?"
    r"|\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\] "
    r"|<\d{1,4}>(?:" + _STAMP + r")?"
    r"|" + _STAMP
)

#: The same within a line, where the kernel printed while a program had not ended its own.
_PRINTK_WITHIN = re.compile(r"\[[ \d]{4,9}\d\.\d{6}\](?:\[ *[TC]\d{1,9}\])? ")

#: A remark that quotes a line, whatever that is.
QUOTE = "# | "

_STRUCTURE = re.compile(
    r"(?P<indent>(?:# | )*)"
    r"(?:K?TAP version (?P<version>\d{1,9})\s*$"
    r"|1\.\.(?P<plan>\d{1,9})\s*(?:#\s*(?P<plan_reason>.*))?$"
    r"|(?P<result>ok|not ok)(?=\s|$)(?:\s+(?P<number>\d{1,9})(?=\s|$))?\s*(?P<rest>.*)$"
    r"|Bail out!\s*(?P<bail>.*)$"
    r"|# Subtest: *(?P<subtest>.*)$)",
    re.ASCII,
)
_DIRECTIVE = re.compile(r"(?:^|\s)#(?:\s|(?=(?:SKIP|TODO|XFAIL)\b))\s*", re.IGNORECASE)
_KEYWORD = re.compile(r"((?i:SKIP|TODO|XFAIL)|SKIPPED|XPASS|TIMEOUT|ERROR|CRASHED|MISSING)\b[:\s]*(.*)$")


class Line(NamedTuple):
    """One line: what it is and what it says.  Fields that its ``kind`` does not have are empty."""

    kind: Kind
    column: int  #: where its matter begins
    hashed: bool  #: whether it is nested by "# " rather than by spaces
    text: str  #: the whole line without what the console put before it
    kernel: bool  #: whether it bore the mark of printk
    number: int | None = None  #: of the plan, the version or the result
    ok: bool = False
    name: str = ""  #: of the result or of the subtest; what "Bail out!" says
    directive: str = ""
    reason: str = ""  #: of the directive, the plan


def split(text: str) -> Iterator[str]:
    """The lines of ``text`` without what ends them, and without what a terminal would obey."""
    start = 0
    while start <= len(text):  # not all of them at once, each of which is an object
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end].strip("\r")
        yield _ESCAPE.sub("", line) if "\x1b" in line else line
        start = end + 1


def classify(text: str) -> list[Line]:
    """What ``text`` is: one :class:`Line`, or two where the kernel printed into somebody else's line."""
    mark = _PRINTK.match(text)
    body = text[mark.end() :] if mark else text
    kernel = mark is not None
    within = _PRINTK_WITHIN.search(body) if "[" in body and not body.lstrip(" ").startswith(QUOTE) else None
    if within:
        first = _classify(body[: within.start()], kernel)
        second = _classify(body[within.end() :], True)
        if first.kind not in ("diagnostic", "other") or second.kind not in ("diagnostic", "other"):
            return [first, second] if first.text.strip() else [second]
    return [_classify(body, kernel)]


def unstamped(text: str) -> str:
    """``text`` without what would be taken for the beginning of a line of the kernel's."""
    return _PRINTK_WITHIN.sub("", text)


def structural(text: str) -> bool:
    """Whether ``text`` would be more than a remark, wherever it stood."""
    return any(line.kind not in ("diagnostic", "other") for line in classify(text))


def _classify(body: str, kernel: bool) -> Line:
    match = _STRUCTURE.match(body)
    if match is None:
        indent = len(body) - len(body.lstrip(" "))
        return Line(
            "diagnostic" if body[indent : indent + 1] == "#" else "other", indent, False, body, kernel
        )
    column, hashed = match.end("indent"), "#" in match["indent"]
    if match["version"] is not None:
        return Line("version", column, hashed, body, kernel, number=int(match["version"]))
    if match["plan"] is not None:
        reason = (match["plan_reason"] or "").strip()
        return Line("plan", column, hashed, body, kernel, number=int(match["plan"]), reason=reason)
    if match["bail"] is not None:
        return Line("bail", column, hashed, body, kernel, name=match["bail"].strip())
    if match["subtest"] is not None:
        return Line("subtest", column, hashed, body, kernel, name=match["subtest"].strip())
    number = None if match["number"] is None else int(match["number"])
    name, directive, reason = _description(match["rest"])
    ok = match["result"] == "ok"
    return Line("result", column, hashed, body, kernel, number, ok, name, directive, reason)


def _description(text: str) -> tuple[str, str, str]:
    """Name, directive and reason of a result line's end: "[- ]name [# [DIRECTIVE] [reason]]"."""
    mark = _DIRECTIVE.search(text)
    name = text[: mark.start()] if mark else text
    directive, reason = "", text[mark.end() :].strip() if mark else ""
    keyword = _KEYWORD.match(reason)
    if keyword:
        directive, reason = keyword[1].upper(), keyword[2].strip()
        directive = "SKIP" if directive == "SKIPPED" else directive
    name = name.strip()
    if name == "-" or name.startswith("- "):
        name = name[1:].strip()
    return name.replace("\\#", "#"), directive, reason
