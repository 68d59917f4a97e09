"""The event loop: everything that is not the guest's own running, in one thread that sleeps in poll(2).

It wakes for console output, for input, for signals, for the deadline, and for the drain timer: a guest that
writes coalesced ports and then waits for an interrupt makes no exit at which the ring would be emptied, so
somebody has to look now and then.
"""

from __future__ import annotations

import os
import select
import signal
import time

from pyvmm.console import PANIC_END, PANIC_START
from pyvmm.errors import PyvmmError
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.runner import GuestEnded
from pyvmm.machine.signals import Signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.console import Watch
    from pyvmm.machine.machine import Machine
    from pyvmm.machine.terminal_input import TerminalInput

#: Seconds between looks at the coalescing ring while the console is active, and while it is quiet.
DRAIN_ACTIVE = 0.01
DRAIN_QUIET = 0.1
#: Seconds of silence after which the vCPUs are asked whether they are halted for good; then twice as long, and so on.
HALT_SILENCE = 2.0
HALT_SILENCE_MOST = 30.0
#: A panicking kernel prints for a while: it may go on until it has been silent for this long (seconds)...
PANIC_SILENCE = 1.0
#: ... and at most this long.
PANIC_LIMIT = 15.0
#: Seconds that a guest which prints without a pause is left alone between two collections: each one costs the vCPU's
#: thread the interpreter lock for a while.  The first byte after a pause never waits.
GATHER = 0.002
#: Seconds a reader has, when we end the run, to take what the guest has printed so far.
FINISH_SECONDS = 5.0


class EventLoop:
    """Waits for the end of ``machine``'s run while serving its console."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._console = machine.console
        self._terminal: TerminalInput | None = None
        self._halt_silence = HALT_SILENCE
        self._asked_at = 0.0  # when the vCPUs were asked last
        self._asked = False  # the vCPUs were asked, and have not all answered
        self._panicked = 0.0  # when the panic was seen
        self._panic_done = False
        self._ring_seen = (0, 0)  # writes that waited in the coalescing ring, and writes taken from it, ...
        self._ring_since = 0.0  # ... and since when that has been so
        machine.serial.on_room(lambda: os.eventfd_write(machine.console.wake_fd, 1))
        self._deadline = float("inf")

    def run(self, timeout: float | None) -> End:
        """Serve until the first End; returns it.  ``timeout`` in seconds from now.

        The user's terminal is in raw mode meanwhile, and no longer: what is said afterwards is said on a normal one.
        """
        ends = self._machine.ends
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
        with Signals() as signals:
            terminal = self._terminal = self._open_terminal()
            try:
                self._serve(signals)
                self._stop_vcpus()
            finally:
                if terminal is not None:
                    terminal.close()
            self._finish(signals)
        return self._final(ends[0])

    def _open_terminal(self) -> TerminalInput | None:
        if not self._machine.spec.interactive:
            return None
        from pyvmm.machine.terminal_input import TerminalInput
        from pyvmm.terminal import Terminal

        return TerminalInput(self._machine, Terminal())

    def _serve(self, signals: Signals) -> None:
        """Until there is an End, from whomever."""
        ends = self._machine.ends
        try:
            while not ends:
                self._once(signals)
        except PyvmmError as error:
            detail = f"{error.message}; {error.hint}" if error.hint else error.message
            ends.append(End(Outcome.ERROR, detail=detail))
        except GuestEnded as ended:
            ends.append(ended.end)

    def _finish(self, signals: Signals) -> None:
        """Write out the rest of the console.

        What a guest printed before it ended is waited for until the reader has taken it, the time is up, or a signal
        says not to; where we ended the run, for a few seconds.
        """
        console = self._console
        if any(watch.text is PANIC_START for watch in console.collect()):
            self._panicked = time.monotonic()
        patient = self._machine.ends[0].outcome in (Outcome.SHUTDOWN, Outcome.RESET, Outcome.EXIT)
        limit = self._deadline if patient else time.monotonic() + FINISH_SECONDS
        while blocked := console.blocked():
            poll = select.poll()
            poll.register(signals.fd, select.POLLIN)
            for fd in blocked:
                poll.register(fd, select.POLLOUT)
            control = self._machine.control
            if control is not None:
                control.register(poll)
            left = limit - time.monotonic()
            if left <= 0 or self._machine.hurry:
                return
            busy = control is not None and control.busy
            events = poll.poll(0.0 if busy else min(left, 3600.0) * 1000)
            if any(number != signal.SIGCONT for number in signals.take()):
                return
            if control is not None:
                for fd, _ in events:
                    if fd != signals.fd and fd not in blocked:
                        control.ready(fd)
                control.step()
            try:
                console.flush()
            except PyvmmError:
                pass  # counted as lost

    def _once(self, signals: Signals) -> None:
        console = self._console
        poll = select.poll()
        poll.register(console.wake_fd, select.POLLIN)
        poll.register(signals.fd, select.POLLIN)
        for fd in console.blocked():
            poll.register(fd, select.POLLOUT)
        terminal = self._terminal
        input_fd = None if terminal is None else terminal.fd()
        if input_fd is not None:
            poll.register(input_fd, select.POLLIN)
        control = self._machine.control
        if control is not None:
            control.register(poll)
        now = time.monotonic()
        events = poll.poll(max(0.0, self._sleep(now)) * 1000)
        for fd, _ in events:
            if fd == console.wake_fd:
                if time.monotonic() - console.last_output < GATHER:
                    time.sleep(GATHER)
                os.eventfd_read(fd)
            elif fd == signals.fd:
                self._signalled(signals)
            elif fd == input_fd and terminal is not None:
                terminal.read(fd)
            elif control is not None:
                control.ready(fd)
        if not self._paused():
            self._drain_late()
        for watch in console.collect():
            self._saw(watch)
        console.flush()
        if control is not None:
            control.step()
        if not self._paused():
            self._check_time(time.monotonic())

    def _paused(self) -> bool:
        """Whether the guest stands still; time does not pass for it meanwhile."""
        pause = self._machine.pause
        if pause is None:
            return False
        if pause.step():
            return True
        gone = pause.take()
        if gone:
            self._deadline += gone
            self._panicked += gone if self._panicked else 0.0
            self._asked_at = time.monotonic()
        return False

    def _sleep(self, now: float) -> float:
        """Seconds until something has to be looked at though no descriptor says so."""
        if self._machine.control is not None and self._machine.control.busy:
            return 0.0
        if self._paused():
            return 3600.0
        until = self._deadline - now
        if self._panicked:
            until = min(until, PANIC_SILENCE / 20)
        until = min(until, 0.1 if self._asked else self._silent_since() + self._halt_silence - now + 0.01)
        if self._machine.coalescer is not None:
            active = now - self._console.last_output < 1.0
            until = min(until, DRAIN_ACTIVE if active else DRAIN_QUIET)
        return min(until, 3600.0)

    def _drain_late(self) -> None:
        """Empty the ring for a guest that makes no exit: only if nothing has moved in it for a while, as a guest
        between two exits, on a slow host, is about to empty it itself."""
        coalescer = self._machine.coalescer
        if coalescer is None:
            return
        waiting, now = (coalescer.ring.pending, coalescer.writes), time.monotonic()
        if waiting != self._ring_seen:
            self._ring_seen, self._ring_since = waiting, now
        elif waiting[0] and now - self._ring_since >= DRAIN_ACTIVE and coalescer.drain():
            self._machine.late_drain()

    def _signalled(self, signals: Signals) -> None:
        for number in signals.take():
            if number != signal.SIGCONT:
                detail = f"stopped by {signal.Signals(number).name}"
                self._machine.ends.append(End(Outcome.INTERRUPTED, status=number, detail=detail))
            elif self._terminal is not None:
                self._terminal.resume()

    def _saw(self, watch: Watch) -> None:
        if watch.text is PANIC_START:
            self._panicked = time.monotonic()
        elif watch.text is PANIC_END:
            self._panic_done = True
        elif watch.name == "expect" and all(w.seen for w in self._console.watches if w.name == "expect"):
            self._machine.ends.append(End(Outcome.EXPECTED, detail=self._console.line_with(watch)))

    def _check_time(self, now: float) -> None:
        if self._panicked:
            silence = PANIC_SILENCE / 10 if self._panic_done else PANIC_SILENCE
            silent = now - max(self._console.last_output, self._panicked) > silence
            if silent or now - self._panicked > PANIC_LIMIT:
                self._machine.ends.append(End(Outcome.PANIC))
        self._look_for_halt(now)
        if now >= self._deadline:
            self._machine.ends.append(End(Outcome.TIMEOUT))

    def _look_for_halt(self, now: float) -> None:
        """A guest that halted for good makes no exit: ask, when nothing has been heard for long enough."""
        runners = self._machine.runners
        if self._asked:
            answers = [runner.halted for runner in runners]
            if None in answers:
                return
            self._asked = False
            if all(answers):
                self._machine.ends.append(
                    End(Outcome.SHUTDOWN, detail="the guest halted, and nothing can wake it")
                )
        elif now > self._silent_since() + self._halt_silence:
            self._asked_at = now
            self._halt_silence = min(2 * self._halt_silence, HALT_SILENCE_MOST)
            self._asked = True
            for runner in runners:
                runner.ask_whether_halted()

    def _silent_since(self) -> float:
        """Since when nothing has been heard of the guest, and nothing asked."""
        return max(self._console.last_output, self._machine.started, self._asked_at)

    def _stop_vcpus(self) -> None:
        """Kick every vCPU until its thread is gone; a kick between two exits is seen at the next KVM_RUN."""
        runners = self._machine.runners
        if self._machine.pause is not None:
            self._machine.pause.abandon()
        for attempt in range(200):
            alive = [runner for runner in runners if runner.running]
            if not alive:
                return
            for runner in alive:
                runner.kick()
            for runner in alive:
                runner.join(0.01 if attempt < 50 else 0.1)

    def _final(self, end: End) -> End:
        """A panic on the console says more than the reset or the timeout that follows it."""
        follows = (
            Outcome.RESET,
            Outcome.SHUTDOWN,
            Outcome.TIMEOUT,
            Outcome.TRIPLE_FAULT,
            Outcome.INTERNAL_ERROR,
        )
        if self._panicked and end.outcome in follows:
            end = End(Outcome.PANIC, report=end.report)
        if end.outcome is Outcome.PANIC:
            end.detail = self._console.panic()
        return end
