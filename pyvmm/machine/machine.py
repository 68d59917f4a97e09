"""A machine that has been built: its parts, its one run, and what is known of it afterwards."""

from __future__ import annotations

import os
import signal
import sys
import time

from pyvmm.console import Console
from pyvmm.kvm import install_kick_handler
from pyvmm.machine.guest_input import GuestInput
from pyvmm.machine.loop import EventLoop
from pyvmm.machine.outcome import EXIT_ERROR, End, Outcome, exit_code
from pyvmm.machine.timing import process_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    from types import ModuleType
    from typing import Protocol

    from pyvmm.devices.bus import Bus
    from pyvmm.devices.serial import Serial16550
    from pyvmm.devices.virtio.mmio import MmioTransport
    from pyvmm.kvm import Vm
    from pyvmm.machine.pause import Pause
    from pyvmm.machine.runner import Coalescer, VcpuRunner
    from pyvmm.machine.spec import MachineSpec
    from pyvmm.memory import GuestMemory

    class PowerButton(Protocol):
        """The device with the power button."""

        def press_power_button(self) -> None: ...

    class Control(Protocol):
        """What lets others look at the machine and steer it (:mod:`pyvmm.control`), served by the event loop.

        ``busy``: there is something to do though no descriptor says so.
        """

        busy: bool

        def register(self, poll: select.poll) -> None: ...
        def ready(self, fd: int) -> None: ...
        def step(self) -> None: ...


class Machine:
    """The running parts of one machine; :func:`pyvmm.machine.build.build` makes it.

    ``ends`` holds why it stopped: whoever notices first appends, and the first one counts.
    """

    def __init__(
        self,
        *,
        spec: MachineSpec,
        arch: ModuleType,
        vm: Vm,
        memory: GuestMemory,
        runners: list[VcpuRunner],
        bus: Bus,
        serial: Serial16550,
        console: Console,
        coalescer: Coalescer | None,
        transports: list[MmioTransport],
        ends: list[End],
        closers: list[object],
        events: PowerButton | None = None,
    ) -> None:
        self.spec = spec
        self.arch = arch
        self.vm = vm
        self.memory = memory
        self.runners = runners
        self.bus = bus
        self.serial = serial
        self.console = console
        self.input = GuestInput(console, serial)
        self.coalescer = coalescer
        self.transports = transports
        self.ends = ends
        self.end: End | None = None
        self.first_run_s: float | None = None
        self.elapsed_s = 0.0
        self._closers = closers
        self._events = events
        self.asked_to_stop = False
        self.pause: Pause | None = None
        self.control: Control | None = None
        self.hurry = False  # by force: do not wait for the console's readers either
        self.started = 0.0

    def run(self) -> End:
        """Run the guest to its end and return that.  Once only."""
        install_kick_handler()
        sys.setswitchinterval(5e-4)  # the event loop must not hold the vCPU threads up for 5 ms
        self.started = time.monotonic()
        for runner in self.runners:
            runner.start()
        self.end = EventLoop(self).run(self.spec.timeout)
        self._measure()
        if self.end.outcome in (Outcome.TRIPLE_FAULT, Outcome.INTERNAL_ERROR):
            self.end.report = self._post_mortem()
        elif self.end.outcome is Outcome.TIMEOUT:
            self.end.report = self._whereabouts()
        return self.end

    def _measure(self) -> None:
        start = process_start()
        self.elapsed_s = time.monotonic() - start
        first = [runner.first_run for runner in self.runners if runner.first_run is not None]
        self.first_run_s = min(first) - start if first else None

    def _post_mortem(self) -> list[str]:
        """Why the vCPU that ended the run could not go on, in lines for a person."""
        for runner in self.runners:
            if runner.last_exit is not None and not runner.running:
                try:
                    lines: list[str] = self.arch.post_mortem(
                        runner.last_exit, runner.vcpu, self.memory, self.spec.kernel
                    )
                except Exception as error:  # a diagnosis must not take the outcome's place
                    lines = [f"the post-mortem failed: {type(error).__name__}: {error}"]
                return lines
        return []

    def _whereabouts(self) -> list[str]:
        """Where each vCPU was when the time was up."""
        stopped = [runner for runner in self.runners if not runner.running]
        try:
            return [self.arch.whereabouts(runner.vcpu, self.spec.kernel) for runner in stopped]
        except Exception as error:  # as with a post-mortem
            return [f"the vCPUs' state cannot be told: {type(error).__name__}: {error}"]

    def press_power_button(self) -> None:
        """Press the guest's power button: a system that has started shuts down cleanly, one without a driver for the
        button does nothing.  In the event loop's thread.  Its interrupt line is made at the first press."""
        if self._events is None:
            self._events = self.arch.event_device(self.vm, self._closers)
        self._events.press_power_button()

    def pauser(self) -> Pause:
        """What pauses and resumes the guest; in the event loop's thread."""
        if self.pause is None:
            from pyvmm.machine.pause import Pause

            self.pause = Pause(self.arch, self.vm, self.runners)
        return self.pause

    def stop(self, by: str) -> bool:
        """Stop the guest, as ``by`` ("Ctrl-A s") asks: the first time by its power button, and then by force.

        Says whether it was by force.  In the event loop's thread.
        """
        if self.asked_to_stop:
            self.ends.append(End(Outcome.INTERRUPTED, status=signal.SIGINT, detail=f"stopped by {by} twice"))
            return True
        self.asked_to_stop = True
        self.press_power_button()
        return False

    def late_drain(self) -> None:
        """The drain timer, not an exit, emptied the ring: the guest writes and waits for the interrupt.

        One that goes on like that is slower with coalescing than without (see the serial device).
        """
        self.serial.on_late_drain()
        if not self.serial.want_coalescing and self.coalescer is not None:
            self.serial.coalescing = False
            for port, size in self.arch.coalesced_ports(self.serial):
                if port in self.serial.coalesced_ports:
                    self.vm.unregister_coalesced(port, size, pio=self.arch.PORT_IO)

    def exits(self) -> dict[str, int]:
        """Exits to userspace so far by device, and by KVM's name for those that belong to no device."""
        counts = dict(self.bus.counts())
        for runner in self.runners:
            for name, count in runner.rare.items():
                counts[name] = counts.get(name, 0) + count
        return {name: count for name, count in counts.items() if count}

    def status_line(self) -> str:
        """One line for a person who asks what the machine is doing."""
        exits = self.exits()
        most = sorted(exits.items(), key=lambda item: -item[1])[:4]
        devices = ", ".join(f"{name} {count}" for name, count in most)
        paused = "paused, " if self.pause is not None and self.pause.wanted else ""
        return (
            f"{paused}running for {time.monotonic() - self.started:.1f} s, {sum(exits.values())} exits ({devices}), "
            f"{self.console.total} bytes of console"
        )

    def absent(self) -> list[str]:
        """The texts that were to appear on the console and did not."""
        return [
            os.fsdecode(watch.text)
            for watch in self.console.watches
            if watch.name in ("expect", "require") and not watch.seen
        ]

    def exit_code(self) -> int:
        """The process's exit code for how the run ended."""
        assert self.end is not None, "the machine has not run yet"
        code = exit_code(self.end, absent=bool(self.absent()))
        return EXIT_ERROR if code == 0 and self.console.lost() else code

    def result(self) -> dict[str, object]:
        """What ``--result`` writes: plain values, times in seconds."""
        from pyvmm.machine.resident import resident

        assert self.end is not None, "the machine has not run yet"
        exits = self.exits()
        status = self.end.status if self.end.outcome is Outcome.EXIT else None
        return {
            "outcome": self.end.outcome.value,
            "detail": self.end.detail,
            "exit_code": self.exit_code(),
            "guest_status": status,
            "absent": self.absent(),
            "elapsed_s": round(self.elapsed_s, 4),
            "first_run_s": None if self.first_run_s is None else round(self.first_run_s, 4),
            "exits": {
                "total": sum(exits.values()),
                "by_device": exits,
                "by_port": {f"{device}: {where}": count for device, where, count in self.bus.detail()},
                "unhandled": self.bus.unhandled(),
                "coalesced_writes": 0 if self.coalescer is None else self.coalescer.writes,
            },
            "devices": {each.device.name: each.device.statistics() for each in self.transports},
            "memory": resident(self.memory),
            "console_bytes": self.console.total,
            "console_lost": self.console.lost(),
            "console_tail": self.console.tail(),
            "report": self.end.report,
        }

    def close(self) -> None:
        """Give everything back to the host.  Idempotent."""
        while self._closers:
            self._closers.pop().close()  # type: ignore[attr-defined]

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
