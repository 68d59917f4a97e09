"""The cases that ``pyvmm test`` runs: its options, and the matrix that these and a test file make."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyvmm.cli.arguments import Parser, seconds, whole_number
from pyvmm.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pyvmm.testing.matrix import Axes, Matrix

DESCRIPTION = """\
Boot kernels and test them, each case in a process of its own. The cases are those of a test file (a positional
argument that ends in .toml, or pyvmm-test.toml here), or one that the command line alone describes with --command,
--expect, --status, --ktap-output or a command after --. Exit code: 0 all passed, 1 something failed, 125 nothing
failed but something could not be tested; for a single case that of pyvmm run: the command's own status, 120 panic or
splat, 121 text absent, 122 triple fault, 124 timeout, 125 not testable. So git bisect run can use it.
"""

#: (option, its key in a test file) of options that take the place of what stands at the top of the file.
_TOP = ("memory", "cpus", "cmdline", "initrd", "modules", "root")
#: Options that describe a case.
_CASE = ("command", "expect", "status", "ktap_output")


def parser() -> Parser:
    """The command line of ``pyvmm test``."""
    parser = Parser("pyvmm test", DESCRIPTION)
    add = parser.add_argument
    add("what", nargs="*", metavar="FILE.toml|KERNEL",
        help="a test file, and kernels to test instead of the file's own")  # fmt: skip
    add(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME",
        help="only these kernels; names, patterns, or files",
    )
    add(
        "--machine",
        action="append",
        default=[],
        metavar="NAME",
        help="only these machines; names or patterns",
    )
    add("--case", action="append", default=[], metavar="NAME", help="only these cases; names or patterns")
    add("-k", action="append", default=[], metavar="TEXT",
        help="only cases with TEXT (or a pattern) in KERNEL/MACHINE/CASE")  # fmt: skip
    add("--list", action="store_true", help="list the cases, and leave it at that")
    add(
        "--command", metavar="TEXT", help="a case of its own: run TEXT in the guest's shell, by pyvmm's agent"
    )
    add(
        "--expect",
        action="append",
        default=[],
        metavar="TEXT",
        help="a case of its own: the console has to show TEXT",
    )
    add(
        "--ktap-output",
        action="store_true",
        help="the command's output, or the console, holds test results (KTAP)",
    )
    add(
        "--status",
        metavar="N",
        help="the exit status that is wanted of the command or the guest (default: 0)",
    )
    add(
        "--allow-splat",
        action="append",
        default=[],
        metavar="REGEX",
        help="a splat that REGEX matches is no failure",
    )
    add("--memory", metavar="SIZE", help="guest RAM, as 512M or 1G")
    add("--cpus", metavar="N", help="vCPUs")
    add("--cmdline", metavar="TEXT", help="words for the kernel's command line")
    add("--initrd", metavar="FILE", help="initial RAM disk")
    add("--modules", metavar="DIR", help="where the kernel's modules are")
    add("--root", metavar="DIR", help="the guest's root, read-only with a layer over it")
    add(
        "--device",
        action="append",
        default=[],
        metavar="TEXT",
        help='a device: "disk=FILE,overlay", "net=user", ...',
    )
    add(
        "-j",
        "--jobs",
        metavar="N",
        help="cases at a time (default: 1; on a cluster, as many as it has threads)",
    )
    add("--cluster", metavar="tcp://HOST:PORT", help="run the cases on the workers of a Dask cluster")
    add("--timeout", metavar="SECONDS", help="of each case, whatever the file says (default: 120)")
    add("--retries", metavar="N", help="try a case that did not pass N times more, and say so")
    add("--fail-fast", action="store_true", help="start nothing more after a case that did not pass")
    add("--lab", action="store_true", help="run in the lab, an emulated host with real KVM")
    add("--junit", metavar="FILE", help="write a JUnit report (XML)")
    add("--json", metavar="FILE", help="write a report as JSON")
    add("--ktap", metavar="FILE", help="write a report as KTAP")
    add("--html", metavar="FILE", help="write a report as a web page, with consoles and times")
    add("--log-dir", metavar="DIR", help="keep the whole console of each case there")
    add("--no-color", action="store_true", help="no colours, and no live display")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, of which a command after -- is ``command``.  UsageError."""
    given = list(arguments)
    command: list[str] = []
    if "--" in given:
        position = given.index("--")
        given, command = given[:position], given[position + 1 :]
        if not command:
            raise UsageError("there is no command after --", "pyvmm test KERNEL -- COMMAND ...")
    options = parser().parse_args(given)
    if command:
        if options.command is not None:
            raise UsageError("there is a command after --, and --command", "give one of them")
        options.command = command
    return options


def matrix(options: argparse.Namespace) -> Matrix:
    """The cases that the options and the test file ask for.  UsageError."""
    from pyvmm.testing import matrix as matrices

    files = [word for word in options.what if word.endswith(".toml")]
    kernels = [word for word in options.what if not word.endswith(".toml")]
    if len(files) > 1:
        raise UsageError(f"there are two test files, {files[0]} and {files[1]}", "name one")
    described = any(getattr(options, name) not in (None, [], False) for name in _CASE)
    path = files[0] if files else None
    if path is None and not described:
        path = matrices.FILE_NAME
        if not os.path.exists(path):
            raise UsageError(
                f"there is no {path} here, and nothing to do is given",
                "name a test file, or say what to run: pyvmm test KERNEL -- COMMAND",
            )
    axes = matrices.read(path) if path is not None else matrices.Axes([], [{"name": "default"}], [], {})
    if described:
        axes.cases = [_case(options)]
    _set_top(axes, options)
    names = options.kernel
    if path is None or (names and _are_files(names, axes)):
        kernels, names = [*kernels, *names], []
    if kernels:
        axes.kernels = matrices.kernels_of(kernels)
    if not axes.kernels:
        raise UsageError("there is no kernel to test", "name one here, or in the test file with [[kernel]]")
    for axis, patterns in (("kernel", names), ("machine", options.machine), ("case", options.case)):
        axes.only(axis, patterns)
    name = axes.top.get("name", "pyvmm test")
    matrix = axes.matrix(name)
    if not matrix.cases:
        raise UsageError(
            "no case is left to run", "--list shows them; see kernels= and machines= of the cases"
        )
    for pattern in options.k:
        matrix.select(pattern)
    if options.timeout is not None:
        limit = seconds(options.timeout, "--timeout")
        for case in matrix.cases:
            case.timeout = limit
    return matrix


def _are_files(names: Sequence[str], axes: Axes) -> bool:
    """Whether --kernel names files, and none of the kernels that the test file calls so."""
    known = {kernel["name"] for kernel in axes.kernels}
    return not known & set(names) and all(os.sep in name or os.path.exists(name) for name in names)


def _case(options: argparse.Namespace) -> dict[str, Any]:
    """The case that the command line describes."""
    from pyvmm.testing.matrix import check_case

    case: dict[str, Any] = {}
    if options.command is not None:
        case["command"] = options.command
        words = options.command if isinstance(options.command, list) else options.command.split()
        if not words:
            raise UsageError("an empty command cannot be run", "give --command some text")
        case["name"] = os.path.basename(words[0]) or "command"
    else:
        case["name"] = "boot"
    if any(not text for text in options.expect):
        raise UsageError("an empty text cannot be expected", "give --expect some text")
    if options.expect:
        case["expect"] = options.expect
    case["ktap"] = options.ktap_output
    if options.status is not None:
        case["status"] = whole_number(options.status, "--status")
    check_case(case)
    return case


def _set_top(axes: Axes, options: argparse.Namespace) -> None:
    """What the command line says about all cases, in the place of what stands at the top of the file."""
    from pyvmm.machine.spec import parse_size
    from pyvmm.testing import machines

    for name in _TOP:
        value = getattr(options, name)
        if value is None:
            continue
        if name == "memory":
            value = f"{parse_size(value) >> 10}k"
        elif name == "cpus":
            value = whole_number(value, "--cpus")
        elif name in ("initrd", "modules") or (name == "root" and value != "initramfs"):
            value = os.path.abspath(value)
        axes.top[name] = value
    if options.device:
        devices = [machines.device(text, os.getcwd()) for text in options.device]
        axes.top["devices"] = [*axes.top.get("devices", []), *devices]
    if options.allow_splat:
        axes.top["allow_splat"] = [*axes.top.get("allow_splat", []), *options.allow_splat]
    if options.lab:
        axes.top["lab"] = True
        for table in (*axes.machines, *axes.cases):
            table.pop("lab", None)
