"""``pyvmm lab -- COMMAND``: run a command inside an emulated host with real KVM."""

from __future__ import annotations

import sys

from pyvmm.cli import report_error
from pyvmm.cli.arguments import Parser, seconds, whole_number
from pyvmm.errors import UsageError
from pyvmm.lab import CommandNotStarted, Lab, LabError
from pyvmm.lab.command import TIMED_OUT
from pyvmm.lab.foreground import run_in_foreground
from pyvmm.machine.spec import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def parser() -> Parser:
    """The command line of ``pyvmm lab``."""
    parser = Parser(
        "pyvmm lab",
        "Run COMMAND inside an emulated host that has real KVM. The project, and every file that COMMAND names, are "
        "there at the same paths; nothing that COMMAND does stays, except what --out names. On a terminal, Ctrl-] "
        "three times stops the lab.",
    )
    add = parser.add_argument
    add(
        "--arch",
        metavar="ARCH",
        help="architecture of the emulated host: x86_64 or aarch64 (default: this host's)",
    )
    add(
        "--in",
        dest="carry_in",
        action="append",
        default=[],
        metavar="PATH",
        help="a file or directory to carry in as well",
    )
    add("--out", dest="carry_out", action="append", default=[], metavar="PATH",
        help="a file or directory to carry out when COMMAND has ended")  # fmt: skip
    add("--cpus", default="2", metavar="N", help="processors (default: 2)")
    add("--memory", default="3072M", metavar="SIZE", help="memory, as 3072M or 4G (default: 3072M)")
    add("--timeout", metavar="SECONDS", help="end COMMAND after that long, with exit code 124")
    add("--cold", action="store_true", help="boot the lab instead of starting it from its saved state")
    add("--rebuild", action="store_true", help="make the lab's base image and saved state anew first")
    add(
        "--verbose",
        action="store_true",
        help="say what is done and how long it takes, and show the lab's console on errors",
    )
    add("command", nargs="*", metavar="COMMAND", help="the command and its arguments, after --")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm lab`` with these arguments; returns the exit code."""
    given = list(arguments)
    command: list[str] = []
    if "--" in given:
        position = given.index("--")
        given, command = given[:position], given[position + 1 :]
    options = parser().parse_args(given)
    command = options.command + command
    if not command:
        raise UsageError("there is no command to run in the lab", "pyvmm lab -- COMMAND ...")
    lab = Lab(
        options.arch,
        whole_number(options.cpus, "--cpus"),
        parse_size(options.memory) >> 20,
        cold=options.cold,
        rebuild=options.rebuild,
        report=report,
        verbose=options.verbose,
    )
    timeout = None if options.timeout is None else seconds(options.timeout, "--timeout")
    try:
        status = run_in_foreground(
            lab, command, carry_in=options.carry_in, carry_out=options.carry_out, timeout=timeout
        )
    except CommandNotStarted as error:
        report_error(error)
        return error.status
    except LabError as error:
        for line in error.console.splitlines():
            print(f"lab console: {line}", file=sys.stderr)
        raise
    if status == TIMED_OUT and lab.timed_out:
        print(f"pyvmm: lab: the command was ended after {options.timeout} s", file=sys.stderr)
    return status


def report(text: str) -> None:
    """Say on standard error what takes long."""
    print(f"pyvmm: lab: {text}", file=sys.stderr, flush=True)
