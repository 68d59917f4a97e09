"""The process that a machine runs in: ``pyvmm boot ... --control -``, here or in a lab.

It ends when its connection does, so nothing has to be cleaned up after a user's process that was killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from pyvmm.errors import HostError, PyvmmError, UsageError

#: Seconds that the process has to end by itself once its connection is closed.
END_SECONDS = 10.0


class Process(Protocol):
    """A machine's process, wherever it is."""

    socket: socket.socket

    def wait(self, timeout: float) -> bool:
        """Wait for its end, at most ``timeout`` seconds; whether it has ended."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def failure(self) -> PyvmmError:
        """The error it ended with, by what it said on standard error."""
        ...

    def close(self) -> None:
        """Give everything back, once it has ended."""
        ...


class _Said:
    """What a process wrote on standard error, in a file that nobody else sees."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="pyvmm-")  # noqa: SIM115

    def text(self) -> str:
        """The last of it."""
        size = os.fstat(self.file.fileno()).st_size
        return os.pread(self.file.fileno(), 1 << 16, max(0, size - (1 << 16))).decode("utf-8", "replace")

    def failure(self, code: int | None) -> PyvmmError:
        """The error that the command line printed before it ended with ``code``."""
        message, hint = "", ""
        lines = self.text().splitlines()
        for line in lines:
            if line.startswith("pyvmm: ") and not line.startswith("pyvmm: note: "):
                message = line.removeprefix("pyvmm: ")
            elif line.startswith("hint: "):
                hint = line.removeprefix("hint: ")
        if message:
            return UsageError(message, hint)
        last = f": {lines[-1]}" if lines else ""
        return HostError(f"the machine's process ended with status {code}{last}", "see its host's messages")


class LocalProcess:
    """The machine's process on this host."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._said = _Said()
        self.socket, theirs = socket.socketpair()
        path = os.pathsep.join(part for part in (_root(), os.environ.get("PYTHONPATH")) if part)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pyvmm", *arguments],
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._said.file,
                env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self.socket.close()
            raise HostError(
                f"cannot start the machine's process: {error.strerror}", "free some memory"
            ) from None
        finally:
            theirs.close()

    def wait(self, timeout: float) -> bool:
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def failure(self) -> PyvmmError:
        return self._said.failure(self._process.poll())

    def close(self) -> None:
        self._said.file.close()


class LabProcess:
    """The machine's process in a lab of ``architecture``; it starts, or is one that another machine has left."""

    def __init__(
        self, arguments: Sequence[str], architecture: str, files: Sequence[str], back: Sequence[str],
        env: Mapping[str, str],
    ) -> None:  # fmt: skip
        from pyvmm.api import labs

        self._said = _Said()
        self.socket, self._theirs = socket.socketpair()
        self._status: int | None = None
        self._error: PyvmmError | None = None
        self._ended = threading.Event()
        self._host = labs.take(architecture)
        self._arguments, self._files, self._back, self._env = (
            list(arguments),
            list(files),
            list(back),
            dict(env),
        )
        self._host.submit(self._run)

    def _run(self) -> None:
        """In the lab's thread: run the process to its end."""
        try:
            self._status = self._host.lab.run(
                ["pyvmm", *self._arguments], carry_in=self._files, carry_out=self._back, env=self._env,
                stdin=self._theirs.fileno(), stdout=self._theirs.fileno(), stderr=self._said.file.fileno(),
            )  # fmt: skip
        except PyvmmError as error:
            self._error = error
        except Exception as error:  # the lab was stopped meanwhile, and its connection closed
            self._error = HostError(f"the lab was stopped: {type(error).__name__}: {error}", "")
        finally:
            self._theirs.close()
            self._ended.set()

    def wait(self, timeout: float) -> bool:
        return self._ended.wait(timeout)

    def kill(self) -> None:
        """End it by stopping the lab: nothing less is sure to end what does not heed its connection."""
        self._host.stop()
        self._ended.wait(END_SECONDS)

    def failure(self) -> PyvmmError:
        return self._error or self._said.failure(self._status)

    def close(self) -> None:
        from pyvmm.api import labs

        if self._ended.is_set() and self._error is None:
            labs.give_back(self._host)
        else:
            self._host.stop()
        self._said.file.close()


def _root() -> str:
    """The directory that this package was imported from, for a process that starts elsewhere."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
