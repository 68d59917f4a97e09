"""The three states a guest may begin in: long mode, flat protected mode, real mode.

Linux Documentation/arch/x86/boot.rst ("64-bit boot protocol", "32-bit boot protocol"), Xen
docs/misc/pvh.pandoc ("Initial state"), Intel SDM volume 3, section 9.1.4 for real mode.  Only the boot
processor is entered so; the others wait in KVM's LAPIC for the kernel's INIT and start-up IPI.
"""

from __future__ import annotations

from pyvmm.arch.x86_64 import handlers, layout, paging, segments
from pyvmm.arch.x86_64.registers import CR0, CR4, EFER, RFLAGS
from pyvmm.kvm.uapi_x86 import kvm_regs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm.kvm.uapi_x86 import kvm_sregs

    class EnterableVcpu(Protocol):
        """What an entry needs of a vCPU."""

        def get_sregs(self) -> kvm_sregs: ...
        def set_sregs(self, sregs: kvm_sregs, /) -> None: ...
        def set_regs(self, regs: kvm_regs, /) -> None: ...

    class ClaimedMemory(Protocol):
        """What an entry needs of guest memory."""

        def write(self, address: int, data: bytes, /) -> None: ...
        def claim(self, start: int, size: int, name: str, /) -> None: ...


def enter_long_mode(
    vcpu: EnterableVcpu, memory: ClaimedMemory, *, rip: int, rsi: int = 0, rsp: int = layout.BOOT_STACK_TOP
) -> None:
    """Make ``vcpu`` begin at ``rip`` in 64-bit mode, interrupts off, the first 4 GiB mapped one to one.

    Writes the GDT, exception handlers and the page tables.  Linux wants the address of its zero page in ``rsi``.
    """
    _write_tables(memory, segments.CODE_64)
    memory.claim(layout.PML4, paging.IDENTITY_MAP_SIZE, "page tables")
    cr3 = paging.write_identity_map(memory)
    sregs = vcpu.get_sregs()
    segments.load_flat(sregs, segments.CODE_64)
    handlers.load(sregs, segments.CODE_64)
    sregs.cr3 = cr3
    sregs.cr4 = CR4.PAE
    sregs.efer = EFER.LME | EFER.LMA
    sregs.cr0 = CR0.PG | CR0.NE | CR0.ET | CR0.PE
    vcpu.set_sregs(sregs)
    vcpu.set_regs(kvm_regs(rip=rip, rsi=rsi, rsp=rsp, rflags=RFLAGS.ONE))


def enter_protected_mode(
    vcpu: EnterableVcpu,
    memory: ClaimedMemory,
    *,
    rip: int,
    ebx: int = 0,
    esi: int = 0,
    esp: int = layout.BOOT_STACK_TOP,
) -> None:
    """Make ``vcpu`` begin at ``rip`` in 32-bit mode without paging, interrupts off, flat 4 GiB segments.

    Writes the GDT and exception handlers.  PVH wants the address of start_info in ``ebx``; Linux's 32-bit
    protocol wants the address of the zero page in ``esi``, and zero in the other registers.
    """
    _write_tables(memory, segments.CODE_32)
    sregs = vcpu.get_sregs()
    segments.load_flat(sregs, segments.CODE_32)
    handlers.load(sregs, segments.CODE_32)
    sregs.cr3 = sregs.cr4 = sregs.efer = 0
    sregs.cr0 = CR0.ET | CR0.PE
    vcpu.set_sregs(sregs)
    vcpu.set_regs(kvm_regs(rip=rip, rbx=ebx, rsi=esi, rsp=esp, rflags=RFLAGS.ONE))


def enter_real_mode(vcpu: EnterableVcpu, *, cs: int = 0, ip: int, sp: int = 0x7000) -> None:
    """Make ``vcpu`` begin at ``cs``:``ip`` in real mode, interrupts off, the other segments at 0.

    The interrupt vectors at 0 are the caller's to fill.
    """
    sregs = vcpu.get_sregs()
    segments.load_real_mode(sregs, cs)
    sregs.cr3 = sregs.cr4 = sregs.efer = 0
    sregs.cr0 = CR0.ET
    vcpu.set_sregs(sregs)
    vcpu.set_regs(kvm_regs(rip=ip, rsp=sp, rflags=RFLAGS.ONE))


def _write_tables(memory: ClaimedMemory, code: int) -> None:
    """The GDT, with code segments of attributes ``code``, and handlers for a guest's first mistakes."""
    memory.claim(layout.GDT, segments.GDT_SIZE, "GDT")
    segments.write_gdt(memory, code)
    memory.claim(layout.EXCEPTION_HANDLERS, layout.PAGE_SIZE, "exception handlers")
    memory.write(layout.EXCEPTION_HANDLERS, handlers.page(code))
