"""A post-mortem for a person: a vCPU that stopped for good, as lines of text.

Registers with their bits named, the code and the page walk at RIP, the stack, and the likely cause in words.
Nothing here touches KVM: :func:`pyvmm.arch.x86_64.stop.capture` has copied what is needed.
"""

from __future__ import annotations

from pyvmm.arch.x86_64 import instructions, segments
from pyvmm.arch.x86_64.causes import likely_causes
from pyvmm.arch.x86_64.handlers import recover
from pyvmm.arch.x86_64.registers import CR0, CR3, CR4, EFER, RFLAGS, exception_name
from pyvmm.kvm.uapi_run import KVM_EXIT_SHUTDOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm.arch.x86_64.stop import Stop

    class Claim(Protocol):
        """A placed item of guest memory."""

        start: int
        name: str

    class OwnedMemory(Protocol):
        """What a report needs of guest memory."""

        def read(self, address: int, size: int, /) -> bytes: ...
        def contains(self, address: int, size: int, /) -> bool: ...
        def owner(self, address: int, /) -> Claim | None: ...

    class SymbolTable(Protocol):
        """Names for code addresses."""

        def find(self, address: int) -> str: ...


_GENERAL = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)
BEFORE, AFTER = 16, 32  # bytes of code shown on either side of RIP
STACK_WORDS = 8


def report(
    stop: Stop,
    memory: OwnedMemory,
    *,
    symbols: SymbolTable | None = None,
    software_kvm: bool | None = None,
) -> list[str]:
    """The post-mortem of ``stop`` as lines: headline, likely causes, then the evidence.

    ``symbols`` names code addresses; ``software_kvm`` says whether the host's KVM is a software one, or None.
    """
    recovered = stop.reason == KVM_EXIT_SHUTDOWN and recover(stop, memory)
    first, *others = likely_causes(stop, memory, software_kvm=software_kvm)
    lines = [
        f"{stop.kind} on vCPU {stop.vcpu}: RIP {stop.regs.rip:#x}{_named(stop, symbols)}, {stop.mode}",
        f"likely cause: {first}",
        *(f"        also: {other}" for other in others),
    ]
    if stop.was_reset:
        lines.append("registers, as after a reset:")
    elif recovered:
        lost = "; KVM has lost the segments, these are the entry's" if stop.segments_lost else ""
        lines.append(f"registers at the exception, saved by pyvmm's handler{lost}:")
    else:
        lines.append("registers:")
    lines += [f"  {line}" for line in registers(stop)]
    lines += [f"  {line}" for line in _events(stop)]
    if not stop.was_reset:
        lines += ["code at RIP:", *(f"  {line}" for line in code(stop, memory))]
        lines += ["page walk of RIP:", *(f"  {line}" for line in page_walk(stop, memory))]
        lines += ["stack at RSP:", *(f"  {line}" for line in stack(stop, memory, symbols))]
    return lines


def registers(stop: Stop) -> list[str]:
    """All registers, those with bits decoded."""
    regs, sregs = stop.regs, stop.sregs
    lines = ["  ".join(f"{name.upper():3} {getattr(regs, name):016x}" for name in row) for row in _GENERAL]
    lines += [f"RIP {regs.rip:016x}  {RFLAGS(regs.rflags)}"]
    lines += [str(CR0(sregs.cr0)), f"CR2 = {sregs.cr2:#x}", str(CR3(sregs.cr3)), str(CR4(sregs.cr4))]
    lines += [str(EFER(sregs.efer))]
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt"):
        segment = getattr(sregs, name)
        rights = "unusable" if segment.unusable else segments.attributes(segment).decode()
        where = f"{segment.selector:04x} base {segment.base:#x} limit {segment.limit:#x}"
        lines.append(f"{name.upper():3} {where} [{rights}]")
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        lines.append(f"{name.upper()} base {table.base:#x} limit {table.limit:#x}")
    return lines


def _events(stop: Stop) -> list[str]:
    events = stop.events
    if events is None:
        return []
    lines = []
    if events.exception.injected or events.exception.pending:
        state = "injected" if events.exception.injected else "pending"
        lines.append(f"exception {state}: {exception_name(events.exception.nr)}")
    if events.interrupt.injected:
        lines.append(f"interrupt injected: vector {events.interrupt.nr:#x}")
    if events.nmi.injected or events.nmi.pending:
        lines.append("NMI in delivery")
    return lines


def code(stop: Stop, memory: OwnedMemory) -> list[str]:
    """The bytes around RIP, the one at RIP in angle brackets, and a disassembly from RIP where possible."""
    after = stop.read(memory, stop.rip, AFTER)
    if not after:
        lines = ["cannot be read"]
    else:
        before = b""
        for length in range(min(BEFORE, stop.rip), 0, -1):
            before = stop.read(memory, stop.rip - length, length)
            if len(before) == length:
                break
        else:
            before = b""
        words = [
            *(f"{byte:02x}" for byte in before),
            f"<{after[0]:02x}>",
            *(f"{byte:02x}" for byte in after[1:]),
        ]
        lines = [f"{stop.rip - len(before):#x}: {' '.join(words)}"]
    if stop.instruction and not after.startswith(stop.instruction):
        lines.append(f"as KVM fetched it: {stop.instruction.hex(' ')}")
    return lines + instructions.disassemble(after or stop.instruction, stop.rip, bits=stop.code_bits)


def page_walk(stop: Stop, memory: OwnedMemory) -> list[str]:
    """Each table consulted for RIP, the outcome, and what stands at the physical address."""
    walk = stop.walk(memory, stop.rip)
    lines = [*(str(step) for step in walk.steps), str(walk)]
    if walk.physical is not None:
        owner = memory.owner(walk.physical)
        if owner is not None:
            lines.append(f"{walk.physical:#x} is {owner.name} + {walk.physical - owner.start:#x}")
        elif not memory.contains(walk.physical, 1):
            lines.append(f"{walk.physical:#x} is not RAM")
        else:
            lines.append(f"{walk.physical:#x} is RAM where nothing was loaded")
    return lines


def stack(stop: Stop, memory: OwnedMemory, symbols: SymbolTable | None = None) -> list[str]:
    """The words at RSP, as wide as the code, with the symbols they point at."""
    size = stop.code_bits // 8
    data = stop.read(memory, stop.rsp, STACK_WORDS * size)
    lines = []
    for offset in range(0, len(data) - size + 1, size):
        word = int.from_bytes(data[offset : offset + size], "little")
        name = symbols.find(word) if symbols is not None else ""
        lines.append(f"{stop.rsp + offset:#x}: {word:0{2 * size}x}" + (f" ({name})" if name else ""))
    return lines or ["cannot be read"]


def _named(stop: Stop, symbols: SymbolTable | None) -> str:
    name = symbols.find(stop.rip) if symbols is not None else ""
    return f" ({name})" if name else ""
