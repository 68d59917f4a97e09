"""Making a VM and its vCPUs into an x86_64 machine: what KVM must be told, in the order it asks for.

Linux Documentation/virt/kvm/api.rst: KVM_SET_IDENTITY_MAP_ADDR and KVM_CREATE_IRQCHIP come before any vCPU,
KVM_CREATE_PIT2 after the irqchip, KVM_SET_CPUID2 before KVM_SET_MSRS, since CPUID decides which MSRs exist.
"""

from __future__ import annotations

from pyvmm.arch.x86_64 import cpuid, lapic, layout, msrs
from pyvmm.kvm.errors import KvmError
from pyvmm.kvm.uapi import Cap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.kvm.system import System
    from pyvmm.kvm.uapi_x86 import kvm_cpuid_entry2
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.kvm.vm import Vm


def prepare_vm(vm: Vm) -> None:
    """Give ``vm`` KVM's private pages, the in-kernel interrupt controllers and the timer, before any vCPU.

    That the host's KVM has what this needs is checked before (CAPABILITIES of the architecture).
    """
    vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
    vm.set_tss_addr(layout.KVM_TSS)
    vm.create_irqchip()
    vm.mask_pics()  # with hardware-reduced ACPI Linux takes them for absent, and never programs them
    vm.create_pit2()  # with port 0x61: Linux calibrates the TSC by it where kvm-clock is absent


def prepare_vcpu(
    system: System,
    vm: Vm,
    vcpu: Vcpu,
    index: int,
    count: int,
    supported: Sequence[kvm_cpuid_entry2] | None = None,
) -> None:
    """Give ``vcpu``, number ``index`` of ``count``, its identity and what firmware would have set up.

    Floating point needs nothing: KVM leaves it as after FNINIT (control word 0x37f, MXCSR 0x1f80).

    ``supported`` is ``system.supported_cpuid()``, to ask for it once for all vCPUs.  The vCPU is left where
    KVM resets it: the boot processor (0) needs an entry besides, the others wait for the kernel.
    """
    if supported is None:
        supported = system.supported_cpuid()
    vcpu.set_cpuid2(
        cpuid.patch(
            supported,
            index,
            count,
            tsc_khz=_tsc_khz(vcpu),
            tsc_deadline=bool(vm.check_extension(Cap.TSC_DEADLINE_TIMER)),
        )
    )
    vcpu.set_msrs(msrs.boot_values(vcpu.get_msrs(msrs.READ_FIRST)), optional=msrs.OPTIONAL)
    if index == 0:  # the others' are reset again by the INIT that starts them
        state = vcpu.get_lapic()
        lapic.wire_pins(state)
        vcpu.set_lapic(state)


def _tsc_khz(vcpu: Vcpu) -> int:
    """The guest's TSC frequency in kHz, 0 where the host does not know it."""
    try:
        return vcpu.get_tsc_khz()
    except KvmError:
        return 0
