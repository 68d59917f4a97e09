"""What the KVM driver says when something fails, and that it closes what it opened."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_guest import RAM, VFIO, Guest, guest_fixture, open_fds, vm_fixture  # noqa: F401

import pyvmm.kvm
import pyvmm.kvm.vcpu
from pyvmm.errors import HostError, KvmMissing, KvmPermission
from pyvmm.kvm import (
    IntrExit,
    KvmError,
    System,
    Vm,
    uapi_run,
)
from pyvmm.memory import GuestMemory

pytestmark = pytest.mark.usefixtures("kvm")

# --- errors -------------------------------------------------------------------------------------------


def test_an_error_names_ioctl_errno_object_cause_and_hint(vm: Vm) -> None:
    with GuestMemory([(0, 0x4000)]) as memory:
        vm.set_user_memory_region(0, 0, 0x4000, memory.host_address(0))
        with pytest.raises(KvmError) as caught:
            vm.set_user_memory_region(1, 0x2000, 0x1000, memory.host_address(0))
        error = caught.value
        assert (error.ioctl, error.errno) == ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST)
        assert error.message.startswith(
            "KVM_SET_USER_MEMORY_REGION failed: EEXIST (17, File exists) for slot 1: "
        )
        assert "0x1000 bytes at guest 0x2000" in error.message
        assert error.message.endswith("the guest addresses overlap another slot")
        assert "\n" not in error.message and error.hint
        with pytest.raises(KvmError, match=r"EINVAL .*not page aligned"):
            vm.set_user_memory_region(1, 0x8001, 0x1000, memory.host_address(0))
        vm.set_user_memory_region(0, 0, 0, 0)  # delete, then the addresses are free
        vm.set_user_memory_region(1, 0x2000, 0x1000, memory.host_address(0))


def test_order_errors_say_what_comes_first(vm: Vm) -> None:
    with pytest.raises(
        KvmError, match=r"KVM_CREATE_PIT2 failed: ENOENT.*needs the in-kernel interrupt controller"
    ):
        vm.create_pit2()
    vm.set_tss_addr(0xFFFBD000)
    vm.set_identity_map_addr(0xFFFBC000)
    vm.create_vcpu(0)
    with pytest.raises(KvmError, match=r"KVM_CREATE_VCPU failed: EEXIST .* for vCPU 0: .*already"):
        vm.create_vcpu(0)
    with pytest.raises(KvmError, match=r"KVM_CREATE_VCPU failed: EINVAL .* for vCPU 1048576"):
        vm.create_vcpu(1 << 20)
    with pytest.raises(
        KvmError, match=r"KVM_SET_IDENTITY_MAP_ADDR failed: EINVAL .*: a vCPU exists already"
    ) as caught:
        vm.set_identity_map_addr(0xFFFBC000)
    assert caught.value.hint == "call it before creating vCPUs"
    with pytest.raises(KvmError, match=r"KVM_CREATE_IRQCHIP failed: EINVAL .*: a vCPU exists already"):
        vm.create_irqchip()


def test_set_tss_addr_beyond_4_gib_is_refused(vm: Vm) -> None:
    with pytest.raises(KvmError, match=r"KVM_SET_TSS_ADDR failed: EINVAL .* for address 0xfffff000"):
        vm.set_tss_addr(0xFFFFF000)


def test_a_second_irqchip_is_refused(vm: Vm) -> None:
    vm.create_irqchip()
    with pytest.raises(KvmError, match=r"KVM_CREATE_IRQCHIP failed: EEXIST"):
        vm.create_irqchip()


def failing_run(number: int) -> Callable[[int, int, object], int]:
    """KVM_RUN that fails, for what this host's KVM cannot be brought to do."""

    def ioctl(fd: int, request: int, argument: object) -> int:
        ctypes.set_errno(number)
        return -1

    return ioctl


def test_unmapped_memory_names_the_guest_address(
    guest: Callable[[str], Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since Linux 6.8 an EFAULT comes with the address in kvm_run."""
    vcpu = guest("f4").vcpu
    monkeypatch.setattr(pyvmm.kvm.vcpu, "libc_ioctl", failing_run(errno.EFAULT))
    with pytest.raises(KvmError, match=r"KVM_RUN failed: EFAULT .* for vCPU 0: the guest used an address"):
        vcpu.run()
    vcpu.kvm_run.exit_reason = uapi_run.KVM_EXIT_MEMORY_FAULT
    vcpu.kvm_run.memory_fault.gpa = 0xDEAD000
    with pytest.raises(KvmError, match=r"for vCPU 0 at guest address 0xdead000: ") as caught:
        vcpu.run()
    assert "keep guest memory mapped" in caught.value.hint


def test_eagain_is_no_error(guest: Callable[[str], Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    vcpu = guest("f4").vcpu
    monkeypatch.setattr(pyvmm.kvm.vcpu, "libc_ioctl", failing_run(errno.EAGAIN))
    assert isinstance(vcpu.run(), IntrExit)


def test_unknown_ioctls_name_their_capability() -> None:
    """/dev/null knows no ioctl of KVM, as an old kernel would not know a new one."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    with (
        Vm(null, 0) as old,
        pytest.raises(KvmError, match=r"ENOTTY .*comes with KVM_CAP_SIGNAL_MSI") as caught,
    ):
        old.signal_msi(0xFEE00000, 0)
    assert caught.value.hint


def test_a_closed_descriptor_says_so() -> None:
    system = System()
    system.close()
    system.close()
    with pytest.raises(KvmError, match=r"KVM_CHECK_EXTENSION failed: EBADF .*closed already"):
        system.check_extension(0)


def test_a_closed_vcpu_says_so_and_keeps_its_last_state(guest: Callable[[str], Guest]) -> None:
    machine = guest("e680 f4")  # out 0x80, al
    machine.io()
    machine.vm.close()
    with pytest.raises(KvmError, match=r"KVM_RUN failed: EBADF"):
        machine.vcpu.run()
    assert machine.vcpu.kvm_run.exit_reason == uapi_run.KVM_EXIT_IO
    assert machine.vcpu.kvm_run.io.port == 0x80


def test_no_device_node(tmp_path: Path) -> None:
    with pytest.raises(KvmMissing, match=f"there is no {tmp_path}/kvm") as caught:
        System(str(tmp_path / "kvm"))
    assert "modprobe" in caught.value.hint or "--device /dev/kvm" in caught.value.hint


def test_a_file_that_is_not_kvm(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    before = open_fds()
    with pytest.raises(KvmMissing, match="is not KVM") as caught:
        System(str(tmp_path / "kvm"))
    assert caught.value.hint
    assert open_fds() == before


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EACCES, KvmPermission, "may not be opened for reading and writing: Permission denied"),
        (errno.EPERM, KvmPermission, "may not be opened"),
        (errno.ENODEV, KvmMissing, "has no KVM behind it: No such device"),
        (errno.ENXIO, KvmMissing, "has no KVM behind it"),
        (errno.EMFILE, HostError, r"cannot be opened: Too many open files \(errno 24\)"),
    ],
)
def test_dev_kvm_that_does_not_open(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[HostError], message: str
) -> None:
    def refuse(path: str, flags: int) -> int:
        assert flags & os.O_CLOEXEC
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(kind, match=message) as caught:
            System()
    assert type(caught.value) is kind
    assert caught.value.hint or kind is HostError


# --- descriptors --------------------------------------------------------------------------------------


def test_nothing_leaks_and_nothing_is_inherited() -> None:
    before = open_fds()
    with System() as system, GuestMemory([(0, RAM)]) as memory:
        vm = system.create_vm()
        vm.set_user_memory_region(0, 0, RAM, memory.host_address(0))
        vcpus = [vm.create_vcpu(id) for id in range(2)]
        vcpus[0].coalesced_ring()
        if vm.has_device(VFIO):
            vm.create_device(VFIO)
        for name in open_fds() - before:
            with contextlib.suppress(OSError):  # the descriptor that listed them is gone
                assert fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert len(open_fds() - before) >= 4
        vm.close()
        vm.close()
        assert len(open_fds() - before) == 1, "closing the VM closes what was made from it"
    assert open_fds() == before


def test_an_exit_kept_after_close_is_safe_and_frees_the_vcpu_when_dropped() -> None:
    before = open_fds()
    with contextlib.ExitStack() as stack:
        machine = Guest(stack, "e680 f4")
        exit = machine.io()
    assert exit.port == 0x80
    assert open_fds() != before, "it holds the mapping"
    del exit
    assert open_fds() == before


def test_close_is_reached_when_something_fails() -> None:
    before = open_fds()
    with pytest.raises(RuntimeError), System() as system, system.create_vm() as vm:
        vm.create_vcpu()
        raise RuntimeError
    assert open_fds() == before
