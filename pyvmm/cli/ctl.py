"""``pyvmm ctl MACHINE COMMAND``: ask a running machine something, or steer it, through its control socket."""

from __future__ import annotations

import json
import sys

from pyvmm.cli import say
from pyvmm.cli.arguments import Parser
from pyvmm.control.client import Client, Gone, NoAnswer, locate
from pyvmm.control.protocol import hint
from pyvmm.errors import HostError, UsageError
from pyvmm.machine.spec import parse_size
from pyvmm.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

COMMANDS = ("status", "pause", "resume", "stop", "console", "exits", "devices", "balloon", "wait")
#: Options, and the commands that they are for.
_OPTIONS = {"force": "stop", "wait": "stop", "follow": "console", "bytes": "console", "size": "balloon"}
#: Seconds for the vCPUs to stop: one may be in the middle of a request, or wait for whoever reads the console.
PAUSE_PATIENCE = 60.0


def parser() -> Parser:
    """The command line of ``pyvmm ctl``."""
    parser = Parser(
        "pyvmm ctl",
        "Ask a running machine something, or steer it. status: what it is and does; pause, resume: stop the guest "
        "and its clocks, and go on; stop: press its power button (twice: end the run); console: what it printed last; "
        "exits: exits by device; devices: what its devices counted; balloon: the size of the memory balloon, or a new "
        "one; wait: until it has ended.",
    )
    add = parser.add_argument
    add("machine", help="the machine's name, or the path of its control socket (with a slash)")
    add("command", metavar="COMMAND", help=", ".join(COMMANDS))
    add("size", nargs="?", help="balloon: how much the guest is to give away, as 64M")
    add("--json", action="store_true", help="machine-readable")
    add("--force", action="store_true", help="stop: end the run at once")
    add(
        "--wait",
        metavar="SECONDS",
        help="stop: wait so long for the end, which is an error if it does not come",
    )
    add("--follow", action="store_true", help="console: go on until the machine ends")
    add("--bytes", metavar="N", help="console: how many (default: 4096; at most 16384 are kept)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm ctl`` with these arguments; returns the exit code."""
    options = parser().parse_args(list(arguments))
    command = options.command
    if command not in COMMANDS:
        raise UsageError(f"pyvmm ctl has no command '{command}'", hint(command, COMMANDS))
    for option, owner in _OPTIONS.items():
        if getattr(options, option) and command != owner:
            shown = f"'{options.size}'" if option == "size" else f"--{option}"
            raise UsageError(f"pyvmm ctl {command} takes no {shown}", f"it is for {owner}")
    wait = _number("--wait", options.wait, float)
    count = _number("--bytes", options.bytes, int)
    target = None if options.size is None else parse_size(options.size)
    with Client(locate(options.machine)) as client:
        if command == "stop":
            return _stop(client, options, wait)
        if command == "console":
            return _console(client, options, count)
        if command == "balloon" and target is not None:
            result = client.call(command, target=target)
        elif command in ("pause", "wait"):
            result = client.call(command, seconds=PAUSE_PATIENCE if command == "pause" else None)
        else:
            result = client.call(command)
    _show(command, result, options.json)
    return 0


def _number(option: str, text: str | None, kind: type[int] | type[float]) -> float | None:
    if text is None:
        return None
    try:
        number = kind(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1e9:
        raise UsageError(f"{option} {text}: not a number that makes sense", f"give {option} a number")
    return number


def _stop(client: Client, options: argparse.Namespace, wait: float | None) -> int:
    # The question how it ended goes first: after the stop it may be too late.
    number = None if wait is None else client.send("wait")
    result = client.call("stop", force=options.force)
    if number is None:
        _show("stop", result, options.json)
        return 0
    try:
        outcome = client.result(number, wait)
    except NoAnswer:
        raise HostError(
            f"the guest has not ended within {wait:g} s",
            "it may not heed its power button: stop it with --force",
        ) from None
    _show("wait", outcome, options.json)
    return 0


def _console(client: Client, options: argparse.Namespace, count: float | None) -> int:
    result = client.call("console", follow=options.follow, bytes=4096 if count is None else int(count))
    if options.json:
        _print_json(result, indent=None if options.follow else 2)
    else:
        _write(result["data"])
    if not options.follow:
        return 0
    for event in client.events():
        if options.json:
            _print_json(event, indent=None)
        elif event["event"] == "console":
            _write(event["data"])
        if event["event"] == "ended":
            return 0
    raise Gone("the machine hung up", "it ended without saying how, or this was too slow for its console")


def _write(text: str) -> None:
    """What the guest printed, as it printed it."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def _print_json(value: object, indent: int | None = 2) -> None:
    sys.stdout.write(json.dumps(value, indent=indent) + "\n")
    sys.stdout.flush()


def _show(command: str, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(result)
    elif command == "stop":
        say("pyvmm: stopped by force" if result["forced"] else "pyvmm: the guest's power button was pressed")
    elif command == "exits":
        for name, count in sorted(result["by_device"].items(), key=lambda item: -item[1]):
            print(f"{count:>10}  {name}")
        print(f"{result['total']:>10}  total")
    elif command == "wait":
        detail = f": {result['detail']}" if result["detail"] else ""
        print(printable(f"{result['outcome']}{detail} (exit code {result['exit_code']})"))
    elif command not in ("pause", "resume"):
        for key, value in result.items():
            print(f"{key}: {_value(value)}")


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value)
