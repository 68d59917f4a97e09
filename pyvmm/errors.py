"""The errors pyvmm raises on purpose: each is one line that says what and why, and a hint that says what to do.

The command line prints ``pyvmm: <message>`` and ``hint: <hint>`` and exits with 125; nothing here ever
reaches a user as a traceback.  The loader has its own base class, :class:`loader.errors.LoaderError`,
of the same shape.
"""

from __future__ import annotations


class PyvmmError(Exception):
    """Base of every error pyvmm raises on purpose.

    ``message`` is one line without a full stop; ``hint`` says what to do about it (may be empty).
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PyvmmError):
    """What the user asked for makes no sense or cannot be done: bad option, bad combination, bad size."""


class HostError(PyvmmError):
    """The host lacks something or refused something."""


class KvmMissing(HostError):
    """There is no /dev/kvm, or no KVM behind it."""


class KvmPermission(HostError):
    """/dev/kvm exists but may not be opened."""


class CapabilityMissing(HostError):
    """The host's KVM lacks a capability that pyvmm needs."""


class ImageError(PyvmmError):
    """A kernel, initrd or other input file cannot be used."""


class GuestMemoryError(PyvmmError):
    """An access outside guest RAM, or a placement that overlaps another."""


class GuestError(PyvmmError):
    """The guest did not do what it should have.

    ``console_tail`` is the end of what its console printed, ``log`` the path of the whole of it, if that is kept.
    """

    def __init__(
        self, message: str, hint: str = "", *, console_tail: str = "", log: str | None = None
    ) -> None:
        super().__init__(message, hint)
        self.console_tail = console_tail
        self.log = log

    def __str__(self) -> str:
        """The message, the hint, the console's last lines and where all of them are: what a test report shows.

        Nothing that a terminal would obey is left of what the guest said.
        """
        from pyvmm.text import printable_lines

        parts = [self.message]
        if self.hint:
            parts.append(f"hint: {self.hint}")
        if self.console_tail:
            lines = self.console_tail.splitlines()[-TAIL_LINES:]
            parts.append("the console's last lines:\n" + "\n".join(f"    {line}" for line in lines))
        if self.log:
            parts.append(f"the whole console: {self.log}")
        return printable_lines("\n".join(parts))


#: Lines of console that the text of a GuestError shows.
TAIL_LINES = 20


class GuestPanic(GuestError):
    """The guest's kernel panicked."""


class TripleFault(GuestError):
    """The guest's processor shut down, or KVM could not run it any further."""


class UnexpectedExit(GuestError):
    """The machine ended while something was expected of it."""


class ExpectTimeout(GuestError):
    """What was expected of the guest did not come in time."""


class CommandFailed(GuestError):
    """A command in the guest ended with another status than 0.

    ``returncode`` is its exit status, or minus the signal that ended it; ``stdout`` and ``stderr`` are what it
    printed, as bytes.
    """

    def __init__(
        self, message: str, hint: str = "", *, returncode: int | None, stdout: bytes, stderr: bytes,
        console_tail: str = "", log: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, hint, console_tail=console_tail, log=log)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class CommandTimeout(CommandFailed):
    """A command in the guest did not end in time; ``returncode`` is None."""
