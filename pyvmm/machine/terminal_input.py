"""Standard input during a run: keys for the guest, and the commands that begin with Ctrl-A."""

from __future__ import annotations

import os
import signal
import sys

from pyvmm.errors import HostError
from pyvmm.machine.guest_input import INPUT_WAITING
from pyvmm.machine.outcome import End, Outcome
from pyvmm.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.machine.machine import Machine
    from pyvmm.terminal import Terminal

#: What Ctrl-A ? and Ctrl-A h say.
HELP = (
    "Ctrl-A x: leave, Ctrl-A s: press the power button (twice: stop), Ctrl-A c: status, "
    "Ctrl-A Ctrl-A: send Ctrl-A to the guest"
)


class TerminalInput:
    """Reads ``terminal``, which is standard input whatever that is, for ``machine``."""

    def __init__(self, machine: Machine, terminal: Terminal) -> None:
        self._machine = machine
        self._terminal = terminal
        self._open = terminal.input_fd is not None
        self._dropped = False

    def fd(self) -> int | None:
        """What is to be waited for now, if anything.

        A person's keys are always read: Ctrl-A x among them must be heard.  A pipe can wait.
        """
        terminal = self._terminal
        if self._open and (terminal.interactive or self._machine.input.room()):
            return terminal.input_fd
        return None

    def resume(self) -> None:
        """After Ctrl-Z from outside, the shell has changed the terminal's mode."""
        self._terminal.resume()

    def close(self) -> None:
        """Put the terminal back as it was."""
        self._terminal.close()

    def read(self, fd: int) -> None:
        """Take what has been typed, and do what it asks for.  HostError if the terminal went away."""
        terminal = self._terminal
        try:
            data = os.read(fd, INPUT_WAITING)
        except BlockingIOError:
            return
        except OSError as error:
            if terminal.interactive:
                raise HostError(
                    f"the terminal went away ({error.strerror})", "run pyvmm in a terminal that stays"
                ) from None
            data = b""
        if not data:
            self._open = False
            if terminal.interactive:
                raise HostError("the terminal was closed", "run pyvmm in a terminal that stays")
            return
        data, commands = terminal.decode(data)
        if data:
            self._give(data)
        for command in commands:
            self._obey(command)

    def _give(self, data: bytes) -> None:
        if self._machine.input.pending <= INPUT_WAITING or not self._terminal.interactive:
            self._machine.input.give(data)
            return
        if not self._dropped:
            _say("the guest does not read its input: what is typed now is lost")
        self._dropped = True

    def _obey(self, command: str) -> None:
        machine = self._machine
        if command == "leave":
            machine.ends.append(End(Outcome.INTERRUPTED, status=signal.SIGINT, detail="stopped by Ctrl-A x"))
        elif command == "stop":
            if not machine.stop("Ctrl-A s"):
                _say("the guest's power button was pressed; Ctrl-A s once more stops it by force")
        elif command == "status":
            _say(machine.status_line())
        elif command == "help":
            _say(HELP)


def _say(text: str) -> None:
    """A line of our own, between the guest's."""
    try:
        sys.stderr.write(f"\npyvmm: {printable(text)}\n")
        sys.stderr.flush()
    except (OSError, AttributeError):
        pass
