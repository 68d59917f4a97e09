"""The x86_64 state on any KVM: tiny guests report through a port, or die and are explained."""

import os
import struct
from collections.abc import Iterator

import pytest

from pyvmm.arch.x86_64 import cpuid, diagnose, entry, handlers, layout, msrs, setup
from pyvmm.arch.x86_64.registers import CR4
from pyvmm.arch.x86_64.stop import Stop, capture
from pyvmm.kvm import Exit, IoExit, MmioExit, System, Vcpu, Vm
from pyvmm.kvm.uapi import KVM_MP_STATE_UNINITIALIZED
from pyvmm.memory import GuestMemory

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="needs /dev/kvm")

CODE = layout.HIMEM
OUT_STATUS = "b0 2a  e6 f4"  # mov al, 42; out 0xf4, al


class Machine:
    """One vCPU prepared as pyvmm prepares it, and 4 MiB of poisoned RAM, claimed where code stands."""

    def __init__(self, system: System, count: int = 1) -> None:
        self.system = system
        self.memory = GuestMemory(layout.ram_ranges(4 * layout.MIB), poison=0xA5)
        self.vm: Vm = system.create_vm()
        setup.prepare_vm(self.vm)
        for slot, region in enumerate(self.memory.regions):
            self.vm.set_user_memory_region(slot, region.start, region.size, region.host_address)
        self.vcpus: list[Vcpu] = [self.vm.create_vcpu(index) for index in range(count)]
        for index, vcpu in enumerate(self.vcpus):
            setup.prepare_vcpu(system, self.vm, vcpu, index, count)
        self.vcpu = self.vcpus[0]

    def load(self, code: str, address: int = CODE) -> None:
        data = bytes.fromhex(code)
        self.memory.claim(address, len(data), "test guest")
        self.memory.write(address, data)

    def run(self) -> Exit:
        """The first exit that is not a signal's."""
        while True:
            exit = self.vcpu.run()
            if exit.name != "KVM_EXIT_INTR":
                return exit

    def status(self) -> int:
        """The byte the guest writes to the status port, its next exit."""
        exit = self.run()
        assert isinstance(exit, IoExit), f"{exit}: " + "\n".join(self.report(exit))
        assert (exit.port, exit.direction, exit.size) == (layout.GUEST_STATUS, 1, 1)
        return exit.value

    def stop(self, exit: Exit) -> Stop:
        return capture(self.vcpu, exit)

    def report(self, exit: Exit) -> list[str]:
        return diagnose.report(self.stop(exit), self.memory)

    def close(self) -> None:
        self.vm.close()
        self.memory.close()


@pytest.fixture
def system() -> Iterator[System]:
    with System() as system:
        yield system


@pytest.fixture
def machine(system: System) -> Iterator[Machine]:
    machine = Machine(system)
    yield machine
    machine.close()


# --- entries ---------------------------------------------------------------------------------------------


def test_long_mode_runs_and_its_descriptors_can_be_loaded_again(machine: Machine) -> None:
    machine.load(
        "66 b8 18 00  8e d8  8e c0  8e d0"  # mov ax, 0x18; mov ds, es, ss from it
        "6a 10  48 8d 05 03 00 00 00  50  48 cb"  # push 0x10; push the address after lretq; lretq
        + OUT_STATUS
    )
    entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE, rsi=layout.ZERO_PAGE)
    assert machine.status() == 42
    regs, sregs = machine.vcpu.get_regs(), machine.vcpu.get_sregs()
    assert (regs.rsi, regs.rsp) == (layout.ZERO_PAGE, layout.BOOT_STACK_TOP)
    assert (sregs.cs.selector, sregs.cs.l, sregs.ds.selector) == (0x10, 1, 0x18)


def test_protected_mode_runs_and_its_descriptors_can_be_loaded_again(machine: Machine) -> None:
    machine.load(
        "66 b8 18 00  8e d8  8e c0  8e d0"  # mov ax, 0x18; mov ds, es, ss from it
        "ea 11 00 10 00  10 00" + OUT_STATUS  # ljmp 0x10, the next instruction
    )
    entry.enter_protected_mode(machine.vcpu, machine.memory, rip=CODE, ebx=layout.PVH_START_INFO)
    assert machine.status() == 42
    regs, sregs = machine.vcpu.get_regs(), machine.vcpu.get_sregs()
    assert (regs.rbx, regs.rsi) == (layout.PVH_START_INFO, 0)
    assert (sregs.cs.selector, sregs.cs.db, sregs.cr0 & 0x80000001) == (0x10, 1, 1)


def test_real_mode_runs_with_cs_as_given(machine: Machine) -> None:
    machine.load("8c c8  c1 e8 08  e6 f4", 0x1_2020)  # mov ax, cs; shr ax, 8; out 0xf4, al
    entry.enter_real_mode(machine.vcpu, cs=0x1200, ip=0x20)
    assert machine.status() == 0x12


def test_the_reset_stub_asks_for_a_reset(machine: Machine) -> None:
    machine.load(layout.RESET_STUB_CODE.hex(), layout.RESET_STUB)
    entry.enter_real_mode(machine.vcpu, cs=0xF000, ip=0xFFF0)
    exit = machine.run()
    assert isinstance(exit, IoExit)
    assert (exit.port, exit.value) == (0x64, 0xFE)


def test_identity_map_reaches_devices_below_4_gib(machine: Machine) -> None:
    machine.load("b8 00 00 00 d0  c6 00 07")  # mov eax, 0xd0000000; mov byte [rax], 7
    entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE)
    exit = machine.run()
    assert isinstance(exit, MmioExit), str(exit)
    assert (exit.phys_addr, exit.value) == (0xD000_0000, 7)


@pytest.mark.parametrize("address", [0, CODE, 0x3FFFFF, 0xFEE00000, 0xFFFFFFFF, 1 << 32, 0xFFFFFFFF80000000])
def test_page_walk_agrees_with_kvm(machine: Machine, address: int) -> None:
    entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE)
    sregs = machine.vcpu.get_sregs()
    stop = Stop(8, machine.vcpu.get_regs(), sregs)
    assert stop.walk(machine.memory, address).physical == machine.vcpu.translate(address)


# --- what the vCPU is told -----------------------------------------------------------------------------


def test_guest_sees_the_patched_cpuid(system: System) -> None:
    machine = Machine(system, count=2)
    try:
        machine.load(
            "b8 01 00 00 00  0f a2  89 1c 25 00 20 00 00  89 0c 25 04 20 00 00"  # leaf 1
            "b8 0b 00 00 00  b9 01 00 00 00  0f a2  89 1c 25 08 20 00 00  89 14 25 0c 20 00 00"  # 0xb
            + OUT_STATUS
        )
        entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE)
        assert machine.status() == 42
        ebx, ecx, cores, x2apic_id = struct.unpack("<4I", machine.memory.read(0x2000, 16))
        assert ebx >> 24 == 0
        assert ebx >> 16 & 0xFF == 2
        assert ecx & cpuid.Leaf1Ecx.HYPERVISOR
        assert (cores, x2apic_id) == (2, 0)
    finally:
        machine.close()


def test_each_vcpu_has_its_own_identity_and_waits_for_the_first(system: System) -> None:
    machine = Machine(system, count=2)
    try:
        for index, vcpu in enumerate(machine.vcpus):
            leaf1 = next(entry for entry in vcpu.get_cpuid2() if entry.function == 1)
            apic_id = int.from_bytes(bytes(vcpu.get_lapic().regs[0x20:0x24]), "little") >> 24
            assert leaf1.ebx >> 24 == apic_id == index
        assert machine.vcpus[1].get_mp_state() == KVM_MP_STATE_UNINITIALIZED
    finally:
        machine.close()


def test_floating_point_starts_as_after_fninit(machine: Machine) -> None:
    machine.load("0f ae 04 25 00 20 00 00" + OUT_STATUS)  # fxsave [0x2000]
    entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE)
    sregs = machine.vcpu.get_sregs()
    sregs.cr4 |= CR4.OSFXSR
    machine.vcpu.set_sregs(sregs)
    assert machine.status() == 42
    assert machine.memory.read_u16(0x2000) == 0x37F  # control word
    assert machine.memory.read_u32(0x2000 + 24) == 0x1F80  # MXCSR


def test_state_that_firmware_would_leave(machine: Machine) -> None:
    lapic = bytes(machine.vcpu.get_lapic().regs)
    assert lapic[0x350:0x354] == bytes.fromhex("00 07 00 00")
    assert lapic[0x360:0x364] == bytes.fromhex("00 04 00 00")
    values = machine.vcpu.get_msrs([msrs.IA32_MISC_ENABLE, msrs.IA32_MTRR_DEF_TYPE])
    assert values.get(msrs.IA32_MISC_ENABLE, 1) & 1
    assert values.get(msrs.IA32_MTRR_DEF_TYPE, 0x806) == 0x806


# --- post-mortems --------------------------------------------------------------------------------------


def test_triple_fault_is_explained(machine: Machine) -> None:
    machine.load("0f 0b")  # ud2, with no interrupt table
    entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE)
    exit = machine.run()
    assert exit.name == "KVM_EXIT_SHUTDOWN"
    lines = machine.report(exit)
    assert lines[0] == "triple fault on vCPU 0: RIP 0x100000, 64-bit mode, 4-level paging"
    assert lines[1].startswith("likely cause: #UD invalid opcode: the guest executed ud2")
    text = "\n".join(lines)
    assert "<0f> 0b" in text
    assert "0x100000 is test guest + 0x0" in text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("31 d2  f7 f2", "#DE divide error"),  # xor edx, edx; div edx
        (
            "48 8b 04 25 00 00 00 90",
            "#PF page fault with error code 0x0 [] at CR2 0xffffffff90000000: that address is not",
        ),
        (
            "31 e4  50",
            "#PF page fault with error code 0x2 [W] at CR2 0xfffffffffffffff8",
        ),  # xor esp, esp; push rax
        ("b8 33 00 00 00  8e d8", "#GP general protection with error code 0x30 (selector 0x30 of the GDT)"),
        ("b9 34 12 00 00  0f 32", "#GP general protection with error code 0x0: rdmsr of MSR 0x1234"),
    ],
)
def test_the_first_exception_in_64_bit_mode_is_named(machine: Machine, code: str, words: str) -> None:
    machine.load(code)
    entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE)
    exit = machine.run()
    assert exit.name == "KVM_EXIT_SHUTDOWN"
    assert machine.report(exit)[1].startswith(f"likely cause: {words}")


@pytest.mark.parametrize("code", ["0f 0b", "b8 33 00 00 00  8e d8"], ids=["no error code", "error code"])
@pytest.mark.parametrize("bits", [64, 32])
def test_registers_survive_a_triple_fault(machine: Machine, bits: int, code: str) -> None:
    machine.load(code)
    enter = entry.enter_long_mode if bits == 64 else entry.enter_protected_mode
    enter(machine.vcpu, machine.memory, rip=CODE)
    before = machine.vcpu.get_regs()
    names = (
        "rbx",
        "rcx",
        "rdx",
        "rsi",
        "rdi",
        "rbp",
        *((f"r{n}" for n in range(8, 16)) if bits == 64 else ()),
    )
    for value, name in enumerate(names):
        setattr(before, name, 0x1111_1100 + value)
    machine.vcpu.set_regs(before)
    stop = machine.stop(machine.run())
    assert handlers.recover(stop, machine.memory)
    assert [getattr(stop.regs, name) for name in names] == [getattr(before, name) for name in names]
    assert stop.regs.rsp == before.rsp
    assert stop.regs.rip == CODE + (0 if code == "0f 0b" else 5)
    assert stop.exception == ((6, None) if code == "0f 0b" else (13, 0x30))
    assert stop.code_bits == bits


def test_an_emptied_interrupt_table_leaves_what_kvm_has(machine: Machine) -> None:
    machine.load("0f 01 1c 25 20 00 10 00  0f 0b".ljust(0x60) + " 00" * 32)  # lidt [0x100020]; ud2
    entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE)
    machine.memory.fill(CODE + 0x20, 16)
    exit = machine.run()
    assert exit.name == "KVM_EXIT_SHUTDOWN"
    lines = machine.report(exit)
    if machine.stop(exit).was_reset:
        assert "KVM has reset the processor" in lines[1]
        assert "registers, as after a reset:" in lines
    else:
        assert lines[0].startswith("triple fault on vCPU 0: RIP 0x100008,")
        assert "the interrupt table is empty (IDT limit 0x0)" in "\n".join(lines)


def test_a_jump_to_nowhere_is_explained(machine: Machine) -> None:
    machine.load("b8 00 00 00 d0  ff e0")  # mov eax, 0xd0000000; jmp rax
    entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE)
    exit = machine.run()
    assert exit.name in ("KVM_EXIT_INTERNAL_ERROR", "KVM_EXIT_SHUTDOWN", "KVM_EXIT_MMIO"), str(exit)
    if exit.name == "KVM_EXIT_INTERNAL_ERROR":
        report = machine.report(exit)
        assert "RIP 0xd0000000 is guest physical 0xd0000000, where there is no RAM" in report[1]


def test_an_instruction_kvm_cannot_emulate_is_explained(machine: Machine) -> None:
    """On hardware int3 faults for want of an interrupt table; a software KVM cannot emulate it."""
    machine.load("cc")
    entry.enter_long_mode(machine.vcpu, machine.memory, rip=CODE)
    exit = machine.run()
    text = "\n".join(machine.report(exit))
    if exit.name == "KVM_EXIT_INTERNAL_ERROR":
        assert "this looks like a software KVM and cannot emulate int3 (cc" in text
        assert "--lab" in text
    else:
        assert exit.name == "KVM_EXIT_SHUTDOWN"
        assert "int3" in text or "KVM has reset the processor" in text
