"""The model-specific registers a vCPU starts with where KVM's reset values are not what firmware leaves.

Intel SDM volume 4 (the list) and volume 3, section 12.11 (MTRRs).  Everything else stays as KVM resets it:
the SYSENTER and SYSCALL registers and KERNEL_GS_BASE are 0 already, and writing the TSC would undo KVM's
own synchronisation between vCPUs.
"""

from __future__ import annotations

IA32_TSC = 0x10
IA32_APIC_BASE = 0x1B
IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP = 0x174, 0x175, 0x176
IA32_MISC_ENABLE = 0x1A0
IA32_MTRR_DEF_TYPE = 0x2FF
IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK = 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084
IA32_KERNEL_GS_BASE = 0xC000_0102

FAST_STRINGS = 1 << 0  # MISC_ENABLE: firmware sets it, and Linux gives up "rep_good" on Intel without it
BTS_UNAVAILABLE = 1 << 11  # MISC_ENABLE: as KVM resets it; branch traces and PEBS are not offered
PEBS_UNAVAILABLE = 1 << 12

MTRR_ENABLE = 1 << 11
WRITE_BACK = 6  # with no ranges defined, all memory is write-back, as firmware would arrange for RAM

# Neither is vital to a boot and some hosts refuse them, so each is set alone and a refusal is no error.
OPTIONAL: tuple[tuple[int, int], ...] = (
    (IA32_MISC_ENABLE, FAST_STRINGS | BTS_UNAVAILABLE | PEBS_UNAVAILABLE),
    (IA32_MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK),
)
