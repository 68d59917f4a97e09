"""The frames between host and agent; ``kernels/agent/frames.c`` describes them.

What the guest sends is not trusted: a frame that is too long, or of an unknown type, ends the conversation.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping, Sequence

from pyvmm.errors import GuestError, UsageError

VERSION = 1
#: Bytes of a payload.
MOST_PAYLOAD = 64 * 1024
#: Bytes of standard input in a frame.
PIECE = 32 * 1024
#: Bytes of a command's standard input that may be sent, and of its output that may come, before there is a grant.
STDIN_WINDOW = 64 * 1024
OUTPUT_WINDOW = 256 * 1024
#: Arguments or variables of a command.
MOST_WORDS = 4096

_HEADER = struct.Struct("<BBHII")
_EXEC = struct.Struct("<IHHII")
_TERMINAL = 1


class Type(enum.IntEnum):
    """The types of frames, those of the host first."""

    EXEC = 1
    STDIN = 2
    SIGNAL = 3
    WINDOW = 4
    RESIZE = 5
    KILL = 6
    SHUTDOWN = 7
    PING = 8
    READY = 65
    STARTED = 66
    STDOUT = 67
    STDERR = 68
    MORE_STDIN = 69
    EXITED = 70
    FAILED = 71


class ProtocolError(GuestError):
    """The guest sent what the agent does not send."""


def frame(type: Type, id: int = 0, payload: bytes = b"") -> bytes:
    """A frame for the agent."""
    return _HEADER.pack(type, 0, 0, id, len(payload)) + payload


def number(value: int) -> bytes:
    """A payload that is one number."""
    return struct.pack("<i" if value < 0 else "<I", value)


def size(rows: int, columns: int) -> bytes:
    """A payload that is the size of a terminal."""
    return struct.pack("<HH", rows, columns)


def exec_payload(
    arguments: Sequence[str | bytes],
    env: Mapping[str, str] | None,
    cwd: str | None,
    pty: tuple[int, int] | None,
) -> bytes:
    """The payload of EXEC.  UsageError for what cannot be passed on: nothing, a zero byte, too much."""
    words = [_encoded(word) for word in arguments]
    variables = []
    for name, value in (env or {}).items():
        if not name or "=" in name:
            raise UsageError(f"{name!r} cannot be the name of a variable", "give a name without '='")
        variables.append(_encoded(f"{name}={value}"))
    if not words:
        raise UsageError("there is no command to run", "give a program, and its arguments")
    texts = [_encoded(cwd or ""), *words, *variables]
    for text in texts:
        if b"\0" in text:
            raise UsageError(f"{text!r} has a zero byte in it", "no program can be given that")
    rows, columns = pty or (0, 0)
    payload = _EXEC.pack(_TERMINAL if pty else 0, rows, columns, len(words), len(variables)) + b"".join(
        text + b"\0" for text in texts
    )
    if len(payload) > MOST_PAYLOAD or max(len(words), len(variables)) > MOST_WORDS:
        raise UsageError(
            f"the command with its variables has {len(payload)} bytes, and {MOST_PAYLOAD} are the most",
            "give it less on its command line and more on its standard input",
        )
    return payload


def _encoded(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


class Decoder:
    """Cuts what comes from the guest into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Type, int, bytes]]:
        """The frames that are complete by ``data``: type, id, payload.  ProtocolError."""
        self._data += data
        while len(self._data) >= _HEADER.size:
            kind, flags, zero, id, length = _HEADER.unpack_from(self._data)
            if length > MOST_PAYLOAD or flags or zero or kind < Type.READY or kind > Type.FAILED:
                raise ProtocolError("the guest's agent sent what is no frame", "is it pyvmm's agent?")
            end = _HEADER.size + length
            if len(self._data) < end:
                return
            payload = bytes(self._data[_HEADER.size : end])
            del self._data[:end]
            yield Type(kind), id, payload
