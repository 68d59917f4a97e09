"""Running one command in the lab as the whole job of this process: signals are for the command."""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

    from pyvmm.lab import Lab


class _Terminated(BaseException):
    """A signal came while there was no command yet that could get it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_in_foreground(
    lab: Lab,
    argv: Sequence[str],
    *,
    carry_in: Sequence[str] = (),
    carry_out: Sequence[str] = (),
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Start ``lab``, run a command with this process's standard streams, stop the lab; returns the exit status.

    Signals go to the command, or end the start of the lab (status 128 + n).  Errors as ``Lab.run``.
    """

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise _Terminated(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.signal(number, terminate) for number in numbers}
    try:
        with lab:
            return lab.run(
                argv, carry_in=carry_in, carry_out=carry_out, timeout=timeout, env=env, forward_signals=True
            )
    except _Terminated as terminated:
        return 128 + terminated.number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
