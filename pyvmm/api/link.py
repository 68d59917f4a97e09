"""The connection to a machine's process: requests and their answers, and events as they come."""

from __future__ import annotations

import base64
import itertools
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from pyvmm.errors import HostError, PyvmmError, UsageError

#: Seconds for the answer to a request that does not wait for the guest.
ANSWER_SECONDS = 60.0
_READ = 1 << 18


class Lost(HostError):
    """The machine's process is gone."""


class _Answer:
    """A request's answer, once it has come."""

    __slots__ = ("came", "line")

    def __init__(self) -> None:
        self.came = threading.Event()
        self.line: dict[str, Any] | None = None  # None when it came: there will be none


class Link:
    """A control connection as its owner has it.  Any thread may use it.

    ``on_event`` gets each event, in the link's own thread; ``on_end`` is called there when the other side hung up.
    """

    def __init__(
        self,
        connection: socket.socket,
        on_event: Callable[[dict[str, Any]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._socket = connection
        self._on_event = on_event
        self._on_end = on_end
        self._ids = itertools.count(1)
        self._answers: dict[int, _Answer] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._receive, name="pyvmm-link", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def call(
        self, command: str, *, timeout: float | None = ANSWER_SECONDS, **arguments: object
    ) -> dict[str, Any]:
        """Send a request and return its result.

        :raises UsageError: it was refused, with the reason
        :raises Lost: the process is gone, or does not answer within ``timeout`` seconds
        """
        answer = _Answer()
        with self._lock:
            if self._ended:
                raise Lost("the machine's process is gone", "it cannot be asked any more")
            number = next(self._ids)
            self._answers[number] = answer
        try:
            self._send({"id": number, "command": command, **arguments})
            if not answer.came.wait(timeout):
                raise Lost(f"the machine's process did not answer '{command}'", "its host may be overloaded")
        finally:
            with self._lock:
                self._answers.pop(number, None)
        line = answer.line
        if line is None:
            raise Lost("the machine's process is gone", "it cannot be asked any more")
        if not line["ok"]:
            raise UsageError(line["error"], line["hint"])
        result: dict[str, Any] = line["result"]
        return result

    def post(self, command: str, **arguments: object) -> None:
        """Send a request and do not wait for its answer.  Lost."""
        self._send({"command": command, **arguments})

    def hang_up(self) -> None:
        """End the connection, and with it the machine.  Idempotent."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Hang up and wait for the link's thread, unless this is it."""
        self.hang_up()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(10)
        self._socket.close()

    def _send(self, request: dict[str, object]) -> None:
        encoded = {
            key: _base64(value) if isinstance(value, bytes) else value for key, value in request.items()
        }
        line = json.dumps(encoded, separators=(",", ":")).encode() + b"\n"
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError:
            raise Lost("the machine's process is gone", "it cannot be asked any more") from None

    def _receive(self) -> None:
        buffer = bytearray()
        try:
            while data := self._socket.recv(_READ):
                buffer += data
                *lines, rest = buffer.split(b"\n")
                buffer = bytearray(rest)
                for line in lines:
                    self._take(json.loads(line))
        except (
            OSError,
            ValueError,
        ):  # gone, or it spoke nonsense, which a process of ours does when it is broken
            self.hang_up()
        finally:
            with self._lock:
                self._ended = True
                waiting = list(self._answers.values())
            for answer in waiting:
                answer.came.set()
            self._on_end()

    def _take(self, line: dict[str, Any]) -> None:
        if "event" in line:
            self._on_event(line)
            return
        with self._lock:
            answer = self._answers.get(line["id"])
        if answer is not None:
            answer.line = line
            answer.came.set()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def error_of(event: dict[str, Any]) -> PyvmmError:
    """The exception for a ``failed`` event: of the class that the process raised, as far as it is one of ours."""
    from pyvmm import errors

    kind = getattr(errors, event["type"], None)
    if isinstance(kind, type) and issubclass(kind, PyvmmError) and not issubclass(kind, errors.GuestError):
        return kind(event["error"], event["hint"])
    import loader.errors

    try:
        kind = getattr(loader.errors, event["type"])
    except AttributeError:
        return HostError(event["error"], event["hint"])
    return errors.ImageError(event["error"], event["hint"])
