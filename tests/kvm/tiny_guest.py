"""A VM for the driver's tests: 64 KiB of RAM and one vCPU, about to run a few bytes of code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from pyvmm.kvm import Exit, IoExit, MmioExit, System, Vcpu, Vm
from pyvmm.memory import GuestMemory

CODE = 0x1000
VFIO = 4  # KVM_DEV_TYPE_VFIO, a device that needs no hardware
RAM = 0x10000


class Guest:
    """A VM with 64 KiB of RAM and one vCPU in real mode, about to run ``code`` (hex) at 0x1000."""

    def __init__(self, stack: contextlib.ExitStack, code: str) -> None:
        self.memory = stack.enter_context(GuestMemory([(0, RAM)]))
        self.memory.write(CODE, bytes.fromhex(code))
        self.system = stack.enter_context(System())
        self.vm: Vm = stack.enter_context(self.system.create_vm())
        self.vm.set_user_memory_region(0, 0, RAM, self.memory.host_address(0))
        self.vcpu: Vcpu = self.vm.create_vcpu()
        sregs = self.vcpu.get_sregs()
        for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
            segment.base = segment.selector = 0
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        regs.rip = CODE
        regs.rsp = 0x8000
        self.vcpu.set_regs(regs)

    def run(self, kind: type[Exit]) -> Exit:
        exit = self.vcpu.run()
        assert isinstance(exit, kind), exit
        return exit

    def io(self) -> IoExit:
        exit = self.vcpu.run()
        assert isinstance(exit, IoExit), exit
        return exit

    def mmio(self) -> MmioExit:
        exit = self.vcpu.run()
        assert isinstance(exit, MmioExit), exit
        return exit


@pytest.fixture(name="guest")
def guest_fixture() -> Iterator[Callable[[str], Guest]]:
    """Makes Guests, and closes them."""
    with contextlib.ExitStack() as stack:
        yield lambda code: Guest(stack, code)


@pytest.fixture(name="vm")
def vm_fixture() -> Iterator[Vm]:
    """A VM without memory or vCPUs."""
    with System() as system, system.create_vm() as vm:
        yield vm


def open_fds() -> set[str]:
    """The descriptors this process has open."""
    return set(os.listdir("/proc/self/fd"))


def protected_mode(vcpu: Vcpu, *, long: bool = False) -> None:
    """Flat 32-bit protected mode or, with page tables at 0x4000, long mode; the interrupt table is empty."""
    sregs = vcpu.get_sregs()
    sregs.cr0 |= 1
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
        segment.base, segment.limit, segment.selector, segment.type = 0, 0xFFFFFFFF, 0x10, 3
        segment.present = segment.s = segment.g = segment.db = 1
    sregs.cs.selector, sregs.cs.type = 8, 11
    sregs.idt.limit = 0
    if long:
        sregs.cr3, sregs.cr4, sregs.cr0, sregs.efer = 0x4000, sregs.cr4 | 0x20, sregs.cr0 | 1 << 31, 0x500
        sregs.cs.l, sregs.cs.db = 1, 0
    vcpu.set_sregs(sregs)
