"""``pyvmm ps``: the running machines that have a name."""

from __future__ import annotations

import sys

from pyvmm.cli.arguments import Parser
from pyvmm.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

HEADINGS = ("NAME", "PID", "STATE", "UPTIME", "CPUS", "MEMORY", "KERNEL")


def parser() -> Parser:
    """The command line of ``pyvmm ps``."""
    parser = Parser(
        "pyvmm ps",
        "List your running machines that were given a name (pyvmm boot --name). The sockets of machines that are gone "
        "are removed.",
    )
    parser.add_argument(
        "--json", action="store_true", help="machine-readable, as pyvmm ctl NAME status gives it"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm ps`` with these arguments; returns the exit code."""
    from pyvmm.control.client import machines

    options = parser().parse_args(list(arguments))
    found = machines()
    if options.json:
        import json

        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    if found:
        rows = [HEADINGS, *(_row(each) for each in found)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        for row in rows:
            print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(status: dict[str, Any]) -> tuple[str, ...]:
    if status["state"] == "unknown":
        return (status["name"], str(status["pid"] or "?"), "unknown", *("?",) * 4)
    return (
        status["name"],
        str(status["pid"]),
        status["state"],
        duration(status["uptime_s"]),
        str(status["vcpus"]),
        f"{status['memory_bytes'] >> 20}M",
        printable(status["kernel"]),
    )


def duration(seconds: float) -> str:
    """Seconds for a person: 12.3s, 4m05s, 3h07m, 2d05h."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, left = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{left:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02}m"
    return f"{hours // 24}d{hours % 24:02}h"
