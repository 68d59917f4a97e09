"""Lab: one emulated host, from its start over the commands run in it to its end."""

from __future__ import annotations

import os
import shutil
import time

from pyvmm.errors import HostError, UsageError
from pyvmm.lab import carry
from pyvmm.lab.choice import default_architecture
from pyvmm.lab.client import Client
from pyvmm.lab.command import Command, Run, Stopped
from pyvmm.lab.platforms import platform
from pyvmm.lab.qemu import Qemu
from pyvmm.lab.starter import Starter, environment
from pyvmm.lab.transfer import Outgoing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

SMALLEST_MEMORY = 512


def _silent(_text: str) -> None:
    pass


class CommandNotStarted(HostError):
    """A command could not be executed in the lab; ``status`` is what a shell gives then, 126 or 127."""

    def __init__(self, program: str, status: int, why: str) -> None:
        hint = "give its path, so that it is carried in"
        if "/" not in program and (found := shutil.which(program)) is not None:
            hint = f"the lab is a system of its own; to carry this host's program in, run {found}"
        super().__init__(f"cannot run {program} in the lab: {why}", hint)
        self.status = status


class Lab:
    """One emulated host of architecture ``arch`` (this host's by default, as far as there is a lab of it), with
    ``cpus`` processors and ``memory_mib`` MiB.

    Started by ``with``, or by the first :meth:`run` (then for that run alone).  ``cold``: boot it instead of
    starting from a saved state.  ``rebuild``: make the base image and the saved state anew.  ``report`` is
    told, in a few words each, what takes long; ``verbose`` tells it the times of what is quick as well.
    """

    def __init__(
        self, arch: str | None = None, cpus: int = 2, memory_mib: int = 3072, *, cold: bool = False,
        rebuild: bool = False, report: Callable[[str], None] | None = None, verbose: bool = False,
    ) -> None:  # fmt: skip
        if not 1 <= cpus <= 64:
            raise UsageError(f"the lab cannot have {cpus} processors", "choose 1 to 64")
        if memory_mib < SMALLEST_MEMORY:
            raise UsageError(
                f"{memory_mib} MiB are too few for the lab", f"give it at least {SMALLEST_MEMORY}M"
            )
        self._memory_mib = memory_mib
        self._cold = cold
        self._rebuild = rebuild
        self._report = report or _silent
        self._verbose = verbose
        self._starter = Starter(
            platform(arch or default_architecture()), cpus, memory_mib, self._report, self._note
        )
        self._qemu: Qemu | None = None
        self._client: Client | None = None
        self._environment: dict[str, str] = {}
        self.timed_out = False
        """Whether the last run was ended by its timeout."""

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """QEMU's process, if the lab is started."""
        return None if self._qemu is None else self._qemu.pid

    @property
    def console(self) -> str:
        """The end of the console of the lab's own kernel; empty when the lab is not started."""
        return "" if self._qemu is None else self._qemu.console_tail(200)

    def start(self) -> None:
        """Start the lab, building what it needs where that is missing, and carry the project in.

        :raises HostError: something is missing on this host
        :raises LabError: the lab does not come up
        """
        self._started()

    def _started(self) -> Client:
        if self._client is not None:
            return self._client
        started = time.monotonic()
        self._qemu, client = self._starter.start(cold=self._cold, rebuild=self._rebuild)
        self._rebuild = False
        self._note(f"up after {time.monotonic() - started:.2f} s")
        try:
            self._put_project(client)
        except BaseException:
            self.close()
            raise
        self._note(f"ready after {time.monotonic() - started:.2f} s")
        self._client = client
        return client

    def close(self) -> None:
        """Stop the lab; harmless when it is stopped."""
        if self._qemu is not None:
            self._qemu.stop()
        self._qemu = self._client = None

    def run(
        self,
        argv: Sequence[str],
        *,
        carry_in: Sequence[str] = (),
        carry_out: Sequence[str] = (),
        stdin: int | None = 0,
        stdout: int = 1,
        stderr: int = 2,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        forward_signals: bool = False,
    ) -> int:
        """Run a command in the lab; returns its exit status, 128 + n after signal n, 124 after ``timeout`` seconds.

        ``stdin`` (None: nothing to read), ``stdout`` and ``stderr`` are descriptors of this process; if the
        first two are terminals, the command gets one too.  Regular files that the command's arguments name, and
        ``carry_in`` (with directories), are there at the same paths; ``carry_out`` come back if they exist then.
        ``env`` adds to the command's environment.  ``forward_signals`` (in the main thread only): SIGINT,
        SIGTERM, SIGHUP and SIGQUIT go to the command instead of to this process.

        :raises LabError: the lab ended or failed
        :raises CommandNotStarted: there is no such command in the lab, or it cannot be executed
        :raises UsageError: a file cannot be carried
        """
        if not argv:
            raise UsageError("there is no command to run in the lab", "pyvmm lab -- COMMAND ...")
        here = os.getcwd() if cwd is None else os.path.abspath(cwd)
        command = Command(argv, dict(env or {}), here, stdin, stdout, stderr, timeout, forward_signals)
        if self._client is not None:
            return self._run(self._client, command, carry_in, carry_out)
        try:
            return self._run(self._started(), command, carry_in, carry_out)
        finally:
            self.close()

    def _run(
        self, client: Client, command: Command, carry_in: Sequence[str], carry_out: Sequence[str]
    ) -> int:
        wanted = carry.within(carry_out, command.cwd)
        self._carry_in(
            client, [*carry.named_files(command.argv, command.cwd), *carry_in], wanted, command.cwd
        )
        command.env = {**self._environment, **command.env}
        self.timed_out = False
        try:
            status, failure = Run(client, command).serve()
        except Stopped as stopped:
            self.timed_out = stopped.timed_out
            self.close()
            return stopped.status
        except BaseException:
            self.close()  # whatever the command does now, nobody would notice
            raise
        self.timed_out = command.timed_out
        if failure:
            raise CommandNotStarted(command.argv[0], status, failure)
        if wanted:
            for absent in client.get(wanted, lambda path: carry.is_allowed(path, wanted)):
                self._report(f"{absent} was not there to be carried out")
        return status

    def _carry_in(self, client: Client, paths: Sequence[str], wanted: Sequence[str], cwd: str) -> None:
        """Put ``paths`` there, and the directories that the files of ``wanted`` will be written to."""
        transfer = Outgoing()
        for folder in dict.fromkeys(os.path.dirname(path) for path in wanted):
            if os.path.isdir(folder):
                transfer.add_directory(folder)
        carry.add_paths(transfer, paths, cwd)
        if transfer.size > (self._memory_mib << 20) // 2:
            raise UsageError(
                f"the files to carry in have {transfer.size >> 20} MiB, more than half the lab's memory",
                "give the lab more --memory",
            )
        if transfer.entries:
            client.put(transfer)

    def _put_project(self, client: Client) -> None:
        transfer = Outgoing()
        found = carry.add_project(transfer, client.python)
        client.put(transfer)
        self._environment = {**environment(), **found}
        self._note(f"the project: {len(transfer.entries)} entries, {transfer.size} bytes")

    def _note(self, text: str) -> None:
        if self._verbose:
            self._report(text)
