"""Registers as tables, for post-mortems: Arm ARM (DDI 0487), section D24 for system registers, C5.2.18 for SPSR_EL1."""

from __future__ import annotations

from pyvmm.registers import Bit, Bits, Register

FAULTS = {
    **{level: f"address size, level {level}" for level in range(4)},
    **{4 + level: f"translation, level {level}" for level in range(4)},
    **{8 + level: f"access flag, level {level}" for level in range(4)},
    **{12 + level: f"permission, level {level}" for level in range(4)},
    0x10: "synchronous external abort",
    0x11: "synchronous tag check",
    **{0x14 + level: f"external abort on a table walk, level {level}" for level in range(4)},
    0x18: "parity or ECC error",
    0x21: "alignment",
    0x30: "TLB conflict",
    0x34: "IMPLEMENTATION DEFINED (lockdown)",
    0x35: "IMPLEMENTATION DEFINED (exclusive access)",
}

CLASSES = {
    0x00: "unknown reason",
    0x01: "WFI or WFE trapped",
    0x07: "SVE, SIMD or floating point trapped",
    0x09: "pointer authentication trapped",
    0x0D: "branch target",
    0x0E: "illegal execution state",
    0x15: "SVC",
    0x16: "HVC",
    0x17: "SMC",
    0x18: "MSR, MRS or system instruction trapped",
    0x19: "SVE trapped",
    0x1C: "pointer authentication failure",
    0x20: "instruction abort from EL0",
    0x21: "instruction abort",
    0x22: "PC alignment",
    0x24: "data abort from EL0",
    0x25: "data abort",
    0x26: "SP alignment",
    0x2C: "floating-point exception",
    0x2F: "SError",
    0x30: "breakpoint from EL0",
    0x31: "breakpoint",
    0x32: "software step from EL0",
    0x33: "software step",
    0x34: "watchpoint from EL0",
    0x35: "watchpoint",
    0x3C: "BRK",
}
INSTRUCTION_ABORTS, DATA_ABORTS = (0x20, 0x21), (0x24, 0x25)


class PSTATE(Register):
    """As in SPSR_EL1: C5.2.18."""

    M = Bits(3, 0, {0: "EL0t", 4: "EL1t", 5: "EL1h", 8: "EL2t", 9: "EL2h"})
    M32 = Bit(4)
    F = Bit(6)
    I = Bit(7)  # noqa: E741  (the manual's name)
    A = Bit(8)
    D = Bit(9)
    BTYPE = Bits(11, 10)
    SSBS = Bit(12)
    IL = Bit(20)
    SS = Bit(21)
    PAN = Bit(22)
    UAO = Bit(23)
    DIT = Bit(24)
    TCO = Bit(25)
    V = Bit(28)
    C = Bit(29)
    Z = Bit(30)
    N = Bit(31)


class SCTLR_EL1(Register):
    """D24.2: the bits a post-mortem needs; the others show as numbers."""

    M = Bit(0)
    A = Bit(1)
    C = Bit(2)
    SA = Bit(3)
    I = Bit(12)  # noqa: E741
    WXN = Bit(19)
    EE = Bit(25)


class TCR_EL1(Register):
    """D24.2: how the two halves of the address space are translated."""

    T0SZ = Bits(5, 0)
    EPD0 = Bit(7)
    TG0 = Bits(15, 14, {0: "4K", 1: "64K", 2: "16K"})
    T1SZ = Bits(21, 16)
    EPD1 = Bit(23)
    TG1 = Bits(31, 30, {1: "16K", 2: "4K", 3: "64K"})
    IPS = Bits(34, 32)
    TBI0 = Bit(37)
    TBI1 = Bit(38)
    DS = Bit(59)


class ESR_EL1(Register):
    """D24.2: the syndrome of the last exception taken to EL1; :func:`describe_syndrome` has it in words."""

    ISS = Bits(24, 0)
    IL = Bit(25)
    EC = Bits(31, 26, CLASSES)
    ISS2 = Bits(36, 32)


class DataAbort(Register):
    """The ISS of a data abort."""

    DFSC = Bits(5, 0, FAULTS)
    WNR = Bit(6)
    S1PTW = Bit(7)
    CM = Bit(8)
    EA = Bit(9)
    FNV = Bit(10)
    AR = Bit(14)
    SF = Bit(15)
    SRT = Bits(20, 16)
    SSE = Bit(21)
    SAS = Bits(23, 22, {1: "2 bytes", 2: "4 bytes", 3: "8 bytes"})
    ISV = Bit(24)


class InstructionAbort(Register):
    """The ISS of an instruction abort."""

    IFSC = Bits(5, 0, FAULTS)
    S1PTW = Bit(7)
    EA = Bit(9)
    FNV = Bit(10)


def describe_syndrome(value: int) -> str:
    """ESR_EL1 in words: what happened, and for an abort of which kind."""
    syndrome = ESR_EL1(value)
    name = CLASSES.get(syndrome.EC, f"exception class {syndrome.EC:#x}")
    if syndrome.EC in DATA_ABORTS:
        abort = DataAbort(syndrome.ISS)
        way = "write" if abort.WNR else "read"
        return f"{name}, {way}: {FAULTS.get(abort.DFSC, f'fault {abort.DFSC:#x}')}"
    if syndrome.EC in INSTRUCTION_ABORTS:
        status = InstructionAbort(syndrome.ISS).IFSC
        return f"{name}: {FAULTS.get(status, f'fault {status:#x}')}"
    if syndrome.ISS:
        return f"{name}, ISS {syndrome.ISS:#x}"
    return name
