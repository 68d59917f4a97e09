"""An in-kernel device (an interrupt controller of arm64, VFIO): a bag of attributes in groups.

The "device ioctls" of Linux ``Documentation/virt/kvm/api.rst``; the groups are in
``Documentation/virt/kvm/devices/``.  A VM and a vCPU have attributes too: the functions here take any of them.
"""

from __future__ import annotations

from ctypes import addressof, c_char

from . import ioctls
from .descriptor import Descriptor
from .errors import KvmError
from .uapi import kvm_device_attr


class Device(Descriptor):
    """A device made by Vm.create_device(); a context manager."""

    __slots__ = ()

    def has_attr(self, group: int, attr: int = 0) -> bool:
        """KVM_HAS_DEVICE_ATTR: whether the device knows the attribute."""
        return has_attr(self, group, attr)

    def set_attr(self, group: int, attr: int = 0, value: bytes = b"") -> None:
        """KVM_SET_DEVICE_ATTR, with the value as the bytes the group's documentation asks for (or none)."""
        set_attr(self, group, attr, value)

    def get_attr(self, group: int, attr: int = 0, size: int = 8) -> bytes:
        """KVM_GET_DEVICE_ATTR: the attribute's ``size`` bytes."""
        return get_attr(self, group, attr, size)


def has_attr(owner: Descriptor, group: int, attr: int = 0) -> bool:
    """KVM_HAS_DEVICE_ATTR: whether a device, a VM or a vCPU knows the attribute."""
    try:
        owner.ioctl(ioctls.KVM_HAS_DEVICE_ATTR, kvm_device_attr(group=group, attr=attr))
    except KvmError:
        return False
    return True


def set_attr(owner: Descriptor, group: int, attr: int = 0, value: bytes = b"") -> None:
    """KVM_SET_DEVICE_ATTR of a device, a VM or a vCPU."""
    _attr(owner, ioctls.KVM_SET_DEVICE_ATTR, group, attr, bytearray(value))


def get_attr(owner: Descriptor, group: int, attr: int = 0, size: int = 8) -> bytes:
    """KVM_GET_DEVICE_ATTR of a device, a VM or a vCPU: ``size`` bytes."""
    value = bytearray(size)
    _attr(owner, ioctls.KVM_GET_DEVICE_ATTR, group, attr, value)
    return bytes(value)


def _attr(owner: Descriptor, request: ioctls.Ioctl, group: int, attr: int, value: bytearray) -> None:
    holder = (c_char * len(value)).from_buffer(value)  # keeps the address valid during the call
    argument = kvm_device_attr(group=group, attr=attr, addr=addressof(holder) if value else 0)
    owner.ioctl(request, argument, f"group {group}, attribute {attr:#x}")
