"""``pyvmm run -k KERNEL -- COMMAND``: run a command under that kernel, on this host's own files, and end as it does."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import time

from pyvmm.agent import CannotRun
from pyvmm.api.complaints import Complaints
from pyvmm.cli import run_options, say
from pyvmm.errors import ExpectTimeout, GuestError, GuestPanic, TripleFault
from pyvmm.machine.outcome import (
    EXIT_COLLISION,
    EXIT_ERROR,
    EXIT_FAULT,
    EXIT_PANIC,
    EXIT_SIGNAL,
    EXIT_TIMEOUT,
    guest_exit_code,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pyvmm.api.foreground import Foreground
    from pyvmm.api.machine import Machine

#: Seconds that a guest which may have written to the host's files has to end in order.
SHUTDOWN_SECONDS = 30.0
#: What a shell gives for a command that cannot be executed, or is not there.
NOT_EXECUTABLE = 126
NOT_FOUND = 127
#: Lines of console that are shown when something went wrong.
TAIL_LINES = 30


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm run`` with these arguments; returns the exit code."""
    from pyvmm.api.kernel import find_image
    from pyvmm.api.machine import Machine
    from pyvmm.api.root import Root

    options = run_options.parser().parse_args(list(arguments))
    options.kernel = find_image(options.kernel)
    run_options.check(options)
    if options.result is not None:
        from pyvmm.cli import result_file

        result_file.check(options.result)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    command = run_options.command(options, interactive)
    machine = Machine(
        options.kernel, cmdline=run_options.cmdline(options), memory=options.memory, cpus=options.cpus, lab=options.lab,
        root=Root(options.root, writable=options.rw), rodirs=options.rodir, rwdirs=options.rwdir,
        modules=options.modules, drivers=options.module, devices=options.device, log=options.console_log,
        on_console=_show if options.verbose else None,
    )  # fmt: skip
    return _Run(machine, options).run(command, interactive)


class _Run:
    """One run: the machine, how long it may take, and what is said of its end."""

    def __init__(self, machine: Machine, options: argparse.Namespace) -> None:
        self._machine = machine
        self._options = options
        self._foreground: Foreground | None = None
        self._deadline = None if options.timeout is None else time.monotonic() + options.timeout
        self._complaints = Complaints(options.allow_splat)

    def run(self, command: str | list[str], interactive: bool) -> int:
        """Run ``command``; returns the exit code."""
        status: int | None = None
        started = time.monotonic()
        try:
            with self._machine:
                self._complaints.watch(self._machine.console)
                try:
                    status = self._command(command, interactive)
                    code = self._code(status)
                    if self._machine.guest_writes:
                        self._machine.shut_down(SHUTDOWN_SECONDS)
                except (GuestError, TimeoutError) as error:
                    code = self._failed(error)
                if not code and self._splat():
                    code = EXIT_PANIC
        except BaseException as error:
            if self._options.result is not None:
                from pyvmm.cli import result_file

                result_file.write_error(self._options.result, error)  # type: ignore[arg-type]
            raise
        if self._options.result is not None:
            self._write_result(code, status, time.monotonic() - started)
        return code

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _command(self, command: str | list[str], interactive: bool) -> int:
        from pyvmm.api.foreground import Foreground, Interrupted

        self._machine.wait_ready(self._left())
        foreground = Foreground(self._machine, interactive=interactive)
        self._foreground = foreground
        try:
            return foreground.run(
                command, env=run_options.environment(self._options, interactive), cwd=run_options.cwd(self._options),
                timeout=self._left(),
            )  # fmt: skip
        except Interrupted as interrupted:
            raise KeyboardInterrupt from interrupted

    def _code(self, status: int) -> int:
        """The exit code for a command's status, or minus the signal that ended it."""
        if status == -signal.SIGPIPE:  # our own reader went away, as with any command in a pipe
            return EXIT_SIGNAL + signal.SIGPIPE
        code = guest_exit_code(status if status >= 0 else EXIT_SIGNAL - status)
        foreground = self._foreground
        assert foreground is not None, "it had a status"
        if -status in foreground.handed_on:  # the user ended it, and git bisect is to stop too
            code = EXIT_SIGNAL - status
        if status < 0:
            say(f"pyvmm: the command was ended by {_signal_name(-status)} (exit code {code})")
        elif code == EXIT_COLLISION != status:
            say(
                f"pyvmm: the command ended with {status} (given as {code}: from 120 on the codes are pyvmm's own)"
            )
        if foreground.lost:
            say(
                f"pyvmm: the command's output could not be written: {foreground.lost}",
                "hint: free some space",
            )
            code = code or EXIT_ERROR
        return code

    def _failed(self, error: GuestError | TimeoutError) -> int:
        """Say what went wrong, and with which lines of console; returns the exit code."""
        machine = self._machine
        code = EXIT_ERROR
        if isinstance(error, CannotRun):
            say(f"pyvmm: {error.message}", f"hint: {error.hint}")
            return NOT_EXECUTABLE if error.errno == errno.EACCES else NOT_FOUND
        if isinstance(error, TimeoutError | ExpectTimeout):
            code = EXIT_TIMEOUT
        elif isinstance(error, GuestPanic):
            code = EXIT_PANIC
        elif isinstance(error, TripleFault):
            code = EXIT_FAULT
        late = code == EXIT_TIMEOUT and self._options.timeout is not None
        message = f"the time was up after {self._options.timeout:g} s (--timeout)" if late else error.message  # type: ignore[union-attr]
        say(f"pyvmm: {message}")
        if not self._options.verbose:
            say(*(f"  {line}" for line in machine.console.tail().splitlines()[-TAIL_LINES:]))
        hint = getattr(error, "hint", "")
        if hint:
            say(f"hint: {hint}")
        return code

    def _splat(self) -> bool:
        """Whether the kernel complained about itself, of which the first is shown."""
        bad = [each for each in self._complaints.all_of(self._machine.console) if not each.allowed]
        if not bad:
            return False
        say(f"pyvmm: the kernel complained: {bad[0].line}")
        if not self._options.verbose:
            say(*(f"  {line}" for line in bad[0].text.splitlines()[:TAIL_LINES]))
        say("hint: --allow-splat REGEX lets one pass that does not matter")
        return True

    def _write_result(self, code: int, status: int | None, elapsed: float) -> None:
        from pyvmm.cli import result_file

        end = self._machine.end
        result: dict[str, object] = {
            "outcome": "exit" if status is not None else end.outcome if end is not None else "error",
            "detail": "" if end is None else end.detail,
            "exit_code": code,
            "guest_status": status,
            "elapsed_s": round(elapsed, 4),
            "console_tail": self._machine.console.tail(16384),
        }
        if end is not None:
            result["exits"] = end.exits
        result_file.write(self._options.result, result)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time ones have none
        return f"signal {number}"


def _show(data: bytes) -> None:
    """The kernel's console, on standard error."""
    with contextlib.suppress(OSError):
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
