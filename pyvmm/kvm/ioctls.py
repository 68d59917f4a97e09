"""The ioctls of KVM in one table: number, structure, and the capability each is available with.

Numbers are computed from the structures' sizes as the C macros _IO, _IOR, _IOW and _IOWR do (Linux
``include/uapi/asm-generic/ioctl.h``); which descriptor takes which ioctl is in
``Documentation/virt/kvm/api.rst``.
"""

from __future__ import annotations

from ctypes import c_uint64, sizeof

from . import uapi_x86 as x86
from .uapi import (
    KVMIO,
    Cap,
    kvm_clock_data,
    kvm_coalesced_mmio_zone,
    kvm_create_device,
    kvm_device_attr,
    kvm_enable_cap,
    kvm_ioeventfd,
    kvm_irq_level,
    kvm_irqfd,
    kvm_mp_state,
    kvm_msi,
    kvm_one_reg,
    kvm_translation,
    kvm_userspace_memory_region,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Ioctl(int):
    """An ioctl request number that knows its name, its structure and its capability."""

    name = "?"
    struct: type[Any] | None
    capability: int | None


def _ioc(direction: int, number: int, struct: type[Any] | None, capability: int | None) -> Ioctl:
    size = sizeof(struct) if struct else 0
    request = Ioctl(direction << 30 | size << 16 | KVMIO << 8 | number)
    request.struct = struct
    request.capability = capability
    return request


def io(number: int, capability: int | None = None) -> Ioctl:
    """_IO: no structure; the argument is an integer, or 0."""
    return _ioc(0, number, None, capability)


def iow(number: int, struct: type[Any], capability: int | None = None) -> Ioctl:
    """_IOW: the kernel reads the structure."""
    return _ioc(1, number, struct, capability)


def ior(number: int, struct: type[Any], capability: int | None = None) -> Ioctl:
    """_IOR: the kernel writes the structure."""
    return _ioc(2, number, struct, capability)


def iowr(number: int, struct: type[Any], capability: int | None = None) -> Ioctl:
    """_IOWR: the kernel reads the structure and writes it back."""
    return _ioc(3, number, struct, capability)


# /dev/kvm
KVM_GET_API_VERSION = io(0x00)
KVM_CREATE_VM = io(0x01)
KVM_GET_MSR_INDEX_LIST = iowr(0x02, x86.kvm_msr_list)
KVM_CHECK_EXTENSION = io(0x03)
KVM_GET_VCPU_MMAP_SIZE = io(0x04)
KVM_GET_SUPPORTED_CPUID = iowr(0x05, x86.kvm_cpuid2, Cap.EXT_CPUID)

# VM
KVM_CREATE_VCPU = io(0x41)
KVM_SET_USER_MEMORY_REGION = iow(0x46, kvm_userspace_memory_region, Cap.USER_MEMORY)
KVM_SET_TSS_ADDR = io(0x47, Cap.SET_TSS_ADDR)
KVM_SET_IDENTITY_MAP_ADDR = iow(0x48, c_uint64, Cap.SET_IDENTITY_MAP_ADDR)
KVM_CREATE_IRQCHIP = io(0x60, Cap.IRQCHIP)
KVM_IRQ_LINE = iow(0x61, kvm_irq_level, Cap.IRQCHIP)
KVM_GET_IRQCHIP = iowr(0x62, x86.kvm_irqchip, Cap.IRQCHIP)
KVM_SET_IRQCHIP = ior(0x63, x86.kvm_irqchip, Cap.IRQCHIP)
KVM_REGISTER_COALESCED_MMIO = iow(0x67, kvm_coalesced_mmio_zone, Cap.COALESCED_MMIO)
KVM_UNREGISTER_COALESCED_MMIO = iow(0x68, kvm_coalesced_mmio_zone, Cap.COALESCED_MMIO)
KVM_IRQFD = iow(0x76, kvm_irqfd, Cap.IRQFD)
KVM_CREATE_PIT2 = iow(0x77, x86.kvm_pit_config, Cap.PIT2)
KVM_IOEVENTFD = iow(0x79, kvm_ioeventfd, Cap.IOEVENTFD)
KVM_SET_CLOCK = iow(0x7B, kvm_clock_data, Cap.ADJUST_CLOCK)
KVM_GET_CLOCK = ior(0x7C, kvm_clock_data, Cap.ADJUST_CLOCK)
KVM_GET_PIT2 = ior(0x9F, x86.kvm_pit_state2, Cap.PIT_STATE2)
KVM_SET_PIT2 = iow(0xA0, x86.kvm_pit_state2, Cap.PIT_STATE2)
KVM_SIGNAL_MSI = iow(0xA5, kvm_msi, Cap.SIGNAL_MSI)
KVM_CREATE_DEVICE = iowr(0xE0, kvm_create_device, Cap.DEVICE_CTRL)

# VM and vCPU
KVM_ENABLE_CAP = iow(0xA3, kvm_enable_cap, Cap.ENABLE_CAP)

# Device, VM and vCPU
KVM_SET_DEVICE_ATTR = iow(0xE1, kvm_device_attr, Cap.DEVICE_CTRL)
KVM_GET_DEVICE_ATTR = iow(0xE2, kvm_device_attr, Cap.DEVICE_CTRL)
KVM_HAS_DEVICE_ATTR = iow(0xE3, kvm_device_attr, Cap.DEVICE_CTRL)

# vCPU
KVM_RUN = io(0x80)
KVM_GET_REGS = ior(0x81, x86.kvm_regs)
KVM_SET_REGS = iow(0x82, x86.kvm_regs)
KVM_GET_SREGS = ior(0x83, x86.kvm_sregs)
KVM_SET_SREGS = iow(0x84, x86.kvm_sregs)
KVM_TRANSLATE = iowr(0x85, kvm_translation)
KVM_GET_MSRS = iowr(0x88, x86.kvm_msrs)
KVM_SET_MSRS = iow(0x89, x86.kvm_msrs)
KVM_GET_FPU = ior(0x8C, x86.kvm_fpu)
KVM_SET_FPU = iow(0x8D, x86.kvm_fpu)
KVM_GET_LAPIC = ior(0x8E, x86.kvm_lapic_state, Cap.IRQCHIP)
KVM_SET_LAPIC = iow(0x8F, x86.kvm_lapic_state, Cap.IRQCHIP)
KVM_SET_CPUID2 = iow(0x90, x86.kvm_cpuid2, Cap.EXT_CPUID)
KVM_GET_CPUID2 = iowr(0x91, x86.kvm_cpuid2, Cap.EXT_CPUID)
KVM_GET_MP_STATE = ior(0x98, kvm_mp_state, Cap.MP_STATE)
KVM_SET_MP_STATE = iow(0x99, kvm_mp_state, Cap.MP_STATE)
KVM_NMI = io(0x9A, Cap.USER_NMI)
KVM_SET_GUEST_DEBUG = iow(0x9B, x86.kvm_guest_debug, Cap.SET_GUEST_DEBUG)
KVM_GET_VCPU_EVENTS = ior(0x9F, x86.kvm_vcpu_events, Cap.VCPU_EVENTS)
KVM_SET_VCPU_EVENTS = iow(0xA0, x86.kvm_vcpu_events, Cap.VCPU_EVENTS)
KVM_GET_DEBUGREGS = ior(0xA1, x86.kvm_debugregs, Cap.DEBUGREGS)
KVM_SET_DEBUGREGS = iow(0xA2, x86.kvm_debugregs, Cap.DEBUGREGS)
KVM_SET_TSC_KHZ = io(0xA2, Cap.TSC_CONTROL)
KVM_GET_TSC_KHZ = io(0xA3, Cap.GET_TSC_KHZ)
KVM_GET_XCRS = ior(0xA6, x86.kvm_xcrs, Cap.XCRS)
KVM_SET_XCRS = iow(0xA7, x86.kvm_xcrs, Cap.XCRS)
KVM_GET_ONE_REG = iow(0xAB, kvm_one_reg, Cap.ONE_REG)
KVM_SET_ONE_REG = iow(0xAC, kvm_one_reg, Cap.ONE_REG)
KVM_KVMCLOCK_CTRL = io(0xAD, Cap.KVMCLOCK_CTRL)

TABLE: dict[str, Ioctl] = {name: value for name, value in globals().items() if isinstance(value, Ioctl)}
for _name, _request in TABLE.items():
    _request.name = _name
