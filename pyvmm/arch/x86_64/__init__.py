"""The PC, as little of it as a kernel needs: the names every architecture offers (see :mod:`pyvmm.arch`)."""

from __future__ import annotations

from pyvmm.arch.x86_64.boot import enter, load, open_image
from pyvmm.arch.x86_64.devices import attach_devices, coalesced_ports, event_device
from pyvmm.arch.x86_64.layout import ram_ranges, virtio_slot
from pyvmm.arch.x86_64.setup import prepare_vcpu, prepare_vm
from pyvmm.errors import HostError
from pyvmm.kvm import Cap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.arch.probe_result import ProbeResult
    from pyvmm.arch.x86_64.boot import Entry
    from pyvmm.arch.x86_64.clock import StoppedClock
    from pyvmm.arch.x86_64.symbols import Symbols
    from pyvmm.kvm import System, Vcpu, Vm
    from pyvmm.kvm.exits import Exit
    from pyvmm.kvm.uapi_x86 import kvm_cpuid_entry2
    from pyvmm.memory import GuestMemory

__all__ = [
    "CAPABILITIES",
    "NAME",
    "PORT_IO",
    "READ_ONLY_REGISTERS",
    "advice",
    "attach_devices",
    "coalesced_ports",
    "complete_vm",
    "enter",
    "event_device",
    "is_halted",
    "load",
    "open_image",
    "pause_clock",
    "post_mortem",
    "prepare_vcpu",
    "prepare_vm",
    "probe",
    "ram_ranges",
    "register_values",
    "require_hardware",
    "resume_clock",
    "supported_features",
    "translate",
    "virtio_slot",
    "vm_type",
    "whereabouts",
]

NAME = "x86_64"

PORT_IO = True

READ_ONLY_REGISTERS = True

CAPABILITIES: tuple[tuple[int, bool, str], ...] = (
    # capability                required  what for
    (Cap.USER_MEMORY, True, "guest RAM"),
    (Cap.IRQCHIP, True, "interrupt controllers in the kernel"),
    (Cap.PIT2, True, "the timer chip in the kernel"),
    (Cap.SET_TSS_ADDR, True, "real mode on Intel"),
    (Cap.SET_IDENTITY_MAP_ADDR, True, "unpaged code on Intel"),
    (Cap.EXT_CPUID, True, "CPUID"),
    (Cap.IRQFD, True, "interrupts without a system call of the vCPU's"),
    (Cap.IMMEDIATE_EXIT, True, "stopping a vCPU"),
    (Cap.COALESCED_MMIO, False, "console output without an exit for each byte"),
    (Cap.COALESCED_PIO, False, "console output without an exit for each byte"),
    (Cap.TSC_DEADLINE_TIMER, False, "a cheaper timer in the guest"),
    (Cap.ADJUST_CLOCK, False, "kvm-clock"),
    (Cap.GET_TSC_KHZ, False, "telling the guest its TSC's frequency"),
    (Cap.IOEVENTFD, True, "device notifications without an exit"),
    (Cap.READONLY_MEM, False, "virtio registers that are read without an exit"),
    (Cap.VCPU_EVENTS, False, "pending exceptions in a post-mortem"),
    (Cap.INTERNAL_ERROR_DATA, False, "the reason for an internal error"),
)


def supported_features(system: System) -> list[kvm_cpuid_entry2]:
    """What this KVM can give a vCPU, asked for once for all of them."""
    return system.supported_cpuid()


def vm_type(system: System, ranges: Sequence[tuple[int, int]]) -> int:
    """0: KVM has one type of VM for ordinary guests."""
    return 0


def complete_vm(vm: Vm, vcpus: Sequence[Vcpu], memory: GuestMemory, start: Entry) -> None:
    """Nothing: the interrupt controllers stand before the vCPUs do."""


def probe(system: System) -> ProbeResult:
    """Whether this KVM runs what a stock kernel needs, found by running it (:mod:`pyvmm.arch.x86_64.probe`)."""
    from pyvmm.arch.x86_64.probe import probe_kvm

    return probe_kvm(system)


def require_hardware(system: System) -> None:
    """HostError if this KVM is a software one, on which a Linux kernel would run for minutes and then die.

    The modules that drive VT-x and AMD-V tell at no cost; only where neither is there does the probe run.
    """
    from os.path import exists

    if exists("/sys/module/kvm_intel") or exists("/sys/module/kvm_amd"):
        return
    found = probe(system)
    if found.kind != "hardware":
        raise HostError(
            f"this host's KVM is a software one ({found.detail}), on which no stock kernel runs",
            "boot it in the lab: add --lab (in Python lab=True, with pytest --vmm-lab); pyvmm doctor says more",
        )


def pause_clock(vm: Vm, vcpus: Sequence[Vcpu]) -> StoppedClock:
    """Take note of the guest's clocks once all its vCPUs stand still (:mod:`pyvmm.arch.x86_64.clock`)."""
    from pyvmm.arch.x86_64 import clock

    return clock.pause_clock(vm, vcpus)


def resume_clock(vm: Vm, vcpus: Sequence[Vcpu], noted: StoppedClock) -> None:
    """Let the guest's clocks go on where pause_clock() found them, before the vCPUs do."""
    from pyvmm.arch.x86_64 import clock

    clock.resume_clock(vm, vcpus, noted)


def is_halted(vcpu: Vcpu) -> bool:
    """Whether ``vcpu``, which is not running, waits in HLT with interrupts off, or was never started.

    KVM serves HLT itself and tells nobody: a guest all of whose vCPUs wait like that has ended.
    """
    from pyvmm.arch.x86_64.registers import RFLAGS
    from pyvmm.kvm.uapi import KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE

    state = vcpu.get_mp_state()
    if state == KVM_MP_STATE_HALTED:
        return not vcpu.get_regs().rflags & RFLAGS.IF
    return state != KVM_MP_STATE_RUNNABLE


def advice(cmdline: str) -> list[str]:
    """A line for each word of the command line that asks for what this machine does not have."""
    return [f"{word}: {_ADVICE[word]}" for word in cmdline.split() if word in _ADVICE]


_ADVICE = {
    "acpi=off": "without ACPI there is no power-off (the guest halts, which ends the run too), no power button and no "
    "virtio device; a kernel without CONFIG_X86_MPPARSE, as Debian's cloud kernels are, finds one vCPU",
    "acpi=noirq": "a kernel without CONFIG_X86_MPPARSE, as Debian's cloud kernels are, finds one vCPU then",
    "noapic": "the machine has no other interrupt controller: the console gets no interrupts",
    "nolapic": "the machine has no other interrupt controller: the console gets no interrupts",
    "no-kvmclock": "there is no other clock to measure the TSC by: the kernel may stop early",
}


def post_mortem(exit: Exit, vcpu: Vcpu, memory: GuestMemory, image: str) -> list[str]:
    """The lines that explain why ``vcpu`` stopped with ``exit`` (a triple fault, an internal error, a failed
    entry), for a person.  The vCPU's thread must have ended.  ``image``: the kernel's path, for its symbols."""
    from pyvmm.arch.x86_64.diagnose import report
    from pyvmm.arch.x86_64.stop import capture

    return report(capture(vcpu, exit, vcpu.id), memory, symbols=_symbols(image))


def whereabouts(vcpu: Vcpu, image: str) -> str:
    """Where ``vcpu`` was when the run was stopped, in a line for a person who wonders why nothing happened."""
    from pyvmm.arch.x86_64.registers import RFLAGS
    from pyvmm.arch.x86_64.stop import Stop
    from pyvmm.kvm.uapi import KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE

    state = vcpu.get_mp_state()
    if state not in (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_HALTED):
        return f"vCPU {vcpu.id} was never started"
    stop = Stop(0, vcpu.get_regs(), vcpu.get_sregs())
    symbols = _symbols(image)
    name = symbols.find(stop.rip) if symbols is not None else ""
    doing = "halted" if state == KVM_MP_STATE_HALTED else "running"
    interrupts = "on" if stop.regs.rflags & RFLAGS.IF else "off"
    where = f"RIP {stop.rip:#x}{f' ({name})' if name else ''}, {stop.mode}"
    return f"vCPU {vcpu.id} was {doing}, interrupts {interrupts}, {where}"


def register_values(vcpu: Vcpu) -> dict[str, int]:
    """The registers of ``vcpu``, which stands still: general and control registers, of segments the selector and the
    base (``cs``, ``cs_base``), of tables the base and the limit (``gdt_base``, ``gdt_limit``)."""
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    values = {name: int(getattr(regs, name)) for name, *_ in regs._fields_}
    values |= {
        name: int(getattr(sregs, name)) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
    }
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt"):
        segment = getattr(sregs, name)
        values |= {name: int(segment.selector), f"{name}_base": int(segment.base)}
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        values |= {f"{name}_base": int(table.base), f"{name}_limit": int(table.limit)}
    return values


def translate(vcpu: Vcpu, memory: GuestMemory, address: int) -> int | None:
    """The physical address of the linear ``address`` by the page tables of ``vcpu``, which stands still; None where
    nothing is mapped."""
    from pyvmm.arch.x86_64.paging import walk

    sregs = vcpu.get_sregs()
    return walk(memory, address, cr0=sregs.cr0, cr3=sregs.cr3, cr4=sregs.cr4, efer=sregs.efer).physical


def _symbols(image: str) -> Symbols | None:
    """The symbols of an ELF image; without pyelftools, or the file, a post-mortem goes without names."""
    try:
        from pyvmm.arch.x86_64.symbols import Symbols

        return Symbols(image)
    except (ImportError, OSError):
        return None
