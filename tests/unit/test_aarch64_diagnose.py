"""What a post-mortem of the Arm machine says, for stops and translation tables made by hand."""

from __future__ import annotations

import struct

import pytest

from pyvmm.arch.aarch64 import diagnose, registers
from pyvmm.arch.aarch64.paging import walk
from pyvmm.kvm import SystemEventExit, UnknownExit, arm64, uapi_run
from pyvmm.kvm.errors import KvmError
from pyvmm.kvm.uapi import KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED
from pyvmm.memory import GuestMemory

RAM, SIZE = 0x4000_0000, 0x20_0000
TABLES = RAM + 0x10_0000
KERNEL = 0xFFFF_8000_0800_0000


class Processor:
    """A vCPU with the registers it is given, 0 for the rest; ``refused`` are unknown to its KVM."""

    def __init__(
        self, values: dict[int, int], state: int = KVM_MP_STATE_RUNNABLE, refused: tuple[int, ...] = ()
    ) -> None:
        self.id = 1
        self._values = values
        self._state = state
        self._refused = refused

    def get_one_reg(self, id: int, /) -> int:
        if id in self._refused:
            raise KvmError("KVM_GET_ONE_REG", 2)
        return self._values.get(id, 0)

    def get_mp_state(self) -> int:
        return self._state


@pytest.fixture
def memory() -> GuestMemory:
    found = GuestMemory([(RAM, SIZE)])
    found.claim(RAM, 0x1000, "kernel")
    return found


def entry(memory: GuestMemory, table: int, index: int, value: int) -> None:
    memory.write(table + 8 * index, struct.pack("<Q", value))


def control(*, t0sz: int = 16, t1sz: int = 16, tg0: int = 0, tg1: int = 2) -> int:
    return t0sz | tg0 << 14 | t1sz << 16 | tg1 << 30


def test_a_walk_by_four_levels_of_4_kib(memory: GuestMemory) -> None:
    indices = [KERNEL >> shift & 511 for shift in (39, 30, 21, 12)]
    assert indices == [256, 0, 64, 0]
    for level in range(3):
        entry(memory, TABLES + 0x1000 * level, indices[level], TABLES + 0x1000 * (level + 1) | 3)
    page = RAM + 0x5000 | 3 | 1 << 10 | 1 << 7 | 1 << 54
    entry(memory, TABLES + 0x3000, indices[3], page)
    found = walk(memory, KERNEL + 0x123, tcr=control(), ttbr0=0, ttbr1=TABLES | 1)
    assert found.physical == RAM + 0x5123
    assert len(found.lines) == 4
    assert found.lines[0].startswith(f"level 0 entry 256 at {TABLES + 0x800:#x} = ") and found.lines[
        0
    ].endswith(": table")
    assert found.lines[3].endswith("page, read-only, UXN, memory attribute 0")


def test_a_walk_ends_at_a_block(memory: GuestMemory) -> None:
    # 39 bits: three levels, from level 1, as Linux has it with CONFIG_ARM64_VA_BITS_39.
    address = 0xFFFF_FFC0_0820_1234
    entry(memory, TABLES, address >> 30 & 511, TABLES + 0x1000 | 3)
    entry(memory, TABLES + 0x1000, address >> 21 & 511, RAM | 1 | 1 << 10)
    found = walk(memory, address, tcr=control(t1sz=25), ttbr0=0, ttbr1=TABLES)
    assert found.physical == RAM + 0x1234
    assert [line.split()[1] for line in found.lines] == ["1", "2"]


def test_a_walk_by_64_kib_with_the_lower_half(memory: GuestMemory) -> None:
    # 42 bits: two levels, from level 2.
    address = 0x1_2345_6789
    entry(memory, TABLES, address >> 29, TABLES + 0x1_0000 | 3)
    entry(memory, TABLES + 0x1_0000, address >> 16 & 0x1FFF, RAM + 0x1_0000 | 3 | 1 << 10)
    found = walk(memory, address, tcr=control(t0sz=22, tg0=1), ttbr0=TABLES, ttbr1=0)
    assert found.physical == RAM + 0x1_6789


@pytest.mark.parametrize(
    ("address", "tcr", "words"),
    [
        (KERNEL, control(), "invalid"),
        (0x0001_0000_0000_0000, control(), "it is none of 48 bits"),
        (0x1000, control() | 1 << 7, "walks are disabled"),
        (0x1000, control(), "not in RAM"),
    ],
)
def test_walks_that_lead_nowhere(memory: GuestMemory, address: int, tcr: int, words: str) -> None:
    ttbr0 = TABLES if words == "invalid" else 0x1000
    found = walk(memory, address, tcr=tcr, ttbr0=ttbr0, ttbr1=TABLES)
    assert found.physical is None
    assert words in found.lines[-1]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0x9600_0046, "data abort, write: translation, level 2"),
        (0x9200_000F, "data abort from EL0, read: permission, level 3"),
        (0x8600_0010, "instruction abort: synchronous external abort"),
        (0x0200_0000, "unknown reason"),
        (0x5600_0002, "SVC, ISS 0x2"),
        (0xF200_03E8, "BRK, ISS 0x3e8"),
    ],
)
def test_syndromes_in_words(value: int, words: str) -> None:
    assert registers.describe_syndrome(value) == words


def test_registers_by_their_fields() -> None:
    assert str(registers.PSTATE(0x3C5)) == "PSTATE = 0x3c5 [D A I F M=EL1h]"
    assert registers.TCR_EL1(control(t1sz=25)).T1SZ == 25
    assert "EC=BRK" in str(registers.ESR_EL1(0xF200_03E8))


def nisv_exit(address: int, iss: int) -> UnknownExit:
    exit = UnknownExit()
    exit.exit_reason = uapi_run.KVM_EXIT_ARM_NISV
    struct.pack_into("<2Q", exit, uapi_run.kvm_run.io.offset, iss, address)
    return exit


def test_a_report_of_an_access_that_cannot_be_emulated(memory: GuestMemory) -> None:
    code = [0xD503_201F, 0xA940_0801, 0xD503_201F]
    memory.write(RAM + 0x100, struct.pack("<3I", *code))
    vcpu = Processor(
        {
            arm64.PC: RAM + 0x104,
            arm64.PSTATE: 0x3C5,
            arm64.X[0]: 0x0C00_0000,
            arm64.X[30]: 0x1234,
            arm64.ESR_EL1: diagnose.RESET_UNKNOWN,
        }
    )
    lines = diagnose.report(diagnose.capture(vcpu), nisv_exit(0x0C00_0000, 0x07), memory)
    text = "\n".join(lines)
    assert lines[0].startswith("vCPU 1: an access to guest address 0xc000000, where there is no RAM")
    assert "translation, level 3" in lines[0]
    assert "PC is in kernel, 0x104 from its start" in text
    assert "d503201f [a9400801] d503201f" in text
    assert "X0  000000000c000000" in text and "X30 0000000000001234" in text
    assert "[D A I F M=EL1h]" in text
    assert "exception" not in text, "it took none"
    assert "page walk" not in text, "its MMU is off"


def test_a_report_of_a_kernel_with_its_mmu_on(memory: GuestMemory) -> None:
    vcpu = Processor(
        {
            arm64.PC: KERNEL,
            arm64.PSTATE: 0x3C5,
            arm64.SCTLR_EL1: 1,
            arm64.TCR_EL1: control(),
            arm64.TTBR1_EL1: TABLES,
            arm64.ESR_EL1: 0x9600_0046,
            arm64.ELR_EL1: KERNEL - 4,
            arm64.FAR_EL1: 0xDEAD_0000,
        },
        refused=(arm64.MAIR_EL1,),
    )
    text = "\n".join(diagnose.report(diagnose.capture(vcpu), SystemEventExit(), memory))
    assert "the last exception taken to EL1: data abort, write: translation, level 2" in text
    assert f"from {KERNEL - 4:#x}, FAR_EL1 0xdead0000" in text
    assert "page walk of PC:" in text and ": invalid" in text
    assert "there is no code at PC" in text


def test_whereabouts_of_a_guest_without_vectors() -> None:
    vcpu = Processor({arm64.PC: 0x4008_1200, arm64.VBAR_EL1: 0x4008_1000, arm64.PSTATE: 0x3C5})
    line = diagnose.whereabouts(vcpu)
    assert line.startswith("vCPU 1 was running, interrupts off, PC 0x40081200, EL1, MMU off")
    assert "at the synchronous exception vector (VBAR_EL1 0x40081000 + 0x200)" in line


def test_whereabouts_of_a_vcpu_that_never_ran() -> None:
    assert "never started" in diagnose.whereabouts(Processor({}, KVM_MP_STATE_STOPPED))
