"""The control socket's language: one JSON object for each line (RFC 8259), in UTF-8, both ways.

    -> {"id": 1, "command": "status"}
    <- {"id": 1, "ok": true, "result": {"state": "running", ...}}
    -> {"id": 2, "command": "stopp"}
    <- {"id": 2, "ok": false, "error": "there is no command 'stopp'", "hint": "is 'stop' meant? ..."}
    <- {"id": 3, "event": "console", "data": "..."}

``id`` is an integer or a short text of the client's choice, or absent: then it is null in the answers.  All other
keys are the command's parameters.  Answers come in the order of the commands, except those that have to wait.
"""

from __future__ import annotations

import base64
import json

from pyvmm.errors import PyvmmError
from pyvmm.text import nearest, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

#: Bytes of a line, its end not counted.
MOST_LINE = 64 * 1024
#: Bytes of guest memory that can be read at once.
MOST_READ = 64 * 1024
#: Characters of an ``id``.
MOST_ID = 100

Id = int | str | None


class RequestError(PyvmmError):
    """A line that is no request; ``id`` is its id as far as it has one."""

    def __init__(self, message: str, hint: str, id: Id = None) -> None:
        super().__init__(message, hint)
        self.id = id


#: The default of a parameter that has to be given.
REQUIRED = object()


class Parameter:
    """A parameter of a command: ``kind`` is bool, int (0 or more), str, or bytes (which stand in JSON as base64);
    ``default`` what holds without it, :data:`REQUIRED` if it has to be given."""

    __slots__ = ("default", "help", "kind")

    def __init__(self, kind: type[bool | int | str | bytes], default: object, help: str) -> None:
        self.kind = kind
        self.default = default
        self.help = help

    def check(self, command: str, name: str, value: object, id: Id) -> bool | int | str | bytes:
        """``value`` if it is of the right kind, bytes decoded; RequestError."""
        if type(value) is self.kind and (type(value) is not int or value >= 0):
            return value
        if self.kind is bytes and type(value) is str:
            try:
                return base64.b64decode(value, validate=True)
            except ValueError:
                pass
        shown = printable(json.dumps(value))[:MOST_ID]
        raise RequestError(f"{command}: {name} is {shown}", f"give {_KINDS[self.kind]}", id)


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number, 0 or more",
    str: "text",
    bytes: "bytes as base64",
}


class Command:
    """A command: what it does in a line, and its parameters by name."""

    __slots__ = ("help", "parameters")

    def __init__(self, help: str, **parameters: Parameter) -> None:
        self.help = help
        self.parameters = parameters


COMMANDS: dict[str, Command] = {
    "status": Command("what the machine is and what it is doing"),
    "pause": Command("stop the vCPUs and the guest's clocks; answered once all stand still"),
    "resume": Command("let a paused guest go on, its clocks as they stood"),
    "stop": Command(
        "press the power button; the second time, end the run",
        force=Parameter(bool, False, "end the run at once"),
    ),
    "console": Command(
        "the last bytes of the console",
        bytes=Parameter(int, 4096, "how many (at most 16 KiB are kept)"),
        follow=Parameter(bool, False, "send what comes from now on as events"),
    ),
    "exits": Command("exits to userspace by device"),
    "devices": Command("what each virtio device counted"),
    "balloon": Command(
        "the size of the memory balloon, in bytes",
        target=Parameter(int, None, "have the guest make it that large"),
    ),
    "wait": Command("how the run ended; answered when it has"),
    "regs": Command(
        "the registers of a vCPU that stands still: of a paused machine, or one that has ended",
        vcpu=Parameter(int, 0, "which of them"),
    ),
    "read": Command(
        "guest memory, as base64",
        address=Parameter(int, REQUIRED, "guest physical address"),
        size=Parameter(int, REQUIRED, f"bytes, at most {MOST_READ}"),
    ),
    "write": Command(
        "write to guest memory",
        address=Parameter(int, REQUIRED, "guest physical address"),
        data=Parameter(bytes, REQUIRED, "what to write"),
    ),
    "translate": Command(
        "the physical address of a virtual one, by the page tables of a vCPU that stands still",
        address=Parameter(int, REQUIRED, "guest virtual address"),
        vcpu=Parameter(int, 0, "whose page tables"),
    ),
    "input": Command(
        "type on the console; says how many bytes the guest has not read yet",
        data=Parameter(bytes, b"", "what to type"),
    ),
    "port": Command(
        "send to a port of the guest's that is joined to this connection",
        name=Parameter(str, REQUIRED, "the port"),
        data=Parameter(bytes, REQUIRED, "what to send"),
    ),
    "help": Command("the commands and their parameters"),
    "version": Command("the version of pyvmm"),
}


class Request:
    """A command for the machine, all its parameters filled in."""

    __slots__ = ("arguments", "command", "id")

    def __init__(self, id: Id, command: str, arguments: dict[str, Any]) -> None:
        self.id = id
        self.command = command
        self.arguments = arguments


def parse(line: bytes | bytearray) -> Request:
    """The request on a line without its end; RequestError."""
    try:
        request = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else printable(str(error))[:MOST_ID]
        raise RequestError(
            f"the line is not JSON: {reason}", 'send {"id": 1, "command": "status"} and a newline'
        ) from None
    if not isinstance(request, dict):
        raise RequestError(
            "the line is not a JSON object", 'send {"id": 1, "command": "status"} and a newline'
        )
    id = request.pop("id", None)
    if not (id is None or type(id) is int or (type(id) is str and len(id) <= MOST_ID)):
        raise RequestError(
            "the id is neither a whole number nor a short text", 'number the commands: "id": 1'
        )
    name = request.pop("command", None)
    if not isinstance(name, str):
        raise RequestError(
            "the request names no command", f'it needs "command": one of {", ".join(COMMANDS)}', id
        )
    command = COMMANDS.get(name)
    if command is None:
        raise RequestError(f"there is no command '{_short(name)}'", hint(name, COMMANDS), id)
    arguments: dict[str, Any] = {key: each.default for key, each in command.parameters.items()}
    for key, value in request.items():
        parameter = command.parameters.get(key)
        if parameter is None:
            raise RequestError(f"{name} has no '{_short(key)}'", hint(key, command.parameters), id)
        arguments[key] = parameter.check(name, key, value, id)
    missing = [key for key, value in arguments.items() if value is REQUIRED]
    if missing:
        raise RequestError(f"{name} needs {' and '.join(missing)}", f"give {missing[0]}", id)
    return Request(id, name, arguments)


def hint(name: str, known: Collection[str]) -> str:
    """A hint for somebody who wrote ``name`` for one of ``known``."""
    if close := nearest(name, known):
        return f"is '{close}' meant?"
    return f"it knows {', '.join(known)}" if known else "it takes no parameters"


def _short(text: str) -> str:
    return printable(text if len(text) <= 40 else f"{text[:40]}...")


def reply(id: Id, result: Mapping[str, object]) -> bytes:
    """The line that answers a request."""
    return _line({"id": id, "ok": True, "result": result})


def failure(id: Id, error: PyvmmError) -> bytes:
    """The line that refuses a request."""
    return _line({"id": id, "ok": False, "error": error.message, "hint": error.hint})


def event(id: Id, name: str, **values: object) -> bytes:
    """A line that answers nothing; ``id`` is that of the request that asked to be told."""
    return _line({"id": id, "event": name, **values})


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
