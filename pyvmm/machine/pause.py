"""A pause: every vCPU leaves the guest and waits, and the guest's clocks stand still, until it is resumed.

The devices' threads may still finish requests that the guest made before; it sees the answers when it goes on.
Only the event loop's thread uses this.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from pyvmm.kvm import Vm
    from pyvmm.machine.runner import VcpuRunner


class Pause:
    """Stops the vCPUs of one machine and lets them go on.

    ``since``: when the last of them stopped (time.monotonic), None unless all stand still.  ``wanted``: begin() was
    called last, not end().
    """

    def __init__(self, arch: ModuleType, vm: Vm, runners: Sequence[VcpuRunner]) -> None:
        self.wanted = False
        self.since: float | None = None
        self._total = 0.0
        self._not_taken = 0.0
        self._arch = arch
        self._vm = vm
        self._runners = runners
        self._clock: object | None = None

    def begin(self) -> None:
        """Have the vCPUs stop, which takes its time: step() tells when they have."""
        if not self.wanted:
            self.wanted = True
            for runner in self._runners:
                runner.pause()

    def step(self) -> bool:
        """Take note of vCPUs that have stopped; whether the guest stands still now."""
        if self.wanted and self.since is None and all(runner.paused for runner in self._runners):
            self._clock = self._arch.pause_clock(self._vm, [runner.vcpu for runner in self._runners])
            self.since = time.monotonic()
        return self.since is not None

    def end(self) -> None:
        """Let the guest go on, its clocks as they stood.  No error if it was not paused."""
        if self.since is not None:
            self._arch.resume_clock(self._vm, [runner.vcpu for runner in self._runners], self._clock)
            self._not_taken += time.monotonic() - self.since
            self._total += time.monotonic() - self.since
        self._release()

    def abandon(self) -> None:
        """Let the threads of vCPUs go on that are to end: the guest does not run again."""
        self._release()

    def _release(self) -> None:
        self.wanted = False
        self.since = self._clock = None
        for runner in self._runners:
            runner.resume()

    def seconds(self) -> float:
        """How long the guest has stood still in all, this pause included."""
        return self._total + (0.0 if self.since is None else time.monotonic() - self.since)

    def take(self) -> float:
        """Seconds of pauses that ended since this was asked last, for whoever keeps the guest's time."""
        seconds, self._not_taken = self._not_taken, 0.0
        return seconds
