"""What a test run found: a :class:`CaseResult` for each case, and a :class:`RunReport` of all of them.

Both are plain data: picklable, and made of what JSON has.  The exit code of a run is chosen for ``git bisect run``
(0 good, 1-127 bad, 125 cannot be tested)::

    one case        the code that `pyvmm run` or `pyvmm boot` would give: 0, the command's own status, 120 (panic or
                    splat), 121, 122, 124, 125; 1 where there is no such code (a failed subtest, another status)
    several cases   0    all passed, or passed and skipped
                    1    one or more failed or took too long
                    125  none failed, but some could not be tested, or nothing was run at all
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["pass", "fail", "error", "skip", "timeout"]

#: In the order in which they are shown and counted.
STATUSES: tuple[Status, ...] = ("pass", "fail", "timeout", "error", "skip")

EXIT_FAILED = 1
EXIT_UNTESTABLE = 125


@dataclass
class CaseResult:
    """How one case went.

    ``fail`` is the guest's doing, ``timeout`` a guest that did not come to an end, ``error`` the host's or the user's:
    the case could not be tested.  ``console`` and the streams are the last part of what came; ``console_log`` has all.
    """

    id: str  #: "kernel/machine/case"
    kernel: str
    machine: str
    case: str
    status: Status
    reason: str = ""  #: one line; empty for a plain pass
    outcome: str = ""  #: pyvmm's outcome, as in the result file; empty if no machine ran
    guest_status: int | None = None
    exit_code: int = 0  #: what a run of this case alone exits with
    started: float = 0.0  #: seconds since the epoch
    elapsed: float = 0.0  #: seconds, of all attempts together
    attempts: int = 1  #: more than 1 only if retries were asked for
    attempt_reasons: list[str] = field(default_factory=list)  #: of the attempts before the last
    timeline: list[tuple[float, str]] = field(default_factory=list)  #: (seconds from the start, event)
    console: str = ""
    console_log: str | None = None  #: path
    splats: list[dict[str, Any]] = field(default_factory=list)  #: kind, line, text, allowed, offset
    subtests: list[dict[str, Any]] = field(default_factory=list)  #: name, status, diagnostics, children
    exits: dict[str, Any] = field(default_factory=dict)  #: total, by_device
    stdout: str = ""
    stderr: str = ""
    worker: str = ""  #: "host/pid"

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it: it passed, or was skipped on purpose."""
        return self.status in ("pass", "skip")


@dataclass
class RunReport:
    """All results of a run, in the order of the matrix."""

    name: str
    started: float  #: seconds since the epoch
    elapsed: float  #: seconds
    results: list[CaseResult] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)  #: host, versions, command line, ...

    def counts(self) -> dict[str, int]:
        """How many results there are of each status, in the order of :data:`STATUSES`; zeroes too."""
        found = dict.fromkeys(map(str, STATUSES), 0)
        for result in self.results:
            found[result.status] += 1
        return found

    @property
    def exit_code(self) -> int:
        """The exit code of the run; see the table above."""
        ran = [result for result in self.results if result.status != "skip"]
        if not ran:
            return EXIT_UNTESTABLE
        if len(self.results) == 1:
            return ran[0].exit_code
        if any(result.status in ("fail", "timeout") for result in ran):
            return EXIT_FAILED
        return EXIT_UNTESTABLE if any(result.status == "error" for result in ran) else 0
