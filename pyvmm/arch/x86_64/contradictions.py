"""Registers that no processor could hold together, which is why one refuses to enter a guest.

Intel SDM volume 3, section 26.3.1 (the checks of a VM entry on the guest's state); AMD APM volume 2,
section 15.5.1, has fewer.
"""

from __future__ import annotations

from pyvmm.arch.x86_64.registers import CR0, CR4, EFER, RFLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm.kvm.uapi_x86 import kvm_regs, kvm_sregs


def contradictions(regs: kvm_regs, sregs: kvm_sregs) -> Iterator[str]:
    """A sentence for each thing wrong with the registers together; none for a state that can run."""
    cr0, cr4, efer, rflags = sregs.cr0, sregs.cr4, sregs.efer, regs.rflags
    cs, ss, tr = sregs.cs, sregs.ss, sregs.tr
    long = efer & EFER.LMA
    if cr0 & CR0.PG and not cr0 & CR0.PE:
        yield "CR0 has PG without PE"
    if cr0 & CR0.NW and not cr0 & CR0.CD:
        yield "CR0 has NW without CD"
    if cr0 & CR0.PG and efer & EFER.LME and not cr4 & CR4.PAE:
        yield "paging is on in long mode (EFER.LME) without CR4.PAE"
    if bool(long) != bool(efer & EFER.LME and cr0 & CR0.PG):
        yield "EFER.LMA disagrees with EFER.LME and CR0.PG"
    if not rflags & RFLAGS.ONE:
        yield "bit 1 of RFLAGS is clear"
    if long and rflags & RFLAGS.VM:
        yield "RFLAGS.VM is set in long mode"
    if cr0 & CR0.PE and not rflags & RFLAGS.VM:
        if not cs.present or cs.unusable or not cs.s or not cs.type & 8:
            yield f"CS ({cs.selector:#x}) is not a present code segment"
        if long and cs.l and cs.db:
            yield "CS has both L and D"
        if not ss.unusable and (not ss.s or ss.type & 0xA != 0x2):
            yield f"SS ({ss.selector:#x}) is not a writable data segment"
        if not long and ss.unusable:
            yield "SS is unusable outside 64-bit mode"
        if tr.unusable or tr.type not in ((11,) if long else (3, 11)):
            yield f"TR ({tr.selector:#x}) is not a busy TSS"
    for name, segment in (("CS", cs), ("SS", ss), ("TR", tr)):
        if segment.present and not segment.unusable and _bad_granularity(segment.limit, segment.g):
            yield f"the limit of {name}, {segment.limit:#x}, disagrees with its granularity bit"
    if long and cs.l and not _canonical(regs.rip, 57 if cr4 & CR4.LA57 else 48):
        yield f"RIP {regs.rip:#x} is not canonical"
    elif not (long and cs.l) and regs.rip >> 32:
        yield f"RIP {regs.rip:#x} has high bits outside 64-bit mode"


def _bad_granularity(limit: int, g: int) -> bool:
    return limit & 0xFFF != 0xFFF if g else limit >> 20 != 0


def _canonical(address: int, width: int) -> bool:
    return address >> (width - 1) in (0, (1 << (65 - width)) - 1)
