"""Runs commands in the guest by its agent, over whatever carries bytes there and back."""

from __future__ import annotations

import itertools
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence

from pyvmm.agent.protocol import VERSION, Decoder, ProtocolError, Type, exec_payload, frame
from pyvmm.agent.running import RunningCommand


class AgentInfo:
    """The agent that answered: the ``version`` of its protocol, its process id, the kernel's release and machine."""

    def __init__(self, version: int, pid: int, release: str, machine: str) -> None:
        self.version = version
        self.pid = pid
        self.release = release
        self.machine = machine


class AgentClient:
    """The host's side of the agent.

    ``send`` carries bytes to the agent; what comes from there goes to :meth:`feed`, always in the same thread, which is
    that in which commands' output is handed over.  All other methods are for any thread.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._decoder = Decoder()
        self._info: AgentInfo | None = None
        self._error: Exception | None = None
        self._commands: dict[int, RunningCommand] = {}
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._sending = threading.Lock()

    def wait_ready(self, timeout: float | None = None) -> AgentInfo:
        """Wait until the agent has answered, at most ``timeout`` seconds.

        :raises TimeoutError: it did not
        :raises Exception: what :meth:`lost` was given
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._info or self._error, timeout):
                raise TimeoutError(f"the agent did not answer within {timeout} s")
            if self._error is not None:
                raise self._error
            assert self._info is not None
            return self._info

    def start(
        self,
        argv: Sequence[str | bytes],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pty: tuple[int, int] | None = None,
        on_stdout: Callable[[bytes], None],
        on_stderr: Callable[[bytes], None],
        timeout: float | None = None,
    ) -> RunningCommand:
        """Start a command once the agent is ready, and wait until the guest executes it.

        ``argv``: the program, looked for in PATH, and its arguments.  ``env`` is added to the agent's environment.
        ``cwd``: its directory, the agent's if None.  ``pty``: rows and columns of a terminal for it.  ``timeout``:
        seconds for all of this.

        :raises CannotRun: it cannot be executed
        :raises UsageError: the arguments cannot be passed on
        :raises TimeoutError: it took longer
        """
        payload = exec_payload(argv, env, cwd, pty)
        self.wait_ready(timeout)
        id = next(self._ids)
        name = argv[0] if isinstance(argv[0], str) else os.fsdecode(argv[0])
        command = RunningCommand(self, id, name, on_stdout, on_stderr)
        with self._changed:
            if self._error is not None:
                raise self._error
            self._commands[id] = command
        self.send(Type.EXEC, id, payload)
        try:
            command._wait_started(timeout)
        except BaseException:  # TimeoutError, or Ctrl-C: nobody has it to end it
            command.kill()
            raise
        return command

    def shutdown(self) -> None:
        """Have the agent end everything, write it out, and switch the machine off."""
        self.send(Type.SHUTDOWN)

    def ping(self) -> None:
        """Ask for READY again, as somebody does who comes late."""
        self.send(Type.PING)

    def send(self, type: Type, id: int = 0, payload: bytes = b"") -> None:
        """Send a frame; nothing once the agent is lost."""
        if self._error is None:
            with self._sending:
                self._send(frame(type, id, payload))

    def feed(self, data: bytes) -> None:
        """Take what came from the agent, in pieces of any size.  A guest that does not keep to the protocol is lost."""
        if self._error is not None:
            return
        try:
            for type, id, payload in self._decoder.feed(data):
                self._take(type, id, payload)
        except (ProtocolError, struct.error, ValueError, OverflowError) as error:
            if not isinstance(error, ProtocolError):
                error = ProtocolError(f"the guest's agent sent nonsense: {error}", "is it pyvmm's agent?")
            self.lost(error)
        except Exception as error:  # of who takes the output: nobody may wait for what does not come
            self.lost(error)
            raise

    def lost(self, error: Exception) -> None:
        """There is no agent any more: everything that waits raises ``error``, and so does everything from now on."""
        with self._changed:
            if self._error is None:
                self._error = error
            commands = list(self._commands.values())
            self._commands.clear()
            self._changed.notify_all()
        for command in commands:
            command._end(None, error)

    def _take(self, type: Type, id: int, payload: bytes) -> None:
        if type is Type.READY:
            self._ready(payload)
            return
        command = self._commands.get(id)
        if command is None:
            return
        if type in (Type.STDOUT, Type.STDERR):
            command._output(type, payload)
        elif type is Type.MORE_STDIN:
            command._granted(*struct.unpack("<I", payload))
        elif type is Type.STARTED:
            command._started(*struct.unpack("<I", payload))
        elif type is Type.EXITED:
            (status,) = struct.unpack("<i", payload)
            command._end(max(-64, min(status, 255)))
            self._commands.pop(id, None)
        elif type is Type.FAILED:
            command._failed(*struct.unpack("<II", payload))
            self._commands.pop(id, None)  # last: what goes wrong before is told to it by lost()

    def _ready(self, payload: bytes) -> None:
        version, pid = struct.unpack_from("<II", payload)
        release, machine = (text.decode() for text in payload[8:].split(b"\0")[:2])
        if version != VERSION:
            raise ProtocolError(
                f"the guest's agent speaks version {version} of the protocol, this pyvmm {VERSION}",
                "give the guest the agent of this pyvmm",
            )
        with self._changed:
            self._info = AgentInfo(version, pid, release, machine)
            self._changed.notify_all()
