"""Why a vCPU probably stopped, in words: what a person with the manuals would look at, in that order.

Intel SDM volume 3, chapter 6 (exceptions) and appendix C (exit reasons); AMD APM volume 2, chapter 15;
Linux arch/x86/kvm for what KVM reports and when.
"""

from __future__ import annotations

from pyvmm.arch.x86_64 import instructions
from pyvmm.arch.x86_64.contradictions import contradictions
from pyvmm.arch.x86_64.registers import (
    CR0,
    CR4,
    EFER,
    InterruptionInfo,
    PageFaultError,
    exception_name,
)
from pyvmm.kvm import uapi_run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm.arch.x86_64.stop import ReadableMemory, Stop

_BREAKPOINT, _PAGE_FAULT = 3, 14
_SELECTOR_FAULTS = (10, 11, 12, 13)  # their error code names a selector or a gate


def likely_causes(stop: Stop, memory: ReadableMemory, *, software_kvm: bool | None = None) -> list[str]:
    """One sentence for each thing found wrong, the likeliest first; never empty.

    ``software_kvm`` says whether this host's KVM is known to be a software one, None if nobody looked.
    """
    if stop.reason == uapi_run.KVM_EXIT_FAIL_ENTRY:
        found = list(_failed_entry(stop, memory))
    elif stop.reason == uapi_run.KVM_EXIT_INTERNAL_ERROR:
        found = list(_internal_error(stop, memory, software_kvm))
    else:
        found = list(_triple_fault(stop, memory))
    return list(dict.fromkeys(found))


def _triple_fault(stop: Stop, memory: ReadableMemory) -> Iterator[str]:
    if stop.was_reset:
        yield (
            "unknown: KVM has reset the processor, as it does on AMD, so the registers below are from after "
            "the reset, not from the fault; the last console output may tell (for Linux: earlyprintk=serial)"
        )
        return
    if stop.exception is not None:
        yield from _seen(stop, memory)
        return
    before = False
    for sentence in (*_pending(stop), *_fetch(stop, memory), *contradictions(stop.regs, stop.sregs)):
        before = True
        yield sentence
    for sentence in (*_instruction(stop, memory), *_page_fault(stop, memory), *_stack(stop, memory)):
        before = True
        yield sentence
    handlers = list(_handlers(stop, memory))
    yield from handlers
    if not before and not handlers:
        yield "an exception whose handler faulted twice; nothing in the state says which"
    elif not before:
        yield "which exception it was, nothing in the state says"


def _seen(stop: Stop, memory: ReadableMemory) -> Iterator[str]:
    """The first exception is known: what it was, and what of the state goes with it."""
    assert stop.exception is not None
    vector, error_code = stop.exception
    text = _exception_text(stop, vector, error_code)
    if vector == _PAGE_FAULT:
        details = [_page_fault_reason(stop, memory, error_code or 0)]
    elif vector == _BREAKPOINT:  # a trap: RIP is behind the instruction
        details = ["the guest executed int3"]
    else:
        details = [*_fetch(stop, memory), *_instruction(stop, memory)]
    yield f"{text}: {details[0]}" if details else text
    yield from details[1:]
    yield from _stack(stop, memory)
    yield "no exception can be handled: the guest has no interrupt table of its own yet"


def _internal_error(stop: Stop, memory: ReadableMemory, software_kvm: bool | None) -> Iterator[str]:
    if stop.suberror == uapi_run.KVM_INTERNAL_ERROR_EMULATION:
        fetch = list(_fetch(stop, memory))
        yield from fetch or _emulation(stop, memory, software_kvm)
        yield from _stack(stop, memory)
        yield from contradictions(stop.regs, stop.sregs)
    elif stop.suberror == uapi_run.KVM_INTERNAL_ERROR_SIMUL_EX:
        event = InterruptionInfo(stop.data[0]).decode() if stop.data else "an event"
        second = InterruptionInfo(stop.data[1]).decode() if len(stop.data) > 1 else "an exception"
        yield f"{second} while {event} was being delivered, which KVM does not resolve"
        yield from _handlers(stop, memory)
    elif stop.suberror == uapi_run.KVM_INTERNAL_ERROR_DELIVERY_EV:
        event = InterruptionInfo(stop.data[0]).decode() if stop.data else "an event"
        reason = f" (hardware exit reason {stop.data[1] & 0xFFFF:#x})" if len(stop.data) > 1 else ""
        address = f", at guest physical address {stop.data[3]:#x}" if len(stop.data) > 4 else ""
        yield (
            f"delivering {event} itself left the guest{reason}{address}: "
            "the IDT, GDT, TSS or stack it needs is probably not in RAM"
        )
        yield from _handlers(stop, memory)
        yield from _stack(stop, memory)
    elif stop.suberror == uapi_run.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
        reason = f" {stop.data[0]:#x}" if stop.data else ""
        yield f"the processor left the guest for a reason{reason} that this host's KVM does not handle"
    else:
        yield f"KVM reported suberror {stop.suberror}, which is newer than this program"


def _failed_entry(stop: Stop, memory: ReadableMemory) -> Iterator[str]:
    """VMX: the exit reason with bit 31, or a VM-instruction error; SVM: VMEXIT_INVALID, -1."""
    reason = stop.hardware_reason
    problems = list(contradictions(stop.regs, stop.sregs))
    if reason & 0xFFFF_FFFF == 0xFFFF_FFFF:
        yield (
            f"the processor refused the guest state (SVM VMEXIT_INVALID){': ' if problems else ''}"
            + "; ".join(problems)
        )
    elif reason & 1 << 31:
        name = {33: "invalid guest state", 34: "MSR loading", 41: "machine check"}.get(
            reason & 0xFFFF, "reason unknown"
        )
        yield f"the processor refused the entry (VMX exit reason {reason & 0xFFFF}: {name})" + (
            ": " + "; ".join(problems) if problems else ""
        )
    else:
        name = {7: "invalid control fields", 8: "invalid host state"}.get(reason, "see SDM volume 3, 31.4")
        yield f"the processor refused VM entry (VMX instruction error {reason}: {name}): a fault of the host"
    yield from problems
    yield from _fetch(stop, memory)


def _pending(stop: Stop) -> Iterator[str]:
    """The exception that KVM still holds for delivery."""
    events = stop.events
    if events is None or not (events.exception.injected or events.exception.pending):
        return
    exception = events.exception
    code = exception.error_code if exception.has_error_code else None
    yield f"{_exception_text(stop, exception.nr, code)} was being delivered"


def _exception_text(stop: Stop, vector: int, error_code: int | None) -> str:
    """An exception with its error code, and for a page fault the address, in words."""
    text = exception_name(vector)
    if error_code is None:
        return text
    text += f" with error code {error_code:#x}"
    if vector == _PAGE_FAULT:
        text += f" [{PageFaultError(error_code).decode()}] at CR2 {stop.sregs.cr2:#x}"
    elif vector in _SELECTOR_FAULTS and error_code:
        if error_code & 2:
            text += f" (gate {error_code >> 3:#x} of the IDT)"
        else:
            text += f" (selector {error_code & 0xFFF8:#x} of the {'LDT' if error_code & 4 else 'GDT'})"
    return text


def _fetch(stop: Stop, memory: ReadableMemory) -> Iterator[str]:
    """Whether an instruction can be fetched at RIP."""
    walk = stop.walk(memory, stop.rip)
    if walk.physical is None:
        yield f"no instruction can be fetched: RIP {stop.rip:#x} is not mapped, {walk.problem}"
    elif not walk.executable:
        yield f"no instruction can be fetched: RIP {stop.rip:#x} lies in a no-execute page"
    elif not memory.contains(walk.physical, 1):
        yield (
            f"no instruction can be fetched: RIP {stop.rip:#x} is guest physical {walk.physical:#x}, "
            "where there is no RAM"
        )
    elif not stop.long_mode and stop.regs.rip > stop.sregs.cs.limit:
        yield f"RIP {stop.regs.rip:#x} is beyond the limit of CS, {stop.sregs.cs.limit:#x}"
    else:
        code = stop.read(memory, stop.rip, 16)
        if len(code) == 16 and len(set(code)) == 1:
            yield (
                f"RIP {stop.rip:#x} is in memory filled with {code[:1].hex()}: the guest jumped to where "
                "nothing was loaded"
            )


def _instruction(stop: Stop, memory: ReadableMemory) -> Iterator[str]:
    """Instructions at RIP that fault by nature."""
    name = instructions.name(stop.read(memory, stop.rip, 15), long_mode=stop.long_mode)
    regs = stop.regs
    if name in ("ud2", "ud1", "ud0"):
        yield f"the guest executed {name}, which is meant to fault: an error it found itself (BUG in Linux)"
    elif name in ("rdmsr", "wrmsr"):
        yield f"{name} of MSR {regs.rcx & 0xFFFF_FFFF:#x}, which this KVM may not have (#GP)"
    elif name in ("int3", "int"):
        yield f"the guest executed {name}"
    elif name in ("xsetbv", "xgetbv", "xsave", "xrstor") and not stop.sregs.cr4 & CR4.OSXSAVE:
        yield f"{name} while CR4.OSXSAVE is off (#UD)"
    elif name in ("lgdt", "lidt", "ltr", "mov to a control register") and stop.sregs.cs.dpl == 3:
        yield f"{name} in user mode (#GP)"
    elif name == "mov to a control register":
        yield "a move to a control register, which faults when the new value is not allowed (#GP)"
    elif name in ("iret", "iretd", "iretq"):
        yield f"{name}, whose return frame may be wrong (#GP)"


def _emulation(stop: Stop, memory: ReadableMemory, software_kvm: bool | None) -> Iterator[str]:
    """KVM had to emulate an instruction and could not."""
    code = stop.instruction or stop.read(memory, stop.rip, 15)
    name = instructions.name(code, long_mode=stop.long_mode)
    if name:
        what = f"{name} ({code[:4].hex(' ')} ...)"
    else:
        what = f"the instruction {code.hex(' ')}" if code else "an instruction"
    if software_kvm or (software_kvm is None and name in instructions.SOFTWARE_KVM_LACKS):
        certain = "this host's KVM is a software one" if software_kvm else "this looks like a software KVM"
        yield f"{certain} and cannot emulate {what}: run with --lab, which has a KVM that can"
    else:
        # An exception whose frame cannot be pushed looks so, too, and the stack is told after this.
        yield (
            f"KVM cannot emulate {what}; it has to where memory is a device's, be it code, data or stack, and on "
            "older Intel processors in real mode"
        )


def _page_fault(stop: Stop, memory: ReadableMemory) -> Iterator[str]:
    """The last page fault, if CR2 remembers one that would fault still."""
    address = stop.sregs.cr2
    if not address or not stop.sregs.cr0 & CR0.PG:
        return
    walk = stop.walk(memory, address)
    if walk.physical is None:
        yield f"a page fault: the last was at CR2 {address:#x}, which is not mapped, {walk.problem}"


def _page_fault_reason(stop: Stop, memory: ReadableMemory, error_code: int) -> str:
    """Why the access that the error code describes, at CR2, faulted."""
    code = PageFaultError(error_code)
    walk = stop.walk(memory, stop.sregs.cr2)
    if walk.physical is None:
        return f"that address is not mapped, {walk.problem}"
    if code.W and not walk.writable:
        return "that address is in a read-only page"
    if code.I and not walk.executable:
        return "that address is in a no-execute page"
    if code.U and not walk.user:
        return "that address is in a page for the supervisor only"
    return "the page tables allow it now"


def _stack(stop: Stop, memory: ReadableMemory) -> Iterator[str]:
    """Whether an exception could push its frame."""
    if stop.sregs.cr0 & CR0.PE and not stop.long_mode and stop.sregs.ss.unusable:
        return  # a contradiction already told
    walk = stop.walk(memory, stop.rsp - 8 & (1 << 64) - 1 if stop.long_mode else stop.rsp - 4 & 0xFFFF_FFFF)
    if walk.physical is None:
        yield f"no exception can be delivered: the stack at {stop.rsp:#x} is not mapped, {walk.problem}"
    elif not memory.contains(walk.physical, 1):
        yield f"no exception can be delivered: the stack at {stop.rsp:#x} is where there is no RAM"


def _handlers(stop: Stop, memory: ReadableMemory) -> Iterator[str]:
    """Whether the interrupt table could have led to a handler."""
    base, limit = stop.sregs.idt.base, stop.sregs.idt.limit
    if not stop.sregs.cr0 & CR0.PE:
        size = 4
    else:
        size = 16 if stop.sregs.efer & EFER.LMA else 8
    if limit < size:
        yield f"no exception can be handled: the interrupt table is empty (IDT limit {limit:#x})"
        return
    walk = stop.walk(memory, base)
    if walk.physical is None:
        yield f"no exception can be handled: the interrupt table at {base:#x} is not mapped, {walk.problem}"
    elif not memory.contains(walk.physical, 1):
        yield f"no exception can be handled: the interrupt table at {base:#x} is where there is no RAM"
    elif size > 4:
        # Gates of #DF, #GP and #PF; the present bit is bit 47 of a gate.
        table = stop.read(memory, base, min(limit + 1, 15 * size))
        absent = [
            exception_name(vector).split()[0]
            for vector in (8, 13, 14)
            if len(table) < (vector + 1) * size or not table[vector * size + 5] & 0x80
        ]
        if absent:
            yield f"the interrupt table has no gate for {', '.join(absent)}"
