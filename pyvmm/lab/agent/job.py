"""One command being run in the lab: its process, its streams, its signals, and the clearing up after it."""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import json
import os
import pty
import select
import signal
import struct
import termios

from pyvmm.lab.agent.channel import Channel, power_off
from pyvmm.lab.protocol import CHUNK, COUNT, WINDOW, Kind, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def reaped() -> list[tuple[int, int]]:
    """The (pid, wait status) of all children that have ended."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended.append((pid, status))


class Job:
    """A command being run: its process, its streams, and what is on the way between them and the host.

    ``wakeup`` is a descriptor that becomes readable when a child has ended; ``request`` is that of a RUN frame.
    """

    def __init__(self, channel: Channel, wakeup: int, request: dict[str, Any]) -> None:
        self._channel = channel
        self._wakeup = wakeup
        self._request = request
        self._tty = bool(request["tty"])
        self._input: collections.deque[bytes] = collections.deque()
        self._input_ended = False
        self._output: dict[int, int] = {}  # our end of a stream -> STDOUT or STDERR
        self._unacknowledged = 0  # bytes of output
        self._status: int | None = None
        failure_read, failure_write = os.pipe2(os.O_CLOEXEC)
        if self._tty:
            self._start_on_terminal(failure_write)
        else:
            self._start_on_pipes(failure_write)
        os.close(failure_write)
        with open(failure_read, "rb") as file:  # ends when the command was executed, or could not be
            self.failure = file.read().decode()
        for descriptor in {*self._output, self._stdin}:
            os.set_blocking(descriptor, False)

    def _start_on_pipes(self, failure: int) -> None:
        stdin, self._stdin = os.pipe2(os.O_CLOEXEC)
        stdout, child_stdout = os.pipe2(os.O_CLOEXEC)
        stderr, child_stderr = os.pipe2(os.O_CLOEXEC)
        self._output = {stdout: Kind.STDOUT, stderr: Kind.STDERR}
        self._fork(stdin, child_stdout, child_stderr, failure)
        for descriptor in (stdin, child_stdout, child_stderr):
            os.close(descriptor)

    def _start_on_terminal(self, failure: int) -> None:
        self._stdin, terminal = pty.openpty()
        self._output = {self._stdin: Kind.STDOUT}
        self._resize(self._request["rows"], self._request["columns"])
        self._fork(terminal, terminal, terminal, failure)
        os.close(terminal)

    def _fork(self, stdin: int, stdout: int, stderr: int, failure: int) -> None:
        self._pid = os.fork()
        if self._pid:
            return
        try:
            os.setsid()
            for number, descriptor in enumerate((stdin, stdout, stderr)):
                os.dup2(descriptor, number)
            if self._tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("0")
            os.chdir(self._request["cwd"])
            argv = self._request["argv"]
            os.execvpe(argv[0], argv, self._request["env"])
        except OSError as error:
            os.write(failure, f"{error.errno}:{error.strerror}".encode())
        except Exception as error:
            os.write(failure, f"{errno.EINVAL}:{error}".encode())
        finally:
            os._exit(127)

    def run(self) -> int:
        """Serve the command until it has ended and its output is sent; returns its exit status."""
        self._obey()  # what came together with the request
        while self._status is None:
            for descriptor, ready in self._poll():
                if descriptor == self._channel.descriptor:
                    if ready & select.POLLHUP:
                        power_off()
                    self._channel.write()
                    self._channel.read()
                    self._obey()
                elif descriptor == self._wakeup:
                    os.read(self._wakeup, 4096)
                    self._reap()
                else:
                    if descriptor in self._output and ready & ~select.POLLOUT:
                        self._forward(descriptor)
                    if descriptor == self._stdin and ready & ~select.POLLIN:
                        self._write_input()
        self._end()
        return self._status

    def _poll(self) -> list[tuple[int, int]]:
        """Wait until something can be done that there is something to do about."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        pending = self._channel.pending
        poll.register(self._channel.descriptor, select.POLLIN | (select.POLLOUT if pending else 0))
        wanted: dict[int, int] = {}
        if self._unacknowledged < WINDOW and not pending:
            wanted = dict.fromkeys(self._output, select.POLLIN)
        if self._input and self._stdin >= 0:
            wanted[self._stdin] = wanted.get(self._stdin, 0) | select.POLLOUT
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        return poll.poll()

    def _obey(self) -> None:
        """Do what the host's frames say."""
        while self._channel.received:
            kind, payload = self._channel.received.popleft()
            if kind == Kind.STDIN:
                if payload:
                    self._input.append(payload)
                else:
                    self._input_ended = True
                self._write_input()
            elif kind == Kind.ACK:
                self._unacknowledged -= COUNT.unpack(payload)[0]
            elif kind == Kind.SIGNAL:
                self._signal(json.loads(payload)["signal"])
            elif kind == Kind.RESIZE:
                size = json.loads(payload)
                self._resize(size["rows"], size["columns"])

    def _resize(self, rows: int, columns: int) -> None:
        if self._tty and self._stdin >= 0:
            fcntl.ioctl(self._stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _signal(self, number: int) -> None:
        """Signal what is in the foreground of the terminal, or the command's process group."""
        group = self._pid
        if self._tty:
            with contextlib.suppress(OSError):
                group = os.tcgetpgrp(self._stdin) or group
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)

    def _write_input(self) -> None:
        """Give the command what it takes of its input, and acknowledge that."""
        consumed = 0
        while self._input and self._stdin >= 0:
            data = self._input.popleft()
            try:
                written = os.write(self._stdin, data)
            except BlockingIOError:
                written = 0
            except OSError:  # the command closed its input
                self._close_input()
                written = len(data)
            consumed += written
            if written < len(data):
                self._input.appendleft(data[written:])
                break
        if self._stdin < 0:  # nobody will read what is left
            consumed += sum(map(len, self._input))
            self._input.clear()
        if consumed:
            self._channel.send(frame(Kind.ACK, COUNT.pack(consumed)))
        if self._input_ended and not self._input:
            self._input_ended = False
            self._close_input()

    def _close_input(self) -> None:
        """End the command's input; a terminal stays, for the output, and gets an end-of-file character."""
        if self._stdin < 0:
            return
        if self._tty:
            with contextlib.suppress(OSError):
                os.write(self._stdin, b"\x04")
        else:
            os.close(self._stdin)
            self._stdin = -1

    def _forward(self, descriptor: int) -> bool:
        """Send on a piece of output; returns whether there was some."""
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # the last process on the terminal closed it
                raise
            data = b""
        if data:
            self._unacknowledged += len(data)
            self._channel.send(frame(self._output[descriptor], data))
            return True
        self._close_output(descriptor)
        return False

    def _close_output(self, descriptor: int) -> None:
        del self._output[descriptor]
        if descriptor == self._stdin:
            self._stdin = -1
        os.close(descriptor)

    def _reap(self) -> None:
        for pid, status in reaped():
            if pid == self._pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code

    def _end(self) -> None:
        """Kill what the command left running, then send the rest of its output, minding the window."""
        if os.getpid() == 1:  # anywhere else these would not be ours to kill
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        while self._output:
            for descriptor in list(self._output):
                more = True
                while more:
                    while self._unacknowledged >= WINDOW:
                        kind, payload = self._channel.receive()
                        if kind == Kind.ACK:
                            self._unacknowledged -= COUNT.unpack(payload)[0]
                    more = self._forward(descriptor)
                if descriptor in self._output and not _closes(descriptor):
                    self._close_output(descriptor)
        if self._stdin >= 0:
            os.close(self._stdin)
        reaped()


def _closes(descriptor: int) -> bool:
    """Whether something comes of an empty stream within the moment that killed processes need to close it."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(200))
