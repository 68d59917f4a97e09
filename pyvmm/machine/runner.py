"""A vCPU's thread: KVM_RUN, one look-up and one call for each exit, until somebody says stop.

This is the hot path.  Between KVM_RUN and the device there is a dictionary look-up by port and a call of
the bound method that stands there.  A device that ends the run raises :class:`GuestEnded`, so the loop has
no flag to test; everything rare is in :meth:`VcpuRunner._rare`.
"""

from __future__ import annotations

import os
import threading
import time

from pyvmm.errors import PyvmmError
from pyvmm.kvm import HltExit, IntrExit, IoExit, MmioExit, ShutdownExit, SystemEventExit
from pyvmm.machine.outcome import End, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.console import Console
    from pyvmm.devices.bus import Bus
    from pyvmm.kvm import CoalescedRing, Exit, Vcpu


class GuestEnded(Exception):
    """Raised by a device, in the vCPU's thread, when the guest asked for the end of the run."""

    def __init__(self, end: End) -> None:
        super().__init__(end.outcome.value)
        self.end = end


class Coalescer:
    """The ring in which KVM keeps coalesced port writes, and the bus they belong to.

    KVM has one ring for a VM, filled by whichever vCPU writes; the lock lets the event loop empty it too, for a guest
    that writes and then waits for an interrupt without any other exit.  ``settle`` is called, in the vCPU's
    thread, once the exit before which the ring was emptied has been handled.
    """

    def __init__(self, ring: CoalescedRing, bus: Bus, settle: Callable[[], None]) -> None:
        self.ring = ring
        self.settle = settle
        self.writes = 0
        self._bus = bus
        self._lock = threading.Lock()

    def drain(self) -> int:
        """Hand every write in the ring to its device, in order; returns how many there were."""
        with self._lock:
            count = self.ring.drain(self._deliver)
            self.writes += count
            return count

    def _deliver(self, address: int, size: int, value: int, pio: bool) -> None:
        if pio:
            (self._bus.pio_out.get(address) or self._bus.unknown_out(address)).access(value, size)
        else:
            self._bus.mmio_deliver(address, value, size)


class VcpuRunner:
    """Runs one vCPU in a thread of its own.

    ``is_halted`` says of a vCPU that is not running whether it is halted for good.
    ``ends`` is shared by all runners and the event loop: the first :class:`End` in it is why the machine stopped.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        bus: Bus,
        console: Console,
        ends: list[End],
        coalescer: Coalescer | None,
        is_halted: Callable[[Vcpu], bool],
    ) -> None:
        self.vcpu = vcpu
        self.first_run: float | None = None
        self.rare: dict[str, int] = {}
        self.last_exit: Exit | None = None
        self.halted: bool | None = None
        self._asked = False
        self._gate: threading.Lock | None = None  # held by whoever paused the vCPU
        self._stopped_at: threading.Lock | None = None  # the gate that the thread waits at, or waited at last
        self._is_halted = is_halted
        self._bus = bus
        self._console = console
        self._ends = ends
        self._coalescer = coalescer
        self._thread = threading.Thread(target=self._main, name=f"vcpu{vcpu.id}", daemon=True)

    def start(self) -> None:
        """Start the thread; the vCPU enters the guest at once."""
        self._thread.start()

    def kick(self) -> None:
        """Make KVM_RUN return soon, if it is running.  Any thread but the vCPU's own."""
        if self._thread.is_alive() and self._thread.ident is not None:
            try:
                self.vcpu.kick(self._thread.ident)
            except ProcessLookupError:
                pass  # it ended this moment

    def ask_whether_halted(self) -> None:
        """Have the thread find out whether its vCPU can still be woken; :attr:`halted` has the answer, None so far."""
        self.halted = None
        self._asked = True
        self.kick()

    def pause(self) -> None:
        """Have the thread leave the guest and wait for resume(); :attr:`paused` tells when it does, and the event loop
        is woken then.  Event loop only, as is resume()."""
        if self._gate is None:
            gate = threading.Lock()
            gate.acquire()
            self._gate = gate
        self.kick()

    def resume(self) -> None:
        """Let the thread go on after pause(), whether it has stopped yet or not."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.release()

    @property
    def paused(self) -> bool:
        """Whether the vCPU stands still until resume(): its thread waits, or is gone."""
        gate = self._gate
        return gate is not None and (self._stopped_at is gate or not self._thread.is_alive())

    @property
    def running(self) -> bool:
        """Whether the thread is still there."""
        return self._thread.is_alive()

    def join(self, seconds: float) -> bool:
        """Wait for the thread's end, at most ``seconds``; says whether it ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            end = self._loop()
        except GuestEnded as ended:
            end = ended.end
        except PyvmmError as error:
            hint = f" (hint: {error.hint})" if error.hint else ""
            end = End(Outcome.INTERNAL_ERROR, detail=f"{error.message}{hint}")
        except Exception as error:  # a bug of ours must stop the machine, not hang it
            end = End(Outcome.ERROR, detail=f"internal error: {type(error).__name__}: {error}")
            if os.environ.get("PYVMM_DEBUG"):
                import traceback

                traceback.print_exc()
        try:
            if self._coalescer is not None:
                self._coalescer.drain()
        except GuestEnded as ended:
            end = end or ended.end
        except Exception as error:
            end = end or End(Outcome.ERROR, detail=f"{type(error).__name__}: {error}")
        finally:
            if end is not None:
                self._ends.append(end)
            os.eventfd_write(self._console.wake_fd, 1)

    def _loop(self) -> End | None:
        """Run until an end; None when somebody else ended the machine."""
        run, bus, console, ends, coalescer = (
            self.vcpu.run,
            self._bus,
            self._console,
            self._ends,
            self._coalescer,
        )
        pio_in, pio_out = bus.pio_in, bus.pio_out
        ring = coalescer.ring if coalescer is not None else None
        drained = 0
        self.first_run = time.monotonic()
        while True:
            exit = run()
            if ring is not None and ring.pending and coalescer is not None:
                drained = coalescer.drain()  # what was written before this exit comes before it
            if type(exit) is IoExit:
                port = exit.port
                if exit.count != 1:
                    self._string_io(exit)
                elif exit.direction:
                    slot = pio_out.get(port) or bus.unknown_out(port)
                    slot.count += 1
                    slot.access(exit.value, exit.size)
                else:
                    source = pio_in.get(port) or bus.unknown_in(port)
                    source.count += 1
                    exit.value = source.access(exit.size)
            elif type(exit) is MmioExit:
                if exit.is_write:
                    bus.mmio_write(exit.phys_addr, exit.value, exit.len)
                else:
                    exit.value = bus.mmio_read(exit.phys_addr, exit.len)
            else:
                end = self._rare(exit)
                if end is not None:
                    return end
                if ends:
                    return None
            if drained and coalescer is not None:
                coalescer.settle()
                drained = 0
            if console.full:
                console.wait_for_room(ends)

    def _string_io(self, io: IoExit) -> None:
        """INS and OUTS with a repeat count: KVM hands over up to a page of data in one exit."""
        bus, port, size, data = self._bus, io.port, io.size, io.data
        if io.direction:
            slot = bus.pio_out.get(port) or bus.unknown_out(port)
            slot.count += 1
            for at in range(0, len(data), size):
                slot.access(int.from_bytes(data[at : at + size], "little"), size)
        else:
            source = bus.pio_in.get(port) or bus.unknown_in(port)
            source.count += 1
            mask = (1 << 8 * size) - 1
            for at in range(0, len(data), size):
                data[at : at + size] = (source.access(size) & mask).to_bytes(size, "little")

    def _rare(self, exit: Exit) -> End | None:
        """An exit that is neither port nor memory access; the End it means, if it means one."""
        name = exit.name
        self.rare[name] = self.rare.get(name, 0) + 1
        if isinstance(exit, IntrExit):
            self.vcpu.clear_kick()
            if self._asked:
                self._asked = False
                self.halted = self._is_halted(self.vcpu)
                os.eventfd_write(self._console.wake_fd, 1)
            gate = self._gate
            if gate is not None:
                self._stopped_at = gate
                os.eventfd_write(self._console.wake_fd, 1)
                with gate:  # until resume()
                    pass
            return None
        self.last_exit = exit
        if isinstance(exit, ShutdownExit):
            return End(Outcome.TRIPLE_FAULT)
        if isinstance(exit, HltExit):
            return End(Outcome.SHUTDOWN, detail="HLT without an interrupt controller to wake the CPU")
        if isinstance(exit, SystemEventExit):
            return self._system_event(exit.type)
        return End(Outcome.INTERNAL_ERROR, detail=str(exit))

    @staticmethod
    def _system_event(kind: int) -> End:
        """KVM_EXIT_SYSTEM_EVENT: 1 shutdown, 2 reset, 3 crash (include/uapi/linux/kvm.h)."""
        if kind == 1:
            return End(Outcome.SHUTDOWN)
        if kind == 2:
            return End(Outcome.RESET)
        return End(Outcome.INTERNAL_ERROR, detail=f"the guest reported a crash (KVM system event {kind})")
