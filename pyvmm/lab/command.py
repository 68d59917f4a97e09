"""Running one command in the lab: its streams, its terminal, signals and the timeout."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import signal
import threading
import time

from pyvmm.lab import terminal
from pyvmm.lab.client import Client
from pyvmm.lab.protocol import CHUNK, COUNT, WINDOW, Kind, frame, message
from pyvmm.lab.qemu import LabError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType
    from typing import Any

TIMED_OUT = 124
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
GRACE = 5.0
"""Seconds that a command has to end after a signal or a timeout, before the lab is stopped."""
LEAVE_KEY = 0x1D
LEAVE_PRESSES = 3
"""Ctrl-] so many times in a row on a terminal stops the lab."""


class Command:
    """What to run and how: ``argv``, ``env`` (all of it), ``cwd``; descriptors of this process, or None for ``stdin``.

    ``timeout`` in seconds; ``forward_signals``: SIGINT, SIGTERM, SIGHUP and SIGQUIT go to the command, and a
    second one, or none being obeyed within :data:`GRACE` seconds, ends it.
    """

    __slots__ = ("argv", "cwd", "env", "forward_signals", "stderr", "stdin", "stdout", "timed_out", "timeout")

    def __init__(
        self, argv: Sequence[str], env: dict[str, str], cwd: str, stdin: int | None, stdout: int, stderr: int,
        timeout: float | None, forward_signals: bool,
    ) -> None:  # fmt: skip
        self.argv = list(argv)
        self.env = env
        self.cwd = cwd
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.timeout = timeout
        self.forward_signals = forward_signals
        self.timed_out = False  # afterwards: whether the timeout ended it


class Stopped(Exception):
    """The command did not end when it should; the lab has to be stopped.  ``status`` is what to exit with."""

    def __init__(self, status: int, timed_out: bool = False) -> None:
        super().__init__(status)
        self.status = status
        self.timed_out = timed_out


class Run:
    """One command being run in the lab that ``client`` talks to."""

    def __init__(self, client: Client, command: Command) -> None:
        self._client = client
        self._command = command
        self._tty = terminal.both(command.stdin, command.stdout)
        self._input = -1 if command.stdin is None else command.stdin
        self._unacknowledged = 0
        self._deadline = None if command.timeout is None else time.monotonic() + command.timeout
        self._interrupted = 0  # the signal that was forwarded
        self._signals: collections.deque[int] = collections.deque()
        self._leave_presses = 0

    def serve(self) -> tuple[int, str]:
        """Start the command and serve it to its end: its exit status and, if it could not be started, why.

        The status is 128 + n after signal n, and 124 after the timeout.
        :raises Stopped: it does not end when it should
        :raises LabError: the lab ended
        """
        command = self._command
        rows, columns = terminal.size(command.stdout)
        request = {
            "argv": command.argv,
            "env": command.env,
            "cwd": command.cwd,
            "tty": self._tty,
            "rows": rows,
            "columns": columns,
        }
        with contextlib.ExitStack() as stack:
            wakeup = stack.enter_context(self._catching_signals())
            if self._tty and command.stdin is not None:
                stack.enter_context(terminal.raw(command.stdin))
            self._client.send(message(Kind.RUN, request))
            if self._input < 0:
                self._client.send(frame(Kind.STDIN))
            while True:
                while self._client.received:
                    ended = self._handle(*self._client.received.popleft())
                    if ended is not None:
                        return (TIMED_OUT, "") if command.timed_out else ended
                self._wait(wakeup)

    @contextlib.contextmanager
    def _catching_signals(self) -> Iterator[int]:
        """Note signals instead of dying of them; gives a descriptor that is readable when one came."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        caught: list[int] = list(FORWARDED) if self._command.forward_signals else []
        if self._tty and threading.current_thread() is threading.main_thread():
            caught.append(signal.SIGWINCH)
        before: dict[int, Any] = {}
        descriptor_before = -1

        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        try:
            if caught:  # written to by whichever thread the signal comes to; ours may sleep
                descriptor_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
            for number in caught:
                before[number] = signal.signal(number, note)
            yield read_end
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if caught:
                signal.set_wakeup_fd(descriptor_before)
            os.close(read_end)
            os.close(write_end)

    def _wait(self, wakeup: int) -> None:
        """Sleep until something can be done, and do what is not about received frames."""
        poll = select.poll()
        poll.register(self._client.socket, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        if self._input >= 0 and self._unacknowledged < WINDOW:
            poll.register(self._input, select.POLLIN)
        timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic()) * 1000 + 1
        ready = {descriptor for descriptor, _ in poll.poll(timeout)}
        if self._client.socket.fileno() in ready:
            self._client.receive()
        if wakeup in ready:
            os.read(wakeup, 4096)
        while self._signals:
            self._signal(self._signals.popleft())
        if self._input >= 0 and self._input in ready:
            self._read_input()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._expire()

    def _signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            rows, columns = terminal.size(self._command.stdout)
            self._client.send(message(Kind.RESIZE, {"rows": rows, "columns": columns}))
            return
        if self._interrupted:
            raise Stopped(128 + number)
        self._interrupted = number
        self._client.send(message(Kind.SIGNAL, {"signal": number}))
        self._deadline = min(self._deadline or float("inf"), time.monotonic() + GRACE)

    def _expire(self) -> None:
        """Time is up: ask the command to end; if that was asked before, give up the lab."""
        if self._interrupted:
            raise Stopped(128 + self._interrupted)
        if self._command.timed_out:
            raise Stopped(TIMED_OUT, timed_out=True)
        self._command.timed_out = True
        self._client.send(message(Kind.SIGNAL, {"signal": int(signal.SIGTERM)}))
        self._deadline = time.monotonic() + min(GRACE, 2.0)

    def _read_input(self) -> None:
        try:
            data = os.read(self._input, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # the terminal is gone
            data = b""
        if self._tty:
            for byte in data:
                self._leave_presses = self._leave_presses + 1 if byte == LEAVE_KEY else 0
                if self._leave_presses == LEAVE_PRESSES:
                    raise Stopped(128 + signal.SIGHUP)
        self._client.send(frame(Kind.STDIN, data))
        self._unacknowledged += len(data)
        if not data:
            self._input = -1

    def _handle(self, kind: int, payload: bytes) -> tuple[int, str] | None:
        """Act on a frame from the lab; gives the result when the command has ended."""
        if kind in (Kind.STDOUT, Kind.STDERR):
            _write_all(self._command.stdout if kind == Kind.STDOUT else self._command.stderr, payload)
            self._client.send(frame(Kind.ACK, COUNT.pack(len(payload))))
        elif kind == Kind.ACK:
            self._unacknowledged -= COUNT.unpack(payload)[0]
        elif kind == Kind.EXIT:
            exit_ = json.loads(payload)
            return exit_["status"], exit_["error"]
        elif kind == Kind.FAILED:
            raise LabError(f"the lab's agent failed: {json.loads(payload)['message']}")
        return None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
