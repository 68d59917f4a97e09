"""A command in the guest as if it ran here: standard input, output and error are this process's, a terminal is the
guest's, signals go to the command, and its status is ours."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from pyvmm.api.command import Command
from pyvmm.api.machine import Machine
from pyvmm.errors import PyvmmError

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
#: Ctrl-] so many times in a row on a terminal ends the machine.
LEAVE_KEY = 0x1D
LEAVE_PRESSES = 3
#: How often a signal is handed on before the machine is ended instead.
PATIENCE = 2
_READ = 32 * 1024


class Interrupted(Exception):
    """The user wants no more of it; ``number`` is the signal that says so."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Foreground:
    """Runs one command in ``machine`` in the foreground.  In the main thread.

    ``interactive``: standard input and output are a terminal, which becomes the command's.
    """

    def __init__(self, machine: Machine, *, interactive: bool) -> None:
        self._machine = machine
        self._interactive = interactive
        self._command: Command | None = None
        self._work: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # signals to hand on; None: done
        self._interrupted = 0
        self._signals = 0
        self.handed_on: set[int] = set()  # signals that the user sent, and the command got
        self.lost = ""  # why some of the output could not be written, as a full disk
        self._broken = False  # nobody reads our output any more
        self._leaving = 0  # presses of the key

    def run(
        self, command: str | Sequence[str], *, env: Mapping[str, str], cwd: str | None, timeout: float | None
    ) -> int:
        """Run it to its end; returns its exit status, or minus the signal that ended it.

        :raises Interrupted: the user ended the machine
        :raises TimeoutError: it took more than ``timeout`` seconds
        :raises GuestError: the machine ended, or the command cannot be executed
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        # Outside of the block: until there is a command to hand them on to, signals are for this process.
        self._command = self._machine.popen(
            command, env=env, cwd=cwd, pty=self._size() if self._interactive else None,
            on_stdout=lambda data: self._write(1, data), on_stderr=lambda data: self._write(2, data),
            timeout=timeout,
        )  # fmt: skip
        with self._catch_signals(), self._terminal():
            hand_on = threading.Thread(target=self._hand_on, name="pyvmm-signals", daemon=True)
            hand_on.start()
            threading.Thread(target=self._read, name="pyvmm-stdin", daemon=True).start()
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                status = self._command.wait(left).returncode
            except PyvmmError:
                if self._interrupted:
                    raise Interrupted(self._interrupted) from None
                raise
            finally:
                self._work.put(None)
                hand_on.join()
        return -signal.SIGPIPE if self._broken and status else status

    # -- streams --------------------------------------------------------------------------------------------

    def _write(self, fd: int, data: bytes) -> None:
        """In the machine's thread: what the command printed.  A reader that is slow makes the command wait."""
        if self.lost:
            return
        try:
            while data:
                data = data[os.write(fd, data) :]
        except BrokenPipeError:
            if not self._broken:
                self._broken = True
                self._work.put(signal.SIGPIPE)
        except OSError as error:  # the command goes on to its end
            self.lost = error.strerror or str(error)

    def _read(self) -> None:
        """In a thread of its own: standard input, to its end."""
        command = self._command
        assert command is not None
        try:
            while data := os.read(0, _READ):
                if self._interactive and self._leaves(data):
                    self._end(signal.SIGINT)
                    return
                command.write(data)
            command.close_stdin()
        except (OSError, PyvmmError):  # it is gone, or reads no more; its end tells the rest
            pass

    def _leaves(self, data: bytes) -> bool:
        for byte in data:
            self._leaving = self._leaving + 1 if byte == LEAVE_KEY else 0
            if self._leaving == LEAVE_PRESSES:
                return True
        return False

    # -- signals and the terminal -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """Signals are handed on by a thread: a handler must not use what the main thread may be in the middle of."""

        def note(number: int, frame: FrameType | None) -> None:
            self._work.put(number)

        numbers = [*FORWARDED, *([signal.SIGWINCH] if self._interactive else [])]
        former = {
            number: signal.signal(number, note)
            for number in numbers
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _hand_on(self) -> None:
        command = self._command
        assert command is not None
        while (number := self._work.get()) is not None:
            with contextlib.suppress(PyvmmError, OSError):
                if number == signal.SIGWINCH:
                    command.running.resize(*self._size())
                elif number == signal.SIGPIPE:
                    command.signal(number)
                else:
                    self._signals += 1
                    if self._signals > PATIENCE:
                        self._end(number)
                    else:
                        self.handed_on.add(number)
                        command.signal(number)

    def _end(self, number: int) -> None:
        """End the machine."""
        self._interrupted = number
        self._machine.kill()

    @staticmethod
    def _size() -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(1)
        except OSError:
            return 24, 80
        return rows, columns

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        """The terminal in raw mode, and as it was before afterwards."""
        if not self._interactive:
            yield
            return
        import termios
        import tty

        saved = termios.tcgetattr(0)
        try:
            tty.setraw(0)
            yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
            sys.stdout.flush()
