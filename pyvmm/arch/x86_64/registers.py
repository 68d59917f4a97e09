"""The system registers of x86_64 with their bits named: Intel SDM volume 3, sections 2.2.1, 2.3 and 2.5.

The names are those of the manuals (AMD's where only AMD has the bit).
"""

from __future__ import annotations

from pyvmm.registers import Bit, Bits, Register


class CR0(Register):
    """Operating mode and processor state."""

    PE = Bit(0)
    MP = Bit(1)
    EM = Bit(2)
    TS = Bit(3)
    ET = Bit(4)
    NE = Bit(5)
    WP = Bit(16)
    AM = Bit(18)
    NW = Bit(29)
    CD = Bit(30)
    PG = Bit(31)


class CR3(Register):
    """Where the page tables begin; with CR4.PCIDE the low 12 bits are the PCID instead of PWT and PCD."""

    PWT = Bit(3)
    PCD = Bit(4)
    BASE = Bits(51, 12)

    def decode(self) -> str:
        """The address of the top table in words, and the low bits if any is set."""
        low = self & 0xFFF
        return f"tables at {self & CR3.BASE:#x}" + (f" low bits {low:#x}" if low else "")


class CR4(Register):
    """Architectural extensions in use."""

    VME = Bit(0)
    PVI = Bit(1)
    TSD = Bit(2)
    DE = Bit(3)
    PSE = Bit(4)
    PAE = Bit(5)
    MCE = Bit(6)
    PGE = Bit(7)
    PCE = Bit(8)
    OSFXSR = Bit(9)
    OSXMMEXCPT = Bit(10)
    UMIP = Bit(11)
    LA57 = Bit(12)
    VMXE = Bit(13)
    SMXE = Bit(14)
    FSGSBASE = Bit(16)
    PCIDE = Bit(17)
    OSXSAVE = Bit(18)
    KL = Bit(19)
    SMEP = Bit(20)
    SMAP = Bit(21)
    PKE = Bit(22)
    CET = Bit(23)
    PKS = Bit(24)
    UINTR = Bit(25)
    LAM_SUP = Bit(28)
    FRED = Bit(32)


class EFER(Register):
    """IA32_EFER: long mode, SYSCALL and no-execute pages."""

    SCE = Bit(0)
    LME = Bit(8)
    LMA = Bit(10)
    NXE = Bit(11)
    SVME = Bit(12)
    LMSLE = Bit(13)
    FFXSR = Bit(14)
    TCE = Bit(15)
    AIBRSE = Bit(21)


class RFLAGS(Register):
    """Flags; bit 1 is always set."""

    CF = Bit(0)
    ONE = Bit(1)
    PF = Bit(2)
    AF = Bit(4)
    ZF = Bit(6)
    SF = Bit(7)
    TF = Bit(8)
    IF = Bit(9)
    DF = Bit(10)
    OF = Bit(11)
    IOPL = Bits(13, 12)
    NT = Bit(14)
    RF = Bit(16)
    VM = Bit(17)
    AC = Bit(18)
    VIF = Bit(19)
    VIP = Bit(20)
    ID = Bit(21)

    def decode(self) -> str:
        """The set flags, without the one that always is."""
        return " ".join(word for word in super().decode().split() if word != "ONE")


class SegmentAttributes(Register):
    """Access rights of a segment, laid out as in a descriptor's bits 40 to 55 (SDM volume 3, 3.4.5)."""

    TYPE = Bits(3, 0)
    S = Bit(4)
    DPL = Bits(6, 5)
    P = Bit(7)
    AVL = Bit(12)
    L = Bit(13)
    DB = Bit(14)
    G = Bit(15)

    def decode(self) -> str:
        """Presence, kind, size and privilege: ``present code execute/read accessed 64-bit DPL=0``."""
        words = ["present" if self.P else "not present"]
        kind = self.TYPE
        if not self.S:
            words.append(SYSTEM_TYPES.get(kind, f"system type {kind}"))
        elif kind & 8:
            words += ["code", "execute/read" if kind & 2 else "execute"]
        else:
            words += ["data", "read/write" if kind & 2 else "read", *(["expand-down"] if kind & 4 else [])]
        if self.S:
            words += [*(["conforming"] if kind & 12 == 12 else []), *(["accessed"] if kind & 1 else [])]
            words.append("64-bit" if self.L else "32-bit" if self.DB else "16-bit")
        words.append(f"DPL={self.DPL}")
        return " ".join(words)


SYSTEM_TYPES = {
    1: "16-bit TSS available",
    2: "LDT",
    3: "16-bit TSS busy",
    9: "TSS available",
    11: "TSS busy",
}


class PageTableEntry(Register):
    """The bits that entries of all levels share, and PS, which only directories have (SDM volume 3, 4.5)."""

    P = Bit(0)
    RW = Bit(1)
    US = Bit(2)
    PWT = Bit(3)
    PCD = Bit(4)
    A = Bit(5)
    D = Bit(6)
    PS = Bit(7)
    G = Bit(8)
    BASE = Bits(51, 12)
    NX = Bit(63)

    def decode(self) -> str:
        """The set flags; the address is left to the reader of the number."""
        return " ".join(word for word in super().decode().split() if not word.startswith(("BASE=", "+")))


class InterruptionInfo(Register):
    """The event being delivered at an exit: VMX IDT-vectoring information (SDM volume 3, 25.9.3), and with
    the same layout SVM's EXITINTINFO (AMD APM volume 2, 15.20)."""

    VECTOR = Bits(7, 0)
    TYPE = Bits(10, 8)
    ERROR_CODE = Bit(11)
    VALID = Bit(31)

    def decode(self) -> str:
        """The event in words: an exception's name, ``NMI`` or ``interrupt 0x20``."""
        if not self.VALID:
            return "none"
        if self.TYPE == 2:
            return "NMI"
        if self.TYPE in (3, 5, 6):
            return exception_name(self.VECTOR)
        return f"{'software ' if self.TYPE == 4 else ''}interrupt {self.VECTOR:#x}"


EXCEPTIONS = (
    "#DE divide error",
    "#DB debug",
    "NMI",
    "#BP breakpoint (int3)",
    "#OF overflow",
    "#BR bound range",
    "#UD invalid opcode",
    "#NM device not available",
    "#DF double fault",
    "coprocessor overrun",
    "#TS invalid TSS",
    "#NP segment not present",
    "#SS stack fault",
    "#GP general protection",
    "#PF page fault",
    "reserved",
    "#MF x87 error",
    "#AC alignment check",
    "#MC machine check",
    "#XM SIMD error",
    "#VE virtualization",
    "#CP control protection",
)


def exception_name(vector: int) -> str:
    """The mnemonic and meaning of an exception vector (SDM volume 3, table 6-1)."""
    return EXCEPTIONS[vector] if vector < len(EXCEPTIONS) else f"exception {vector}"


class PageFaultError(Register):
    """The error code of a page fault (SDM volume 3, 4.7)."""

    P = Bit(0)
    W = Bit(1)
    U = Bit(2)
    RSVD = Bit(3)
    I = Bit(4)  # noqa: E741 - the manual's name: an instruction fetch
    PK = Bit(5)
    SS = Bit(6)
    SGX = Bit(15)
