"""Why an ioctl of KVM fails, in words: a table from (ioctl, errno) to cause and hint.

Source: the errno tables of ``Documentation/virt/kvm/api.rst`` and, where those are silent, the functions
of Linux ``virt/kvm/kvm_main.c`` and ``arch/x86/kvm`` that return them.
"""

from __future__ import annotations

from errno import (
    E2BIG,
    EAGAIN,
    EBADF,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    EIO,
    EMFILE,
    ENFILE,
    ENODEV,
    ENOENT,
    ENOEXEC,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    ENOTTY,
    ENXIO,
    EPERM,
)

_ORDER_IRQCHIP = "create the interrupt controller before any vCPU"

# (ioctl, errno) -> (cause, hint)
CAUSES: dict[tuple[str, int], tuple[str, str]] = {
    ("KVM_CREATE_VM", EBUSY): (
        "another hypervisor is using the processor's virtualisation",
        "stop the other hypervisor (VirtualBox, VMware, Xen) or unload its kernel modules",
    ),
    ("KVM_CREATE_VM", EINVAL): (
        "this host does not support that VM type",
        "use type 0; on arm64 the type is the number of guest physical address bits",
    ),
    ("KVM_CREATE_VM", ENODEV): (
        "the processor's virtualisation is not usable",
        "enable VT-x or AMD-V (SVM) in the firmware, or nested virtualisation on the outer host",
    ),
    ("KVM_CREATE_VM", EIO): (
        "the processor refused to enable virtualisation",
        "look at the kernel's log (dmesg) for a message of kvm",
    ),
    ("KVM_SET_USER_MEMORY_REGION", EINVAL): (
        "the slot number is too large, an address or size is not page aligned, the host address is not this "
        "process's, a flag is unknown, or an existing slot was to change its size",
        "align to the page size; delete a slot (size 0) before giving it another size",
    ),
    ("KVM_SET_USER_MEMORY_REGION", EEXIST): (
        "the guest addresses overlap another slot",
        "choose addresses that no other slot has",
    ),
    ("KVM_SET_TSS_ADDR", EINVAL): (
        "three pages at that address would not end below 4 GiB",
        "choose an address that is in no memory slot and below 0xfffbd000 or so",
    ),
    ("KVM_SET_TSS_ADDR", EEXIST): ("that address is in a memory slot", "keep it clear of guest RAM"),
    ("KVM_SET_IDENTITY_MAP_ADDR", EINVAL): ("a vCPU exists already", "call it before creating vCPUs"),
    ("KVM_CREATE_IRQCHIP", EEXIST): ("the VM has an interrupt controller already", ""),
    ("KVM_CREATE_IRQCHIP", EINVAL): ("a vCPU exists already", _ORDER_IRQCHIP),
    ("KVM_CREATE_PIT2", EEXIST): ("the VM has an interval timer already", ""),
    ("KVM_CREATE_PIT2", ENOENT): (
        "the in-kernel interval timer needs the in-kernel interrupt controller",
        "call KVM_CREATE_IRQCHIP first",
    ),
    ("KVM_IRQ_LINE", ENXIO): ("there is no in-kernel interrupt controller", _ORDER_IRQCHIP),
    ("KVM_IRQFD", EINVAL): (
        "there is no in-kernel interrupt controller, or the interrupt number or descriptor is wrong",
        _ORDER_IRQCHIP,
    ),
    ("KVM_IRQFD", EAGAIN): (
        "the interrupt controller is not initialised yet",
        "on arm64 initialise it once all vCPUs exist, and before interrupts are bound",
    ),
    ("KVM_ARM_VCPU_INIT", EINVAL): (
        "this host has no such processor type or feature, the features contradict each other, or another vCPU "
        "has others",
        "take the type from KVM_ARM_PREFERRED_TARGET, and check the capability of each feature",
    ),
    ("KVM_ARM_VCPU_FINALIZE", EPERM): (
        "the vCPU is finalised already, or lacks the feature",
        "ask for it first",
    ),
    ("KVM_IRQFD", EBUSY): ("that eventfd is bound to an interrupt already", "use one eventfd per interrupt"),
    ("KVM_IRQFD", EBADF): ("the descriptor is not open", ""),
    ("KVM_IOEVENTFD", EEXIST): ("another ioeventfd has that address, length and value", ""),
    ("KVM_IOEVENTFD", EINVAL): (
        "the length must be 1, 2, 4 or 8 (0: any), and the descriptor an eventfd",
        "",
    ),
    ("KVM_IOEVENTFD", ENOENT): ("there is no such ioeventfd to remove", ""),
    ("KVM_IOEVENTFD", ENOSPC): ("the VM has as many devices on that bus as KVM allows", ""),
    ("KVM_REGISTER_COALESCED_MMIO", EINVAL): (
        "this kernel cannot coalesce port writes",
        "check KVM_CAP_COALESCED_PIO (Linux 5.0) first",
    ),
    ("KVM_REGISTER_COALESCED_MMIO", ENXIO): (
        "this KVM has no coalescing ring",
        "check KVM_CAP_COALESCED_MMIO first",
    ),
    ("KVM_CREATE_VCPU", EEXIST): ("the VM has a vCPU of that number already", "number vCPUs from 0"),
    ("KVM_CREATE_VCPU", EINVAL): (
        "the vCPU number or count is beyond what this host allows",
        "see KVM_CAP_MAX_VCPU_ID and KVM_CAP_MAX_VCPUS",
    ),
    ("KVM_CREATE_VCPU", EBUSY): (
        "vCPUs can no longer be added",
        "create every vCPU before initialising the interrupt controller",
    ),
    ("KVM_CREATE_DEVICE", ENODEV): ("this KVM does not know that type of device", ""),
    ("KVM_CREATE_DEVICE", EEXIST): ("the VM has such a device already", ""),
    ("KVM_SET_DEVICE_ATTR", ENXIO): ("the device has no such attribute", "ask has_attr() first"),
    ("KVM_GET_DEVICE_ATTR", ENXIO): ("the device has no such attribute", "ask has_attr() first"),
    ("KVM_SET_DEVICE_ATTR", E2BIG): (
        "the address is beyond the guest's",
        "choose more address bits for the VM",
    ),
    ("KVM_SET_DEVICE_ATTR", EEXIST): ("the address was set already", ""),
    ("KVM_SET_DEVICE_ATTR", EBUSY): ("too late: a vCPU has run, or the device is initialised", ""),
    ("KVM_RUN", EFAULT): (
        "the guest used an address whose host memory is not mapped",
        "keep guest memory mapped for as long as the VM exists",
    ),
    ("KVM_RUN", EINVAL): ("the vCPU's registers are in a state that cannot run", "look at sregs"),
    ("KVM_RUN", ENOEXEC): (
        "the vCPU is not initialised, or runs from a device's address",
        "on arm64 call KVM_ARM_VCPU_INIT first",
    ),
    ("KVM_RUN", EPERM): ("the vCPU is not finalised", "on arm64 call KVM_ARM_VCPU_FINALIZE for SVE"),
    ("KVM_RUN", ENOSYS): ("the guest used device memory with an instruction KVM cannot emulate", ""),
    ("KVM_RUN", EIO): ("the VM is dead: KVM hit an internal bug", "look at the kernel's log (dmesg)"),
    ("KVM_SET_SREGS", EINVAL): (
        "the control registers, EFER or segments contradict each other, or a reserved bit is set",
        "long mode needs CR0.PG, CR4.PAE, EFER.LME and EFER.LMA together",
    ),
    ("KVM_SET_CPUID2", E2BIG): ("more CPUID entries than KVM takes", ""),
    ("KVM_SET_CPUID2", EINVAL): (
        "CPUID contradicts itself, or the vCPU has run already and the entries differ",
        "set CPUID before the first KVM_RUN",
    ),
    ("KVM_SET_LAPIC", EINVAL): ("there is no in-kernel local APIC, or its state is wrong", _ORDER_IRQCHIP),
    ("KVM_GET_LAPIC", EINVAL): ("there is no in-kernel local APIC", _ORDER_IRQCHIP),
    ("KVM_SET_XCRS", EINVAL): ("XCR0 has a bit that CPUID leaf 0xd does not offer", "set CPUID first"),
    ("KVM_SET_TSC_KHZ", EINVAL): ("the host cannot run a guest at that time-stamp frequency", ""),
    ("KVM_GET_ONE_REG", ENOENT): ("the vCPU has no such register", ""),
    ("KVM_SET_ONE_REG", ENOENT): ("the vCPU has no such register", ""),
    ("KVM_ENABLE_CAP", EINVAL): ("the capability is unknown or cannot be enabled here", ""),
}

# errno -> (cause, hint), for every other ioctl
COMMON: dict[int, tuple[str, str]] = {
    ENOTTY: ("this kernel's KVM does not know it, or the descriptor is not KVM's", "use a newer kernel"),
    ENOMEM: ("the host is out of memory", "free memory, or give the guest less"),
    EMFILE: ("this process has too many open descriptors", "raise the limit: ulimit -n"),
    ENFILE: ("the host has too many open files", "close programs, or raise fs.file-max"),
    EBADF: ("it is closed already", ""),
    EIO: ("the VM belongs to another process, or is dead", "use a VM in the process that created it"),
    EAGAIN: ("the host is busy", "try again"),
}


def cause_of(ioctl: str, errno: int) -> tuple[str, str]:
    """The cause and the hint for a failure, each empty where unknown."""
    cause = CAUSES.get((ioctl, errno)) or COMMON.get(errno)
    if cause is None:
        return "", ""
    if errno == ENOTTY:
        return _unknown_ioctl(ioctl, *cause)
    return cause


def _unknown_ioctl(ioctl: str, cause: str, hint: str) -> tuple[str, str]:
    from .ioctls import TABLE
    from .uapi import cap_name

    request = TABLE.get(ioctl)
    if request is not None and request.capability is not None:
        cause += f" (it comes with {cap_name(request.capability)})"
    return cause, hint
