"""The user's terminal: raw while the guest has it, as it was whatever happens; and writing without blocking.

Standard input is the guest's keyboard.  On a terminal that is ours to read (POSIX job control: we are in its
foreground process group) it is put into raw mode, so that every key reaches the guest, Ctrl-C and Ctrl-Z
included, and Ctrl-A is the escape to pyvmm (:class:`EscapeKeys`).  In the background there is no input, and
the terminal is left alone: setting its mode would stop us with SIGTTOU.  A pipe or a file is handed on as it
is.

Output processing (OPOST) stays as it was, as with other machine monitors: our own lines, and those of guests
that send a bare newline, come out straight.
"""

from __future__ import annotations

import atexit
import errno
import os
import select
import signal
import stat
import termios

from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    Data = TypeVar("Data", bytes, bytearray)

CTRL_A = 0x01
#: What the key after Ctrl-A asks for.
COMMANDS = {ord("x"): "leave", ord("s"): "stop", ord("c"): "status", ord("h"): "help", ord("?"): "help"}
#: Keys after Ctrl-A that send a Ctrl-A to the guest.
LITERAL = (CTRL_A, ord("a"))

#: A write of this size to a pipe that poll(2) calls writable does not block (pipe(7), PIPE_BUF).
CHUNK = select.PIPE_BUF
_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENXIO, errno.EBADF)

# termios(3): what cfmakeraw clears, less OPOST.
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6
_RAW_IFLAG = (
    termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
    | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
)  # fmt: skip
_RAW_LFLAG = termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN


class OutputClosed(HostError):
    """Whoever read our output went away: a pipe's reader ended, or the terminal was closed."""


class EscapeKeys:
    """Takes the Ctrl-A commands out of what the user types, however the input is cut into pieces.

    Ctrl-A followed by x, s, c, h or ? is a command, by a or another Ctrl-A a Ctrl-A for the guest; before any
    other key it goes to the guest with that key.
    """

    __slots__ = ("_armed",)

    def __init__(self) -> None:
        self._armed = False

    def feed(self, data: bytes) -> tuple[bytes, list[str]]:
        """What goes to the guest, and the commands (the values of :data:`COMMANDS`) in order."""
        if not self._armed and CTRL_A not in data:
            return data, []
        guest = bytearray()
        commands = []
        for key in data:
            if not self._armed:
                if key == CTRL_A:
                    self._armed = True
                else:
                    guest.append(key)
                continue
            self._armed = False
            if key in COMMANDS:
                commands.append(COMMANDS[key])
            elif key in LITERAL:
                guest.append(CTRL_A)
            else:
                guest += bytes((CTRL_A, key))
        return bytes(guest), commands


class Terminal:
    """Standard input (or ``fd``), in raw mode from now until :meth:`close` if it is a terminal of ours.

    ``input_fd`` is where the guest's input can be read, None where there is none: standard input is closed,
    or it is a terminal that is gone, or one that we are in the background of.  ``interactive`` says that a
    user types there.
    """

    def __init__(self, fd: int = 0) -> None:
        self.input_fd: int | None = None
        self.interactive = False
        self._fd = fd
        self._keys = EscapeKeys()
        self._saved: list[Any] | None = None
        try:
            saved = termios.tcgetattr(fd)
        except termios.error as error:
            if error.args[0] not in _GONE:
                self.input_fd = fd  # not a terminal
            return
        if not self.foreground():
            return
        self._saved = saved
        atexit.register(self.close)
        try:
            self._set(_raw(saved))
        except termios.error:  # it vanished this moment
            self.close()
            return
        self.input_fd = fd
        self.interactive = True

    def foreground(self) -> bool:
        """Whether the terminal is ours to read and to set: its foreground process group is ours.

        A terminal that controls no session of ours has no job control and may be used freely.
        """
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError as error:
            return error.errno == errno.ENOTTY and os.isatty(self._fd)

    def decode(self, data: bytes) -> tuple[bytes, list[str]]:
        """Input as it was read: what goes to the guest, and the commands in it.  A pipe has no commands."""
        return self._keys.feed(data) if self.interactive else (data, [])

    def resume(self) -> None:
        """Raw mode again, after the process was stopped and continued (SIGCONT): the shell has changed it."""
        if self._saved is not None and self.foreground():
            try:
                self._set(_raw(self._saved))
            except termios.error:
                pass

    def close(self) -> None:
        """Put the terminal back as it was found.  Idempotent; a terminal that vanished is no error.

        In the background the terminal is somebody else's, who has set it as they need it: it is left alone.
        """
        saved, self._saved = self._saved, None
        self.input_fd = None
        if saved is None:
            return
        atexit.unregister(self.close)
        if self.foreground():
            try:
                self._set(saved)
            except termios.error:
                pass

    def _set(self, attributes: list[Any]) -> None:
        """tcsetattr, at once: waiting for output to drain could wait for ever.

        SIGTTOU is blocked for the moment in which the foreground may change hands.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _raw(attributes: list[Any]) -> list[Any]:
    """These terminal attributes in raw mode, output processing as it was."""
    raw = [*attributes[:_CC], list(attributes[_CC])]
    raw[_IFLAG] &= ~_RAW_IFLAG
    raw[_CFLAG] = raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[_LFLAG] &= ~_RAW_LFLAG
    raw[_CC][termios.VMIN] = 1
    raw[_CC][termios.VTIME] = 0
    return raw


def nonblocking(fd: int) -> int:
    """A descriptor of the same terminal or pipe on which writing never blocks; to be closed by the caller.

    O_NONBLOCK on ``fd`` itself would be seen by every process that shares it, the user's shell included; so
    the file behind it is opened once more.  Where that cannot be done, or is not needed (a file), it is a
    plain duplicate: :func:`write_some` then does its best, and a terminal whose reader is slow may hold it up.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            pass
    return os.dup(fd)


def write_some(fd: int, data: Data) -> Data:
    """Write as much of ``data`` as ``fd`` takes without blocking; returns the rest, to be tried again later.

    Raises OutputClosed when there is no reader any more, OSError for any other failure (a full disk).
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    sent = 0
    with memoryview(data) as view:
        while sent < len(view) and poll.poll(0):
            try:
                sent += os.write(fd, view[sent : sent + CHUNK])
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                raise OutputClosed(
                    f"nobody reads the output any more ({os.strerror(error.errno)})",
                    "keep its reader running until the guest ends, or send the output to a file",
                ) from None
    return data[sent:] if sent else data
