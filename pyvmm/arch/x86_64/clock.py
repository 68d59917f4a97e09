"""The guest's clocks while it is paused: they stand still, as the guest does.

Two clocks are read without an exit.  kvm-clock is set back to what it showed (KVM_GET_CLOCK, KVM_SET_CLOCK).  The
time-stamp counter is the host's plus an offset: the offsets are lowered by what the counter went on meanwhile
(Linux ``Documentation/virt/kvm/devices/vcpu.rst``, "KVM_VCPU_TSC_CTRL"); before Linux 5.16 KVM has no such
attribute, and the counter goes on.  KVM_KVMCLOCK_CTRL has the guest's watchdogs overlook the rest.

The timers in the kernel run by the host's clock.  An interrupt that came due waits for the guest; one that comes early
by the guest's clock finds nothing to do, and a kernel sets the timer anew.  The 8254, though, counts the ticks
that were not taken, to make up for them: it starts again instead.
"""

from __future__ import annotations

from pyvmm.kvm import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.kvm import Vcpu, Vm
    from pyvmm.kvm.uapi import kvm_clock_data
    from pyvmm.kvm.uapi_x86 import kvm_pit_state2

IA32_TSC = 0x10
_PERIODIC = (2, 3)  # the modes of the 8254 that tick for ever


class StoppedClock:
    """The clocks as they stood: kvm-clock, the first vCPU's time-stamp counter, each vCPU's offset, the 8254.

    None for what this host's KVM does not tell.
    """

    __slots__ = ("clock", "offsets", "pit", "tsc")

    def __init__(
        self,
        clock: kvm_clock_data | None,
        tsc: int | None,
        offsets: list[int | None],
        pit: kvm_pit_state2 | None,
    ) -> None:
        self.clock = clock
        self.tsc = tsc
        self.offsets = offsets
        self.pit = pit


def pause_clock(vm: Vm, vcpus: Sequence[Vcpu]) -> StoppedClock:
    """Take note of the clocks of a guest none of whose vCPUs is running."""
    try:
        clock: kvm_clock_data | None = vm.get_clock()
    except KvmError:
        clock = None
    offsets = [_offset(vcpu) for vcpu in vcpus]
    try:
        pit: kvm_pit_state2 | None = vm.get_pit2()
    except KvmError:
        pit = None
    return StoppedClock(clock, _tsc(vcpus[0]), offsets, pit)


def resume_clock(vm: Vm, vcpus: Sequence[Vcpu], stopped: StoppedClock) -> None:
    """Let the clocks go on where they stood, just before the vCPUs do.  ``stopped`` is what pause_clock() gave."""
    now = _tsc(vcpus[0])
    if now is not None and stopped.tsc is not None:
        gone = now - stopped.tsc
        for vcpu, offset in zip(vcpus, stopped.offsets, strict=True):
            if offset is not None:
                vcpu.set_tsc_offset(offset - gone)
    if stopped.clock is not None:
        stopped.clock.flags = 0
        vm.set_clock(stopped.clock)
    if stopped.pit is not None and stopped.pit.channels[0].mode in _PERIODIC:
        vm.set_pit2(stopped.pit)
    for vcpu in vcpus:
        try:
            vcpu.kvmclock_ctrl()
        except KvmError:
            pass  # this guest, or this vCPU so far, has no kvm-clock


def _offset(vcpu: Vcpu) -> int | None:
    try:
        return vcpu.get_tsc_offset()
    except KvmError:
        return None


def _tsc(vcpu: Vcpu) -> int | None:
    """The guest's time-stamp counter now: the host's, scaled, plus the offset."""
    return vcpu.get_msrs([IA32_TSC]).get(IA32_TSC)
