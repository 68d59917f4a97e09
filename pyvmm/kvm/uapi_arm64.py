"""The structures and constants of <asm/kvm.h> for arm64, and what <linux/kvm.h> has for it alone; named as there.

Source: Linux ``arch/arm64/include/uapi/asm/kvm.h`` and ``include/uapi/linux/kvm.h``; the conventions are those of
:mod:`pyvmm.kvm.uapi`.  ``tests/unit/test_aarch64_uapi.py`` compares all of it with a cross compiler's view.
"""

from __future__ import annotations

from ctypes import Structure

from .uapi import u32, u64

# --- registers by number: KVM_GET_ONE_REG, KVM_SET_ONE_REG ---------------------------------------------
KVM_REG_ARM64 = 0x6000000000000000
KVM_REG_SIZE_U32 = 0x0020000000000000
KVM_REG_SIZE_U64 = 0x0030000000000000
KVM_REG_SIZE_U128 = 0x0040000000000000
KVM_REG_ARM_CORE = 0x0010 << 16
KVM_REG_ARM64_SYSREG = 0x0013 << 16
KVM_REG_ARM_FW = 0x0014 << 16
KVM_REG_ARM_PSCI_VERSION = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_FW | 0


class user_pt_regs(Structure):
    """<asm/ptrace.h>: X0 to X30, SP of EL0, PC, PSTATE."""

    _fields_ = [("regs", u64 * 31), ("sp", u64), ("pc", u64), ("pstate", u64)]


class user_fpsimd_state(Structure):
    """<asm/ptrace.h>: V0 to V31, 128 bits each, on a 16-byte boundary."""

    _fields_ = [("vregs", u64 * 2 * 32), ("fpsr", u32), ("fpcr", u32), ("__reserved", u32 * 2)]


KVM_NR_SPSR = 5


class kvm_regs(Structure):
    """The core registers: never read or written as a whole, a register's number is its offset here, in words."""

    _fields_ = [
        ("regs", user_pt_regs),
        ("sp_el1", u64),
        ("elr_el1", u64),
        ("spsr", u64 * KVM_NR_SPSR),
        ("__padding", u64),  # the compiler's, before the vector registers
        ("fp_regs", user_fpsimd_state),
    ]


def core_reg(offset: int) -> int:
    """The number of the 64-bit core register at byte ``offset`` of :class:`kvm_regs`."""
    return KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | offset // 4


def sys_reg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """ARM64_SYS_REG: the number of a system register by its encoding, the operands of MRS and MSR."""
    return (
        KVM_REG_ARM64
        | KVM_REG_SIZE_U64
        | KVM_REG_ARM64_SYSREG
        | op0 << 14
        | op1 << 11
        | crn << 7
        | crm << 3
        | op2
    )


# Two of these encodings are those of other registers (CVAL and CNT are swapped): an old mistake that is kept.
KVM_REG_ARM_TIMER_CTL = 0x603000000013DF19
KVM_REG_ARM_TIMER_CVAL = 0x603000000013DF02
KVM_REG_ARM_TIMER_CNT = 0x603000000013DF1A

# --- a vCPU's features: KVM_ARM_VCPU_INIT --------------------------------------------------------------
KVM_ARM_VCPU_POWER_OFF = 0
KVM_ARM_VCPU_EL1_32BIT = 1
KVM_ARM_VCPU_PSCI_0_2 = 2
KVM_ARM_VCPU_PMU_V3 = 3
KVM_ARM_VCPU_SVE = 4
KVM_ARM_VCPU_PTRAUTH_ADDRESS = 5
KVM_ARM_VCPU_PTRAUTH_GENERIC = 6


class kvm_vcpu_init(Structure):
    """``target``, as KVM_ARM_PREFERRED_TARGET gives it, and a bit for each feature."""

    _fields_ = [("target", u32), ("features", u32 * 7)]


class kvm_reg_list(Structure):
    _fields_ = [("n", u64), ("reg", u64 * 0)]


# --- interrupt controllers: KVM_CREATE_DEVICE and the groups of their attributes -------------------------
KVM_DEV_TYPE_ARM_VGIC_V2 = 5
KVM_DEV_TYPE_ARM_VGIC_V3 = 7
KVM_DEV_TYPE_ARM_VGIC_ITS = 8

KVM_DEV_ARM_VGIC_GRP_ADDR = 0
KVM_DEV_ARM_VGIC_GRP_NR_IRQS = 3
KVM_DEV_ARM_VGIC_GRP_CTRL = 4
KVM_DEV_ARM_VGIC_CTRL_INIT = 0

KVM_VGIC_V2_ADDR_TYPE_DIST = 0
KVM_VGIC_V2_ADDR_TYPE_CPU = 1
KVM_VGIC_V3_ADDR_TYPE_DIST = 2
KVM_VGIC_V3_ADDR_TYPE_REDIST = 3
KVM_VGIC_ITS_ADDR_TYPE = 4

KVM_VGIC_V2_DIST_SIZE = 0x1000
KVM_VGIC_V2_CPU_SIZE = 0x2000
KVM_VGIC_V3_DIST_SIZE = 0x1_0000
KVM_VGIC_V3_REDIST_SIZE = 0x2_0000
KVM_VGIC_V3_ITS_SIZE = 0x2_0000

# --- KVM_IRQ_LINE: what the interrupt's number is made of ------------------------------------------------
KVM_ARM_IRQ_TYPE_SHIFT = 24
KVM_ARM_IRQ_TYPE_SPI = 1


def spi_line(spi: int) -> int:
    """The number that KVM_IRQ_LINE takes for shared peripheral interrupt ``spi`` (0 is interrupt ID 32)."""
    return KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | spi + 32


# --- exits ---------------------------------------------------------------------------------------------
class run_arm_nisv(Structure):
    """``kvm_run.arm_nisv``: an access whose instruction says nothing of itself in ESR, and where it went."""

    _fields_ = [("esr_iss", u64), ("fault_ipa", u64)]
