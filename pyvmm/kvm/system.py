"""/dev/kvm itself: what this host's KVM can do, and the VMs made from it.

The "system ioctls" of Linux ``Documentation/virt/kvm/api.rst``.
"""

from __future__ import annotations

import errno
import os

from pyvmm.errors import CapabilityMissing, HostError, KvmMissing, KvmPermission

from . import ioctls
from .descriptor import Descriptor
from .errors import KvmError
from .flexible import flexible
from .uapi import KVM_API_VERSION, cap_name
from .uapi_x86 import kvm_cpuid2, kvm_cpuid_entry2, kvm_msr_list
from .vm import Vm

DEVICE = "/dev/kvm"


class System(Descriptor):
    """An open /dev/kvm; a context manager.

    Raises KvmMissing or KvmPermission, with a hint, where it cannot be opened or does not answer as KVM.
    """

    __slots__ = ("path",)

    def __init__(self, path: str = DEVICE) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot_open(path, error) from None
        super().__init__(fd)
        self.path = path
        try:
            version = self.api_version()
        except KvmError:
            version = -1
        if version != KVM_API_VERSION:
            self.close()
            raise KvmMissing(
                f"{path} is not KVM: it does not answer KVM_GET_API_VERSION with {KVM_API_VERSION}"
                + (f" but {version}" if version >= 0 else ""),
                "remove the file and load the module again: modprobe kvm_intel or kvm_amd",
            )

    def api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 since Linux 2.6.22."""
        return self.ioctl(ioctls.KVM_GET_API_VERSION)

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if the capability is absent, else 1 or the number it stands for."""
        return self.ioctl(ioctls.KVM_CHECK_EXTENSION, cap)

    def require(self, *caps: int) -> None:
        """Raise CapabilityMissing, naming every capability of ``caps`` that this host lacks."""
        missing = [cap_name(cap) for cap in caps if not self.check_extension(cap)]
        if missing:
            raise CapabilityMissing(
                f"this host's KVM lacks {', '.join(missing)}", "use a newer kernel, or another host"
            )

    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of a vCPU's mapping (kvm_run and the pages after it)."""
        return self.ioctl(ioctls.KVM_GET_VCPU_MMAP_SIZE)

    def supported_cpuid(self) -> list[kvm_cpuid_entry2]:
        """KVM_GET_SUPPORTED_CPUID: the CPUID entries this host can give a guest (x86), yours to change."""
        for count in (128, 512, 2048):
            buffer, header, entries = flexible(kvm_cpuid2, kvm_cpuid_entry2, count)
            header.nent = count
            try:
                self.ioctl(ioctls.KVM_GET_SUPPORTED_CPUID, buffer)
            except KvmError as error:
                if error.errno != errno.E2BIG:
                    raise
                continue
            return list(entries[: header.nent])
        raise KvmError("KVM_GET_SUPPORTED_CPUID", errno.E2BIG, "2048 entries")

    def msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the model-specific registers that make up a guest's state (x86)."""
        from ctypes import c_uint32

        for count in (512, 4096):
            buffer, header, indices = flexible(kvm_msr_list, c_uint32, count)
            header.nmsrs = count
            try:
                self.ioctl(ioctls.KVM_GET_MSR_INDEX_LIST, buffer)
            except KvmError as error:
                if error.errno != errno.E2BIG:
                    raise
                continue
            return list(indices[: header.nmsrs])
        raise KvmError("KVM_GET_MSR_INDEX_LIST", errno.E2BIG, "4096 indices")

    def create_vm(self, type: int = 0) -> Vm:
        """KVM_CREATE_VM: a VM without memory or vCPUs.

        ``type`` is 0, or on arm64 the number of guest physical address bits.
        """
        fd = self.ioctl(ioctls.KVM_CREATE_VM, type, f"type {type:#x}" if type else "")
        return Vm(fd, self.vcpu_mmap_size())


def _cannot_open(path: str, error: OSError) -> HostError:
    """The error for a /dev/kvm that does not open."""
    number = error.errno
    reason = error.strerror
    if number in (errno.ENOENT, errno.ENOTDIR):
        return KvmMissing(f"there is no {path}", _hint_missing())
    if number in (errno.ENXIO, errno.ENODEV):
        return KvmMissing(f"{path} has no KVM behind it: {reason}", _hint_missing())
    if number in (errno.EACCES, errno.EPERM):
        return KvmPermission(f"{path} may not be opened for reading and writing: {reason}", _hint_group(path))
    return HostError(f"{path} cannot be opened: {reason} (errno {number})")


def _in_container() -> bool:
    return os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")


_HINT_MISSING = (
    "load the module (modprobe kvm_intel or kvm_amd) and enable virtualisation in the firmware; "
    "in a virtual machine, enable nested virtualisation on its host"
)
#: Where KVM is no module.
_HINTS_MISSING = {
    "aarch64": (
        "on arm64 KVM is part of the kernel, which has to be started at EL2; in a virtual machine, enable nested "
        "virtualisation on its host"
    )
}


def _hint_missing() -> str:
    if _in_container():
        return "this is a container: start it with --device /dev/kvm, on a host that has it"
    return _HINTS_MISSING.get(os.uname().machine, _HINT_MISSING)


def _hint_group(path: str) -> str:
    """Which group to join, and whether only a new login is missing."""
    import grp
    import pwd

    try:
        status = os.stat(path)
        group = grp.getgrgid(status.st_gid)
        user = pwd.getpwuid(os.getuid()).pw_name
    except (OSError, KeyError):
        return "run as root, or give this user read and write access to it"
    if status.st_mode & 0o060 != 0o060 or group.gr_gid == 0:
        return f"run as root, or: sudo chown root:kvm {path} && sudo chmod 660 {path}"
    if group.gr_gid in os.getgroups() or os.getuid() == 0:
        return "this container or sandbox forbids it: start it with --device /dev/kvm"
    if user in group.gr_mem:
        return (
            f"{user} joined group {group.gr_name} after logging in: log in again, or newgrp {group.gr_name}"
        )
    return f"sudo usermod -aG {group.gr_name} {user}, then log in again"
