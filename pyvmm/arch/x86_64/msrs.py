"""The model-specific registers a vCPU starts with where KVM's reset values are not what firmware leaves.

Intel SDM volume 4 (the list) and volume 3, section 12.11 (MTRRs).  Everything else stays as KVM resets it:
the SYSENTER and SYSCALL registers and KERNEL_GS_BASE are 0 already, and writing the TSC would undo KVM's
own synchronisation between vCPUs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

IA32_MISC_ENABLE = 0x1A0
IA32_MTRR_DEF_TYPE = 0x2FF

FAST_STRINGS = 1 << 0  # MISC_ENABLE: firmware sets it; without it Linux on Intel gives up fast string copies
MTRR_ENABLE = 1 << 11  # MTRR_DEF_TYPE
WRITE_BACK = 6  # MTRR_DEF_TYPE: with no ranges defined all memory is write-back, as firmware makes RAM

# Neither is vital to a boot, and a software KVM may refuse them.
OPTIONAL = (IA32_MISC_ENABLE, IA32_MTRR_DEF_TYPE)
READ_FIRST = (IA32_MISC_ENABLE,)


def boot_values(current: Mapping[int, int]) -> dict[int, int]:
    """Index to value, for KVM_SET_MSRS after KVM_SET_CPUID2.

    ``current`` holds the values of READ_FIRST: the other bits of MISC_ENABLE say what the PMU lacks, and KVM
    sets them by CPUID.
    """
    return {
        IA32_MISC_ENABLE: current.get(IA32_MISC_ENABLE, 0) | FAST_STRINGS,
        IA32_MTRR_DEF_TYPE: MTRR_ENABLE | WRITE_BACK,
    }
