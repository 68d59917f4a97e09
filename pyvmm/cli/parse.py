"""``pyvmm parse [FILE]``: the tests that a console's log holds, as KTAP, kselftest and KUnit print them."""

from __future__ import annotations

import os
import sys

from pyvmm.cli.arguments import Parser
from pyvmm.errors import UsageError
from pyvmm.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyvmm.ktap import Ktap, Test
    from pyvmm.splats import Splat

#: Diagnostic lines shown of a test that is bad.
SHOWN_LINES = 8


def parser() -> Parser:
    """The command line of ``pyvmm parse``."""
    parser = Parser(
        "pyvmm parse",
        "Read test results (KTAP: kselftest, KUnit, TAP 13 and 14) out of FILE, a console's log or a program's output, "
        "whatever else was printed in between. Exit code 0 if something ran and all of it passed, 1 if not: "
        "a test that failed, crashed or is missing, or no test at all.",
    )
    add = parser.add_argument
    add("file", nargs="?", default="-", metavar="FILE", help="the log; - or none: standard input")
    add("--json", action="store_true", help="print the tests, counts and errors as JSON")
    add("--ktap", action="store_true", help="print them as KTAP, without the rest of the log")
    add("--junit", metavar="FILE", help="write them as JUnit XML, too")
    add("--all", action="store_true", help="list every test, not only those that are bad")
    add(
        "--strict",
        action="store_true",
        help="what is wrong with the log (a number out of order, no plan), and splats of the kernel, fail as well",
    )
    add(
        "--allow-splat",
        action="append",
        default=[],
        metavar="REGEX",
        help="with --strict: a splat whose text has a match is allowed; may be repeated",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm parse`` with these arguments; returns the exit code."""
    options = parser().parse_args(list(arguments))
    if options.json and options.ktap:
        raise UsageError("--json and --ktap cannot both be printed", "take one of them")
    from pyvmm import ktap, splats

    data = _read(options.file)
    found = ktap.parse(data)
    seen = splats.find(data, options.allow_splat)
    if options.junit:
        _write_junit(options.junit, "stdin" if options.file == "-" else options.file, found)
    if options.json:
        _print_json(found, seen)
    elif options.ktap:
        _print(str(found).rstrip("\n"))
    else:
        _print("\n".join(_summary(found, seen, options.all)))
    if options.strict and (found.errors or any(not splat.allowed for splat in seen)):
        return 1
    return 0 if found.status == "pass" else 1


def _read(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "give the file that a console was logged to") from None


def _write_junit(path: str, name: str, found: Ktap) -> None:
    import time

    from pyvmm import output_file
    from pyvmm.testing.reports import junit
    from pyvmm.testing.result import CaseResult, RunReport

    status = {"pass": "pass", "skip": "skip"}.get(found.status, "fail")
    reason = "" if status == "pass" else _verdict(found)
    base = os.path.basename(name)
    result = CaseResult(
        id=base,
        kernel="log",
        machine=base,
        case="tests",
        status=status,  # type: ignore[arg-type]
        reason=reason,
        exit_code=0 if status == "pass" else 1,
        started=time.time(),
        subtests=[test.as_dict() for test in found.tests],
    )
    text = junit.write(RunReport(base, result.started, 0.0, [result]))
    output_file.write("--junit", path, text.encode("utf-8", "replace"))


def _verdict(found: Ktap) -> str:
    """One line about all of it."""
    counts = found.counts()
    total = counts.pop("total")
    if found.status == "empty":
        return "no test results found"
    told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    line = f"{total} test{'' if total == 1 else 's'}: {told or 'none ran'}"
    if found.bail_out is not None:
        line += f"; bailed out: {printable(found.bail_out)}".rstrip(": ")
    return line + ("; nothing ran" if found.status == "skip" and total else "")


def _summary(found: Ktap, seen: Sequence[Splat], everything: bool) -> Iterator[str]:
    """The bad tests (or all), what the kernel complained of, what is wrong with the log, and the verdict."""
    for path, test in found.walk():
        if everything or test.bad_itself:
            yield f"{test.status:<8} {printable(' / '.join(path))}{_reason(test)}"
        if test.bad_itself:
            kept = test.diagnostics[-SHOWN_LINES:]
            if len(test.diagnostics) > len(kept):
                yield f"         | ... {len(test.diagnostics) - len(kept)} lines before"
            for line in kept:
                yield f"         | {printable(line)}"
    for splat in seen:
        yield f"splat    {splat.kind}{' (allowed)' if splat.allowed else ''}: {printable(splat.line)}"
    for error in found.errors:
        yield f"log      {printable(error)}"
    yield _verdict(found)


def _reason(test: Test) -> str:
    told = " ".join(part for part in (test.directive, test.reason) if part and part != test.title)
    return f" # {printable(told)}" if told else ""


def _print_json(found: Ktap, seen: Sequence[Splat]) -> None:
    import json

    data = {
        "status": found.status,
        "counts": found.counts(),
        "plan": found.plan,
        "bail_out": found.bail_out,
        "errors": found.errors,
        "splats": [splat.as_dict() for splat in seen],
        "tests": [test.as_dict() for test in found.tests],
    }
    _print(json.dumps(data, indent=2))


def _print(text: str) -> None:
    """Print ``text``; what the encoding lacks is written as an escape."""
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()
