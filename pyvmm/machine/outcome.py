"""How a run ended, and the exit code that says so.

The codes are chosen for ``git bisect run`` (1-127 bad, 125 skip, 128 and above abort)::

    0               the guest ended as asked, or the expected text came
    1-119,126,127   the guest's own status, unchanged
    119             a guest status that collides with the codes below (the true one is in the result file)
    120             kernel panic
    121             expected text absent when the guest ended
    122             triple fault, or KVM could not go on
    124             timeout
    125             host, image or usage error
    130, 143, 129   interrupted by Ctrl-C, Ctrl-A x or Ctrl-A s twice, SIGTERM, SIGHUP: 128 + the signal's number
"""

from __future__ import annotations

import enum

EXIT_COLLISION = 119
EXIT_PANIC = 120
EXIT_ABSENT = 121
EXIT_FAULT = 122
EXIT_TIMEOUT = 124
EXIT_ERROR = 125
EXIT_SIGNAL = 128


class Outcome(enum.StrEnum):
    """What ended the run.  The values are those of ``outcome`` in the result file."""

    SHUTDOWN = "shutdown"
    RESET = "reset"
    EXIT = "exit"
    PANIC = "panic"
    TRIPLE_FAULT = "triple-fault"
    INTERNAL_ERROR = "internal-error"
    TIMEOUT = "timeout"
    EXPECTED = "expected"
    INTERRUPTED = "interrupted"
    ERROR = "error"

    def describe(self) -> str:
        """The outcome in a few words for a person."""
        return _WORDS[self]


_WORDS = {
    Outcome.SHUTDOWN: "the guest powered off",
    Outcome.RESET: "the guest asked for a reset",
    Outcome.EXIT: "the guest ended with a status of its own",
    Outcome.PANIC: "the guest's kernel panicked",
    Outcome.TRIPLE_FAULT: "triple fault: the CPU shut down",
    Outcome.INTERNAL_ERROR: "KVM could not run the guest any further",
    Outcome.TIMEOUT: "the time was up",
    Outcome.EXPECTED: "the expected text came",
    Outcome.INTERRUPTED: "interrupted",
    Outcome.ERROR: "an error on the host",
}


class End:
    """Why the machine stopped, as the first part that noticed it put it.

    ``status`` is the guest's own status for ``EXIT`` and the signal's number for ``INTERRUPTED``; ``detail`` a
    line for a person; ``report`` the lines of a post-mortem, where there is one.
    """

    __slots__ = ("detail", "outcome", "report", "status")

    def __init__(
        self,
        outcome: Outcome,
        *,
        status: int | None = None,
        detail: str = "",
        report: list[str] | None = None,
    ) -> None:
        self.outcome = outcome
        self.status = status
        self.detail = detail
        self.report = report or []


def guest_exit_code(status: int) -> int:
    """The exit code for a guest's own ``status`` (0-255): unchanged unless it would be taken for one of ours."""
    if 0 <= status <= EXIT_COLLISION or status in (126, 127):
        return status
    return EXIT_COLLISION


def exit_code(end: End, *, absent: bool) -> int:
    """The process's exit code for ``end``; ``absent``: a text that had to appear did not."""
    outcome = end.outcome
    if outcome in (Outcome.TRIPLE_FAULT, Outcome.INTERNAL_ERROR):
        return EXIT_FAULT
    if outcome is Outcome.PANIC:
        return EXIT_PANIC
    if outcome is Outcome.TIMEOUT:
        return EXIT_TIMEOUT
    if outcome is Outcome.ERROR:
        return EXIT_ERROR
    if outcome is Outcome.INTERRUPTED:
        return EXIT_SIGNAL + (end.status or 2)
    if outcome is Outcome.EXIT and end.status:
        return guest_exit_code(end.status)
    if outcome is not Outcome.EXPECTED and absent:
        return EXIT_ABSENT
    return 0
