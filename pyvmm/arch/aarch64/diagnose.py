"""A post-mortem for a person: a vCPU that stopped for good, as lines of text.

The exit, registers with their bits named, the last exception the guest took, the code and the page walk at PC.  On
arm64 a guest whose exception vectors are missing does not stop: it takes the exception at VBAR_EL1 again and again, so
the same lines are worth reading where the time was up.
"""

from __future__ import annotations

from pyvmm.arch.aarch64.paging import walk
from pyvmm.arch.aarch64.registers import (
    ESR_EL1,
    PSTATE,
    SCTLR_EL1,
    TCR_EL1,
    DataAbort,
    describe_syndrome,
)
from pyvmm.errors import PyvmmError
from pyvmm.kvm import arm64
from pyvmm.kvm.errors import KvmError
from pyvmm.kvm.uapi import KVM_MP_STATE_STOPPED
from pyvmm.kvm.uapi_arm64 import run_arm_nisv
from pyvmm.kvm.uapi_run import KVM_EXIT_ARM_NISV, kvm_run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm.kvm.exits import Exit

    class Registers(Protocol):
        """What is asked of a vCPU."""

        id: int

        def get_one_reg(self, id: int, /) -> int: ...

    class StartedVcpu(Registers, Protocol):
        """The same, and whether it was started."""

        def get_mp_state(self) -> int: ...

    class Claim(Protocol):
        """A placed item of guest memory."""

        start: int
        name: str

    class OwnedMemory(Protocol):
        """What a report needs of guest memory."""

        def read(self, address: int, size: int, /) -> bytes: ...
        def contains(self, address: int, size: int, /) -> bool: ...
        def owner(self, address: int, /) -> Claim | None: ...


SYSTEM = ("SP_EL1", "ELR_EL1", "SPSR_EL1", "SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1", "MAIR_EL1", "VBAR_EL1",
          "ESR_EL1", "FAR_EL1")  # fmt: skip
#: What KVM puts into system registers whose value at reset is unknown (Linux arch/arm64/kvm/sys_regs.h, reset_unknown).
RESET_UNKNOWN = 0x1DE7_EC7E_DBAD_C0DE
INSTRUCTIONS = 4  # shown before PC, and as many from there
_VECTORS = {0x000: "synchronous", 0x080: "IRQ", 0x100: "FIQ", 0x180: "SError"}
_VECTOR_TABLE_SIZE = 0x800


class Stop:
    """A vCPU's registers as they were when it stopped: ``x``, and the others by their names.

    Those that KVM refused, and those that the guest never set, are 0.
    """

    def __init__(self, vcpu: int, x: list[int], named: dict[str, int]) -> None:
        self.vcpu = vcpu
        self.x = x
        self.named = named

    def __getitem__(self, name: str) -> int:
        return self.named[name]

    @property
    def mmu(self) -> bool:
        """Whether addresses are translated."""
        return bool(SCTLR_EL1(self["SCTLR_EL1"]).M)


def capture(vcpu: Registers) -> Stop:
    """Copy what a report needs from a vCPU that is not running."""

    def get(register: int) -> int:
        try:
            value = vcpu.get_one_reg(register)
        except KvmError:
            return 0
        return 0 if value == RESET_UNKNOWN else value

    named = {name: get(getattr(arm64, name)) for name in ("PC", "PSTATE", "SP_EL0", *SYSTEM)}
    return Stop(vcpu.id, [get(register) for register in arm64.X], named)


def report(stop: Stop, exit: Exit, memory: OwnedMemory) -> list[str]:
    """The post-mortem of ``stop`` as lines: what happened, then the evidence."""
    pstate = PSTATE(stop["PSTATE"])
    lines = [f"vCPU {stop.vcpu}: {_explain(exit)}", *_exceptions(stop), ""]
    lines.append(f"PC  {stop['PC']:#018x}   PSTATE {stop['PSTATE']:#x} [{pstate.decode()}]")
    for first in range(0, 31, 4):
        lines.append(
            "  ".join(f"X{number:<2} {stop.x[number]:016x}" for number in range(first, min(first + 4, 31)))
        )
    lines.append(f"SP_EL0 {stop['SP_EL0']:#x}   SP_EL1 {stop['SP_EL1']:#x}")
    lines.append(str(SCTLR_EL1(stop["SCTLR_EL1"])))
    lines.append(str(TCR_EL1(stop["TCR_EL1"])))
    lines.append(
        f"TTBR0_EL1 {stop['TTBR0_EL1']:#x}   TTBR1_EL1 {stop['TTBR1_EL1']:#x}   MAIR_EL1 {stop['MAIR_EL1']:#x}"
    )
    lines += ["", *_code(stop, memory)]
    return lines


def whereabouts(vcpu: StartedVcpu) -> str:
    """Where a vCPU was when the run was stopped, in a line."""
    if vcpu.get_mp_state() == KVM_MP_STATE_STOPPED:
        return f"vCPU {vcpu.id} was never started, or was switched off"
    stop = capture(vcpu)
    pstate = PSTATE(stop["PSTATE"])
    mode = f"EL{pstate.M >> 2}"
    interrupts = "off" if pstate.I else "on"
    mmu = "on" if stop.mmu else "off"
    words = f"vCPU {vcpu.id} was running, interrupts {interrupts}, PC {stop['PC']:#x}, {mode}, MMU {mmu}"
    vector = _vector(stop)
    return f"{words}, {vector}" if vector else words


def _explain(exit: Exit) -> str:
    """The exit in words."""
    if exit.reason == KVM_EXIT_ARM_NISV and isinstance(exit, kvm_run):
        access = run_arm_nisv.from_buffer(exit, kvm_run.io.offset)
        abort = DataAbort(access.esr_iss)
        return (
            f"an access to guest address {access.fault_ipa:#x}, where there is no RAM, by an instruction that cannot"
            f" be emulated, such as LDP, STP or DC ZVA ({abort.decode()})"
        )
    return str(exit)


def _exceptions(stop: Stop) -> list[str]:
    """The last exception the guest took, if it took one, and whether it is at its vectors still."""
    if not stop["ESR_EL1"] and not stop["ELR_EL1"]:
        return []
    lines = [
        f"the last exception taken to EL1: {describe_syndrome(stop['ESR_EL1'])}",
        f"  from {stop['ELR_EL1']:#x}, FAR_EL1 {stop['FAR_EL1']:#x}, {ESR_EL1(stop['ESR_EL1'])}",
    ]
    vector = _vector(stop)
    if vector:
        lines.append(f"  PC is {vector}")
    return lines


def _vector(stop: Stop) -> str:
    """That PC is at one of the exception vectors, in words: a kernel that stays there has none."""
    offset = stop["PC"] - stop["VBAR_EL1"]
    if not 0 <= offset < _VECTOR_TABLE_SIZE or (offset % 0x80 and stop["VBAR_EL1"]):
        return ""
    if offset % 0x80:
        return ""
    return (
        f"at the {_VECTORS[offset % 0x200]} exception vector (VBAR_EL1 {stop['VBAR_EL1']:#x} + {offset:#x})"
    )


def _code(stop: Stop, memory: OwnedMemory) -> list[str]:
    """The instructions at PC, and how it is translated."""
    pc = stop["PC"]
    lines: list[str] = []
    physical: int | None = pc
    if stop.mmu:
        found = walk(memory, pc, tcr=stop["TCR_EL1"], ttbr0=stop["TTBR0_EL1"], ttbr1=stop["TTBR1_EL1"])
        lines += ["page walk of PC:", *(f"  {line}" for line in found.lines)]
        physical = found.physical
    if physical is None or not memory.contains(physical, 4):
        return [
            *lines,
            "there is no code at PC" + ("" if physical is None else f": {physical:#x} is not in RAM"),
        ]
    owner = memory.owner(physical)
    if owner is not None:
        lines.append(f"PC is in {owner.name}, {physical - owner.start:#x} from its start")
    try:
        words = [
            (address, int.from_bytes(memory.read(address, 4), "little"))
            for address in range(physical - 4 * INSTRUCTIONS, physical + 4 * INSTRUCTIONS, 4)
            if memory.contains(address, 4)
        ]
    except PyvmmError:
        return lines
    lines.append(
        "code: " + " ".join(f"[{word:08x}]" if at == physical else f"{word:08x}" for at, word in words)
    )
    return lines
