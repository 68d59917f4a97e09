"""``pyvmm boot --control -``: standard input and output are one control connection, of whoever owns the machine.

The owner is told everything without asking: what the console prints (exactly, as base64), what joined ports say, that
the machine started or why it could not, and how it ended, with all that the result file holds.  Nothing is dropped: a
slow owner makes the guest wait.  Once the machine has ended, its memory and registers can still be asked for; when
the owner hangs up, the machine ends and so does the process.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import threading

from pyvmm.control import protocol
from pyvmm.control.connection import OUTPUT_PAUSES, Connection, Follower
from pyvmm.control.ports import Ports
from pyvmm.control.server import Control
from pyvmm.errors import PyvmmError
from pyvmm.machine.outcome import End, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyvmm.machine.machine import Machine

#: Seconds that the pipes have, after the end, to take what is left.
_LAST_SECONDS = 5.0


class OwnerControl(Control):
    """The owner's connection over standard input and output, which nothing else is to use from now on."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._pipes: list[threading.Thread] = []
        self._owner = Connection(self._take_over(), owner=True)
        self._owner.followed.append(Follower(None, exact=True))
        self._clients[self._owner.socket.fileno()] = self._owner
        self._ports: Ports | None = None

    def attach(self, machine: Machine) -> None:
        super().attach(machine)
        self._ports = Ports(machine)
        self._owner.queue(protocol.event(None, "started", pid=os.getpid(), arch=machine.arch.NAME))

    def failed(self, error: Exception) -> None:
        """Say why there is no machine, or why it cannot go on."""
        message = getattr(error, "message", f"{type(error).__name__}: {error}")
        hint = getattr(error, "hint", "")
        self._owner.queue(protocol.event(None, "failed", type=type(error).__name__, error=message, hint=hint))
        self._farewell()

    def step(self) -> None:
        super().step()
        machine = self._machine
        assert machine is not None, "only a machine's event loop calls this"
        if self._ports is not None and len(self._owner.output) < OUTPUT_PAUSES:
            for line in self._ports.events():
                self._owner.queue(line)
        held = len(self._owner.output) >= OUTPUT_PAUSES
        if held != machine.console.held:
            machine.console.held = held
            self.busy = True  # the console has to look at it once more
        if self._gone and not machine.ends:
            detail = "whoever started the machine went away"
            machine.ends.append(End(Outcome.INTERRUPTED, status=signal.SIGHUP, detail=detail))

    @property
    def _gone(self) -> bool:
        return self._owner.ended or not self._owner.open

    def finish(self) -> None:
        """Tell the owner how it ended, and answer until the owner hangs up."""
        machine = self._machine
        if machine is None or machine.end is None:
            return
        machine.console.held = False
        if self._ports is not None:
            for line in self._ports.events():
                self._owner.queue(line)
        self._owner.followed.clear()
        self._owner.queue(protocol.event(None, "ended", result=machine.result()))
        super().finish()
        while not self._gone:
            poll = select.poll()
            self.register(poll)
            for fd, _ in poll.poll(0 if self.busy else None):
                self.ready(fd)
            self.step()

    def close(self) -> None:
        super().close()
        for pipe in self._pipes:
            pipe.join(_LAST_SECONDS)

    def _port(self, client: Connection, name: str, data: bytes) -> Mapping[str, object]:
        if self._ports is None or client is not self._owner:
            raise PyvmmError(
                "no port is joined to this connection", "only the owner of a machine has its ports"
            )
        return self._ports.send(name, data)

    def _take_over(self) -> socket.socket:
        """Standard input and output as one socket: they are one already, or two pipes.  In their places come /dev/null
        and standard error, so that nobody else speaks on the connection."""
        source, sink = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        status, other = os.fstat(source), os.fstat(sink)
        if stat.S_ISSOCK(status.st_mode) and status.st_ino == other.st_ino:
            os.close(sink)
            return socket.socket(fileno=source)
        ours, theirs = socket.socketpair()
        # What comes is read to its end by a thread that nobody waits for; what goes has to be written out at the end.
        threading.Thread(target=_pump, args=(source, theirs, False), daemon=True).start()
        outward = threading.Thread(target=_pump, args=(sink, theirs, True), daemon=True)
        outward.start()
        self._pipes.append(outward)
        return ours


def _pump(pipe: int, inner: socket.socket, outward: bool) -> None:
    """Carry bytes between a pipe and ``inner``, one way, until either ends."""
    try:
        if outward:
            while data := inner.recv(65536):
                while data:
                    data = data[os.write(pipe, data) :]
        else:
            while data := os.read(pipe, 65536):
                inner.sendall(data)
            inner.shutdown(socket.SHUT_WR)
    except OSError:  # the other side is gone
        try:
            inner.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
