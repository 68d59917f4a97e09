"""The signals that stop a run, as something an event loop can wait for."""

from __future__ import annotations

import os
import signal
import threading

from pyvmm.kvm import KICK_SIGNAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCONT)


class Signals:
    """SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGCONT as something poll(2) can wait for; restores the former handlers.

    Outside the main thread Python allows no signal handlers: then this does nothing.
    """

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._former: dict[int, object] = {}
        self._former_wakeup = -1

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._former_wakeup = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                    self._former[number] = signal.signal(number, self._ignore)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._former:
            signal.set_wakeup_fd(self._former_wakeup)
        os.close(self.fd)
        os.close(self._write_fd)

    @staticmethod
    def _ignore(number: int, frame: FrameType | None) -> None:
        """The signal's number has gone into the pipe already; nothing is left to do here."""

    def take(self) -> list[int]:
        """The numbers of the signals that came."""
        try:
            return [number for number in os.read(self.fd, 64) if number != KICK_SIGNAL]
        except BlockingIOError:
            return []
