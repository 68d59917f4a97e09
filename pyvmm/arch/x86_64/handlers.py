"""Exception handlers for the time before a guest has its own: they save the registers, then let it die.

A guest starts without an interrupt table, so that its first mistake is a triple fault, and KVM on AMD resets
the vCPU then: nothing would tell what happened.  With these handlers the registers of the first exception are
in guest memory, on Intel and AMD alike.  What KVM reports is a triple fault as before: the handler ends by
taking the interrupt table away and faulting again.  A guest with a table of its own never comes here.

Intel SDM volume 3, sections 6.11 and 6.14.1 (gates), 6.12.1 (frames), 6.14.5 and 7.7 (IST and TSS in 64-bit
mode).  One page holds, in this order: the table, a call for each vector, the handler, a TSS, the stack.
"""

from __future__ import annotations

import struct

from pyvmm.arch.x86_64 import layout, segments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.arch.x86_64.stop import ReadableMemory, Stop
    from pyvmm.kvm.uapi_x86 import kvm_sregs

VECTORS = 32
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})

_CALLS = 0x200  # offsets in the page
_CALL_SIZE = 5
_HANDLER = _CALLS + VECTORS * _CALL_SIZE
_TSS = 0x380
_TOP = layout.PAGE_SIZE
_IST1 = 0x24  # offset in the TSS

# The return address of the call says which vector it is.
HANDLER_64 = bytes.fromhex(
    "50 51 52 53 55 56 57"  # push rax, rcx, rdx, rbx, rbp, rsi, rdi
    "4150 4151 4152 4153 4154 4155 4156 4157"  # push r8 to r15
    "0f20c0 50"  # mov rax, cr0; push rax
    "0f20d0 50"  # mov rax, cr2; push rax
    "0f20d8 50"  # mov rax, cr3; push rax
    "0f20e0 50"  # mov rax, cr4; push rax
    "b9800000c0 0f32 50"  # mov ecx, 0xc0000080; rdmsr; push rax
    "6a00 6a00 0f011c24"  # push 0; push 0; lidt [rsp]
    "0f0b"  # ud2
)
# The processor has pushed on the guest's own stack: pushad joins it, and 13 words move to the page's.
HANDLER_32 = bytes.fromhex(
    "60"  # pushad
    "89e6 bc00600000"  # mov esi, esp; mov esp, 0x6000
    "b90d000000 ff36 83c604 e2f9"  # mov ecx, 13; l: push [esi]; add esi, 4; loop l
    "0f20c0 50 0f20d0 50 0f20d8 50 0f20e0 50"  # likewise CR0, CR2, CR3, CR4
    "b9800000c0 0f32 50"  # mov ecx, 0xc0000080; rdmsr; push eax
    "6a00 6a00 0f011c24"  # push 0; push 0; lidt [esp]
    "0f0b"  # ud2
)
_SAVED_64 = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
_SAVED_32 = ("rdi", "rsi", "rbp", "rsp", "rbx", "rdx", "rcx", "rax")  # as pushad leaves them, from ESP up
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")


def page(code: int) -> bytes:
    """The page for code segments with attributes ``code`` (segments.CODE_64 or CODE_32)."""
    long = code == segments.CODE_64
    calls = layout.EXCEPTION_HANDLERS + _CALLS
    gate = (
        0x8E00 << 32 | segments.BOOT_CS << 16 | long << 32
    )  # a present interrupt gate; IST 1 in 64-bit mode
    gates = [gate | calls + vector * _CALL_SIZE for vector in range(VECTORS)]
    if long:
        gates = [word for low in gates for word in (low, 0)]
    table = struct.pack(f"<{len(gates)}Q", *gates)
    jumps = b"".join(
        b"\xe8" + struct.pack("<i", _HANDLER - _CALLS - (vector + 1) * _CALL_SIZE)
        for vector in range(VECTORS)
    )
    tss = bytes(_IST1) + struct.pack("<Q", layout.EXCEPTION_HANDLERS + _TOP)
    parts = table.ljust(_CALLS, b"\0") + jumps + (HANDLER_64 if long else HANDLER_32)
    return (parts.ljust(_TSS, b"\0") + tss).ljust(layout.PAGE_SIZE, b"\0")


def load(sregs: kvm_sregs, code: int) -> None:
    """Point the interrupt table's register, and in 64-bit mode the task register, into the page."""
    sregs.idt.base = layout.EXCEPTION_HANDLERS
    if code == segments.CODE_64:
        sregs.idt.limit = VECTORS * 16 - 1
        segments.load(
            sregs.tr,
            segments.BOOT_TSS,
            layout.EXCEPTION_HANDLERS + _TSS,
            segments.TSS_LIMIT,
            segments.TSS_BUSY,
        )
    else:
        sregs.idt.limit = VECTORS * 8 - 1


def recover(stop: Stop, memory: ReadableMemory) -> bool:
    """Put the registers of the first exception into ``stop``, a triple fault, if a handler saved them.

    Sets ``stop.exception``.  Segments that KVM has lost are filled in as they were at the entry.  Returns
    whether it did; a ``stop`` that did not end in a handler is left as it is.
    """
    start = layout.EXCEPTION_HANDLERS
    if not (stop.was_reset or start <= stop.regs.rip < start + layout.PAGE_SIZE):
        return False
    if not memory.contains(start, layout.PAGE_SIZE):
        return False
    content = memory.read(start, layout.PAGE_SIZE)
    if content.startswith(HANDLER_64, _HANDLER):
        return _recover_64(stop, struct.unpack("<32Q", content[-32 * 8 :])[::-1])
    if content.startswith(HANDLER_32, _HANDLER):
        return _recover_32(stop, struct.unpack("<32I", content[-32 * 4 :])[::-1])
    return False  # the guest has put the page to other use


def _vector(return_address: int) -> int:
    """The vector whose call returns to this address, -1 if none does."""
    vector, rest = divmod(return_address - layout.EXCEPTION_HANDLERS - _CALLS, _CALL_SIZE)
    return vector - 1 if rest == 0 and 1 <= vector <= VECTORS else -1


def _recover_64(stop: Stop, words: tuple[int, ...]) -> bool:
    """``words`` from the top of the stack down: SS, RSP, RFLAGS, CS, RIP, perhaps an error code, the call."""
    ss, rsp, rflags, cs, rip, *rest = words
    vector, error_code = _vector(rest[0]), None
    if vector < 0 or vector in WITH_ERROR_CODE:
        error_code, *rest = rest
        vector = _vector(rest[0])
        if vector not in WITH_ERROR_CODE:
            return False
    _forget(stop, segments.CODE_64)
    _set(stop.regs, _SAVED_64, rest[1:])
    _set(stop.sregs, _CONTROL, rest[1 + len(_SAVED_64) :])
    stop.sregs.cs.selector, stop.sregs.ss.selector = cs, ss
    stop.regs.rip, stop.regs.rsp, stop.regs.rflags = rip, rsp, rflags
    stop.exception = (vector, error_code)
    return True


def _recover_32(stop: Stop, words: tuple[int, ...]) -> bool:
    """``words`` from the top of the page down, which is from ESP up: pushad's, the call, perhaps an error
    code, EIP, CS, EFLAGS; 13 in all, then the control registers."""
    general, (call, *frame), control = words[:8], words[8:13], words[13:]
    vector, error_code = _vector(call), None
    if vector < 0:
        return False
    if vector in WITH_ERROR_CODE:
        error_code, *frame = frame
    _forget(stop, segments.CODE_32)
    _set(stop.regs, _SAVED_32, general)
    _set(stop.sregs, _CONTROL, control)
    stop.regs.rip, stop.sregs.cs.selector, stop.regs.rflags = frame[:3]
    stop.regs.rsp += 4 * (4 if error_code is None else 5)
    stop.exception = (vector, error_code)
    return True


def _forget(stop: Stop, code: int) -> None:
    """Take the place of a reset processor's segments by those of the entry."""
    if stop.was_reset:
        stop.segments_lost = True
        segments.load_flat(stop.sregs, code)
    load(stop.sregs, code)


def _set(target: object, names: tuple[str, ...], values: list[int] | tuple[int, ...]) -> None:
    for name, value in zip(names, values, strict=False):
        setattr(target, name, value)
