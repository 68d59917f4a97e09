"""What ``pyvmm run`` is told: its command line, and what that means for the machine and the command."""

from __future__ import annotations

import os

from pyvmm.cli import say
from pyvmm.cli.arguments import Parser
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

#: Memory for a guest that runs more than its init.
DEFAULT_MEMORY = "1G"
#: Where the agent mounts file systems of the guest's own (kernels/agent/boot.c).
OWN_FOLDERS = ("/dev", "/proc", "/run", "/sys", "/tmp")


def parser() -> Parser:
    """The command line of ``pyvmm run``."""
    parser = Parser(
        "pyvmm run",
        "Run a command, as root, under the given kernel: on this host's own files, read-only with changes kept in the "
        "guest's memory, unless another root is given. Without a command, a shell. Exit status: the command's.",
    )
    parser.advice = "; those of the command come after --"
    add = parser.add_argument
    add(
        "command",
        nargs="*",
        metavar="COMMAND",
        help="what to run, after --; one word with blanks goes to a shell",
    )
    add(
        "-k",
        "--kernel",
        metavar="FILE",
        required=True,
        help="a bzImage, Image or vmlinux, or a kernel's build tree",
    )
    add(
        "--root",
        default="/",
        metavar="/|DIR|DISK|initramfs",
        help="the guest's root file system (default: /)",
    )
    add(
        "--rw",
        action="store_true",
        help="let the guest write to its root, instead of to a copy that is forgotten",
    )
    add(
        "--rodir",
        action="append",
        default=[],
        metavar="DIR[:GUEST]",
        help="a directory that the guest sees there too",
    )
    add("--rwdir", action="append", default=[], metavar="DIR[:GUEST]", help="one that it can write to")
    add(
        "--modules", metavar="DIR", help="where the kernel's modules are, if they are not found by themselves"
    )
    add(
        "--module",
        action="append",
        default=[],
        metavar="NAME",
        help="load this module, and what it depends on",
    )
    add("--cpus", type=int, default=1, metavar="N", help="vCPUs (default: 1)")
    add("--memory", default=DEFAULT_MEMORY, metavar="SIZE", help=f"guest RAM (default: {DEFAULT_MEMORY})")
    add("--timeout", type=float, metavar="SECONDS", help="give up after so long; exit code 124")
    add("--cmdline", default="", metavar="TEXT", help="added to the kernel's command line")
    add("--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable, or pass on ours")
    add("--cwd", metavar="DIR", help="the command's directory (default: this one if the root is /)")
    add(
        "--device",
        action="append",
        default=[],
        metavar="KIND=...",
        help="a device as of pyvmm boot: net=user, rng",
    )
    add(
        "--allow-splat",
        action="append",
        default=[],
        metavar="REGEX",
        help="a kernel message that does not matter",
    )
    add("--console-log", metavar="FILE", help="the kernel's console into FILE")
    add("--result", metavar="FILE.json", help="how it ended, as JSON")
    add(
        "--lab",
        action="store_true",
        help="inside the lab, an emulated host with real KVM, whose own / is the root",
    )
    add("--verbose", action="store_true", help="show the kernel's console, on standard error")
    return parser


def check(options: argparse.Namespace) -> None:
    """UsageError, before anything is booted, for a time or a device that is none."""
    if options.timeout is not None and not options.timeout > 0:
        raise UsageError(f"--timeout {options.timeout:g} makes no sense", "give a number of seconds above 0")
    if options.device:
        from pyvmm.testing import machines

        for text in options.device:
            machines.device(text, os.getcwd())


def command(options: argparse.Namespace, interactive: bool) -> str | list[str]:
    """What to run: a shell, where nothing is said and somebody is there to use it."""
    words: list[str] = options.command
    if not words:
        if not interactive:
            raise UsageError(
                "there is no command to run", "give one after --: pyvmm run -k bzImage -- uname -r"
            )
        return [os.environ.get("SHELL", "/bin/sh") if options.root == "/" else "/bin/sh"]
    return words[0] if len(words) == 1 and " " in words[0] else words


def cmdline(options: argparse.Namespace) -> str:
    """The kernel's command line."""
    from pyvmm.arch import CMDLINES, DEFAULT_CMDLINE
    from pyvmm.lab.choice import architecture_for

    console = CMDLINES.get(architecture_for(options.kernel), DEFAULT_CMDLINE)
    # Warnings are to be seen, as splats are among them, and no more than those: each line costs the guest time.
    quiet = "" if options.verbose or options.console_log else " loglevel=5"
    return f"{console}{quiet} panic=-1 {options.cmdline}".strip()


def environment(options: argparse.Namespace, interactive: bool) -> dict[str, str]:
    """What is added to the environment of the command.  UsageError."""
    found = {"TERM": os.environ.get("TERM", "dumb")} if interactive else {}
    for text in options.env:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"--env {text}: there is no name", "write NAME=VALUE, or NAME to pass ours on")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
        else:
            raise UsageError(f"--env {name}: no such variable here", "write NAME=VALUE")
    return found


def cwd(options: argparse.Namespace) -> str | None:
    """The command's directory: ours, unless the guest has a file system of its own there."""
    from pyvmm.api.root import Share

    if options.cwd is not None:
        return str(options.cwd)
    if options.root != "/" or options.lab:
        return None
    here = os.getcwd()
    shares = [Share(text, 0, writable=False).guest for text in (*options.rodir, *options.rwdir)]
    if _beneath(here, OWN_FOLDERS) and not _beneath(here, shares):
        folder = here.split("/")[1]
        say(
            f"pyvmm: note: the command runs in /: {here} is not in the guest, whose /{folder} is its own",
            "hint: --rodir . or --rwdir . brings it there",
        )
        return None
    return here


def _beneath(path: str, folders: Sequence[str]) -> bool:
    """Whether ``path`` is one of ``folders``, or in one."""
    return any(path == each or path.startswith(each.rstrip("/") + "/") for each in folders)
