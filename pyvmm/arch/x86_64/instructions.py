"""What the bytes at RIP are: the few instructions that explain a dead guest, and a disassembly.

Intel SDM volume 2, chapter 2 (prefixes) and appendix A (opcode maps).  Only the opcodes that name a cause are
told apart here; the disassembly is capstone's, if it is installed (the extra ``disasm``).
"""

from __future__ import annotations

_LEGACY_PREFIXES = b"\xf0\xf2\xf3\x2e\x36\x3e\x26\x64\x65\x66\x67"

# The instructions that a software KVM's emulator is known not to have: kvm_pvm ends in an internal error.
SOFTWARE_KVM_LACKS = frozenset({"iret", "iretd", "iretq", "int3", "cmpxchg16b", "xrstor"})


def opcode(code: bytes, *, long_mode: bool) -> tuple[bytes, bool]:
    """``code`` from its opcode on, prefixes skipped, and whether REX.W is set."""
    position = 0
    while position < len(code) and code[position] in _LEGACY_PREFIXES:
        position += 1
    wide = False
    if long_mode and position < len(code) and code[position] & 0xF0 == 0x40:
        wide = bool(code[position] & 8)
        position += 1
    return code[position:], wide


def name(code: bytes, *, long_mode: bool) -> str:
    """The mnemonic at the start of ``code`` if it is one that names a cause, else an empty string."""
    rest, wide = opcode(code, long_mode=long_mode)
    if not rest:
        return ""
    first = rest[0]
    if first == 0xCF:
        return "iretq" if wide else "iretd" if long_mode else "iret"
    if first in _ONE_BYTE:
        return _ONE_BYTE[first]
    if first != 0x0F or len(rest) < 2:
        return ""
    second = rest[1]
    if second in _TWO_BYTE:
        return _TWO_BYTE[second]
    if len(rest) < 3:
        return ""
    register, memory = rest[2] >> 3 & 7, rest[2] < 0xC0
    if second == 0xC7 and register == 1 and memory:
        return "cmpxchg16b" if wide else "cmpxchg8b"
    if second == 0xAE and memory:
        return ("fxsave", "fxrstor", "ldmxcsr", "stmxcsr", "xsave", "xrstor", "xsaveopt", "clflush")[register]
    if second == 0x01 and memory and register in (2, 3):
        return ("lgdt", "lidt")[register - 2]
    if second == 0x01:
        return {0xD0: "xgetbv", 0xD1: "xsetbv", 0xC1: "vmcall", 0xD9: "vmmcall"}.get(rest[2], "")
    if second == 0x00 and register == 3:
        return "ltr"
    return ""


_ONE_BYTE = {0xCC: "int3", 0xCD: "int", 0xF4: "hlt", 0xFA: "cli", 0xFB: "sti"}
_TWO_BYTE = {
    0x05: "syscall",
    0x07: "sysret",
    0x09: "wbinvd",
    0x0B: "ud2",
    0x22: "mov to a control register",
    0x30: "wrmsr",
    0x32: "rdmsr",
    0xB9: "ud1",
    0xA2: "cpuid",
    0xFF: "ud0",
}


def disassemble(code: bytes, address: int, *, bits: int, limit: int = 4) -> list[str]:
    """Up to ``limit`` instructions of ``code`` as text lines, or nothing where capstone is not installed.

    ``bits`` is 16, 32 or 64.
    """
    try:
        import capstone
    except ImportError:
        return []
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    return [
        f"{at:#x}: {mnemonic} {operands}".rstrip()
        for at, _, mnemonic, operands in decoder.disasm_lite(code, address, limit)
    ]
