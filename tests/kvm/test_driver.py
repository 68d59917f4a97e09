"""The KVM driver on the real /dev/kvm: guests of a few bytes, and what each makes KVM_RUN return."""

from __future__ import annotations

import doctest
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from tiny_guest import CODE, Guest, guest_fixture, protected_mode, vm_fixture  # noqa: F401

import pyvmm.kvm
import pyvmm.kvm.vcpu
from pyvmm.errors import HostError
from pyvmm.kvm import (
    Cap,
    CoalescedRing,
    Exit,
    HltExit,
    InternalErrorExit,
    IntrExit,
    IoExit,
    KvmError,
    MmioExit,
    ShutdownExit,
    UnknownExit,
    Vcpu,
    Vm,
    install_kick_handler,
    uapi,
    uapi_run,
)

pytestmark = pytest.mark.usefixtures("kvm")

# --- exits --------------------------------------------------------------------------------------------


def test_the_example_of_the_package_runs() -> None:
    failed, attempted = doctest.testmod(pyvmm.kvm, raise_on_error=False)
    assert attempted > 10
    assert failed == 0


@pytest.mark.parametrize(
    ("code", "size", "value"),
    [
        ("b8cdab baf803 ee", 1, 0xCD),  # mov ax, 0xabcd; mov dx, 0x3f8; out dx, al
        ("b8cdab baf803 ef", 2, 0xABCD),  # out dx, ax
        ("66b878563412 baf803 66ef", 4, 0x12345678),  # out dx, eax
    ],
)
def test_port_write(guest: Callable[[str], Guest], code: str, size: int, value: int) -> None:
    machine = guest(code + "f4")
    exit = machine.io()
    assert (exit.direction, exit.port, exit.size, exit.count) == (uapi_run.KVM_EXIT_IO_OUT, 0x3F8, size, 1)
    assert exit.value == value
    assert bytes(exit.data) == value.to_bytes(size, "little")
    assert exit.data_offset == mmap.PAGESIZE, "value and data rely on it"
    assert str(exit) == f"KVM_EXIT_IO: out to port 0x3f8, {size} bytes, 1 times"
    machine.run(HltExit)


@pytest.mark.parametrize(
    ("read", "size", "answer", "expected"),
    [
        ("ec", 1, 0x1C3, 0xFFFFFFFFFFFFFFC3),  # in al, dx
        ("ed", 2, 0x1C3D4, 0xFFFFFFFFFFFFC3D4),  # in ax, dx
        ("66ed", 4, 0x1C3D4E5F6, 0xC3D4E5F6),  # in eax, dx
    ],
)
def test_port_read(guest: Callable[[str], Guest], read: str, size: int, answer: int, expected: int) -> None:
    machine = guest("ba6400" + read + "f4")  # mov dx, 0x64
    regs = machine.vcpu.get_regs()
    regs.rax = 0xFFFFFFFFFFFFFFFF
    machine.vcpu.set_regs(regs)
    exit = machine.io()
    assert (exit.direction, exit.port, exit.size) == (uapi_run.KVM_EXIT_IO_IN, 0x64, size)
    exit.value = answer  # a device's answer is cut to the access's size
    machine.run(HltExit)
    assert machine.vcpu.get_regs().rax == expected


def test_string_port_write_gives_all_values(guest: Callable[[str], Guest]) -> None:
    # mov si, 0x2000; mov dx, 0x3f8; mov cx, 5; cld; rep outsb; hlt
    machine = guest("be0020 baf803 b90500 fc f36e f4")
    machine.memory.write(0x2000, b"hello")
    text = b""
    while isinstance(exit := machine.vcpu.run(), IoExit):
        assert exit.port == 0x3F8 and exit.size == 1 and exit.direction == uapi_run.KVM_EXIT_IO_OUT
        assert len(exit.data) == exit.count
        assert exit.value == exit.data[0]
        text += bytes(exit.data)
    assert isinstance(exit, HltExit)
    assert text == b"hello"


def test_string_port_read_fills_guest_memory(guest: Callable[[str], Guest]) -> None:
    # mov di, 0x2000; mov dx, 0x1f0; mov cx, 4; cld; rep insw; hlt
    machine = guest("bf0020 baf001 b90400 fc f36d f4")
    reply = iter(b"ABCDEFGH")
    while isinstance(exit := machine.vcpu.run(), IoExit):
        assert exit.port == 0x1F0 and exit.size == 2 and exit.direction == uapi_run.KVM_EXIT_IO_IN
        data = exit.data
        assert len(data) == 2 * exit.count
        data[:] = bytes(next(reply) for _ in range(len(data)))
    assert isinstance(exit, HltExit)
    assert machine.memory.read(0x2000, 8) == b"ABCDEFGH"


def test_mmio_write_and_read(guest: Callable[[str], Guest]) -> None:
    # push 0xd000; pop ds; mov word [0x10], 0xbeef; mov eax, [0x20]; hlt
    machine = guest("6800d0 1f c7061000efbe 66a12000 f4")
    exit = machine.mmio()
    assert (exit.phys_addr, exit.len, exit.is_write, exit.value) == (0xD0010, 2, 1, 0xBEEF)
    assert str(exit) == "KVM_EXIT_MMIO: write to 0xd0010, 2 bytes"
    exit = machine.mmio()
    assert (exit.phys_addr, exit.len, exit.is_write) == (0xD0020, 4, 0)
    exit.value = 0x1_1234_5678
    machine.run(HltExit)
    assert machine.vcpu.get_regs().rax & 0xFFFFFFFF == 0x12345678


def test_mmio_values_are_cut_to_the_access(guest: Callable[[str], Guest]) -> None:
    """The kernel fills ``len`` of the eight bytes and leaves the rest as it was."""
    vcpu = guest("f4").vcpu
    mmio = vcpu.kvm_run.mmio
    mmio.data[:] = bytes.fromhex("1122334455667788")
    exit = vcpu._exits[uapi_run.KVM_EXIT_MMIO]
    assert isinstance(exit, MmioExit)
    for size, value in ((1, 0x11), (2, 0x2211), (4, 0x44332211), (8, 0x8877665544332211)):
        mmio.len = size
        assert exit.value == value


def test_hlt_without_an_interrupt_controller_exits(guest: Callable[[str], Guest]) -> None:
    machine = guest("f4")
    exit = machine.run(HltExit)
    assert exit.reason == uapi_run.KVM_EXIT_HLT and exit.name == "KVM_EXIT_HLT"
    assert machine.vcpu.get_regs().rip == CODE + 1


def test_triple_fault_is_a_shutdown(guest: Callable[[str], Guest]) -> None:
    machine = guest("0f0b")  # ud2
    protected_mode(machine.vcpu)  # without an interrupt table: the fault faults, and that again
    assert str(machine.run(ShutdownExit)) == "KVM_EXIT_SHUTDOWN"


def test_an_exit_object_is_made_once(guest: Callable[[str], Guest]) -> None:
    machine = guest("b85a00 e680 e681 f4")  # mov ax, 0x5a; out 0x80, al; out 0x81, al
    first = machine.io()
    assert first.port == 0x80
    second = machine.io()
    assert second is first and second.port == 0x81


def test_an_exit_of_no_known_kind_says_which_it_is(guest: Callable[[str], Guest]) -> None:
    machine = guest("f4")
    machine.run(HltExit)
    machine.vcpu.kvm_run.exit_reason = uapi_run.KVM_EXIT_WATCHDOG
    exit = machine.vcpu._exits[uapi_run.KVM_EXIT_WATCHDOG]
    assert isinstance(exit, UnknownExit)
    assert exit.reason == uapi_run.KVM_EXIT_WATCHDOG and str(exit) == "KVM_EXIT_WATCHDOG"


def test_internal_error_shows_the_instruction(guest: Callable[[str], Guest]) -> None:
    """What KVM writes for an instruction it cannot emulate, laid over the same bytes by hand."""
    machine = guest("f4")
    failure = machine.vcpu.kvm_run.emulation_failure
    failure.suberror = uapi_run.KVM_INTERNAL_ERROR_EMULATION
    failure.ndata = 3
    failure.flags = uapi_run.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    failure.insn_size = 4
    failure.insn_bytes[:4] = bytes.fromhex("0fc70f90")
    exit = machine.vcpu._exits[uapi_run.KVM_EXIT_INTERNAL_ERROR]
    assert isinstance(exit, InternalErrorExit)
    assert exit.instruction == bytes.fromhex("0fc70f90")
    assert str(exit) == "KVM_EXIT_INTERNAL_ERROR: an instruction could not be emulated: 0f c7 0f 90"
    failure.flags = 0
    assert exit.instruction == b""


# --- coalesced writes, eventfds -----------------------------------------------------------------------

# mov dx, 0x3f8; mov cx, COUNT; next: mov al, cl; out dx, al; loop next; hlt
LOOP = "baf803 b9{:02x}{:02x} 88c8 ee e2fb f4"


def loop(count: int) -> str:
    return LOOP.format(count & 0xFF, count >> 8)


def needs(vm: Vm, cap: int) -> None:
    if not vm.check_extension(cap):
        pytest.skip(f"this host lacks {uapi.cap_name(cap)}")


def test_coalesced_port_writes_keep_order_and_save_exits(guest: Callable[[str], Guest]) -> None:
    machine = guest(loop(400))
    needs(machine.vm, Cap.COALESCED_PIO)
    machine.vm.register_coalesced(0x3F8, 1, pio=True)
    ring = machine.vcpu.coalesced_ring()
    assert machine.vcpu.coalesced_ring() is ring
    seen: list[tuple[int, int, int, bool]] = []
    exits = 0
    while isinstance(exit := machine.vcpu.run(), IoExit):
        exits += 1
        assert ring.pending == 169, "an exit comes only when the ring is full"
        assert ring.drain(lambda *write: seen.append(write)) == 169
        assert ring.pending == 0
        seen.append((exit.port, exit.size, exit.value, True))
    assert isinstance(exit, HltExit)
    ring.drain(lambda *write: seen.append(write))
    assert exits == 2
    assert seen == [(0x3F8, 1, count & 0xFF, True) for count in range(400, 0, -1)]

    machine.vm.unregister_coalesced(0x3F8, 1, pio=True)
    regs = machine.vcpu.get_regs()
    regs.rip = CODE
    machine.vcpu.set_regs(regs)
    machine.io()
    assert ring.pending == 0


def test_coalesced_mmio_of_several_sizes(guest: Callable[[str], Guest]) -> None:
    # push 0xd000; pop ds; mov byte [0], 0x11; mov word [2], 0x2233; mov dword [4], 0x44556677; hlt
    machine = guest("6800d0 1f c606000011 c70602003322 66c706040077665544 f4")
    needs(machine.vm, Cap.COALESCED_MMIO)
    machine.vm.register_coalesced(0xD0000, 16)
    machine.run(HltExit)
    seen: list[tuple[int, int, int, bool]] = []
    assert machine.vcpu.coalesced_ring().drain(lambda *write: seen.append(write)) == 3
    assert seen == [
        (0xD0000, 1, 0x11, False),
        (0xD0002, 2, 0x2233, False),
        (0xD0004, 4, 0x44556677, False),
    ]


def test_an_exception_while_draining_loses_that_write_only(guest: Callable[[str], Guest]) -> None:
    machine = guest(loop(3))
    needs(machine.vm, Cap.COALESCED_PIO)
    machine.vm.register_coalesced(0x3F8, 1, pio=True)
    machine.run(HltExit)
    ring = machine.vcpu.coalesced_ring()

    def fail(*write: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        ring.drain(fail)
    rest: list[int] = []
    assert ring.drain(lambda address, size, value, pio: rest.append(value)) == 2
    assert rest == [2, 1]


def ring_page(first: int, last: int, size: int = 1) -> tuple[bytearray, CoalescedRing]:
    page = bytearray(mmap.PAGESIZE)
    page[0:8] = first.to_bytes(4, "little") + last.to_bytes(4, "little")
    for entry in range(8, len(page) - 23, 24):
        page[entry + 8 : entry + 12] = size.to_bytes(4, "little")
    return page, CoalescedRing(memoryview(page))


def test_the_ring_wraps_around() -> None:
    page, ring = ring_page(168, 2)
    assert ring.pending == 4
    assert ring.drain(lambda *write: None) == 4
    assert page[0:8] == bytes([2, 0, 0, 0, 2, 0, 0, 0])


@pytest.mark.parametrize(
    ("first", "last", "size"),
    [(170, 0, 1), (0, 170, 1), (0xFFFFFFFF, 3, 1), (0, 0x80000000, 1), (0, 1, 9), (0, 1, 1 << 31)],
)
def test_a_corrupt_ring_is_an_error_and_never_a_hang(first: int, last: int, size: int) -> None:
    _, ring = ring_page(first, last, size)
    with pytest.raises(HostError, match="ring is corrupt"):
        ring.drain(lambda *write: pytest.fail("delivered nonsense"))


def test_ioeventfd_takes_port_writes_without_an_exit(guest: Callable[[str], Guest]) -> None:
    machine = guest(loop(1000))
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        machine.vm.ioeventfd(0x3F8, 1, event, pio=True)
        machine.run(HltExit)
        assert os.eventfd_read(event) == 1000
        machine.vm.ioeventfd(0x3F8, 1, event, pio=True, deassign=True)
        with pytest.raises(KvmError, match=r"ENOENT .* for port 0x3f8, length 1: there is no such ioeventfd"):
            machine.vm.ioeventfd(0x3F8, 1, event, pio=True, deassign=True)
    finally:
        os.close(event)


def test_ioeventfd_datamatch_selects_by_value(guest: Callable[[str], Guest]) -> None:
    machine = guest(loop(3))
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        machine.vm.ioeventfd(0x3F8, 1, event, pio=True, datamatch=2)
        assert machine.io().value == 3
        assert machine.io().value == 1
        machine.run(HltExit)
        assert os.eventfd_read(event) == 1
    finally:
        os.close(event)


def test_irqfd_and_irq_line_need_and_find_the_interrupt_controller(vm: Vm) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    resample = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        with pytest.raises(KvmError, match=r"KVM_IRQFD failed: EINVAL .*no in-kernel interrupt controller"):
            vm.irqfd(event, 4)
        with pytest.raises(KvmError, match=r"KVM_IRQ_LINE failed: ENXIO"):
            vm.irq_line(4, 1)
        vm.create_irqchip()
        vm.create_pit2()
        vm.irqfd(event, 4)
        with pytest.raises(KvmError, match=r"KVM_IRQFD failed: EBUSY .*bound to an interrupt already"):
            vm.irqfd(event, 5)
        vm.irqfd(event, 4, deassign=True)
        vm.irqfd(event, 5, resample_fd=resample)
        vm.irq_line(4, 1)
        vm.irq_line(4, 0)
    finally:
        os.close(event)
        os.close(resample)


# --- kicks --------------------------------------------------------------------------------------------


def run_in_thread(vcpu: Vcpu) -> tuple[threading.Thread, list[Exit]]:
    exits: list[Exit] = []
    thread = threading.Thread(target=lambda: exits.append(vcpu.run()))
    thread.start()
    return thread, exits


def test_a_kick_ends_a_guest_that_never_exits(guest: Callable[[str], Guest]) -> None:
    install_kick_handler()
    machine = guest("ebfe")  # jmp to itself
    thread, exits = run_in_thread(machine.vcpu)
    time.sleep(0.05)
    assert thread.is_alive() and not exits
    start = time.monotonic()
    machine.vcpu.kick(thread.ident or 0)
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - start < 1
    assert isinstance(exits[0], IntrExit)


def test_a_kick_before_the_run_is_not_lost(guest: Callable[[str], Guest]) -> None:
    install_kick_handler()
    machine = guest("f4")
    machine.vcpu.kick(threading.get_ident())
    machine.run(IntrExit)
    machine.run(IntrExit)
    assert machine.vcpu.get_regs().rip == CODE, "nothing may run before clear_kick"
    machine.vcpu.clear_kick()
    machine.run(HltExit)


def test_a_run_lets_other_threads_run(guest: Callable[[str], Guest]) -> None:
    """KVM_RUN must release the GIL, or the kick could never come."""
    install_kick_handler()
    machine = guest("ebfe")
    thread, _ = run_in_thread(machine.vcpu)
    ticks = 0
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        ticks += 1
    machine.vcpu.kick(thread.ident or 0)
    thread.join(5)
    assert ticks > 100


def test_any_signal_gives_the_intr_exit(guest: Callable[[str], Guest]) -> None:
    machine = guest("ebfe")
    old = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        machine.run(IntrExit)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
