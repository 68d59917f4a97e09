"""``pyvmm inspect FILE``: what a file is, what its headers say, and where it would stand in a machine."""

from __future__ import annotations

import os
import sys

from pyvmm.cli.arguments import Parser
from pyvmm.machine.spec import DEFAULT_MEMORY, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.inspect.table import Style


def parser() -> Parser:
    """The command line of ``pyvmm inspect``."""
    parser = Parser(
        "pyvmm inspect",
        "Say what FILE is, what every field of its headers holds and means, and where it would stand in a "
        "machine's memory. Needs no KVM, and takes kernels for any architecture. Exit code 0 for any file that "
        "can be read, kernel or not.",
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="a kernel image, an initramfs, or any other file")
    add("--json", action="store_true", help="print it as JSON, addresses and sizes as integers")
    add(
        "--memory",
        default=f"{DEFAULT_MEMORY >> 20}M",
        metavar="SIZE",
        help="guest RAM to place it in, as 512M or 1G (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm inspect`` with these arguments; returns the exit code."""
    options = parser().parse_args(list(arguments))
    memory = parse_size(options.memory)
    from pyvmm.arch.x86_64.layout import ram_ranges

    ram_ranges(memory)  # refuses what no machine can have, whatever the file is
    from pyvmm.inspect import inspect_path

    report = inspect_path(options.file, memory)
    if options.json:
        import json

        text = json.dumps(report.as_dict(), indent=2)
    else:
        from pyvmm.inspect.table import render

        text = "\n".join(render(report, _style()))
    _write(text + "\n")
    return 0


def _style() -> Style:
    """What standard output can show: box drawing by its encoding, bold only on a terminal."""
    from pyvmm.inspect.table import Style

    try:
        "┌─┐│█▒░▪▓".encode(sys.stdout.encoding or "ascii")
        unicode = True
    except (UnicodeEncodeError, LookupError):
        unicode = False
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM", "dumb") == "dumb"
    return Style(unicode=unicode, bold=sys.stdout.isatty() and not plain)


def _write(text: str) -> None:
    """Print ``text``; what the encoding lacks (in a file's name) is written as an escape."""
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
