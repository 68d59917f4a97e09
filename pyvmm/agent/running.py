"""A command that runs in the guest, as its user and as the :class:`~pyvmm.agent.client.AgentClient` see it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from pyvmm.agent.protocol import OUTPUT_WINDOW, PIECE, STDIN_WINDOW, ProtocolError, Type, number, size
from pyvmm.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.agent.client import AgentClient

#: Bytes of output after which the agent is granted as many more.
_GRANT = OUTPUT_WINDOW // 4
#: What failed, as FAILED says: to execute, the working directory, to start it at all.
_EXECUTE, _DIRECTORY, _START = range(3)


class CannotRun(GuestError):
    """A command cannot be executed in the guest; ``errno`` is why."""

    def __init__(self, message: str, hint: str, errno: int) -> None:
        super().__init__(message, hint)
        self.errno = errno


class RunningCommand:
    """A command that was started in the guest; :meth:`AgentClient.start` makes it.  Any thread may use it."""

    def __init__(
        self,
        client: AgentClient,
        id: int,
        name: str,
        on_stdout: Callable[[bytes], None],
        on_stderr: Callable[[bytes], None],
    ) -> None:
        self.pid = 0
        self._client = client
        self._id = id
        self._name = name
        self._sinks = {Type.STDOUT: on_stdout, Type.STDERR: on_stderr}
        self._status: int | None = None
        self._error: Exception | None = None
        self._credit = STDIN_WINDOW  # bytes of input that the agent still takes
        self._owed = 0  # bytes of output that were taken and not granted again
        self._expected = OUTPUT_WINDOW  # bytes of output that may come
        self._changed = threading.Condition()
        self._writing = threading.Lock()

    # -- for the user -----------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        """Send standard input; waits, at most ``timeout`` seconds, while the command reads nothing.

        What is written to a command that has ended is dropped.  TimeoutError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        rest = memoryview(data)
        with self._writing:
            while rest:
                with self._changed:
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    if not self._changed.wait_for(lambda: self._credit or self._over, left):
                        raise TimeoutError(f"'{self._name}' does not read its standard input")
                    if self._over:
                        return
                    piece = rest[: min(PIECE, self._credit)]
                    self._credit -= len(piece)
                self._client.send(Type.STDIN, self._id, bytes(piece))
                rest = rest[len(piece) :]

    def close_stdin(self) -> None:
        """End standard input."""
        with self._writing:
            if not self._over:
                self._client.send(Type.STDIN, self._id)

    def signal(self, number_: int) -> None:
        """Send a signal to the command and what it started; nothing if it has ended."""
        if not self._over:
            self._client.send(Type.SIGNAL, self._id, number(number_))

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size now."""
        if not self._over:
            self._client.send(Type.RESIZE, self._id, size(rows, columns))

    def kill(self) -> None:
        """End the command and what it started; its output is dropped from now on."""
        self._sinks = {}
        if not self._over:
            self._client.send(Type.KILL, self._id)

    def poll(self) -> int | None:
        """Its status if it has ended."""
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end: the exit status (0-255), or minus the signal that ended it.

        All its output has been handed over then.

        :raises TimeoutError: it did not end within ``timeout`` seconds
        :raises GuestError: it cannot be executed (CannotRun), or the guest or its agent went away
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._over, timeout):
                raise TimeoutError(f"'{self._name}' did not end within {timeout} s")
            if self._error is not None:
                raise self._error
            assert self._status is not None
            return self._status

    @property
    def _over(self) -> bool:
        return self._status is not None or self._error is not None

    # -- for the client, in the thread that feeds it ---------------------------------------------------------------

    def _started(self, pid: int) -> None:
        with self._changed:
            self.pid = pid
            self._changed.notify_all()

    def _wait_started(self, timeout: float | None) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.pid or self._over, timeout):
                raise TimeoutError(f"'{self._name}' was not started within {timeout} s")
            if self._error is not None:
                raise self._error

    def _output(self, type: Type, data: bytes) -> None:
        self._expected -= len(data)
        if self._expected < 0:
            raise ProtocolError("the guest's agent sent more output than it may", "is it pyvmm's agent?")
        sink = self._sinks.get(type)
        if sink is not None:
            sink(data)
        self._owed += len(data)
        if self._owed >= _GRANT:
            self._expected += self._owed
            self._client.send(Type.WINDOW, self._id, number(self._owed))
            self._owed = 0

    def _granted(self, count: int) -> None:
        with self._changed:
            self._credit += count
            if self._credit > STDIN_WINDOW:
                raise ProtocolError(
                    "the guest's agent granted more input than it can take", "is it pyvmm's agent?"
                )
            self._changed.notify_all()

    def _end(self, status: int | None, error: Exception | None = None) -> None:
        with self._changed:
            if not self._over:
                self._status, self._error = status, error
            self._changed.notify_all()

    def _failed(self, errno: int, what: int) -> None:
        reason = os.strerror(errno)
        if what == _DIRECTORY:
            message, hint = (
                f"cannot run '{self._name}' there: {reason}",
                "its working directory is not in the guest",
            )
        elif what == _EXECUTE:
            message, hint = (
                f"cannot run '{self._name}' in the guest: {reason}",
                "is the program in the guest's root?",
            )
        else:
            message, hint = f"cannot start '{self._name}' in the guest: {reason}", "too many may be running"
        self._end(None, CannotRun(message, hint, errno))
