"""A machine as a Python object: :class:`Machine`."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyvmm.api.console import Console
from pyvmm.api.end import End
from pyvmm.api.guest_commands import GuestCommands
from pyvmm.api.inspection import Inspection
from pyvmm.api.kernel import find_image
from pyvmm.api.link import Link, Lost, error_of
from pyvmm.api.plan import AGENT_PORT, Plan
from pyvmm.api.process import END_SECONDS, Process
from pyvmm.errors import (
    ExpectTimeout,
    GuestError,
    GuestPanic,
    HostError,
    PyvmmError,
    TripleFault,
    UnexpectedExit,
    UsageError,
)
from pyvmm.machine.outcome import Outcome

if TYPE_CHECKING:
    from pyvmm.api.root import Root
    from pyvmm.ktap import Ktap

#: Seconds that a machine has to start, the guest's kernel not counted: files are read, a lab may be built.
START_SECONDS = 900.0
#: Bytes of input for a port in one request.
_PIECE = 32 * 1024


class Machine(Inspection, GuestCommands):
    """A virtual machine that boots ``kernel``; it starts with ``with``, or :meth:`start`, and ends with the block.

    >>> with Machine(hello) as vm:
    ...     vm.console.expect("hello from (.*)\\n").group(1)
    ...     vm.wait().outcome
    'a guest of pyvmm'
    'exit'

    ``kernel``: an image, or a kernel's build tree.  ``cmdline``: the kernel's command line, None for the serial console
    alone.  ``initrd``: a path, or the bytes themselves.  ``memory``: bytes, or text such as "512M".  ``cpus``: vCPUs.
    ``timeout``: seconds after which the machine is stopped (None: never).  ``devices``: what ``pyvmm boot`` takes after
    ``--``, as ``["disk=root.img,overlay", "net=user", "rng"]``.  ``options``: more of its options, as they are typed.
    ``lab``: run in the lab, an emulated host, instead of here.  ``log``: a file for the whole console.
    ``on_console``: is given what the console shows, in a thread of the machine's.  ``expect_timeout``: seconds that
    :attr:`console` waits where nothing else is said.

    ``agent``: give the machine the port of pyvmm's agent and, without an ``initrd``, one with the agent as its init, so
    that :meth:`run` works; so does any of the following.  ``root``: the guest's root: a directory ("/" for the host's
    own system) or a disk image, both of which stay as they are, or "initramfs".  ``rodirs``, ``rwdirs``: directories
    that the guest sees, or may write to as well: ``HOST`` or ``HOST:GUEST``.  ``modules``: where the kernel's modules
    are, if they are not found by themselves; ``drivers``: modules, by name, to load besides those needed.

    Nothing is checked before the start, which raises UsageError, ImageError and HostError.  All methods may be called
    from any thread.  The machine runs in a process of its own, and ends with this one.
    """

    def __init__(
        self,
        kernel: str | os.PathLike[str],
        *,
        cmdline: str | None = None,
        initrd: str | os.PathLike[str] | bytes | None = None,
        memory: int | str | None = None,
        cpus: int = 1,
        timeout: float | None = None,
        devices: Sequence[str] = (),
        options: Sequence[str] = (),
        lab: bool = False,
        agent: bool = False,
        root: str | Root | None = None,
        rodirs: Sequence[str] = (),
        rwdirs: Sequence[str] = (),
        modules: str | None = None,
        drivers: Sequence[str] = (),
        log: str | os.PathLike[str] | None = None,
        on_console: Callable[[bytes], None] | None = None,
        expect_timeout: float | None = 60.0,
    ) -> None:
        Inspection.__init__(self)
        GuestCommands.__init__(self, None if log is None else os.fspath(log), expect_timeout)
        self.kernel = find_image(os.fspath(kernel))
        self.timeout = timeout
        guest = None
        if agent or root is not None or modules is not None or rodirs or rwdirs or drivers:
            from pyvmm.api.guest import Guest

            guest = Guest(
                self.kernel, root=root, modules=modules, drivers=drivers, rodirs=rodirs, rwdirs=rwdirs
            )
        self._plan = Plan(
            self.kernel, cmdline=cmdline, initrd=initrd, memory=memory, cpus=cpus, timeout=timeout, devices=devices,
            options=options, lab=lab, guest=guest,
        )  # fmt: skip
        self._on_console = on_console
        self._console: Console | None = None
        self._process: Process | None = None
        self._link: Link | None = None
        self._end: End | None = None
        self._failed: PyvmmError | None = None
        self._gone = False  # the process has hung up
        self._state = threading.Condition()
        self._closed = False
        self.started_at = 0.0  # time.monotonic() when the guest began to run
        self.arch = ""  # the guest's architecture, as uname -m names it

    # -- from start to end ----------------------------------------------------------------------------------

    def start(self) -> Machine:
        """Build the machine and let the guest run; returns the machine itself.

        :raises UsageError: an option makes no sense
        :raises ImageError: the kernel or another file cannot be used
        :raises HostError: this host cannot run it (KvmMissing, KvmPermission, CapabilityMissing, ...)
        """
        if self._console is not None:
            raise UsageError("the machine has been started already", "make another Machine")
        self._console = Console(self._type, self._ended_error, self.log)
        self._console.timeout = self._expect_timeout
        try:
            with contextlib.ExitStack() as files:
                self._process = self._launch(files)
                self._link = Link(self._process.socket, self._event, self._hung_up)
                self._link.start()
                with self._state:
                    known = self._state.wait_for(
                        lambda: self.started_at or self._failed or self._gone, START_SECONDS
                    )
                if not known:
                    raise HostError(
                        f"the machine did not start within {START_SECONDS:g} s", "is the host busy?"
                    )
            if not self.started_at:
                self._process.wait(END_SECONDS)
                raise self._failed or self._process.failure()
        except BaseException:
            self.close()
            raise
        return self

    def __enter__(self) -> Machine:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the machine if it runs, and give everything back.  Idempotent."""
        with self._state:
            if self._closed:
                return
            self._closed = True
        if self._link is not None:
            self._link.hang_up()
        if self._process is not None and not self._process.wait(END_SECONDS):
            self._process.kill()
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            self._process.close()
        if self._console is not None:
            self._console.close()

    def wait(self, timeout: float | None = None, *, check: bool = False) -> End:
        """Wait for the machine's end, at most ``timeout`` seconds.

        :raises ExpectTimeout: it still runs
        :raises UnexpectedExit: its process went away without saying how it ended; with ``check``, it did not end as it
            should (:attr:`End.ok`): GuestPanic, TripleFault, ExpectTimeout (its own limit) or UnexpectedExit, by how
        """
        with self._state:
            if not self._state.wait_for(lambda: self._end is not None or self._gone or self._closed, timeout):
                raise ExpectTimeout(
                    f"the machine did not end within {timeout:g} s", "stop it, or wait longer",
                    console_tail=self.console.tail(), log=self.log,
                )  # fmt: skip
        end = self._end
        if end is None:
            raise self._ended_error("the machine's end is not known")
        if check and not end.ok:
            raise self._ended_error("the machine ended badly")
        return end

    def shut_down(self, timeout: float | None = 30.0) -> End:
        """Have the guest's agent end it in order, everything written out, and wait for that.

        :raises ExpectTimeout: it did not end in time
        """
        self._ready_agent().shutdown()
        return self.wait(timeout)

    @property
    def end(self) -> End | None:
        """How it ended; None while it runs."""
        return self._end

    def stop(self) -> None:
        """Press the power button: a system that has started shuts down cleanly; :meth:`wait` waits for that."""
        self._call("stop")

    @property
    def guest_writes(self) -> bool:
        """Whether the guest may have written to files of this host's, so that it should be shut down in order."""
        return self._plan.guest is not None and self._plan.guest.writes

    def kill(self) -> None:
        """End the machine at once.  No error if it has ended."""
        if self._end is None:
            with contextlib.suppress(Lost):
                self._call("stop", force=True)

    # -- the console ----------------------------------------------------------------------------------------

    @property
    def console(self) -> Console:
        """The guest's console: ``expect``, ``expect_exact``, ``send``, ``sendline``, ``log``."""
        if self._console is None:
            raise UsageError("the machine has not been started", "use it in a with block, or call start()")
        return self._console

    def ktap(self) -> Ktap:
        """The test results in what the console has shown so far, as KTAP (:mod:`pyvmm.ktap`).

        :raises UsageError: the first of it is kept nowhere, which may have failures (:meth:`Console.whole`)
        """
        from pyvmm.ktap import parse

        return parse(self.console.whole())

    # -- the process ----------------------------------------------------------------------------------------

    def _call(self, command: str, timeout: float | None = 60.0, **arguments: object) -> dict[str, Any]:
        if self._link is None:
            raise UsageError("the machine has not been started", "use it in a with block, or call start()")
        return self._link.call(command, timeout=timeout, **arguments)

    def _has_ended(self, timeout: float) -> bool:
        with self._state:
            return self._state.wait_for(lambda: self._end is not None or self._gone, timeout)

    def _type(self, data: bytes) -> int:
        if self._end is not None:
            raise self._ended_error("nothing can be typed any more")
        pending: int = self._call("input", data=data)["pending"]
        return pending

    # -- what comes from the process, in the link's thread --------------------------------------------------------

    def _event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "console":
            data = base64.b64decode(event["data"])
            self.console.feed(data)
            if self._on_console is not None:
                self._on_console(data)
        elif kind == "port":
            if self._agent is not None and event["port"] == AGENT_PORT and "data" in event:
                self._agent.feed(base64.b64decode(event["data"]))
        elif kind == "started":
            self.arch = event["arch"]
            with self._state:
                self.started_at = time.monotonic()
                self._state.notify_all()
        elif kind == "failed":
            with self._state:
                self._failed = error_of(event)
                self._state.notify_all()
        elif kind == "ended":
            with self._state:
                self._end = End(event["result"])
                self._state.notify_all()
            self._over()

    def _hung_up(self) -> None:
        with self._state:
            self._gone = True
            self._state.notify_all()
        self._over()

    def _over(self) -> None:
        self.console.end()
        if self._agent is not None:
            self._agent.lost(self._ended_error("the command did not end"))

    def _ended_error(self, what: str) -> GuestError:
        """``what`` did not happen because the machine ended: the error for how it did."""
        end = self._end
        tail = self.console.tail()
        if end is None:
            reason = "it was closed" if self._closed else "its process went away"
            if self._process is not None and not self._closed and self._process.wait(1.0):
                reason += f" ({self._process.failure().message})"
            return UnexpectedExit(f"{what}: {reason}", "", console_tail=tail, log=self.log)
        kinds: dict[str, type[GuestError]] = {
            Outcome.PANIC: GuestPanic,
            Outcome.TRIPLE_FAULT: TripleFault,
            Outcome.INTERNAL_ERROR: TripleFault,
            Outcome.TIMEOUT: ExpectTimeout,
        }
        kind = kinds.get(end.outcome, UnexpectedExit)
        hint = "; ".join(end.report[:2])
        return kind(f"{what}: {end.describe()}", hint, console_tail=tail, log=self.log)

    def _launch(self, files: contextlib.ExitStack) -> Process:
        plan = self._plan
        if plan.guest is not None:
            from pyvmm.agent import AgentClient

            self._agent = AgentClient(self._send_agent)
        return plan.launch(files)

    def _send_agent(self, data: bytes) -> None:
        if self._link is not None:
            for at in range(0, len(data), _PIECE):
                self._link.post("port", name=AGENT_PORT, data=bytes(data[at : at + _PIECE]))
