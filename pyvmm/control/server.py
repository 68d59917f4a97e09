"""The machine's side of the control socket: clients, their lines and their queues, served by the event loop.

Nothing here blocks, and no client can hold the machine up: it has a few lines handled at a time, is not read while
it does not take its answers, and is dropped when what it asked to be sent as it comes piles up.
"""

from __future__ import annotations

import codecs
import os
import select
import socket
import sys
import time

from pyvmm import __version__
from pyvmm.control import commands, protocol
from pyvmm.control.protocol import Id, Request, RequestError
from pyvmm.control.sockets import Listener, peer
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyvmm.machine.machine import Machine

MOST_CLIENTS = 16
#: Commands of one client that wait for something, or follow the console, at a time: each costs work as it comes.
MOST_PENDING = 64
#: Lines of one client that are handled before the others, and the machine's console, have their turn.
LINES_A_TURN = 16
#: Bytes of answers a client may leave lying before it is read no further, and before it is dropped.
OUTPUT_PAUSES = 256 * 1024
OUTPUT_MOST = 4 * 1024 * 1024
_READ = 64 * 1024
#: Seconds that clients have, at the end, to take what is left for them.
FAREWELL = 1.0


class Client:
    """One connection: what came and is not handled yet, what is to be sent, and what it waits for."""

    __slots__ = ("connection", "ended", "followed", "input", "output", "pausing", "waiting")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.input = bytearray()
        self.output = bytearray()
        self.ended = False  # it sends no more, or has sent something after which it is not listened to
        self.followed: list[tuple[Id, codecs.IncrementalDecoder]] = []
        self.pausing: list[Id] = []
        self.waiting: list[Id] = []

    @property
    def reading(self) -> bool:
        """Whether more of it is read: not while it has lines waiting, as it has if it leaves its answers lying."""
        return not self.ended and not self.ready_lines

    @property
    def ready_lines(self) -> bool:
        """Whether there is something to handle."""
        has_line = b"\n" in self.input or len(self.input) > protocol.MOST_LINE
        return has_line or (self.ended and bool(self.input))

    @property
    def done(self) -> bool:
        """Whether nothing is to be expected, on either side."""
        expects = self.followed or self.pausing or self.waiting
        return self.ended and not self.input and not self.output and not expects


class Control:
    """The control socket of one machine, at ``path``; made before the machine, so that a path that cannot be used is
    found first.  It satisfies the machine's ``Control``."""

    def __init__(self, path: str, name: str) -> None:
        self.name = name
        self.busy = False
        self._listener = Listener(path)
        self._clients: dict[int, Client] = {}
        self._machine: Machine | None = None
        self._accept_from = 0.0

    @property
    def path(self) -> str:
        """Where the socket stands."""
        return self._listener.path

    def attach(self, machine: Machine) -> None:
        """Serve this machine, in its event loop."""
        self._machine = machine
        machine.console.taps.append(self._printed)
        machine.control = self

    # -- for the event loop -----------------------------------------------------------------------------

    def register(self, poll: select.poll) -> None:
        """Say what has to be waited for."""
        if time.monotonic() >= self._accept_from:
            poll.register(self._listener.socket.fileno(), select.POLLIN)
        for fd, client in self._clients.items():
            mask = (select.POLLIN if client.reading else 0) | (select.POLLOUT if client.output else 0)
            poll.register(fd, mask)

    def ready(self, fd: int) -> None:
        """Serve a descriptor that poll(2) reported; others than ours are ignored."""
        if fd == self._listener.socket.fileno():
            self._accept()
            return
        client = self._clients.get(fd)
        if client is None:
            return
        if client.ended and not client.output:  # nothing was waited for: the connection is broken
            self._drop(client)
            return
        if client.output:
            self._send(client)
        if client.reading:
            self._receive(client)

    def step(self) -> None:
        """Handle what has come, a few lines of each client, and answer what had to wait."""
        for client in list(self._clients.values()):
            for _ in range(LINES_A_TURN):
                if not self._handle_line(client):
                    break
        self._answer_pauses()
        for client in list(self._clients.values()):
            if client.done:
                self._drop(client)
        self.busy = any(
            client.ready_lines and len(client.output) < OUTPUT_PAUSES for client in self._clients.values()
        )

    # -- the end ----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The run has ended: say so to those who wait, and give all a moment to take what is left for them."""
        machine = self._machine
        if machine is None or machine.end is None:
            return
        for client in list(self._clients.values()):
            if client.reading:
                self._receive(client)
        self.step()
        outcome = commands.outcome(machine)
        for client in list(self._clients.values()):
            for id in client.waiting:
                self._queue(client, protocol.reply(id, outcome))
            for id, _ in client.followed:
                self._queue(client, protocol.event(id, "ended", **outcome))
            client.waiting, client.followed = [], []
        deadline = time.monotonic() + FAREWELL
        while (left := deadline - time.monotonic()) > 0:
            poll = select.poll()
            for fd, client in self._clients.items():
                if client.output:
                    poll.register(fd, select.POLLOUT)
            if not any(client.output for client in self._clients.values()):
                return
            for fd, _ in poll.poll(left * 1000):
                self._send(self._clients[fd])

    def close(self) -> None:
        """Hang up and remove the socket.  Idempotent."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._listener.close()

    # -- connections ------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.socket.accept()
        except BlockingIOError:  # it went away again
            return
        except OSError:  # no descriptors are left: whoever wants to connect has to wait
            self._accept_from = time.monotonic() + 1.0
            return
        connection.setblocking(False)
        try:
            allowed = peer(connection)[1] == os.geteuid()
        except OSError:
            allowed = False
        if not allowed:
            connection.close()
            return
        if len(self._clients) >= MOST_CLIENTS:
            error = PyvmmError(f"the machine has {MOST_CLIENTS} clients already", "close one of them")
            try:
                connection.send(protocol.failure(None, error))
            except OSError:
                pass
            connection.close()
            return
        self._clients[connection.fileno()] = Client(connection)

    def _drop(self, client: Client) -> None:
        self._clients.pop(client.connection.fileno(), None)
        client.connection.close()
        client.output.clear()

    def _receive(self, client: Client) -> None:
        try:
            data = client.connection.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.input += data
        client.ended = not data

    def _queue(self, client: Client, line: bytes) -> None:
        """Send ``line`` as far as it goes, keep the rest; a client that left too much lying is dropped."""
        if client.connection.fileno() < 0:
            return
        client.output += line
        if len(client.output) == len(line) or len(client.output) > OUTPUT_MOST:
            self._send(client)
        if len(client.output) > OUTPUT_MOST:
            self._drop(client)

    def _send(self, client: Client) -> None:
        try:
            sent = client.connection.send(client.output)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        del client.output[:sent]

    # -- lines ------------------------------------------------------------------------------------------

    def _handle_line(self, client: Client) -> bool:
        """Handle the client's next line; whether there was one."""
        if client.connection.fileno() < 0 or len(client.output) >= OUTPUT_PAUSES or not client.ready_lines:
            return False
        end = client.input.find(b"\n")
        line = bytes(client.input if end < 0 else client.input[:end])
        if len(line) > protocol.MOST_LINE:
            error = RequestError(f"a line of more than {protocol.MOST_LINE} bytes", "send shorter ones")
            client.input.clear()
            client.ended = True
            self._queue(client, protocol.failure(None, error))
            return False
        del client.input[: len(line) + 1]
        if line.strip():
            self._answer(client, line)
        return True

    def _answer(self, client: Client, line: bytes) -> None:
        id: Id = None
        try:
            request = protocol.parse(line)
            id = request.id
            result = self._do(client, request)
        except RequestError as error:
            self._queue(client, protocol.failure(error.id, error))
        except PyvmmError as error:
            self._queue(client, protocol.failure(id, error))
        except Exception as error:  # a bug of ours must not end the machine
            if os.environ.get("PYVMM_DEBUG"):
                sys.excepthook(type(error), error, error.__traceback__)
            failure = PyvmmError(f"internal error: {type(error).__name__}: {error}", "this is a bug in pyvmm")
            self._queue(client, protocol.failure(id, failure))
        else:
            if result is not None:
                self._queue(client, protocol.reply(id, result))

    def _do(self, client: Client, request: Request) -> Mapping[str, object] | None:
        """The answer to a request; None if it is still to come, or has been given."""
        machine, command, arguments = self._machine, request.command, request.arguments
        assert machine is not None, "lines are handled by the machine's event loop"
        waits = command in ("pause", "wait") or (command == "console" and arguments["follow"])
        if waits and len(client.pausing) + len(client.waiting) + len(client.followed) >= MOST_PENDING:
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
        if command == "stop":
            return commands.stop(machine, arguments["force"])
        if command == "console":
            return self._console(machine, client, request)
        if command == "exits":
            return commands.exits(machine)
        if command == "devices":
            return commands.devices(machine)
        if command == "balloon":
            return commands.balloon(machine, arguments["target"])
        if command == "wait":
            client.waiting.append(request.id)
            return None
        return commands.help_() if command == "help" else {"version": __version__}

    def _answer_pauses(self) -> None:
        machine = self._machine
        if machine is None or not any(client.pausing for client in self._clients.values()):
            return
        if machine.ends:
            self._cancel_pauses("the machine ended before it had stopped")
        elif machine.pauser().step():
            for client in list(self._clients.values()):
                for id in client.pausing:
                    self._queue(client, protocol.reply(id, {"state": "paused"}))
                client.pausing = []

    def _cancel_pauses(self, reason: str) -> None:
        for client in list(self._clients.values()):
            for id in client.pausing:
                self._queue(client, protocol.failure(id, PyvmmError(reason, "look at its status")))
            client.pausing = []

    # -- the console ------------------------------------------------------------------------------------

    def _console(self, machine: Machine, client: Client, request: Request) -> Mapping[str, object] | None:
        console = machine.console
        result = {"data": console.tail(request.arguments["bytes"]), "total": console.total}
        if not request.arguments["follow"]:
            return result
        self._queue(client, protocol.reply(request.id, result))  # before the first event
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        client.followed.append((request.id, decoder))
        return None

    def _printed(self, data: bytes) -> None:
        """The guest printed ``data``."""
        for client in list(self._clients.values()):
            for id, decoder in client.followed:
                text = decoder.decode(data)
                if text:
                    self._queue(client, protocol.event(id, "console", data=text))
