"""Commands in the guest, by its agent: their streams, their end, and what they printed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol


class Running(Protocol):
    """What is used of :class:`pyvmm.agent.RunningCommand`."""

    def write(self, data: bytes, timeout: float | None = None) -> object: ...
    def close_stdin(self) -> None: ...
    def signal(self, number: int) -> None: ...
    def resize(self, rows: int, columns: int) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


class Completed:
    """A command that has ended: ``returncode`` is its exit status, or minus the signal that ended it; ``stdout`` and
    ``stderr`` are bytes, ``elapsed`` is in seconds."""

    def __init__(
        self, args: Sequence[str | bytes], returncode: int, stdout: bytes, stderr: bytes, elapsed: float
    ) -> None:
        self.args = list(args)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        self.elapsed = elapsed

    @property
    def text(self) -> str:
        """Standard output as text, undecodable bytes replaced, without white space at the end."""
        return self.stdout.decode("utf-8", "replace").rstrip()

    def __repr__(self) -> str:
        return (
            f"<Completed {self.args!r}: {self.returncode}, {len(self.stdout)} and {len(self.stderr)} bytes>"
        )


class Command:
    """A command that runs in the guest; its output is collected unless it is given to ``on_stdout`` and ``on_stderr``.

    Any thread may use it.  ``max_output``: bytes of both streams that are collected (None: all); what prints more is
    killed, and ``too_much`` set.
    """

    def __init__(self, args: Sequence[str | bytes], max_output: int | None = None) -> None:
        self.args = list(args)
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.too_much = False
        self._max_output = max_output
        self._started = time.monotonic()
        self._running: Running | None = None

    def _attach(self, running: Running) -> Command:
        self._running = running
        if self.too_much:  # it was before there was anything to kill
            running.kill()
        return self

    def _collect_stdout(self, data: bytes) -> None:
        self._collect(self.stdout, data)

    def _collect_stderr(self, data: bytes) -> None:
        self._collect(self.stderr, data)

    def _collect(self, into: bytearray, data: bytes) -> None:
        """In the machine's thread: what the command printed."""
        if self._max_output is not None:
            room = max(0, self._max_output - len(self.stdout) - len(self.stderr))
            if len(data) > room:
                data = data[:room]
                self.too_much = True
                if self._running is not None:
                    self._running.kill()
        into += data

    @property
    def running(self) -> Running:
        """The agent's side of it."""
        assert self._running is not None, "it is attached before anybody sees it"
        return self._running

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Standard input for it; waits, at most ``timeout`` seconds, while it reads nothing."""
        self.running.write(data, timeout)

    def close_stdin(self) -> None:
        """End its standard input."""
        self.running.close_stdin()

    def signal(self, number: int) -> None:
        """Send a signal to it and what it has started."""
        self.running.signal(number)

    def kill(self) -> None:
        """End it, and what it has started; nothing if it was never started."""
        if self._running is not None:
            self._running.kill()

    def wait(self, timeout: float | None = None) -> Completed:
        """Wait for its end.  TimeoutError, or what took the machine away."""
        status = self.running.wait(timeout)
        return Completed(
            self.args, status, bytes(self.stdout), bytes(self.stderr), time.monotonic() - self._started
        )

    def feed(self, data: bytes) -> threading.Thread:
        """Write all of ``data`` and end standard input, in a thread of its own; the command may end before."""

        def write() -> None:
            try:
                self.write(data)
                self.close_stdin()
            except Exception:  # it has ended, or the machine has: whoever waits for it learns that
                pass

        thread = threading.Thread(target=write, name="pyvmm-stdin", daemon=True)
        thread.start()
        return thread


def arguments_of(command: str | Sequence[str | bytes]) -> list[str | bytes]:
    """What to execute: a text is for the guest's shell, a list as it stands."""
    return ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
