"""Is there hardware behind this KVM?  A guest of a few instructions finds out.

A software KVM opens and answers like any other, but runs guests in KVM's instruction emulator
(Linux arch/x86/kvm/emulate.c), which was made for the few instructions that touch devices.  A kernel needs
others from its first moments on; three of them are tried here (Intel SDM volume 2, chapter 3: INT3,
IRET/IRETQ, CMPXCHG16B).  /proc/cpuinfo cannot answer this: it describes the processor, not the KVM.
"""

from __future__ import annotations

import struct
import time

from pyvmm.arch.probe_result import ProbeResult
from pyvmm.arch.x86_64 import entry, layout
from pyvmm.kvm import HltExit, InternalErrorExit, System
from pyvmm.memory import GuestMemory

_MEMORY_SIZE = 0x10000
_CODE, _IDT, _MARKS, _STACK = 0x1000, 0x2000, 0x3000, 0x4000
_CODE_SELECTOR = 0x10
_PART_SIZE = 64
_BREAKPOINT = 3
_INTERRUPT_GATE = 0x8E

# What kernels/x86_64/probe.S assembles to.  Straight-line code: it cannot run for long whatever happens.
PARTS: tuple[tuple[str, bytes], ...] = (
    (
        "iretq",
        bytes.fromhex(
            "6a18"  # push 0x18, the stack segment
            "6800400000"  # push 0x4000, the stack
            "9c"  # pushfq
            "6a10"  # push 0x10, the code segment
            "6811100000"  # push 0x1011, the address after iretq
            "48cf"  # iretq
            "c604250030000001"  # mov byte ptr [0x3000], 1
            "f4"  # hlt
        ),
    ),
    (
        "int3",
        bytes.fromhex("cc"),  # int3
    ),
    (
        "cmpxchg16b",
        bytes.fromhex(
            "31c0"  # xor eax, eax
            "31d2"  # xor edx, edx
            "31c9"  # xor ecx, ecx
            "8d5801"  # lea ebx, [rax + 1]
            "480fc70c2510300000"  # cmpxchg16b [0x3010]
            "8a042510300000"  # mov al, [0x3010]
            "88042502300000"  # mov [0x3002], al
            "f4"  # hlt
        ),
    ),
)
BREAKPOINT_HANDLER = bytes.fromhex(
    "c604250130000001"  # mov byte ptr [0x3001], 1
    "f4"  # hlt
)
_HLT = b"\xf4"


def code() -> bytes:
    """The guest's code as it stands at 0x1000: each part, and the handler, at a multiple of 64 bytes."""
    parts = [part for _, part in PARTS]
    return b"".join(part.ljust(_PART_SIZE, _HLT) for part in parts) + BREAKPOINT_HANDLER


def probe_kvm(system: System | None = None) -> ProbeResult:
    """Run the probe on ``system``, or on a /dev/kvm opened for it; a few milliseconds.

    Raises the errors of pyvmm.kvm where there is no KVM to probe.
    """
    if system is None:
        with System() as opened:
            return probe_kvm(opened)
    started = time.perf_counter()
    failures = _run_parts(system)
    elapsed = time.perf_counter() - started
    if not failures:
        return ProbeResult("hardware", (), f"{_words([name for name, _ in PARTS])} work", elapsed)
    names = [name for name, _ in failures]
    detail = f"{_words(names)} {'do' if len(names) > 1 else 'does'} not work ({failures[0][1]})"
    return ProbeResult("software", tuple(names), detail, elapsed)


def _run_parts(system: System) -> list[tuple[str, str]]:
    """Run each part; returns those that failed, each with how it ended."""
    memory = GuestMemory([(0, _MEMORY_SIZE)])
    try:
        with system.create_vm() as vm:
            vm.set_tss_addr(layout.KVM_TSS)
            (region,) = memory.regions
            vm.set_user_memory_region(0, region.start, region.size, region.host_address)
            vcpu = vm.create_vcpu()
            memory.write(_CODE, code())
            handler = _CODE + _PART_SIZE * len(PARTS)
            gate = struct.pack("<HHBBHQ", handler, _CODE_SELECTOR, 0, _INTERRUPT_GATE, 0, 0)
            memory.write(_IDT + 16 * _BREAKPOINT, gate)
            entry.enter_long_mode(vcpu, memory, rip=_CODE, rsp=_STACK)
            sregs = vcpu.get_sregs()
            sregs.idt.base, sregs.idt.limit = _IDT, 16 * (_BREAKPOINT + 1) - 1
            vcpu.set_sregs(sregs)
            regs = vcpu.get_regs()
            failures = []
            for number, (name, _) in enumerate(PARTS):
                regs.rip = _CODE + _PART_SIZE * number
                vcpu.set_regs(regs)
                end = vcpu.run()
                if not isinstance(end, HltExit):
                    failures.append((name, end.name))
                    if not isinstance(end, InternalErrorExit):
                        break  # a triple fault may have reset the vCPU: what comes next would prove nothing
                elif memory.read(_MARKS + number, 1) != b"\x01":
                    failures.append((name, "wrong result"))
            return failures
    finally:
        memory.close()


def _words(names: list[str]) -> str:
    """The names as in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
