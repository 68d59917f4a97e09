"""The ioctls that only arm64 has, as functions on a Vm and a Vcpu, and its registers by name.

Linux ``Documentation/virt/kvm/api.rst``, sections 4.82 (KVM_ARM_VCPU_INIT), 4.83 (KVM_ARM_PREFERRED_TARGET),
4.84 (KVM_GET_REG_LIST), 4.119 (KVM_ARM_VCPU_FINALIZE).  They have a table of their own, beside that of
:mod:`pyvmm.kvm.ioctls`, since the headers of other architectures lack the structures.
"""

from __future__ import annotations

import errno
from ctypes import c_int, c_uint64

from .errors import KvmError
from .flexible import flexible
from .ioctls import Ioctl, ior, iow, iowr
from .uapi import Cap
from .uapi_arm64 import core_reg, kvm_reg_list, kvm_regs, kvm_vcpu_init, sys_reg, user_pt_regs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .vcpu import Vcpu
    from .vm import Vm

KVM_ARM_VCPU_INIT = iow(0xAE, kvm_vcpu_init)
KVM_ARM_PREFERRED_TARGET = ior(0xAF, kvm_vcpu_init)
KVM_GET_REG_LIST = iowr(0xB0, kvm_reg_list, Cap.ONE_REG)
KVM_ARM_VCPU_FINALIZE = iow(0xC2, c_int)

TABLE: dict[str, Ioctl] = {name: value for name, value in globals().items() if isinstance(value, Ioctl)}
for _name, _request in TABLE.items():
    _request.name = _name

# --- registers (KVM_GET_ONE_REG) -----------------------------------------------------------------------
X = tuple(core_reg(8 * number) for number in range(31))
SP_EL0 = core_reg(user_pt_regs.sp.offset)
PC = core_reg(user_pt_regs.pc.offset)
PSTATE = core_reg(user_pt_regs.pstate.offset)
SP_EL1 = core_reg(kvm_regs.sp_el1.offset)
ELR_EL1 = core_reg(kvm_regs.elr_el1.offset)
SPSR_EL1 = core_reg(kvm_regs.spsr.offset)

MPIDR_EL1 = sys_reg(3, 0, 0, 0, 5)
ID_AA64MMFR0_EL1 = sys_reg(3, 0, 0, 7, 0)
SCTLR_EL1 = sys_reg(3, 0, 1, 0, 0)
TTBR0_EL1 = sys_reg(3, 0, 2, 0, 0)
TTBR1_EL1 = sys_reg(3, 0, 2, 0, 1)
TCR_EL1 = sys_reg(3, 0, 2, 0, 2)
ESR_EL1 = sys_reg(3, 0, 5, 2, 0)
FAR_EL1 = sys_reg(3, 0, 6, 0, 0)
MAIR_EL1 = sys_reg(3, 0, 10, 2, 0)
VBAR_EL1 = sys_reg(3, 0, 12, 0, 0)


def preferred_target(vm: Vm) -> int:
    """KVM_ARM_PREFERRED_TARGET: the processor type that suits this host, for vcpu_init()."""
    init = kvm_vcpu_init()
    vm.ioctl(KVM_ARM_PREFERRED_TARGET, init)
    return init.target  # type: ignore[no-any-return]


def vcpu_init(vcpu: Vcpu, target: int, features: Iterable[int]) -> None:
    """KVM_ARM_VCPU_INIT: make ``vcpu`` a processor of type ``target`` with KVM_ARM_VCPU_* ``features``, at reset."""
    init = kvm_vcpu_init(target=target)
    for feature in features:
        init.features[feature // 32] |= 1 << feature % 32
    vcpu.ioctl(KVM_ARM_VCPU_INIT, init, f"vCPU {vcpu.id}, features {init.features[0]:#x}")


def vcpu_finalize(vcpu: Vcpu, feature: int) -> None:
    """KVM_ARM_VCPU_FINALIZE: settle ``feature`` (SVE), without which the vCPU cannot run."""
    vcpu.ioctl(KVM_ARM_VCPU_FINALIZE, c_int(feature), f"vCPU {vcpu.id}, feature {feature}")


def get_reg_list(vcpu: Vcpu) -> list[int]:
    """KVM_GET_REG_LIST: the numbers of all registers that KVM_GET_ONE_REG knows."""
    for count in (1024, 8192):
        buffer, header, registers = flexible(kvm_reg_list, c_uint64, count)
        header.n = count
        try:
            vcpu.ioctl(KVM_GET_REG_LIST, buffer, f"vCPU {vcpu.id}")
        except KvmError as error:
            if error.errno != errno.E2BIG:
                raise
            continue
        return list(registers[: header.n])
    raise KvmError("KVM_GET_REG_LIST", errno.E2BIG, "8192 registers")
