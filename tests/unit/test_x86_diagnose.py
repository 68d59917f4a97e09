"""Post-mortems of made-up states: the likely cause comes first, and the evidence can be read by a person."""

import copy
import random
import sys
from collections.abc import Iterator

import pytest

from pyvmm.arch.x86_64 import diagnose, entry, instructions, layout
from pyvmm.arch.x86_64.causes import likely_causes
from pyvmm.arch.x86_64.stop import Stop, capture
from pyvmm.kvm.errors import KvmError
from pyvmm.kvm.exits import FailEntryExit, InternalErrorExit
from pyvmm.kvm.uapi_x86 import kvm_regs, kvm_sregs, kvm_vcpu_events
from pyvmm.memory import GuestMemory

SHUTDOWN, INTERNAL, FAIL = 8, 17, 9
CODE = 0x10_0000
MIB = 1 << 20


class Vcpu:
    """Remembers the registers an entry sets, and gives them back as KVM would."""

    def __init__(self) -> None:
        self.sregs = kvm_sregs()
        self.regs = kvm_regs()
        self.events: kvm_vcpu_events | None = kvm_vcpu_events()

    def get_sregs(self) -> kvm_sregs:
        return copy.copy(self.sregs)

    def set_sregs(self, sregs: kvm_sregs) -> None:
        self.sregs = sregs

    def get_regs(self) -> kvm_regs:
        return copy.copy(self.regs)

    def set_regs(self, regs: kvm_regs) -> None:
        self.regs = regs

    def get_vcpu_events(self) -> kvm_vcpu_events:
        if self.events is None:
            raise KvmError("KVM_GET_VCPU_EVENTS", 25)
        return copy.copy(self.events)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([(0, 4 * MIB)]) as memory:
        memory.claim(CODE, 0x1000, "kernel")
        memory.write(CODE, bytes.fromhex("90 90 90 90 0f 20 c0 90 90 90 90 90 90 90 f4 90 90 90"))
        yield memory


def without_interrupt_table(vcpu: Vcpu) -> None:
    """As after a guest's LIDT of an empty table."""
    vcpu.sregs.idt.base, vcpu.sregs.idt.limit = 0x520, 0


@pytest.fixture
def long(memory: GuestMemory) -> Stop:
    """A guest in 64-bit mode that stopped at CODE + 4, with nothing wrong but the empty interrupt table."""
    vcpu = Vcpu()
    entry.enter_long_mode(vcpu, memory, rip=CODE + 4)
    without_interrupt_table(vcpu)
    return Stop(SHUTDOWN, vcpu.regs, vcpu.sregs)


@pytest.fixture
def protected() -> Stop:
    vcpu = Vcpu()
    with GuestMemory([(0, 0x10000)]) as scratch:
        entry.enter_protected_mode(vcpu, scratch, rip=CODE + 4)
    without_interrupt_table(vcpu)
    return Stop(SHUTDOWN, vcpu.regs, vcpu.sregs)


@pytest.fixture
def real() -> Stop:
    vcpu = Vcpu()
    entry.enter_real_mode(vcpu, cs=0x1000, ip=0x20)
    return Stop(SHUTDOWN, vcpu.regs, vcpu.sregs)


def first(stop: Stop, memory: GuestMemory, **options: bool) -> str:
    return likely_causes(stop, memory, **options)[0]


def with_interrupt_table(stop: Stop, memory: GuestMemory, address: int = 0x3000) -> None:
    """Sixteen present gates."""
    stop.sregs.idt.base, stop.sregs.idt.limit = address, 256 * 16 - 1
    memory.write(address, (bytes(5) + b"\x8e" + bytes(10)) * 16)


# --- the mode, in words --------------------------------------------------------------------------------


def test_modes(long: Stop, protected: Stop, real: Stop) -> None:
    assert (long.mode, long.code_bits) == ("64-bit mode, 4-level paging", 64)
    assert (protected.mode, protected.code_bits) == ("32-bit protected mode, no paging", 32)
    assert (real.mode, real.code_bits) == ("real mode", 16)
    long.sregs.cs.l, long.sregs.cs.db = 0, 1
    assert long.mode == "compatibility mode, 32-bit code, 4-level paging"
    protected.sregs.cr0 |= 1 << 31
    assert protected.mode == "32-bit protected mode, 32-bit paging"
    protected.regs.rflags |= 1 << 17
    assert protected.mode == "virtual-8086 mode, 32-bit paging"


def test_linear_addresses(long: Stop, real: Stop) -> None:
    assert real.rip == 0x10020
    long.sregs.cs.base = 0x5000  # ignored in 64-bit mode
    assert long.rip == CODE + 4


# --- triple faults -------------------------------------------------------------------------------------


def test_entry_states_themselves_have_nothing_wrong(
    long: Stop, protected: Stop, real: Stop, memory: GuestMemory
) -> None:
    for stop in (long, protected):
        assert likely_causes(stop, memory) == [
            "no exception can be handled: the interrupt table is empty (IDT limit 0x0)",
            "which exception it was, nothing in the state says",
        ]
    memory.write(0x10020, b"\x90\xf4\x90\x90")
    assert likely_causes(real, memory) == [
        "an exception whose handler faulted twice; nothing in the state says which"
    ]


def test_reset_registers_are_recognised(long: Stop, memory: GuestMemory) -> None:
    regs, sregs = kvm_regs(rip=0xFFF0, rflags=2, rdx=0xA00F11), kvm_sregs(cr0=0x60000010)
    sregs.cs.selector, sregs.cs.base, sregs.cs.limit = 0xF000, 0xFFFF0000, 0xFFFF
    stop = Stop(SHUTDOWN, regs, sregs)
    causes = likely_causes(stop, memory)
    assert len(causes) == 1
    assert "KVM has reset the processor" in causes[0]
    lines = diagnose.report(stop, memory)
    assert "registers, as after a reset:" in lines
    assert not any(line.startswith("code at") for line in lines)
    assert "reset" not in first(long, memory)


def test_rip_not_mapped(long: Stop, memory: GuestMemory) -> None:
    long.regs.rip = 0xFFFFFFFF81000000
    assert first(long, memory) == (
        "no instruction can be fetched: RIP 0xffffffff81000000 is not mapped, the PML4E is not present"
    )


def test_rip_without_ram(long: Stop, memory: GuestMemory) -> None:
    long.regs.rip = 0xD000_0000
    assert first(long, memory) == (
        "no instruction can be fetched: RIP 0xd0000000 is guest physical 0xd0000000, where there is no RAM"
    )


def test_rip_not_canonical(long: Stop, memory: GuestMemory) -> None:
    long.regs.rip = 0x1234_5678_9ABC_DEF0
    assert "not canonical" in first(long, memory)


def test_rip_in_a_no_execute_page(long: Stop, memory: GuestMemory) -> None:
    long.sregs.efer |= 1 << 11
    memory.write_u64(layout.PAGE_DIRECTORIES, 0x83 | 1 << 63)
    assert (
        first(long, memory) == f"no instruction can be fetched: RIP {CODE + 4:#x} lies in a no-execute page"
    )


@pytest.mark.parametrize("byte", [0x00, 0xA5])
def test_rip_where_nothing_was_loaded(long: Stop, memory: GuestMemory, byte: int) -> None:
    long.regs.rip = 0x20_0000
    memory.fill(0x20_0000, 0x1000, byte)
    assert f"filled with {byte:02x}: the guest jumped to where nothing was loaded" in first(long, memory)


def test_rip_beyond_the_segment(real: Stop, memory: GuestMemory) -> None:
    real.regs.rip = 0x1_2345
    assert first(real, memory) == "RIP 0x12345 is beyond the limit of CS, 0xffff"


def test_page_fault_address(long: Stop, memory: GuestMemory) -> None:
    with_interrupt_table(long, memory)
    long.sregs.cr2 = 0xDEAD_0000_0000 & 0x7FFF_FFFF_FFFF
    assert first(long, memory) == (
        "a page fault: the last was at CR2 0x5ead00000000, which is not mapped, the PML4E is not present"
    )
    long.sregs.cr2 = CODE  # mapped: no longer a reason
    assert "page fault" not in " ".join(likely_causes(long, memory))


def test_stack_not_mapped(long: Stop, memory: GuestMemory) -> None:
    with_interrupt_table(long, memory)
    long.regs.rsp = 0
    assert first(long, memory) == (
        "no exception can be delivered: the stack at 0x0 is not mapped, the PML4E is not present"
    )
    long.regs.rsp = 0xC000_0000
    assert first(long, memory) == (
        "no exception can be delivered: the stack at 0xc0000000 is where there is no RAM"
    )


def test_interrupt_table_elsewhere(long: Stop, memory: GuestMemory) -> None:
    with_interrupt_table(long, memory)
    long.sregs.idt.base = 0xFFFFFFFF82000000
    assert "the interrupt table at 0xffffffff82000000 is not mapped" in first(long, memory)
    long.sregs.idt.base = 0xE0000000
    assert "the interrupt table at 0xe0000000 is where there is no RAM" in first(long, memory)


def test_interrupt_table_without_the_gates_that_matter(long: Stop, memory: GuestMemory) -> None:
    with_interrupt_table(long, memory)
    memory.fill(0x3000 + 13 * 16, 16)
    assert first(long, memory) == "the interrupt table has no gate for #GP"
    long.sregs.idt.limit = 14 * 16 - 1
    assert first(long, memory) == "the interrupt table has no gate for #GP, #PF"


def test_pending_exception_comes_first(long: Stop, memory: GuestMemory) -> None:
    events = kvm_vcpu_events()
    events.exception.injected, events.exception.nr = 1, 14
    events.exception.has_error_code, events.exception.error_code = 1, 0x12
    long.events, long.sregs.cr2 = events, 0x7F00_0000_0000
    assert first(long, memory) == (
        "#PF page fault with error code 0x12 [I W] at CR2 0x7f0000000000 was being delivered"
    )
    assert "  exception injected: #PF page fault" in diagnose.report(long, memory)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("0f 0b", "the guest executed ud2, which is meant to fault"),
        ("0f 32", "rdmsr of MSR 0xc0010015"),
        ("0f 30", "wrmsr of MSR 0xc0010015"),
        ("0f 01 d1", "xsetbv while CR4.OSXSAVE is off"),
        ("cc", "the guest executed int3"),
        ("0f 22 d8", "a move to a control register"),
        ("48 cf", "iretq, whose return frame may be wrong"),
    ],
)
def test_instructions_that_fault_by_nature(long: Stop, memory: GuestMemory, code: str, words: str) -> None:
    long.regs.rcx = 0xFFFF_0000_C001_0015
    memory.write(CODE + 4, bytes.fromhex(code))
    assert words in first(long, memory)


# --- contradictions, which a failed entry tells first ---------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: setattr(s.sregs, "cr0", 0x80000010), "CR0 has PG without PE"),
        (lambda s: setattr(s.sregs, "cr0", 0xA0000011), "CR0 has NW without CD"),
        (lambda s: setattr(s.sregs, "cr4", 0), "without CR4.PAE"),
        (lambda s: setattr(s.sregs, "efer", 0x400), "EFER.LMA disagrees"),
        (lambda s: setattr(s.regs, "rflags", 0), "bit 1 of RFLAGS is clear"),
        (lambda s: setattr(s.regs, "rflags", 0x20002), "RFLAGS.VM is set in long mode"),
        (lambda s: setattr(s.sregs.cs, "present", 0), "CS (0x10) is not a present code segment"),
        (lambda s: setattr(s.sregs.cs, "type", 3), "CS (0x10) is not a present code segment"),
        (lambda s: setattr(s.sregs.cs, "db", 1), "CS has both L and D"),
        (lambda s: setattr(s.sregs.ss, "type", 1), "SS (0x18) is not a writable data segment"),
        (lambda s: setattr(s.sregs.tr, "type", 3), "TR (0x8) is not a busy TSS"),
        (lambda s: setattr(s.sregs.tr, "unusable", 1), "TR (0x8) is not a busy TSS"),
        (lambda s: setattr(s.sregs.cs, "limit", 0xFFFFF), None),
        (lambda s: setattr(s.sregs.cs, "limit", 0x1234), "the limit of CS, 0x1234, disagrees"),
        (lambda s: setattr(s.sregs.tr, "limit", 0x100000), "the limit of TR, 0x100000, disagrees"),
        (lambda s: setattr(s.regs, "rip", 1 << 63), "RIP 0x8000000000000000 is not canonical"),
    ],
)
def test_invalid_guest_state_is_named(long: Stop, memory: GuestMemory, change, words: str | None) -> None:  # type: ignore[no-untyped-def]
    long.reason, long.hardware_reason = FAIL, 0x80000021
    assert likely_causes(long, memory) == [
        "the processor refused the entry (VMX exit reason 33: invalid guest state)"
    ]
    change(long)
    found = likely_causes(long, memory)
    if words is None:
        assert len(found) == 1
    else:
        assert "invalid guest state): " in found[0]
        assert words in found[0]


def test_failed_entries_of_amd_and_of_the_host(long: Stop, memory: GuestMemory) -> None:
    long.reason = FAIL
    for reason in (0xFFFFFFFF, (1 << 64) - 1):
        long.hardware_reason = reason
        assert first(long, memory) == "the processor refused the guest state (SVM VMEXIT_INVALID)"
    long.hardware_reason = 7
    assert "VMX instruction error 7: invalid control fields" in first(long, memory)


def test_a_triple_fault_tells_contradictions_too(long: Stop, memory: GuestMemory) -> None:
    long.sregs.ss.type = 1
    assert first(long, memory) == "SS (0x18) is not a writable data segment"


def test_high_rip_outside_64_bit_mode(protected: Stop, memory: GuestMemory) -> None:
    protected.reason, protected.hardware_reason = FAIL, 0x80000021
    protected.regs.rip = 0x1_0010_0000
    assert "RIP 0x100100000 has high bits outside 64-bit mode" in first(protected, memory)


# --- internal errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("48 cf", "iretq"),
        ("cc", "int3"),
        ("f0 48 0f c7 0e", "cmpxchg16b"),
        ("48 0f ae 2f", "xrstor"),
        ("0f ae 28", "xrstor"),
    ],
)
def test_what_a_software_kvm_lacks(long: Stop, memory: GuestMemory, code: str, name: str) -> None:
    long.reason, long.suberror, long.instruction = INTERNAL, 1, bytes.fromhex(code)
    assert first(long, memory) == (
        f"this looks like a software KVM and cannot emulate {name} ({code[:11]} ...): "
        "run with --lab, which has a KVM that can"
    )
    assert first(long, memory, software_kvm=True).startswith("this host's KVM is a software one")
    assert "--lab" not in first(long, memory, software_kvm=False)


def test_emulation_failure_of_anything_else(long: Stop, memory: GuestMemory) -> None:
    long.reason, long.suberror, long.instruction = INTERNAL, 1, bytes.fromhex("c5 f8 10 00")
    assert first(long, memory).startswith("KVM cannot emulate the instruction c5 f8 10 00;")
    long.instruction = b""  # before Linux 5.14: the bytes are read from memory
    assert "the instruction 0f 20 c0 90" in first(long, memory)


def test_emulation_failure_because_of_the_stack(protected: Stop, memory: GuestMemory) -> None:
    protected.reason, protected.suberror, protected.instruction = INTERNAL, 1, b"\x0f\x0b"
    protected.regs.rsp = 0
    memory.write(CODE + 4, b"\x0f\x0b")
    assert likely_causes(protected, memory)[1] == (
        "no exception can be delivered: the stack at 0x0 is where there is no RAM"
    )


def test_emulation_failure_because_there_is_no_code(long: Stop, memory: GuestMemory) -> None:
    long.reason, long.suberror, long.regs.rip = INTERNAL, 1, 0xD0000000
    causes = likely_causes(long, memory)
    assert len(causes) == 1
    assert "where there is no RAM" in causes[0]


def test_other_internal_errors(long: Stop, memory: GuestMemory) -> None:
    long.reason, long.suberror, long.data = INTERNAL, 3, (0x80000B0E, 0x30, 0x83, 0xFFFF_F000, 1)
    text = first(long, memory)
    assert "delivering #PF page fault itself left the guest (hardware exit reason 0x30)" in text
    assert "guest physical address 0xfffff000" in text
    long.suberror, long.data = 2, (0x80000B0E, 0x80000B0D, 0)
    assert "#GP general protection while #PF page fault was being delivered" in first(long, memory)
    long.suberror, long.data = 4, (0x1F,)
    assert "for a reason 0x1f that this host's KVM does not handle" in first(long, memory)
    long.suberror = 99
    assert "suberror 99" in first(long, memory)
    for suberror in (1, 2, 3, 4):  # a KVM that gives no data
        long.suberror, long.data = suberror, ()
        assert first(long, memory)


# --- capture ---------------------------------------------------------------------------------------------


def test_capture_copies_what_the_shared_page_says(memory: GuestMemory) -> None:
    vcpu = Vcpu()
    entry.enter_long_mode(vcpu, memory, rip=CODE)
    page = bytearray(4096)
    internal = InternalErrorExit.from_buffer(page, 32)
    internal.suberror, internal.ndata = 1, 4
    internal.data[0] = 1
    page[48:52] = bytes.fromhex("02 48 cf 00")
    stop = capture(vcpu, internal, 3)
    page[:] = bytes(len(page))
    assert (stop.reason, stop.suberror, stop.instruction, stop.vcpu) == (INTERNAL, 1, b"\x48\xcf", 3)
    assert len(stop.data) == 4
    assert stop.events is not None
    vcpu.events = None
    failed = FailEntryExit.from_buffer(page, 32)
    failed.hardware_entry_failure_reason = 0x80000021
    stop = capture(vcpu, failed)
    assert (stop.reason, stop.hardware_reason, stop.events) == (FAIL, 0x80000021, None)
    assert stop.kind == "failed entry"


# --- the report ------------------------------------------------------------------------------------------


class Names:
    def find(self, address: int) -> str:
        return f"start+{address - CODE:#x}" if CODE <= address < CODE + 0x1000 else ""


def test_report(long: Stop, memory: GuestMemory) -> None:
    long.regs.rax = 0x1122334455667788
    long.regs.rsp = 0x8FE0
    memory.write_u64(0x8FE0, CODE + 0x10)
    memory.write_u64(0x8FE8, 0x42)
    lines = diagnose.report(long, memory, symbols=Names())
    text = "\n".join(lines)
    assert lines[0] == "triple fault on vCPU 0: RIP 0x100004 (start+0x4), 64-bit mode, 4-level paging"
    assert lines[1].startswith("likely cause: no exception can be handled: the interrupt table is empty")
    for expected in (
        "  RAX 1122334455667788  RBX 0000000000000000",
        "  RIP 0000000000100004  RFLAGS = 0x2 []",
        "  CR0 = 0x80000031 [PG NE ET PE]",
        "  CR3 = 0x9000 [tables at 0x9000]",
        "  EFER = 0x500 [LMA LME]",
        "  CS  0010 base 0x0 limit 0xffffffff [present code execute/read accessed 64-bit DPL=0]",
        "  LDT 0000 base 0x0 limit 0x0 [unusable]",
        "  GDT base 0x500 limit 0x1f",
        "  IDT base 0x520 limit 0x0",
        "  0xffff4: 00 00 00 00 00 00 00 00 00 00 00 00 90 90 90 90 <0f> 20 c0 90 90 90 90 90 90 90 f4 90",
        "  PML4E[0x0] at 0x9000 = 0xa003 [RW P]",
        "  0x100004 is physical 0x100004 (2 MiB page, writable, supervisor, executable)",
        "  0x100004 is kernel + 0x4",
        "  0x8fe0: 0000000000100010 (start+0x10)",
        "  0x8fe8: 0000000000000042",
    ):
        assert expected in text


def test_report_of_code_at_the_edge_of_ram(memory: GuestMemory, long: Stop) -> None:
    long.regs.rip = 4 * MIB - 2
    memory.write(4 * MIB - 2, b"\x0f\x0b")
    assert diagnose.code(long, memory)[0].endswith("00 00 <0f> 0b")
    long.regs.rip = 4 * MIB
    assert diagnose.code(long, memory)[0] == "cannot be read"
    assert diagnose.page_walk(long, memory)[-1] == "0x400000 is not RAM"
    long.regs.rip = 0
    assert diagnose.code(long, memory)[0].startswith("0x0: <00>")
    assert diagnose.page_walk(long, memory)[-1] == "0x0 is RAM where nothing was loaded"


def test_report_shows_the_bytes_kvm_fetched_if_memory_differs(memory: GuestMemory, long: Stop) -> None:
    long.reason, long.suberror, long.instruction = INTERNAL, 1, b"\x48\xcf"
    assert "  as KVM fetched it: 48 cf" in diagnose.report(long, memory)


def test_report_of_a_stack_that_cannot_be_read(memory: GuestMemory, long: Stop) -> None:
    long.regs.rsp = 0xFFFFFFFFFFFFFFF8
    assert diagnose.stack(long, memory) == ["cannot be read"]


def test_report_never_fails_on_wild_states(memory: GuestMemory) -> None:
    rng = random.Random(2)
    for _ in range(200):
        regs = kvm_regs.from_buffer_copy(rng.randbytes(len(bytes(kvm_regs()))))
        sregs = kvm_sregs.from_buffer_copy(rng.randbytes(len(bytes(kvm_sregs()))))
        if rng.random() < 0.5:
            sregs.cr3 = rng.choice((0x9000, 0, 0x3FF000))
            sregs.efer, sregs.cr4 = 0x500, 0x20
            regs.rip &= 0x3FFFFF
        stop = Stop(
            rng.choice((SHUTDOWN, INTERNAL, FAIL)),
            regs,
            sregs,
            events=kvm_vcpu_events.from_buffer_copy(rng.randbytes(len(bytes(kvm_vcpu_events())))),
            suberror=rng.randrange(6),
            data=tuple(rng.getrandbits(64) for _ in range(rng.randrange(6))),
            instruction=rng.randbytes(rng.randrange(16)),
            hardware_reason=rng.getrandbits(32),
        )
        assert diagnose.report(stop, memory)[0].startswith(stop.kind)


# --- instructions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("48 cf", "iretq"),
        ("cf", "iretd"),
        ("f3 48 0f ae 2f", "xrstor"),
        ("48 0f c7 0e", "cmpxchg16b"),
        ("0f c7 0e", "cmpxchg8b"),
        ("0f c7 f0", ""),  # rdrand
        ("0f c7 c8", ""),  # undefined
        ("0f 01 1e", "lidt"),
        ("0f 01 d9", "vmmcall"),
        ("0f ae f0", ""),  # mfence
        ("0f 00 d8", "ltr"),
        ("90", ""),
        ("0f", ""),
        ("48", ""),
        ("", ""),
        ("66 66 66 66", ""),
    ],
)
def test_names_of_instructions(code: str, name: str) -> None:
    assert instructions.name(bytes.fromhex(code), long_mode=True) == name


def test_rex_exists_in_long_mode_only() -> None:
    assert instructions.name(bytes.fromhex("48 cf"), long_mode=False) == ""  # dec eax
    assert instructions.name(bytes.fromhex("cf"), long_mode=False) == "iret"


def test_disassembly_if_capstone_is_there() -> None:
    pytest.importorskip("capstone")
    assert instructions.disassemble(bytes.fromhex("0f 0b 48 cf"), 0x1000, bits=64) == [
        "0x1000: ud2",
        "0x1002: iretq",
    ]


def test_disassembly_is_left_out_without_capstone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "capstone", None)
    assert instructions.disassemble(b"\x0f\x0b", 0x1000, bits=64) == []
