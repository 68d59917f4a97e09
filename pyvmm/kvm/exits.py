"""Why KVM_RUN returned: one object per exit reason, made once, whose attributes are the shared page itself.

An exit object is an overlay of ``struct kvm_run`` (Linux ``Documentation/virt/kvm/api.rst``, section 5), so
reading a field costs one attribute access and making an exit costs nothing: the same objects come back from
every KVM_RUN, and hold what they say until the next.  Fields have the header's names.
"""

from __future__ import annotations

from mmap import PAGESIZE

from . import uapi_run as uapi
from .uapi_run import kvm_run
from .uapi_x86 import KVM_PIO_PAGE_OFFSET, kvm_debug_exit_arch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap

UNION: int = kvm_run.io.offset  # where the reason's own fields start
_MMIO_DATA: int = (UNION + uapi.run_mmio.data.offset) // 8
MASKS = tuple((1 << 8 * size) - 1 for size in range(9))  # MASKS[n] keeps the low n bytes


class Exit:
    """Base of all exits; ``reason`` is its KVM_EXIT_* number."""

    __slots__ = ()
    reason: int = -1

    @property
    def name(self) -> str:
        """The reason's name in <linux/kvm.h>."""
        return uapi.exit_name(self.reason)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"


class IoExit(Exit, uapi.run_io):
    """The guest accessed ports: ``direction`` (KVM_EXIT_IO_IN or _OUT), ``port``, ``size``, ``count``.

    ``count`` is above 1 for string instructions: then ``data`` has all values.
    """

    reason = uapi.KVM_EXIT_IO
    _values: dict[int, memoryview]  # size -> the data page as items of that size

    @property
    def value(self) -> int:
        """The value written, ``size`` bytes; assign the value read (the first of ``count``)."""
        return self._values[self.size][0]

    @value.setter
    def value(self, value: int) -> None:
        size = self.size
        self._values[size][0] = value & MASKS[size]

    @property
    def data(self) -> memoryview:
        """All ``count`` values as ``size * count`` bytes; writable, for reads.  Valid until the next run."""
        return self._values[1][: self.size * self.count]

    def __str__(self) -> str:
        way = "out to" if self.direction else "in from"
        return f"{self.name}: {way} port {self.port:#x}, {self.size} bytes, {self.count} times"


class MmioExit(Exit, uapi.run_mmio):
    """The guest accessed an address that is in no memory slot: ``phys_addr``, ``len``, ``is_write``."""

    reason = uapi.KVM_EXIT_MMIO
    _words: memoryview

    @property
    def value(self) -> int:
        """The value written, ``len`` bytes; assign the value read."""
        return self._words[_MMIO_DATA] & MASKS[self.len]  # type: ignore[no-any-return]

    @value.setter
    def value(self, value: int) -> None:
        self._words[_MMIO_DATA] = value & MASKS[self.len]

    def __str__(self) -> str:
        way = "write to" if self.is_write else "read from"
        return f"{self.name}: {way} {self.phys_addr:#x}, {self.len} bytes"


class DebugExit(Exit, kvm_debug_exit_arch):
    """A breakpoint or step of Vcpu.set_guest_debug() (x86): ``exception``, ``pc``, ``dr6``, ``dr7``."""

    reason = uapi.KVM_EXIT_DEBUG

    def __str__(self) -> str:
        return f"{self.name}: exception {self.exception} at {self.pc:#x}"


class HltExit(Exit):
    """The guest executed HLT, and there is no in-kernel local APIC to wake it."""

    __slots__ = ()
    reason = uapi.KVM_EXIT_HLT


class ShutdownExit(Exit):
    """A triple fault (x86).  The registers may have been reset already."""

    __slots__ = ()
    reason = uapi.KVM_EXIT_SHUTDOWN


class IrqWindowOpenExit(Exit):
    """An interrupt could be injected now, as asked for by ``request_interrupt_window``."""

    __slots__ = ()
    reason = uapi.KVM_EXIT_IRQ_WINDOW_OPEN


class IntrExit(Exit):
    """A signal (a kick, perhaps) ended KVM_RUN, or the vCPU was not ready: run again."""

    __slots__ = ()
    reason = uapi.KVM_EXIT_INTR


class FailEntryExit(Exit, uapi.run_fail_entry):
    """The processor refused to enter the guest: ``hardware_entry_failure_reason``, ``cpu``."""

    reason = uapi.KVM_EXIT_FAIL_ENTRY

    def __str__(self) -> str:
        return f"{self.name}: hardware reason {self.hardware_entry_failure_reason:#x}, host CPU {self.cpu}"


SUBERRORS = {
    uapi.KVM_INTERNAL_ERROR_EMULATION: "an instruction could not be emulated",
    uapi.KVM_INTERNAL_ERROR_SIMUL_EX: "simultaneous exceptions",
    uapi.KVM_INTERNAL_ERROR_DELIVERY_EV: "an exit during the delivery of an event",
    uapi.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an unexpected hardware exit",
}


class InternalErrorExit(Exit, uapi.run_internal):
    """KVM gave up: ``suberror`` (KVM_INTERNAL_ERROR_*), ``ndata``, ``data``."""

    reason = uapi.KVM_EXIT_INTERNAL_ERROR

    @property
    def instruction(self) -> bytes:
        """The bytes at RIP that could not be emulated, up to 15; empty if KVM did not say (Linux 5.14)."""
        failure = uapi.run_emulation_failure.from_buffer(self)
        if self.suberror != uapi.KVM_INTERNAL_ERROR_EMULATION or self.ndata < 3:
            return b""
        if not failure.flags & uapi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
            return b""
        return bytes(failure.insn_bytes[: failure.insn_size])

    def __str__(self) -> str:
        text = f"{self.name}: {SUBERRORS.get(self.suberror, f'suberror {self.suberror}')}"
        if self.instruction:
            return f"{text}: {self.instruction.hex(' ')}"
        return text + "; data" + "".join(f" {word:#x}" for word in self.data[: min(self.ndata, 16)])


class SystemEventExit(Exit, uapi.run_system_event):
    """The guest asked for a shutdown or reset (arm64: PSCI): ``type`` is a KVM_SYSTEM_EVENT_*."""

    reason = uapi.KVM_EXIT_SYSTEM_EVENT

    def __str__(self) -> str:
        return f"{self.name}: type {self.type}"


class IoapicEoiExit(Exit, uapi.run_eoi):
    """The guest ended a level-triggered interrupt of a user-space IOAPIC: ``vector``."""

    reason = uapi.KVM_EXIT_IOAPIC_EOI


class MsrExit(Exit, kvm_run):
    """The guest accessed an MSR that was left to user space: ``msr.index``, ``msr.data``, ``msr.error``."""

    @property
    def reason(self) -> int:  # type: ignore[override]
        """KVM_EXIT_X86_RDMSR or KVM_EXIT_X86_WRMSR."""
        return self.exit_reason  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return f"{self.name}: MSR {self.msr.index:#x}"


class UnknownExit(Exit, kvm_run):
    """Any other exit: all of kvm_run, as it is."""

    @property
    def reason(self) -> int:  # type: ignore[override]
        """The KVM_EXIT_* number."""
        return self.exit_reason  # type: ignore[no-any-return]

    def __str__(self) -> str:
        if self.exit_reason == uapi.KVM_EXIT_UNKNOWN:
            return f"{self.name}: hardware reason {self.hw.hardware_exit_reason:#x}"
        return self.name


def exit_objects(memory: mmap) -> list[Exit]:
    """The exit objects over a vCPU's mapping, indexed by reason; unknown reasons share one UnknownExit."""
    view = memoryview(memory)
    table: list[Exit] = [UnknownExit.from_buffer(memory)] * 256
    io = IoExit.from_buffer(memory, UNION)
    # x86 has always put the data at this page (io.data_offset says the same, at the price of a look-up).
    data = view[KVM_PIO_PAGE_OFFSET * PAGESIZE :]
    io._values = {1: data, 2: data.cast("H"), 4: data.cast("I")}
    mmio = MmioExit.from_buffer(memory, UNION)
    mmio._words = view.cast("Q")
    for exit in (
        io,
        mmio,
        DebugExit.from_buffer(memory, UNION),
        HltExit(),
        ShutdownExit(),
        IrqWindowOpenExit(),
        IntrExit(),
        FailEntryExit.from_buffer(memory, UNION),
        InternalErrorExit.from_buffer(memory, UNION),
        SystemEventExit.from_buffer(memory, UNION),
        IoapicEoiExit.from_buffer(memory, UNION),
    ):
        table[exit.reason] = exit
    msr = MsrExit.from_buffer(memory)
    table[uapi.KVM_EXIT_X86_RDMSR] = table[uapi.KVM_EXIT_X86_WRMSR] = msr
    return table
