"""Making a VM and its vCPUs into an aarch64 machine: what KVM must be told, in the order it asks for.

Linux ``Documentation/virt/kvm/api.rst``, section 4.82: KVM_ARM_VCPU_INIT comes before anything else is done with a
vCPU, with the same features for each but for POWER_OFF; KVM_ARM_VCPU_FINALIZE follows it where SVE is among them,
before the registers are listed and before the first run.  The interrupt controller comes when all vCPUs are there
(:mod:`pyvmm.arch.aarch64.gic`).

The performance monitors are left out: they would need an interrupt and an initialisation of their own.
"""

from __future__ import annotations

from pyvmm.kvm import arm64
from pyvmm.kvm.uapi import Cap
from pyvmm.kvm.uapi_arm64 import (
    KVM_ARM_VCPU_POWER_OFF,
    KVM_ARM_VCPU_PSCI_0_2,
    KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC,
    KVM_ARM_VCPU_SVE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.kvm.system import System
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.kvm.vm import Vm


def prepare_vm(vm: Vm) -> None:
    """Ask to be told of accesses that KVM cannot decode (since Linux 5.5), so that a post-mortem can say where."""
    if vm.check_extension(Cap.ARM_NISV_TO_USER):
        vm.enable_cap(Cap.ARM_NISV_TO_USER)


def supported_features(system: System) -> list[int]:
    """The features that every vCPU gets here: PSCI, and what the processor has of SVE and pointer authentication.

    The two kinds of pointer authentication come together or not at all.
    """
    features = [KVM_ARM_VCPU_PSCI_0_2]
    if system.check_extension(Cap.ARM_SVE):
        features.append(KVM_ARM_VCPU_SVE)
    if system.check_extension(Cap.ARM_PTRAUTH_ADDRESS) and system.check_extension(Cap.ARM_PTRAUTH_GENERIC):
        features += [KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC]
    return features


def prepare_vcpu(
    system: System, vm: Vm, vcpu: Vcpu, index: int, count: int, supported: Sequence[int] | None = None
) -> None:
    """Make ``vcpu``, number ``index``, a processor at reset.  All but the first wait for the kernel's CPU_ON (PSCI).

    ``supported`` is what supported_features() says, to ask for it once for all vCPUs.
    """
    features = list(supported_features(system) if supported is None else supported)
    if index:
        features.append(KVM_ARM_VCPU_POWER_OFF)
    arm64.vcpu_init(vcpu, arm64.preferred_target(vm), features)
    if KVM_ARM_VCPU_SVE in features:
        arm64.vcpu_finalize(vcpu, KVM_ARM_VCPU_SVE)
