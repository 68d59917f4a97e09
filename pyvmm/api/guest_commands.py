"""Commands in a machine's guest, by its agent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pyvmm.api.command import Command, Completed, arguments_of
from pyvmm.api.console import Console
from pyvmm.errors import CommandFailed, CommandTimeout, ExpectTimeout, UsageError

if TYPE_CHECKING:
    from pyvmm.agent import AgentClient

#: Bytes of output that :meth:`GuestCommands.run` collects, if it is not told otherwise.
MAX_OUTPUT = 256 << 20
#: ``timeout`` of a method that is to take the machine's own.
_OWN = -1.0


class GuestCommands:
    """What :class:`pyvmm.Machine` offers of this; it provides the console, which raises NotImplementedError here, and
    makes the agent's client where there is to be one.

    ``log``: where the whole console is kept.  ``expect_timeout``: seconds to wait for the agent where nothing is said.
    """

    def __init__(self, log: str | None, expect_timeout: float | None) -> None:
        self.log = log
        self._expect_timeout = expect_timeout
        self._agent: AgentClient | None = None

    @property
    def console(self) -> Console:
        """The guest's console, the end of which goes into errors."""
        raise NotImplementedError

    def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Completed:
        """Run a command in the guest, as root, and wait for its end; its streams are its own, not the console's.

        ``command``: a text for the guest's shell, or a list of program and arguments.  ``timeout`` in seconds, from
        when the guest is ready; then the command is killed.  ``input`` is its standard input.  ``env`` is added to its
        environment, ``cwd`` its working directory.  ``max_output``: bytes of stdout and stderr together; a command that
        prints more is killed.

        :raises CommandFailed: with ``check``, the status is not 0; it printed too much
        :raises CommandTimeout: it took too long; with what it had printed
        :raises GuestError: the command cannot be executed, or the machine ended meanwhile (GuestPanic, ...)
        """
        running = Command(arguments_of(command), max_output)
        name = command if isinstance(command, str) else " ".join(map(os.fsdecode, command))
        self.wait_ready()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._begin(running, env=env, cwd=cwd, timeout=timeout)
            running.feed(input.encode() if isinstance(input, str) else input)
            done = running.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            running.kill()
            raise CommandTimeout(
                f"'{name}' did not end within {timeout:g} s", "give it more time, or look at what it printed",
                returncode=None, stdout=bytes(running.stdout), stderr=bytes(running.stderr),
                console_tail=self.console.tail(), log=self.log,
            ) from None  # fmt: skip
        if running.too_much:
            raise CommandFailed(
                f"'{name}' printed more than {max_output} bytes, and was killed",
                "allow more with max_output, or take it as it comes: popen() with on_stdout and on_stderr",
                returncode=done.returncode, stdout=done.stdout, stderr=done.stderr,
                console_tail=self.console.tail(), log=self.log,
            )  # fmt: skip
        if check and done.returncode:
            how = f"status {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise CommandFailed(
                f"'{name}' ended with {how}{f': {last[0]}' if last else ''}", "look at its stderr",
                returncode=done.returncode, stdout=done.stdout, stderr=done.stderr,
                console_tail=self.console.tail(), log=self.log,
            )  # fmt: skip
        return done

    def popen(
        self,
        command: str | Sequence[str | bytes],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pty: tuple[int, int] | None = None,
        on_stdout: Callable[[bytes], None] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
        timeout: float | None = None,
    ) -> Command:
        """Start a command in the guest; as :meth:`run`, but it goes on.

        ``pty``: rows and columns of a terminal for it; then all its output is in stdout.  ``on_stdout`` and
        ``on_stderr`` are called with what comes, in a thread of the machine's, and must not wait; without them it is
        collected.  ``timeout``: seconds until the guest executes it, or TimeoutError.
        """
        return self._begin(
            Command(arguments_of(command)),
            env=env,
            cwd=cwd,
            pty=pty,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            timeout=timeout,
        )

    def _begin(
        self,
        running: Command,
        *,
        env: Mapping[str, str] | None,
        cwd: str | None,
        pty: tuple[int, int] | None = None,
        on_stdout: Callable[[bytes], None] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
        timeout: float | None = None,
    ) -> Command:
        started = self._ready_agent().start(
            running.args, env=env, cwd=cwd, pty=pty, timeout=timeout,
            on_stdout=on_stdout or running._collect_stdout, on_stderr=on_stderr or running._collect_stderr,
        )  # fmt: skip
        return running._attach(started)

    def wait_ready(self, timeout: float | None = _OWN) -> None:
        """Wait until the guest's agent answers.

        :raises ExpectTimeout: it did not in time
        :raises GuestError: the machine ended
        """
        limit = self._expect_timeout if timeout == _OWN else timeout
        agent = self._agent
        if agent is None:
            raise UsageError("the machine has no agent to run commands", "make it with agent=True")
        try:
            agent.wait_ready(limit)
        except TimeoutError:
            raise ExpectTimeout(
                f"the guest's agent did not answer within {limit:g} s",
                "is it in the guest, with the drivers for virtio consoles (virtio_mmio, virtio_console)?",
                console_tail=self.console.tail(), log=self.log,
            ) from None  # fmt: skip

    def _ready_agent(self) -> AgentClient:
        self.wait_ready()
        assert self._agent is not None
        return self._agent
