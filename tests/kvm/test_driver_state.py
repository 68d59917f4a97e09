"""A vCPU's registers, the VM's clock, capabilities and devices, on the real /dev/kvm."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import pytest
from tiny_guest import CODE, VFIO, Guest, guest_fixture, protected_mode, vm_fixture  # noqa: F401

from pyvmm.errors import CapabilityMissing
from pyvmm.kvm import (
    Cap,
    DebugExit,
    HltExit,
    KvmError,
    System,
    Vm,
    uapi,
    uapi_x86,
)

pytestmark = pytest.mark.usefixtures("kvm")

# --- state --------------------------------------------------------------------------------------------


def test_registers_come_back_as_set(guest: Callable[[str], Guest]) -> None:
    vcpu = guest("f4").vcpu
    regs = vcpu.get_regs()
    regs.rax, regs.r15, regs.rflags = 0x1122334455667788, (1 << 64) - 1, 0x202
    vcpu.set_regs(regs)
    assert bytes(vcpu.get_regs()) == bytes(regs)

    sregs = vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit = 0x500, 0x27
    vcpu.set_sregs(sregs)
    assert (vcpu.get_sregs().gdt.base, vcpu.get_sregs().gdt.limit) == (0x500, 0x27)

    fpu = vcpu.get_fpu()
    fpu.fcw = 0x27F
    fpu.xmm[3][0] = 0x5A
    vcpu.set_fpu(fpu)
    assert (vcpu.get_fpu().fcw, vcpu.get_fpu().xmm[3][0]) == (0x27F, 0x5A)

    debugregs = vcpu.get_debugregs()
    debugregs.db[1] = 0xDEAD000
    vcpu.set_debugregs(debugregs)
    assert vcpu.get_debugregs().db[1] == 0xDEAD000


def test_mp_state_events_and_xcrs_round_trip(vm: Vm) -> None:
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    assert vcpu.get_mp_state() == uapi.KVM_MP_STATE_RUNNABLE
    vcpu.set_mp_state(uapi.KVM_MP_STATE_HALTED)
    assert vcpu.get_mp_state() == uapi.KVM_MP_STATE_HALTED
    events = vcpu.get_vcpu_events()
    events.nmi.masked = 1
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events().nmi.masked == 1
    xcrs = vcpu.get_xcrs()
    assert xcrs.nr_xcrs == 1 and xcrs.xcrs[0].xcr == 0 and xcrs.xcrs[0].value & 1
    vcpu.set_xcrs(xcrs)


def test_lapic_is_read_and_written(vm: Vm) -> None:
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    lapic = vcpu.get_lapic()
    assert bytes(lapic.regs[0x30:0x31]) == b"\x14", "version register of an integrated APIC"
    lapic.regs[0x80] = 0x20  # task priority
    vcpu.set_lapic(lapic)
    assert vcpu.get_lapic().regs[0x80] == 0x20


def test_cpuid_is_supported_set_and_seen_by_the_guest(guest: Callable[[str], Guest]) -> None:
    # mov eax, 0x40000000; cpuid; hlt
    machine = guest("66b800000040 0fa2 f4")
    entries = machine.system.supported_cpuid()
    assert len(entries) > 10
    leaf = {entry.function: entry for entry in entries}
    assert leaf[0].eax >= 1 and leaf[1].edx & 1
    hypervisor = leaf[0x40000000]
    hypervisor.ebx = 0x4D565950  # "PYVM"
    machine.vcpu.set_cpuid2(entries)
    got = machine.vcpu.get_cpuid2()
    assert [(e.function, e.index) for e in got] == [(e.function, e.index) for e in entries]
    machine.run(HltExit)
    assert machine.vcpu.get_regs().rbx & 0xFFFFFFFF == 0x4D565950


SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
NO_SUCH_MSR = 0x4141


def test_msrs_are_set_and_a_refused_one_is_named(vm: Vm) -> None:
    vcpu = vm.create_vcpu()
    assert vcpu.set_msrs({SYSENTER_CS: 0x10, SYSENTER_ESP: 0x2000}) == []
    assert vcpu.get_msrs([SYSENTER_CS, SYSENTER_ESP]) == {SYSENTER_CS: 0x10, SYSENTER_ESP: 0x2000}
    with pytest.raises(KvmError, match=r"KVM_SET_MSRS failed: EINVAL .* for MSR 0x4141 = 0x7"):
        vcpu.set_msrs({SYSENTER_CS: 0x18, NO_SUCH_MSR: 7, SYSENTER_ESP: 0x3000})
    assert vcpu.get_msrs([SYSENTER_CS, SYSENTER_ESP]) == {SYSENTER_CS: 0x18, SYSENTER_ESP: 0x2000}


def test_an_optional_msr_may_be_refused_and_the_rest_is_set(vm: Vm) -> None:
    vcpu = vm.create_vcpu()
    msrs = {NO_SUCH_MSR: 7, SYSENTER_EIP: 0x4000, NO_SUCH_MSR + 1: 8}
    refused = vcpu.set_msrs(msrs, optional=(NO_SUCH_MSR, NO_SUCH_MSR + 1))
    assert refused == [NO_SUCH_MSR, NO_SUCH_MSR + 1]
    assert vcpu.get_msrs([NO_SUCH_MSR, SYSENTER_EIP]) == {SYSENTER_EIP: 0x4000}


def test_more_msrs_than_fit_a_small_buffer(vm: Vm) -> None:
    """Over 1024 bytes fcntl takes another path."""
    vcpu = vm.create_vcpu()
    values = vcpu.get_msrs([SYSENTER_CS] * 100)
    assert values == {SYSENTER_CS: 0}
    with System() as system:
        indices = system.msr_index_list()
    assert SYSENTER_CS in indices and len(set(indices)) == len(indices)


def test_one_register(vm: Vm) -> None:
    """x86 has these since Linux 6.18: KVM_X86_REG_MSR(SYSENTER_ESP), of 64 bits."""
    register = 0x2030_0002_0000_0000 | SYSENTER_ESP
    vcpu = vm.create_vcpu()
    try:
        vcpu.set_one_reg(register, 0x112233445566)
    except KvmError as error:
        pytest.skip(error.message)
    assert vcpu.get_one_reg(register) == 0x112233445566
    assert vcpu.get_msrs([SYSENTER_ESP]) == {SYSENTER_ESP: 0x112233445566}
    with pytest.raises(KvmError, match=r"KVM_GET_ONE_REG failed: .* for register 0x2030000900000000"):
        vcpu.get_one_reg(0x2030_0009_0000_0000)


def test_translate_without_paging_is_the_identity(guest: Callable[[str], Guest]) -> None:
    assert guest("f4").vcpu.translate(0x1234) == 0x1234


def test_translate_walks_the_page_tables(guest: Callable[[str], Guest]) -> None:
    machine = guest("f4")
    machine.memory.write_u64(0x4000, 0x5003)  # PML4 -> PDPT -> PD -> one page of 2 MiB at 8 MiB
    machine.memory.write_u64(0x5000, 0x6003)
    machine.memory.write_u64(0x6008, 0x800083)
    protected_mode(machine.vcpu, long=True)
    assert machine.vcpu.translate(0x201234) == 0x801234
    assert machine.vcpu.translate(0x1234) is None
    assert machine.vcpu.translate(1 << 40) is None


def test_tsc_frequency_and_clock(vm: Vm) -> None:
    vcpu = vm.create_vcpu()
    assert vcpu.get_tsc_khz() > 100_000
    first = vm.get_clock().clock
    clock = vm.get_clock()
    assert clock.clock >= first
    clock.clock, clock.flags = 5_000_000_000, 0
    vm.set_clock(clock)
    assert 5_000_000_000 <= vm.get_clock().clock < 65_000_000_000


def test_single_step_exits_after_each_instruction(guest: Callable[[str], Guest]) -> None:
    machine = guest("90 90 f4")
    machine.vcpu.set_guest_debug(uapi_x86.KVM_GUESTDBG_ENABLE | uapi_x86.KVM_GUESTDBG_SINGLESTEP)
    exit = machine.run(DebugExit)
    assert isinstance(exit, DebugExit) and exit.pc == CODE + 1
    machine.vcpu.set_guest_debug(0)
    machine.run(HltExit)


# --- capabilities, devices ----------------------------------------------------------------------------


def test_capabilities(vm: Vm) -> None:
    with System() as system:
        assert system.check_extension(Cap.USER_MEMORY) == 1
        assert system.check_extension(9999) == 0
        system.require(Cap.USER_MEMORY, Cap.IRQCHIP)
        with pytest.raises(CapabilityMissing, match=r"lacks KVM capability 9999$"):
            system.require(Cap.USER_MEMORY, 9999)
        assert system.vcpu_mmap_size() >= mmap.PAGESIZE
    assert vm.check_extension(Cap.USER_MEMORY) == 1


def test_enable_cap(vm: Vm) -> None:
    with pytest.raises(KvmError, match=r"KVM_ENABLE_CAP failed: EINVAL .*KVM_CAP_HLT"):
        vm.enable_cap(Cap.HLT)
    if vm.check_extension(Cap.X86_DISABLE_EXITS):
        vm.enable_cap(Cap.X86_DISABLE_EXITS, 0)


def test_devices(vm: Vm) -> None:
    assert not vm.has_device(9999)
    with pytest.raises(KvmError, match=r"KVM_CREATE_DEVICE failed: ENODEV .* for type 9999"):
        vm.create_device(9999)
    if not vm.has_device(VFIO):
        pytest.skip("this host's KVM has no device that needs no hardware")
    device = vm.create_device(VFIO)
    assert device.has_attr(1, 1) and not device.has_attr(77)
    with pytest.raises(KvmError, match=r"KVM_SET_DEVICE_ATTR failed: EBADF"):
        device.set_attr(1, 1, (1 << 20).to_bytes(4, "little"))
