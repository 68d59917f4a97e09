"""The guest's clock while it is paused: its virtual counter stands still, as the guest does.

The virtual counter is the host's counter minus an offset, and KVM_REG_ARM_TIMER_CNT, one of the registers of
KVM_GET_ONE_REG, is its value (Linux ``Documentation/virt/kvm/api.rst``, section 4.68): writing what was read before
moves the offset, for all vCPUs.  The physical counter, which Linux as a guest does not use, goes on.
"""

from __future__ import annotations

from pyvmm.kvm import KvmError
from pyvmm.kvm.uapi_arm64 import KVM_REG_ARM_TIMER_CNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.kvm import Vcpu, Vm


def pause_clock(vm: Vm, vcpus: Sequence[Vcpu]) -> int | None:
    """Take note of the virtual counter of a guest none of whose vCPUs is running; None if KVM does not tell."""
    try:
        return vcpus[0].get_one_reg(KVM_REG_ARM_TIMER_CNT)
    except KvmError:
        return None


def resume_clock(vm: Vm, vcpus: Sequence[Vcpu], noted: int | None) -> None:
    """Let the counter go on from what pause_clock() found, just before the vCPUs do."""
    if noted is not None:
        vcpus[0].set_one_reg(KVM_REG_ARM_TIMER_CNT, noted)
