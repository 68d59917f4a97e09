"""A vCPU that stopped for good: what KVM said and the state it left, kept for the post-mortem.

Linux Documentation/virt/kvm/api.rst, section 5 (KVM_EXIT_SHUTDOWN, _FAIL_ENTRY, _INTERNAL_ERROR).
"""

from __future__ import annotations

from pyvmm.arch.x86_64 import paging
from pyvmm.arch.x86_64.registers import CR0, CR4, EFER, RFLAGS
from pyvmm.kvm import uapi_run
from pyvmm.kvm.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from pyvmm.kvm.uapi_x86 import kvm_regs, kvm_sregs, kvm_vcpu_events

    class ReadableMemory(Protocol):
        """What a post-mortem needs of guest memory."""

        def read(self, address: int, size: int, /) -> bytes: ...
        def contains(self, address: int, size: int, /) -> bool: ...

    class StoppedVcpu(Protocol):
        """What a post-mortem needs of a vCPU whose thread has ended."""

        def get_regs(self) -> kvm_regs: ...
        def get_sregs(self) -> kvm_sregs: ...
        def get_vcpu_events(self) -> kvm_vcpu_events: ...


class Stop:
    """Why and in which state a vCPU stopped.

    ``reason`` is KVM_EXIT_SHUTDOWN, _INTERNAL_ERROR or _FAIL_ENTRY.  ``suberror``, ``data`` and
    ``instruction`` belong to an internal error, ``hardware_reason`` to a failed entry; ``events`` is None
    where KVM did not tell.  ``exception`` is the vector and error code of the first exception, where one of
    pyvmm's own handlers saw it; then the registers are those at that moment, and with ``segments_lost`` the
    segments are those of the entry (:func:`pyvmm.arch.x86_64.handlers.recover`).
    """

    __slots__ = (
        "data",
        "events",
        "exception",
        "hardware_reason",
        "instruction",
        "reason",
        "regs",
        "segments_lost",
        "sregs",
        "suberror",
        "vcpu",
    )

    def __init__(
        self,
        reason: int,
        regs: kvm_regs,
        sregs: kvm_sregs,
        *,
        events: kvm_vcpu_events | None = None,
        suberror: int = 0,
        data: tuple[int, ...] = (),
        instruction: bytes = b"",
        hardware_reason: int = 0,
        vcpu: int = 0,
    ) -> None:
        self.reason = reason
        self.regs = regs
        self.sregs = sregs
        self.events = events
        self.segments_lost = False
        self.exception: tuple[int, int | None] | None = None
        self.suberror = suberror
        self.data = data
        self.instruction = instruction
        self.hardware_reason = hardware_reason
        self.vcpu = vcpu

    @property
    def kind(self) -> str:
        """The stop in two words: ``triple fault``, ``internal error`` or ``failed entry``."""
        names: dict[int, str] = {
            uapi_run.KVM_EXIT_SHUTDOWN: "triple fault",
            uapi_run.KVM_EXIT_INTERNAL_ERROR: "internal error",
            uapi_run.KVM_EXIT_FAIL_ENTRY: "failed entry",
        }
        return names.get(self.reason) or uapi_run.exit_name(self.reason)

    @property
    def long_mode(self) -> bool:
        """Whether 64-bit code was running (not its compatibility mode)."""
        return bool(self.sregs.efer & EFER.LMA and self.sregs.cs.l)

    @property
    def code_bits(self) -> int:
        """The size of code: 16, 32 or 64."""
        if self.long_mode:
            return 64
        return 32 if self.sregs.cs.db else 16

    @property
    def mode(self) -> str:
        """The processor's mode in words."""
        sregs = self.sregs
        if not sregs.cr0 & CR0.PE:
            return "real mode"
        if sregs.efer & EFER.LMA:
            levels = "5-level paging" if sregs.cr4 & CR4.LA57 else "4-level paging"
            name = "64-bit mode" if sregs.cs.l else f"compatibility mode, {self.code_bits}-bit code"
            return f"{name}, {levels}"
        paging_mode = "no paging"
        if sregs.cr0 & CR0.PG:
            paging_mode = "PAE paging" if sregs.cr4 & CR4.PAE else "32-bit paging"
        name = "virtual-8086" if self.regs.rflags & RFLAGS.VM else f"{self.code_bits}-bit protected"
        return f"{name} mode, {paging_mode}"

    @property
    def rip(self) -> int:
        """The linear address of the instruction pointer: CS base and RIP."""
        return self._linear(self.sregs.cs.base, self.regs.rip)

    @property
    def rsp(self) -> int:
        """The linear address of the stack pointer: SS base and RSP."""
        return self._linear(self.sregs.ss.base, self.regs.rsp)

    def _linear(self, base: int, offset: int) -> int:
        if self.long_mode:
            return offset
        return (base + (offset & 0xFFFF_FFFF)) & 0xFFFF_FFFF

    @property
    def was_reset(self) -> bool:
        """Whether this is a processor just reset, as KVM on AMD leaves one after a triple fault."""
        cs = self.sregs.cs
        return bool(
            self.regs.rip == 0xFFF0
            and cs.selector == 0xF000
            and cs.base == 0xFFFF_0000
            and not self.sregs.cr0 & (CR0.PE | CR0.PG)
        )

    def walk(self, memory: ReadableMemory, linear: int) -> paging.Walk:
        """Translate ``linear`` in the state the vCPU stopped in."""
        return paging.walk(memory, linear, **self._paging)

    def read(self, memory: ReadableMemory, linear: int, size: int) -> bytes:
        """Up to ``size`` bytes at a linear address, ending early at the first that cannot be read."""
        return paging.read_linear(memory, linear, size, **self._paging)

    @property
    def _paging(self) -> dict[str, int]:
        sregs = self.sregs
        return {"cr0": sregs.cr0, "cr3": sregs.cr3, "cr4": sregs.cr4, "efer": sregs.efer}


def capture(vcpu: StoppedVcpu, exit: Any, number: int = 0) -> Stop:
    """Copy the state of ``vcpu`` after its fatal ``exit`` (of :mod:`pyvmm.kvm.exits`); its thread has ended.

    ``exit`` is a view of the shared page, so everything is copied from it here.
    """
    try:
        events = vcpu.get_vcpu_events()
    except KvmError:
        events = None  # a diagnosis without them is better than none
    stop = Stop(exit.reason, vcpu.get_regs(), vcpu.get_sregs(), events=events, vcpu=number)
    if exit.reason == uapi_run.KVM_EXIT_INTERNAL_ERROR:
        stop.suberror = exit.suberror
        stop.data = tuple(exit.data[: min(exit.ndata, 16)])
        stop.instruction = exit.instruction
    elif exit.reason == uapi_run.KVM_EXIT_FAIL_ENTRY:
        stop.hardware_reason = exit.hardware_entry_failure_reason
    return stop
