"""A vCPU's state on x86_64: general, segment, control and model-specific registers, CPUID, local APIC.

The "vcpu ioctls" of Linux ``Documentation/virt/kvm/api.rst`` that only x86 has.  Each ``get_`` returns a
structure of its own, yours to change and give to ``set_``.
"""

from __future__ import annotations

import errno

from . import ioctls
from .descriptor import Descriptor
from .errors import KvmError
from .flexible import flexible
from .uapi_x86 import (
    KVM_VCPU_TSC_CTRL,
    KVM_VCPU_TSC_OFFSET,
    kvm_cpuid2,
    kvm_cpuid_entry2,
    kvm_debugregs,
    kvm_fpu,
    kvm_guest_debug,
    kvm_lapic_state,
    kvm_msr_entry,
    kvm_msrs,
    kvm_regs,
    kvm_sregs,
    kvm_vcpu_events,
    kvm_xcrs,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence
    from ctypes import Structure
    from typing import TypeVar

    State = TypeVar("State", bound=Structure)


class X86Registers(Descriptor):
    """The x86 part of a vCPU."""

    __slots__ = ()

    def _get(self, request: ioctls.Ioctl, state: State) -> State:
        self.ioctl(request, state)
        return state

    def get_regs(self) -> kvm_regs:
        """KVM_GET_REGS: general registers, RIP and RFLAGS."""
        return self._get(ioctls.KVM_GET_REGS, kvm_regs())

    def set_regs(self, regs: kvm_regs) -> None:
        """KVM_SET_REGS."""
        self.ioctl(ioctls.KVM_SET_REGS, regs)

    def get_sregs(self) -> kvm_sregs:
        """KVM_GET_SREGS: segments, descriptor tables, control registers, EFER and the APIC base."""
        return self._get(ioctls.KVM_GET_SREGS, kvm_sregs())

    def set_sregs(self, sregs: kvm_sregs) -> None:
        """KVM_SET_SREGS."""
        self.ioctl(ioctls.KVM_SET_SREGS, sregs)

    def get_fpu(self) -> kvm_fpu:
        """KVM_GET_FPU: x87 and SSE registers, but not MXCSR (KVM leaves it 0)."""
        return self._get(ioctls.KVM_GET_FPU, kvm_fpu())

    def set_fpu(self, fpu: kvm_fpu) -> None:
        """KVM_SET_FPU.  KVM ignores MXCSR, which is 0x1f80 from the start."""
        self.ioctl(ioctls.KVM_SET_FPU, fpu)

    def get_lapic(self) -> kvm_lapic_state:
        """KVM_GET_LAPIC: the in-kernel local APIC's register page."""
        return self._get(ioctls.KVM_GET_LAPIC, kvm_lapic_state())

    def set_lapic(self, lapic: kvm_lapic_state) -> None:
        """KVM_SET_LAPIC."""
        self.ioctl(ioctls.KVM_SET_LAPIC, lapic)

    def get_vcpu_events(self) -> kvm_vcpu_events:
        """KVM_GET_VCPU_EVENTS: pending exceptions, interrupts and NMIs."""
        return self._get(ioctls.KVM_GET_VCPU_EVENTS, kvm_vcpu_events())

    def set_vcpu_events(self, events: kvm_vcpu_events) -> None:
        """KVM_SET_VCPU_EVENTS."""
        self.ioctl(ioctls.KVM_SET_VCPU_EVENTS, events)

    def get_debugregs(self) -> kvm_debugregs:
        """KVM_GET_DEBUGREGS: DR0 to DR3, DR6 and DR7."""
        return self._get(ioctls.KVM_GET_DEBUGREGS, kvm_debugregs())

    def set_debugregs(self, debugregs: kvm_debugregs) -> None:
        """KVM_SET_DEBUGREGS."""
        self.ioctl(ioctls.KVM_SET_DEBUGREGS, debugregs)

    def get_xcrs(self) -> kvm_xcrs:
        """KVM_GET_XCRS: the extended control registers; XCR0 is ``xcrs[0]``."""
        return self._get(ioctls.KVM_GET_XCRS, kvm_xcrs())

    def set_xcrs(self, xcrs: kvm_xcrs) -> None:
        """KVM_SET_XCRS."""
        self.ioctl(ioctls.KVM_SET_XCRS, xcrs)

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG: KVM_GUESTDBG_* flags, and DR0 to DR7 for hardware breakpoints."""
        debug = kvm_guest_debug(control=control)
        debug.arch.debugreg[: len(debugreg)] = debugreg
        self.ioctl(ioctls.KVM_SET_GUEST_DEBUG, debug)

    def nmi(self) -> None:
        """KVM_NMI: queue a non-maskable interrupt."""
        self.ioctl(ioctls.KVM_NMI)

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: the guest's time-stamp counter frequency in kHz."""
        return self.ioctl(ioctls.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ."""
        self.ioctl(ioctls.KVM_SET_TSC_KHZ, khz, f"{khz} kHz")

    def get_tsc_offset(self) -> int | None:
        """The attribute KVM_VCPU_TSC_OFFSET: what is added (modulo 2**64) to the host's time-stamp counter to make the
        guest's.  None where the host's KVM does not tell (before Linux 5.16)."""
        from .device import get_attr, has_attr

        if not has_attr(self, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET):
            return None
        return int.from_bytes(get_attr(self, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET), "little")

    def set_tsc_offset(self, offset: int) -> None:
        """The same, set."""
        from .device import set_attr

        value = (offset & (1 << 64) - 1).to_bytes(8, "little")
        set_attr(self, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, value)

    def kvmclock_ctrl(self) -> None:
        """KVM_KVMCLOCK_CTRL: tell the guest, through its kvm-clock, that it was stopped from outside, so that its
        watchdogs overlook the time.  KvmError (EINVAL) if it has no kvm-clock running."""
        self.ioctl(ioctls.KVM_KVMCLOCK_CTRL)

    def get_cpuid2(self) -> list[kvm_cpuid_entry2]:
        """KVM_GET_CPUID2: the entries the guest sees."""
        for count in (128, 512):
            buffer, header, entries = flexible(kvm_cpuid2, kvm_cpuid_entry2, count)
            header.nent = count
            try:
                self.ioctl(ioctls.KVM_GET_CPUID2, buffer)
            except KvmError as error:
                if error.errno != errno.E2BIG:
                    raise
                continue
            return list(entries[: header.nent])
        raise KvmError("KVM_GET_CPUID2", errno.E2BIG)

    def set_cpuid2(self, entries: Sequence[kvm_cpuid_entry2]) -> None:
        """KVM_SET_CPUID2: what the guest's CPUID instruction returns; before the MSRs and the first run."""
        buffer, header, table = flexible(kvm_cpuid2, kvm_cpuid_entry2, len(entries))
        header.nent = len(entries)
        table[:] = list(entries)
        self.ioctl(ioctls.KVM_SET_CPUID2, buffer, f"{len(entries)} entries")

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: the value of each model-specific register; those the host refuses are left out."""
        values: dict[int, int] = {}
        wanted = [(index, 0) for index in indices]
        while wanted:
            done = self._msrs(ioctls.KVM_GET_MSRS, wanted)
            values.update(done)
            del wanted[: len(done) + 1]  # the one after the last done was refused
        return values

    def set_msrs(self, msrs: Mapping[int, int], *, optional: Container[int] = ()) -> list[int]:
        """KVM_SET_MSRS, in the order of ``msrs``: index to value.

        Returns the refused ones of ``optional``; raises KvmError naming a refused one that is not optional.
        """
        refused: list[int] = []
        wanted = list(msrs.items())
        while wanted:
            done = len(self._msrs(ioctls.KVM_SET_MSRS, wanted))
            if done < len(wanted):
                index, value = wanted[done]
                if index not in optional:
                    raise KvmError("KVM_SET_MSRS", errno.EINVAL, f"MSR {index:#x} = {value:#x}")
                refused.append(index)
            del wanted[: done + 1]
        return refused

    def _msrs(self, request: ioctls.Ioctl, wanted: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """One KVM_GET_MSRS or KVM_SET_MSRS; returns those that were done, up to the first refused."""
        buffer, header, entries = flexible(kvm_msrs, kvm_msr_entry, len(wanted))
        header.nmsrs = len(wanted)
        for entry, (index, value) in zip(entries, wanted, strict=True):
            entry.index = index
            entry.data = value
        done = self.ioctl(request, buffer)
        return [(entry.index, entry.data) for entry in entries[:done]]
