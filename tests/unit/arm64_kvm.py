"""A stand-in for arm64's KVM, below the driver: it takes the ioctls, keeps their order, and refuses as the kernel does.

The rules are those of Linux ``Documentation/virt/kvm/api.rst`` and ``devices/arm-vgic-v3.rst``; nothing runs.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

import pytest

from pyvmm.kvm import System, arm64, ioctls, uapi_arm64
from pyvmm.kvm.descriptor import Descriptor
from pyvmm.kvm.errors import KvmError
from pyvmm.kvm.uapi import KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, Cap

NAMES = {int(number): name for table in (ioctls.TABLE, arm64.TABLE) for name, number in table.items()}
V2, V3, ITS = (
    uapi_arm64.KVM_DEV_TYPE_ARM_VGIC_V2,
    uapi_arm64.KVM_DEV_TYPE_ARM_VGIC_V3,
    uapi_arm64.KVM_DEV_TYPE_ARM_VGIC_ITS,
)
MMAP_SIZE = 2 * os.sysconf("SC_PAGE_SIZE")


class Arm64Kvm:
    """``devices``: the types of interrupt controllers there are; ``capabilities`` says more than the usual.

    ``calls`` has every ioctl by name, but for KVM_CHECK_EXTENSION; ``registers`` what each vCPU (by number) was given.
    """

    def __init__(
        self, devices: tuple[int, ...] = (V3, ITS), capabilities: dict[int, int] | None = None
    ) -> None:
        self.devices = devices
        self.capabilities = {
            Cap.USER_MEMORY: 1, Cap.IRQCHIP: 1, Cap.DEVICE_CTRL: 1, Cap.ONE_REG: 1, Cap.ARM_PSCI_0_2: 1,
            Cap.IRQFD: 1, Cap.IOEVENTFD: 1, Cap.IMMEDIATE_EXIT: 1, Cap.MP_STATE: 1, Cap.COALESCED_MMIO: 1,
            Cap.COALESCED_PIO: 1, Cap.ARM_VM_IPA_SIZE: 44, Cap.ARM_SVE: 1, Cap.ARM_PTRAUTH_ADDRESS: 1,
            Cap.ARM_PTRAUTH_GENERIC: 1, Cap.ARM_NISV_TO_USER: 1, Cap.MAX_VCPUS: 512, Cap.READONLY_MEM: 1,
        }  # fmt: skip
        self.capabilities.update(capabilities or {})
        self.calls: list[str] = []
        self.vm_type: int | None = None
        self.slots: list[tuple[int, int]] = []
        self.vcpus: dict[int, int] = {}  # descriptor -> number
        self.features: dict[int, list[int]] = {}
        self.finalized: set[int] = set()
        self.registers: dict[int, dict[int, int]] = {}
        self.made: dict[int, int] = {}  # descriptor -> type of device
        self.addresses: dict[int, int] = {}
        self.interrupts: int | None = None
        self.initialised: set[int] = set()  # types of devices
        self.irqfds: list[int] = []
        self.lines: list[tuple[int, int]] = []
        self.zones: list[tuple[int, int, int]] = []
        self._fds: list[int] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the driver's descriptors come here."""
        monkeypatch.setattr(Descriptor, "ioctl", lambda owner, *args: self.ioctl(owner, *args))
        monkeypatch.setattr("pyvmm.machine.build.System", lambda: System("/dev/null"))

    def _new_fd(self) -> int:
        fd = os.memfd_create("kvm")
        os.ftruncate(fd, MMAP_SIZE)
        return fd

    def ioctl(self, owner: Descriptor, request: int, argument: Any = 0, detail: str = "") -> int:
        name = NAMES[int(request)]
        if name != "KVM_CHECK_EXTENSION":
            self.calls.append(name)
        handler = getattr(self, name.removeprefix("KVM_").lower(), None)
        if handler is None:
            raise KvmError(name, errno.ENOTTY, detail)
        result = handler(owner, argument)
        if isinstance(result, int) and result < 0:
            raise KvmError(name, -result, detail)
        return result or 0

    # -- system and VM --------------------------------------------------------------------------------
    def get_api_version(self, owner: Descriptor, argument: int) -> int:
        return 12

    def check_extension(self, owner: Descriptor, argument: int) -> int:
        return self.capabilities.get(argument, 0)

    def get_vcpu_mmap_size(self, owner: Descriptor, argument: int) -> int:
        return MMAP_SIZE

    def create_vm(self, owner: Descriptor, argument: int) -> int:
        limit = self.capabilities[Cap.ARM_VM_IPA_SIZE]
        if argument and not 32 <= argument <= (limit or 40):
            return -errno.EINVAL
        if argument == 0 and limit and limit < 40:
            return -errno.EINVAL
        self.vm_type = argument
        return self._new_fd()

    def enable_cap(self, owner: Descriptor, argument: Any) -> int:
        return 0 if argument.cap == Cap.ARM_NISV_TO_USER else -errno.EINVAL

    def set_user_memory_region(self, owner: Descriptor, argument: Any) -> None:
        self.slots.append((argument.guest_phys_addr, argument.memory_size))

    def create_vcpu(self, owner: Descriptor, argument: int) -> int:
        if self.initialised & {V2, V3}:
            return -errno.EBUSY
        fd = self._new_fd()
        self.vcpus[fd] = argument
        return fd

    def create_device(self, owner: Descriptor, argument: Any) -> int:
        if argument.type not in self.devices:
            return -errno.ENODEV
        if not argument.flags:
            argument.fd = self._new_fd()
            self.made[argument.fd] = argument.type
        return 0

    def irqfd(self, owner: Descriptor, argument: Any) -> int:
        if not self.initialised & {V2, V3}:
            return -errno.EAGAIN
        self.irqfds.append(argument.gsi)
        return 0

    def irq_line(self, owner: Descriptor, argument: Any) -> int:
        if not self.initialised & {V2, V3}:
            return -errno.ENXIO
        self.lines.append((argument.irq, argument.level))
        return 0

    def ioeventfd(self, owner: Descriptor, argument: Any) -> None:
        pass

    def register_coalesced_mmio(self, owner: Descriptor, argument: Any) -> None:
        self.zones.append((argument.addr, argument.size, argument.pio))

    # -- devices --------------------------------------------------------------------------------------
    def set_device_attr(self, owner: Descriptor, argument: Any) -> int:
        kind = self.made[owner.fd]
        if argument.group == uapi_arm64.KVM_DEV_ARM_VGIC_GRP_ADDR:
            self.addresses[argument.attr] = int.from_bytes(ctypes.string_at(argument.addr, 8), "little")
        elif argument.group == uapi_arm64.KVM_DEV_ARM_VGIC_GRP_NR_IRQS:
            if self.interrupts is not None or kind in self.initialised:
                return -errno.EBUSY
            self.interrupts = int.from_bytes(ctypes.string_at(argument.addr, 4), "little")
            if not 64 <= self.interrupts <= 1024 or self.interrupts % 32:
                return -errno.EINVAL
        elif argument.group == uapi_arm64.KVM_DEV_ARM_VGIC_GRP_CTRL:
            if not self.vcpus:
                return -errno.ENODEV
            if kind == ITS and V3 not in self.made.values():
                return -errno.ENODEV
            self.initialised.add(kind)
        else:
            return -errno.ENXIO
        return 0

    # -- vCPUs ----------------------------------------------------------------------------------------
    def arm_preferred_target(self, owner: Descriptor, argument: Any) -> None:
        argument.target = 5

    def arm_vcpu_init(self, owner: Descriptor, argument: Any) -> int:
        features = [bit for bit in range(32) if argument.features[0] >> bit & 1]
        number = self.vcpus[owner.fd]
        rest = set(features) - {uapi_arm64.KVM_ARM_VCPU_POWER_OFF}
        pair = {uapi_arm64.KVM_ARM_VCPU_PTRAUTH_ADDRESS, uapi_arm64.KVM_ARM_VCPU_PTRAUTH_GENERIC}
        others = [set(each) - {uapi_arm64.KVM_ARM_VCPU_POWER_OFF} for each in self.features.values()]
        needs = {
            uapi_arm64.KVM_ARM_VCPU_SVE: Cap.ARM_SVE,
            uapi_arm64.KVM_ARM_VCPU_PTRAUTH_ADDRESS: Cap.ARM_PTRAUTH_ADDRESS,
            uapi_arm64.KVM_ARM_VCPU_PTRAUTH_GENERIC: Cap.ARM_PTRAUTH_GENERIC,
            uapi_arm64.KVM_ARM_VCPU_PMU_V3: 126,
        }
        if (
            argument.target != 5
            or any(argument.features[1:])
            or rest & pair not in (set(), pair)
            or any(each != rest for each in others)
            or any(not self.capabilities.get(cap) for feature, cap in needs.items() if feature in rest)
        ):
            return -errno.EINVAL
        self.features[number] = features
        self.registers[number] = {arm64.MPIDR_EL1: 1 << 31 | number & 0xF | (number >> 4) << 8}
        return 0

    def arm_vcpu_finalize(self, owner: Descriptor, argument: Any) -> int:
        number = self.vcpus[owner.fd]
        if argument.value not in self.features.get(number, []) or number in self.finalized:
            return -errno.EPERM
        self.finalized.add(number)
        return 0

    def set_one_reg(self, owner: Descriptor, argument: Any) -> int:
        number = self.vcpus[owner.fd]
        if number not in self.registers:
            return -errno.ENOEXEC
        self.registers[number][argument.id] = int.from_bytes(ctypes.string_at(argument.addr, 8), "little")
        return 0

    def get_one_reg(self, owner: Descriptor, argument: Any) -> int:
        value = self.registers.get(self.vcpus[owner.fd], {}).get(argument.id)
        if value is None:
            return -errno.ENOENT
        ctypes.memmove(argument.addr, value.to_bytes(8, "little"), 8)
        return 0

    def get_mp_state(self, owner: Descriptor, argument: Any) -> None:
        off = uapi_arm64.KVM_ARM_VCPU_POWER_OFF in self.features[self.vcpus[owner.fd]]
        argument.mp_state = KVM_MP_STATE_STOPPED if off else KVM_MP_STATE_RUNNABLE
