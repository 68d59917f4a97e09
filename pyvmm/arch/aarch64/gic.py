"""The interrupt controller, in the kernel: a GICv3 with an ITS, one without, or a GICv2, whichever this host's KVM has.

Linux ``Documentation/virt/kvm/devices/arm-vgic-v3.rst``, ``arm-vgic-its.rst`` and ``arm-vgic.rst``.  A host whose own
controller is a GICv3 without the GICv2 compatibility mode offers only GICv3, one with a GICv2 only that.

The controller is initialised once all vCPUs exist: none can be added afterwards, and before that no eventfd can be
bound to an interrupt (KVM_IRQFD says EAGAIN).
"""

from __future__ import annotations

from pyvmm.arch.aarch64 import layout
from pyvmm.errors import CapabilityMissing, UsageError
from pyvmm.kvm.uapi_arm64 import (
    KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_DEV_TYPE_ARM_VGIC_ITS,
    KVM_DEV_TYPE_ARM_VGIC_V2,
    KVM_DEV_TYPE_ARM_VGIC_V3,
    KVM_VGIC_ITS_ADDR_TYPE,
    KVM_VGIC_V2_ADDR_TYPE_CPU,
    KVM_VGIC_V2_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.device import Device
    from pyvmm.kvm.vm import Vm

PRIVATE_INTERRUPTS = 32  # of each vCPU: 16 from other vCPUs, 16 of its own peripherals
MOST_VCPUS_V2 = 8


class Gic:
    """What kind of controller the machine has: ``version`` 2 or 3, and whether it has an ITS (``its``)."""

    __slots__ = ("its", "version")

    def __init__(self, version: int, *, its: bool) -> None:
        self.version = version
        self.its = its

    def __repr__(self) -> str:
        return f"<GICv{self.version}{' with an ITS' if self.its else ''}>"


def create(vm: Vm, vcpus: int) -> Gic:
    """Create and initialise the controller of ``vm``, all of whose ``vcpus`` exist.

    Raises CapabilityMissing where KVM has none, UsageError for more vCPUs than it serves, KvmError.
    """
    if vm.has_device(KVM_DEV_TYPE_ARM_VGIC_V3):
        return _create_v3(vm)
    if vm.has_device(KVM_DEV_TYPE_ARM_VGIC_V2):
        if vcpus > MOST_VCPUS_V2:
            raise UsageError(
                f"{vcpus} vCPUs are more than the {MOST_VCPUS_V2} that this host's GICv2 serves",
                "give fewer --cpus",
            )
        return _create_v2(vm)
    raise CapabilityMissing(
        "this host's KVM has no interrupt controller in the kernel (GICv3 or GICv2)", "use another host"
    )


def _create_v3(vm: Vm) -> Gic:
    gic = vm.create_device(KVM_DEV_TYPE_ARM_VGIC_V3)
    _place(gic, KVM_VGIC_V3_ADDR_TYPE_DIST, layout.GIC_DISTRIBUTOR)
    _place(gic, KVM_VGIC_V3_ADDR_TYPE_REDIST, layout.GIC_REDISTRIBUTORS)  # 128 KiB for each vCPU, contiguous
    its = vm.create_device(KVM_DEV_TYPE_ARM_VGIC_ITS) if vm.has_device(KVM_DEV_TYPE_ARM_VGIC_ITS) else None
    if its is not None:
        _place(its, KVM_VGIC_ITS_ADDR_TYPE, layout.GIC_ITS)
    _initialise(gic)
    if its is not None:
        its.set_attr(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT)
    return Gic(3, its=its is not None)


def _create_v2(vm: Vm) -> Gic:
    gic = vm.create_device(KVM_DEV_TYPE_ARM_VGIC_V2)
    _place(gic, KVM_VGIC_V2_ADDR_TYPE_DIST, layout.GIC_DISTRIBUTOR)
    _place(gic, KVM_VGIC_V2_ADDR_TYPE_CPU, layout.GIC_V2_CPU)
    _initialise(gic)
    return Gic(2, its=False)


def _place(device: Device, kind: int, address: int) -> None:
    """Put one of the controller's parts at a guest physical address."""
    device.set_attr(KVM_DEV_ARM_VGIC_GRP_ADDR, kind, address.to_bytes(8, "little"))


def _initialise(gic: Device) -> None:
    """Say how many interrupts there are (private ones included), and have the controller made."""
    count = PRIVATE_INTERRUPTS + layout.SPIS
    gic.set_attr(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, count.to_bytes(4, "little"))
    gic.set_attr(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT)
