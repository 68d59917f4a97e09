"""The states guests begin in, as the boot protocols ask for them."""

import ctypes

from pyvmm.arch.x86_64 import entry, lapic, layout, msrs, paging
from pyvmm.kvm.uapi_x86 import kvm_lapic_state, kvm_regs, kvm_sregs


class Vcpu:
    def __init__(self) -> None:
        self.sregs = kvm_sregs(apic_base=0xFEE00900, cr4=0x600, efer=0x1)
        self.regs = kvm_regs()

    def get_sregs(self) -> kvm_sregs:
        return kvm_sregs.from_buffer_copy(self.sregs)

    def set_sregs(self, sregs: kvm_sregs) -> None:
        self.sregs = sregs

    def set_regs(self, regs: kvm_regs) -> None:
        self.regs = regs


class Memory:
    def __init__(self) -> None:
        self.bytes = bytearray(b"\xa5") * 0x10000
        self.claims: list[tuple[int, int, str]] = []

    def contains(self, addr: int, size: int) -> bool:
        return addr + size <= len(self.bytes)

    def read(self, addr: int, size: int) -> bytes:
        return bytes(self.bytes[addr : addr + size])

    def write(self, addr: int, data: bytes) -> None:
        self.bytes[addr : addr + len(data)] = data

    def claim(self, start: int, size: int, name: str) -> None:
        self.claims.append((start, size, name))


def test_long_mode_follows_the_64_bit_protocol() -> None:
    vcpu, memory = Vcpu(), Memory()
    entry.enter_long_mode(vcpu, memory, rip=0x1000200, rsi=layout.ZERO_PAGE)
    regs, sregs = vcpu.regs, vcpu.sregs
    assert (regs.rip, regs.rsi, regs.rsp, regs.rflags) == (0x1000200, 0x7000, 0x8FF0, 2)
    assert sregs.cr0 == 0x80000031
    assert sregs.cr4 == 0x20
    assert sregs.efer == 0x500
    assert (sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.ds.selector) == (0x10, 1, 0, 0x18)
    assert sregs.apic_base == 0xFEE00900  # KVM's own, not ours to change
    walk = paging.walk(memory, 0x1000200, cr0=sregs.cr0, cr3=sregs.cr3, cr4=sregs.cr4, efer=sregs.efer)
    assert walk.physical == 0x1000200
    assert memory.claims == [
        (0x500, 0x20, "GDT"),
        (0x5000, 0x1000, "exception handlers"),
        (0x9000, 0x6000, "page tables"),
    ]


def test_protected_mode_follows_pvh_and_the_32_bit_protocol() -> None:
    vcpu, memory = Vcpu(), Memory()
    entry.enter_protected_mode(vcpu, memory, rip=0x1000850, ebx=layout.PVH_START_INFO)
    regs, sregs = vcpu.regs, vcpu.sregs
    assert (regs.rip, regs.rbx, regs.rsi, regs.rflags) == (0x1000850, 0x6000, 0, 2)
    assert (sregs.cr0, sregs.cr4, sregs.efer) == (0x11, 0, 0)
    assert (sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.l) == (0, 0xFFFFFFFF, 1, 0)
    assert (sregs.tr.base, sregs.tr.limit) == (0, 0x67)
    entry.enter_protected_mode(vcpu, memory, rip=0x100000, esi=layout.ZERO_PAGE)
    assert (vcpu.regs.rsi, vcpu.regs.rbx, vcpu.regs.rbp, vcpu.regs.rdi) == (0x7000, 0, 0, 0)


def test_real_mode() -> None:
    vcpu = Vcpu()
    entry.enter_real_mode(vcpu, cs=0xF000, ip=0xFFF0)
    assert (vcpu.sregs.cs.base, vcpu.regs.rip, vcpu.regs.rflags) == (0xF0000, 0xFFF0, 2)
    assert (vcpu.sregs.cr0 & 0x80000001, vcpu.sregs.cr4, vcpu.sregs.efer) == (0, 0, 0)


def test_lapic_pins_are_wired_and_nothing_else_changes() -> None:
    state = kvm_lapic_state()
    ctypes.memset(ctypes.byref(state), 0x5A, ctypes.sizeof(state))
    lapic.wire_pins(state)
    page = bytes(state.regs)
    assert page[0x350:0x354] == bytes.fromhex("00070000")
    assert page[0x360:0x364] == bytes.fromhex("00040000")
    assert set(page[:0x350] + page[0x354:0x360] + page[0x364:]) == {0x5A}
    assert lapic.LocalVectorEntry(lapic.LINT0).decode() == "DELIVERY=ExtINT"


def test_msrs_add_to_what_kvm_set() -> None:
    assert msrs.boot_values({0x1A0: 0x1880}) == {0x1A0: 0x1881, 0x2FF: 0x806}
    assert msrs.boot_values({}) == {0x1A0: 0x1, 0x2FF: 0x806}  # a KVM that has no MISC_ENABLE to read
    assert set(msrs.boot_values({})) <= set(msrs.OPTIONAL)
