"""The other side of the control socket: find a machine, ask it, and see what it says."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from typing import Any

from pyvmm.control.protocol import hint
from pyvmm.control.sockets import SUFFIX, path_of, peer, remove_dead, runtime_directory
from pyvmm.errors import HostError, PyvmmError, UsageError
from pyvmm.text import printable

#: Seconds a machine has to answer what it can answer at once.
PATIENCE = 10.0


class Gone(HostError):
    """Nobody listens at the socket, or whoever did hung up."""


class NoAnswer(HostError):
    """The machine did not answer in time."""


class Client:
    """A connection to the machine whose control socket is at ``path``; a context manager.  PyvmmError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._shown = printable(path)
        self._numbers = 0
        self._input = bytearray()
        self._events: list[dict[str, Any]] = []
        self._answers: dict[object, dict[str, Any]] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(PATIENCE)
            self._socket.connect(path)
            self.pid, uid = peer(self._socket)
        except (ConnectionRefusedError, FileNotFoundError):
            self._socket.close()
            raise Gone(f"no machine listens at {self._shown}", "pyvmm ps lists those that run") from None
        except (OSError, ValueError) as error:
            self._socket.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise HostError(
                f"cannot reach the machine at {self._shown}: {reason}", "check the path"
            ) from None
        if uid != os.geteuid():
            self._socket.close()
            raise HostError(
                f"{self._shown} belongs to another user's process ({uid})", "use machines of your own"
            )

    def call(self, command: str, *, seconds: float | None = PATIENCE, **arguments: object) -> dict[str, Any]:
        """Send a command and return its result, for which ``seconds`` are waited (None: for ever).

        Raises PyvmmError with what the machine says against it, NoAnswer and Gone.
        """
        return self.result(self.send(command, **arguments), seconds)

    def send(self, command: str, **arguments: object) -> int:
        """Send a command; returns the number that result() takes."""
        self._numbers += 1
        line = json.dumps({"id": self._numbers, "command": command, **arguments}).encode() + b"\n"
        try:
            self._socket.settimeout(PATIENCE)
            self._socket.sendall(line)
        except OSError:
            pass  # it hung up; what it said before is still to be read
        return self._numbers

    def result(self, number: int, seconds: float | None = PATIENCE) -> dict[str, Any]:
        """The result of the command with that number; as call()."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while number not in self._answers:
            answer = self._read(deadline)
            if "event" in answer:
                self._events.append(answer)
            else:
                id = answer.get("id")
                self._answers[number if id is None else id] = answer
        answer = self._answers.pop(number)
        result = answer.get("result")
        if answer.get("ok") is True and isinstance(result, dict):
            return result
        raise PyvmmError(
            printable(str(answer.get("error", "an answer without a result"))),
            printable(str(answer.get("hint", ""))),
        )

    def events(self) -> Iterator[dict[str, Any]]:
        """What the machine sends by itself, until it hangs up."""
        while True:
            while self._events:
                yield self._events.pop(0)
            try:
                answer = self._read(None)
            except Gone:
                return
            if "event" in answer:
                yield answer

    def _read(self, deadline: float | None) -> dict[str, Any]:
        while b"\n" not in self._input:
            left = None if deadline is None else deadline - time.monotonic()
            try:
                if left is not None and left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                raise NoAnswer(
                    f"the machine at {self._shown} does not answer",
                    "it may be stopped, or very busy: try again",
                ) from None
            except OSError:
                data = b""
            if not data:
                raise Gone(
                    f"the machine at {self._shown} hung up",
                    "it may have ended; pyvmm ps lists those that run",
                )
            self._input += data
        line, _, rest = bytes(self._input).partition(b"\n")
        self._input = bytearray(rest)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise HostError(f"what listens at {self._shown} is no machine of pyvmm", "check the path")
        return answer

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def locate(machine: str) -> str:
    """The path of the socket of ``machine``: a path, if there is a slash in it, else a name.  UsageError."""
    if "/" in machine:
        return machine
    path = path_of(machine)
    if os.path.lexists(path):
        return path
    if os.path.exists(machine) and stat.S_ISSOCK(os.stat(machine).st_mode):
        return machine
    found = names()
    what_next = hint(machine, found) if found else "no machine with a name is running"
    raise UsageError(f"there is no machine '{printable(machine)}'", what_next)


def names() -> list[str]:
    """The names of the sockets in the runtime directory, whether somebody listens there or not."""
    try:
        found = sorted(os.listdir(runtime_directory()))
    except FileNotFoundError:
        return []
    return [name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX)]


def machines() -> list[dict[str, Any]]:
    """The status of each running machine that has a name; sockets of those that are gone are removed.

    One that does not answer has the state "unknown", and only ``name``, ``pid`` and ``socket`` besides.
    """
    found = []
    for name in names():
        path = os.path.join(runtime_directory(), name + SUFFIX)
        status: dict[str, Any] = {"name": name, "state": "unknown", "pid": None}
        try:
            with Client(path) as client:
                status["pid"] = client.pid
                status.update(client.call("status", seconds=2.0))
        except Gone:
            remove_dead(path)
            continue
        except PyvmmError:
            pass
        found.append({**status, "socket": path})
    return found
