"""The machine's side of its control connections: clients, their lines and their queues, served by the event loop.

Nothing here blocks, and no client can hold the machine up: it has a few lines handled at a time, is not read while
it does not take its answers, and is dropped when what it asked to be sent as it comes piles up.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

from pyvmm import __version__
from pyvmm.control import commands, protocol
from pyvmm.control.connection import Connection, Follower
from pyvmm.control.protocol import Request, RequestError
from pyvmm.control.sockets import Listener, peer
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyvmm.control.protocol import Id
    from pyvmm.machine.machine import Machine

MOST_CLIENTS = 16
#: Commands of one client that wait for something, or follow the console, at a time: each costs work as it comes.
MOST_PENDING = 64
#: Lines of one client that are handled before the others, and the machine's console, have their turn.
LINES_A_TURN = 16
#: Seconds that clients have, at the end, to take what is left for them.
FAREWELL = 1.0


class Control:
    """Serves the connections to one machine.  It satisfies the machine's ``Control``.

    ``name`` is the machine's.  Those who connect come from a listening socket (:class:`SocketControl`), or there is one
    connection from the start (:class:`pyvmm.control.owner.OwnerControl`).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.busy = False
        self._clients: dict[int, Connection] = {}
        self._machine: Machine | None = None

    def attach(self, machine: Machine) -> None:
        """Serve this machine, in its event loop."""
        self._machine = machine
        machine.console.taps.append(self._printed)
        machine.control = self

    def failed(self, error: Exception) -> None:
        """There is no machine, or it cannot go on: tell those who would not learn it otherwise."""

    # -- for the event loop -----------------------------------------------------------------------------

    def register(self, poll: select.poll) -> None:
        """Say what has to be waited for."""
        for fd, client in self._clients.items():
            mask = (select.POLLIN if client.reading else 0) | (select.POLLOUT if client.output else 0)
            poll.register(fd, mask)

    def ready(self, fd: int) -> None:
        """Serve a descriptor that poll(2) reported; others than ours are ignored."""
        client = self._clients.get(fd)
        if client is None:
            return
        if client.ended and not client.output:  # nothing was waited for: the connection is broken
            client.close()
        if client.output and client.open:
            client.send()
        if client.reading and client.open:
            client.receive()
        if not client.open:
            self._forget()

    def step(self) -> None:
        """Handle what has come, a few lines of each client, and answer what had to wait."""
        for client in list(self._clients.values()):
            for _ in range(LINES_A_TURN):
                if not self._handle_line(client):
                    break
        self._answer_pauses()
        for client in self._clients.values():
            if client.done:
                client.close()
        self._forget()
        self.busy = any(client.takes_lines for client in self._clients.values())

    def _forget(self) -> None:
        """Those whose connection is closed."""
        for fd, client in list(self._clients.items()):
            if not client.open:
                del self._clients[fd]

    # -- the end ----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The run has ended: say so to those who wait, and give all a moment to take what is left for them."""
        machine = self._machine
        if machine is None or machine.end is None:
            return
        for client in list(self._clients.values()):
            if client.reading:
                client.receive()
        self.step()
        outcome = commands.outcome(machine)
        for client in self._clients.values():
            for id in client.waiting:
                client.queue(protocol.reply(id, outcome))
            for follower in client.followed:
                client.queue(protocol.event(follower.id, "ended", **outcome))
            client.waiting, client.followed = [], []
        self._farewell()

    def _farewell(self) -> None:
        deadline = time.monotonic() + FAREWELL
        while (left := deadline - time.monotonic()) > 0:
            self._forget()
            poll = select.poll()
            for fd, client in self._clients.items():
                if client.output:
                    poll.register(fd, select.POLLOUT)
            if not any(client.output for client in self._clients.values()):
                return
            for fd, _ in poll.poll(left * 1000):
                self._clients[fd].send()

    def close(self) -> None:
        """Hang up.  Idempotent."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    # -- lines ------------------------------------------------------------------------------------------

    def _handle_line(self, client: Connection) -> bool:
        """Handle the client's next line; whether there was one."""
        if not client.takes_lines:
            return False
        try:
            line = client.next_line()
        except RequestError as error:
            client.queue(protocol.failure(None, error))
            return False
        if line.strip():
            self._answer(client, line)
        return True

    def _answer(self, client: Connection, line: bytes) -> None:
        id: Id = None
        try:
            request = protocol.parse(line)
            id = request.id
            result = self._do(client, request)
        except RequestError as error:
            client.queue(protocol.failure(error.id, error))
        except PyvmmError as error:
            client.queue(protocol.failure(id, error))
        except Exception as error:  # a bug of ours must not end the machine
            if os.environ.get("PYVMM_DEBUG"):
                sys.excepthook(type(error), error, error.__traceback__)
            failure = PyvmmError(f"internal error: {type(error).__name__}: {error}", "this is a bug in pyvmm")
            client.queue(protocol.failure(id, failure))
        else:
            if result is not None:
                client.queue(protocol.reply(id, result))

    def _do(self, client: Connection, request: Request) -> Mapping[str, object] | None:
        """The answer to a request; None if it is still to come, or has been given."""
        machine, command, arguments = self._machine, request.command, request.arguments
        assert machine is not None, "lines are handled by the machine's event loop"
        waits = command in ("pause", "wait") or (command == "console" and arguments["follow"])
        if waits and client.pending >= MOST_PENDING:
            raise PyvmmError(f"{MOST_PENDING} commands are waiting already", "hang up, and ask once")
        if command == "status":
            return commands.status(machine, self.name)
        if command == "pause":
            commands.pause(machine)
            client.pausing.append(request.id)
            return None
        if command == "resume":
            self._cancel_pauses("the machine was resumed before it had stopped")
            return commands.resume(machine)
        if command == "console":
            return self._console(machine, client, request)
        if command == "wait":
            client.waiting.append(request.id)
            return None
        if command == "port":
            return self._port(client, **arguments)
        if command == "version":
            return {"version": __version__}
        return commands.SIMPLE[command](machine, **arguments)

    def _port(self, client: Connection, name: str, data: bytes) -> Mapping[str, object]:
        raise PyvmmError("no port is joined to this connection", "only the owner of a machine has its ports")

    def _answer_pauses(self) -> None:
        machine = self._machine
        if machine is None or not any(client.pausing for client in self._clients.values()):
            return
        if machine.ends:
            self._cancel_pauses("the machine ended before it had stopped")
        elif machine.pauser().step():
            for client in self._clients.values():
                for id in client.pausing:
                    client.queue(protocol.reply(id, {"state": "paused"}))
                client.pausing = []

    def _cancel_pauses(self, reason: str) -> None:
        for client in self._clients.values():
            for id in client.pausing:
                client.queue(protocol.failure(id, PyvmmError(reason, "look at its status")))
            client.pausing = []

    # -- the console ------------------------------------------------------------------------------------

    def _console(self, machine: Machine, client: Connection, request: Request) -> Mapping[str, object] | None:
        console = machine.console
        result = {"data": console.tail(request.arguments["bytes"]), "total": console.total}
        if not request.arguments["follow"]:
            return result
        client.queue(protocol.reply(request.id, result))  # before the first event
        client.followed.append(Follower(request.id))
        return None

    def _printed(self, data: bytes) -> None:
        """The guest printed ``data``."""
        for client in self._clients.values():
            for follower in client.followed:
                client.queue(follower.event(data))


class SocketControl(Control):
    """The control socket at ``path``; made before the machine, so that a path that cannot be used is found first."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(name)
        self._listener = Listener(path)
        self._accept_from = 0.0

    @property
    def path(self) -> str:
        """Where the socket stands."""
        return self._listener.path

    def register(self, poll: select.poll) -> None:
        if time.monotonic() >= self._accept_from:
            poll.register(self._listener.socket.fileno(), select.POLLIN)
        super().register(poll)

    def ready(self, fd: int) -> None:
        if fd == self._listener.socket.fileno():
            self._accept()
        else:
            super().ready(fd)

    def close(self) -> None:
        """Hang up and remove the socket.  Idempotent."""
        super().close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.socket.accept()
        except BlockingIOError:  # it went away again
            return
        except OSError:  # no descriptors are left: whoever wants to connect has to wait
            self._accept_from = time.monotonic() + 1.0
            return
        if not _is_ours(connection):
            connection.close()
            return
        client = Connection(connection)
        if len(self._clients) >= MOST_CLIENTS:
            error = PyvmmError(f"the machine has {MOST_CLIENTS} clients already", "close one of them")
            client.queue(protocol.failure(None, error))
            client.close()
            return
        self._clients[connection.fileno()] = client


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other side is the same user."""
    try:
        return peer(connection)[1] == os.geteuid()
    except OSError:
        return False
