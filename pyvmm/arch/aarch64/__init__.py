"""The Arm machine, as little of it as a kernel needs: the names every architecture offers (see :mod:`pyvmm.arch`)."""

from __future__ import annotations

from pyvmm.arch.aarch64.boot import enter, load, open_image, write_device_tree
from pyvmm.arch.aarch64.clock import pause_clock, resume_clock
from pyvmm.arch.aarch64.devices import attach_devices, coalesced_ports
from pyvmm.arch.aarch64.gic import create as create_gic
from pyvmm.arch.aarch64.layout import ram_ranges, virtio_slot
from pyvmm.arch.aarch64.memory import vm_type
from pyvmm.arch.aarch64.setup import prepare_vcpu, prepare_vm, supported_features
from pyvmm.kvm.uapi import Cap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.arch.aarch64.boot import Entry
    from pyvmm.arch.probe_result import ProbeResult
    from pyvmm.kvm import System, Vcpu, Vm
    from pyvmm.kvm.exits import Exit
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

NAME = "aarch64"

PORT_IO = False

# The guest reads device registers past its caches, while we write them into ours: unless the processor forces such
# memory to be cached (FEAT_S2FWB, which nobody tells us of), it would read what was there before.
READ_ONLY_REGISTERS = False

CAPABILITIES: tuple[tuple[int, bool, str], ...] = (
    # capability                required  what for
    (Cap.USER_MEMORY, True, "guest RAM"),
    (Cap.IRQCHIP, True, "an interrupt controller in the kernel"),
    (Cap.DEVICE_CTRL, True, "setting up the interrupt controller"),
    (Cap.ONE_REG, True, "registers"),
    (Cap.ARM_PSCI_0_2, True, "starting vCPUs, powering off and resetting"),
    (Cap.IRQFD, True, "interrupts without a system call of the vCPU's"),
    (Cap.IOEVENTFD, True, "device notifications without an exit"),
    (Cap.IMMEDIATE_EXIT, True, "stopping a vCPU"),
    (Cap.MP_STATE, False, "telling whether a vCPU was started"),
    (Cap.COALESCED_MMIO, False, "console output without an exit for each byte"),
    (Cap.ARM_VM_IPA_SIZE, False, "guests with more, or fewer, than 40 bits of addresses"),
    (Cap.ARM_SVE, False, "scalable vectors"),
    (Cap.ARM_PTRAUTH_ADDRESS, False, "pointer authentication"),
    (Cap.ARM_PTRAUTH_GENERIC, False, "pointer authentication"),
    (Cap.ARM_NISV_TO_USER, False, "a post-mortem of accesses that cannot be emulated"),
)


def complete_vm(vm: Vm, vcpus: Sequence[Vcpu], memory: GuestMemory, start: Entry) -> None:
    """Now that all vCPUs exist: the interrupt controller, and the device tree, which describes both."""
    write_device_tree(vcpus, memory, start, create_gic(vm, len(vcpus)))


def probe(system: System) -> ProbeResult:
    """Whether this KVM can run a stock kernel (:mod:`pyvmm.arch.aarch64.probe`)."""
    from pyvmm.arch.aarch64.probe import probe_kvm

    return probe_kvm(system)


def require_hardware(system: System) -> None:
    """Nothing: KVM on arm64 is always that of a processor with EL2."""


def is_halted(vcpu: Vcpu) -> bool:
    """Whether ``vcpu``, which is not running, was switched off by PSCI, or never on.

    One that waits in WFI does not count: an interrupt wakes it even where it is masked, and Linux idles like that.
    """
    from pyvmm.kvm.uapi import KVM_MP_STATE_STOPPED

    return vcpu.get_mp_state() == KVM_MP_STATE_STOPPED


def advice(cmdline: str) -> list[str]:
    """A line for each word of the command line that asks for what this machine does not have."""
    return [
        f"{word}: {_ADVICE[word.partition(',')[0]]}"
        for word in cmdline.split()
        if word.partition(",")[0] in _ADVICE
    ]


_ADVICE = {
    "acpi=force": "the machine has a device tree and no ACPI tables",
}


def post_mortem(exit: Exit, vcpu: Vcpu, memory: GuestMemory, image: str) -> list[str]:
    """The lines that explain why ``vcpu`` stopped with ``exit``, for a person.  The vCPU's thread must have ended."""
    from pyvmm.arch.aarch64.diagnose import capture, report

    return report(capture(vcpu), exit, memory)


def whereabouts(vcpu: Vcpu, image: str) -> str:
    """Where ``vcpu`` was when the run was stopped, in a line for a person who wonders why nothing happened."""
    from pyvmm.arch.aarch64.diagnose import whereabouts

    return whereabouts(vcpu)


def register_values(vcpu: Vcpu) -> dict[str, int]:
    """The registers of ``vcpu``, which stands still: ``x0`` to ``x30``, ``pc``, ``pstate``, ``sp_el0``, and those
    system registers of EL1 that a post-mortem shows (``ttbr0_el1``, ...)."""
    from pyvmm.arch.aarch64.diagnose import capture

    stop = capture(vcpu)
    general = {f"x{number}": value for number, value in enumerate(stop.x)}
    return general | {name.lower(): value for name, value in stop.named.items()}


def translate(vcpu: Vcpu, memory: GuestMemory, address: int) -> int | None:
    """The physical address of the virtual ``address`` by the translation tables of ``vcpu``, which stands still; None
    where nothing is mapped."""
    from pyvmm.arch.aarch64.diagnose import capture
    from pyvmm.arch.aarch64.paging import walk

    stop = capture(vcpu)
    if not stop.mmu:
        return address
    return walk(
        memory, address, tcr=stop["TCR_EL1"], ttbr0=stop["TTBR0_EL1"], ttbr1=stop["TTBR1_EL1"]
    ).physical
