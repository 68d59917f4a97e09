"""How a machine ended."""

from __future__ import annotations

from typing import Any

from pyvmm.machine.outcome import Outcome


class End:
    """How a machine ended: ``result`` is what ``pyvmm boot --result`` writes, the attributes are the most used of it.

    ``outcome``: shutdown, reset, exit, panic, triple-fault, internal-error, timeout, interrupted or error, as text.
    ``status``: the guest's own status, None unless the outcome is exit.  ``panic``: what the kernel said it panicked
    of, or "".  ``elapsed`` in seconds, from the start of its process.  ``report``: the lines of a post-mortem.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result
        self.outcome: str = result["outcome"]
        self.status: int | None = result["guest_status"]
        self.exit_code: int = result["exit_code"]
        self.detail: str = result["detail"]
        self.panic: str = self.detail if self.outcome == Outcome.PANIC else ""
        self.elapsed: float = result["elapsed_s"] or 0.0
        self.report: list[str] = result["report"]
        self.exits: dict[str, Any] = result["exits"]
        self.console_tail: str = result["console_tail"]

    @property
    def ok(self) -> bool:
        """Whether the guest ended as it should: powered off, restarted, or left with status 0."""
        return self.outcome in (Outcome.SHUTDOWN, Outcome.RESET) or (
            self.outcome == Outcome.EXIT and not self.status
        )

    def describe(self) -> str:
        """In a few words: ``the guest's kernel panicked: Kernel panic - not syncing: ...``."""
        words = Outcome(self.outcome).describe()
        if self.outcome == Outcome.EXIT:
            words += f", {self.status}"
        return f"{words}: {self.detail}" if self.detail else words

    def __repr__(self) -> str:
        return f"<End {self.outcome}{'' if self.status is None else f' {self.status}'}: {self.describe()}>"
