"""A program that serves a device for us over a vhost-user socket: started with us, ended with us.

The listening socket is made here and inherited by the program, so there is no name to wait for, and none is left in
the file system: we connect before the program runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque

from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LINES = 20  # of its standard error that are kept
_LINE = 4096  # bytes at most; what is longer counts as several
_PATIENCE = 3.0  # seconds


class Daemon:
    """The running program ``name``; ``socket`` is our connection to it.

    ``command(fd)`` is its command line, fd being the listening Unix socket it inherits.  It is sent SIGTERM
    when the thread that made this ends, however that comes about.  ``ends_alone``: it ends when we hang up, and
    gets the time for it.  Raises HostError where it cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int], Sequence[str]],
        *,
        pass_fds: tuple[int, ...] = (),
        ends_alone: bool = False,
    ) -> None:
        self.name = name
        self._ends_alone = ends_alone
        self._stderr: deque[str] = deque(maxlen=_LINES)
        try:
            self._connect_and_start(command, pass_fds)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise HostError(
                f"cannot make a socket for {name}: {reason}", "is TMPDIR a short, writable path?"
            ) from None
        self._reader = threading.Thread(target=self._read, name=f"{name} stderr", daemon=True)
        self._reader.start()

    def _connect_and_start(self, command: Callable[[int], Sequence[str]], pass_fds: tuple[int, ...]) -> None:
        with (
            tempfile.TemporaryDirectory(prefix="pyvmm-") as folder,  # mode 0700
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
        ):
            listener.bind(f"{folder}/s")
            listener.listen(1)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.socket.connect(f"{folder}/s")
                self._process = self._start(command(listener.fileno()), (listener.fileno(), *pass_fds))
            except BaseException:
                self.socket.close()
                raise

    def _start(self, command: Sequence[str], fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
        prctl = ctypes.CDLL(None).prctl
        parent = os.getpid()

        def in_child() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)  # we have ended already

        try:
            return subprocess.Popen(
                command,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                preexec_fn=in_child,
                start_new_session=True,  # Ctrl-C is for the guest, or for us
            )
        except (OSError, subprocess.SubprocessError) as error:
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
            raise HostError(f"cannot start {command[0]}: {reason}") from None

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while line := stream.readline(_LINE):
                text = line.decode(errors="replace").strip()
                if text:
                    self._stderr.append(text)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def epitaph(self, wait: float = 1) -> str:
        """How it ended and its last words, as the rest of a sentence; empty if it runs after ``wait`` seconds."""
        if not self._has_ended(wait):
            return ""
        status = self._process.returncode
        self._reader.join(1)
        ended = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{ended}{': ' + self._stderr[-1] if self._stderr else ''}"

    def close(self) -> None:
        """Hang up, end the program if that does not end it, and reap it.  Closing twice is no error."""
        self.socket.close()
        if not self._has_ended(_PATIENCE if self._ends_alone else 0):
            self._process.terminate()
            if not self._has_ended(_PATIENCE):
                self._process.kill()
                self._process.wait()
        self._reader.join(1)

    def _has_ended(self, wait: float) -> bool:
        try:
            self._process.wait(wait)
        except subprocess.TimeoutExpired:
            return False
        return True
