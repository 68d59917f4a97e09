"""A virtual machine: memory slots, interrupt controller, eventfds and the vCPUs made from it.

The "VM ioctls" of Linux ``Documentation/virt/kvm/api.rst``.
"""

from __future__ import annotations

from ctypes import c_uint64
from mmap import PAGESIZE

from . import ioctls
from .descriptor import Descriptor
from .uapi import (
    KVM_CREATE_DEVICE_TEST,
    KVM_IOEVENTFD_FLAG_DATAMATCH,
    KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
    Cap,
    cap_name,
    kvm_clock_data,
    kvm_coalesced_mmio_zone,
    kvm_create_device,
    kvm_enable_cap,
    kvm_ioeventfd,
    kvm_irq_level,
    kvm_irqfd,
    kvm_msi,
    kvm_userspace_memory_region,
)
from .uapi_x86 import (
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY,
    kvm_irqchip,
    kvm_pic_state,
    kvm_pit_config,
    kvm_pit_state2,
)
from .vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .device import Device


class Vm(Descriptor):
    """A VM; a context manager.  Closing it closes its vCPUs and devices too: end their threads first.

    The kernel uses guest memory for as long as the VM is open: unmap it afterwards.
    """

    __slots__ = ("_children", "_vcpu_mmap_size")

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd)
        self._vcpu_mmap_size = vcpu_mmap_size
        self._children: list[Descriptor] = []

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION on this VM, which may differ from the system's answer (Linux 3.17)."""
        return self.ioctl(ioctls.KVM_CHECK_EXTENSION, cap)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP on the VM, with up to four arguments."""
        request = kvm_enable_cap(cap=cap, flags=flags, args=args)
        self.ioctl(ioctls.KVM_ENABLE_CAP, request, cap_name(cap))

    # --- memory ----------------------------------------------------------------------------------------
    def set_user_memory_region(
        self, slot: int, guest_address: int, size: int, host_address: int, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: back ``size`` bytes at ``guest_address`` by this process's memory.

        All page aligned; ``size`` 0 deletes the slot.  ``flags``: KVM_MEM_READONLY, KVM_MEM_LOG_DIRTY_PAGES.
        """
        region = kvm_userspace_memory_region(slot, flags, guest_address, size, host_address)
        self.ioctl(
            ioctls.KVM_SET_USER_MEMORY_REGION,
            region,
            f"slot {slot}: {size:#x} bytes at guest {guest_address:#x}, host {host_address:#x}",
        )

    def set_tss_addr(self, address: int) -> None:
        """KVM_SET_TSS_ADDR (x86): three pages below 4 GiB, in no slot, that Intel processors need."""
        self.ioctl(ioctls.KVM_SET_TSS_ADDR, address, f"address {address:#x}")

    def set_identity_map_addr(self, address: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR (x86): one such page more; before any vCPU is created."""
        self.ioctl(ioctls.KVM_SET_IDENTITY_MAP_ADDR, c_uint64(address), f"address {address:#x}")

    # --- interrupts ------------------------------------------------------------------------------------
    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: in-kernel interrupt controllers (x86: PICs, IOAPIC, LAPICs); before vCPUs."""
        self.ioctl(ioctls.KVM_CREATE_IRQCHIP)

    def mask_pics(self) -> None:
        """Mask every input of the two in-kernel 8259s (x86), by KVM_GET_IRQCHIP and KVM_SET_IRQCHIP.

        Out of reset they let everything through, with vector base 0: a guest that is told of no 8259, and so does
        not program them, would take IRQ 4 for exception 4.
        """
        for chip in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE):
            state = kvm_irqchip(chip_id=chip)
            self.ioctl(ioctls.KVM_GET_IRQCHIP, state, f"PIC {chip}")
            kvm_pic_state.from_buffer(state, kvm_irqchip.chip.offset).imr = 0xFF
            self.ioctl(ioctls.KVM_SET_IRQCHIP, state, f"PIC {chip}")

    def create_pit2(self, flags: int = KVM_PIT_SPEAKER_DUMMY) -> None:
        """KVM_CREATE_PIT2 (x86): the in-kernel 8254 interval timer, with port 0x61 by default."""
        self.ioctl(ioctls.KVM_CREATE_PIT2, kvm_pit_config(flags=flags))

    def get_pit2(self) -> kvm_pit_state2:
        """KVM_GET_PIT2 (x86): the three channels of the interval timer."""
        state = kvm_pit_state2()
        self.ioctl(ioctls.KVM_GET_PIT2, state)
        return state

    def set_pit2(self, state: kvm_pit_state2) -> None:
        """KVM_SET_PIT2 (x86): each channel counts from its start again, and ticks not taken yet are dropped."""
        self.ioctl(ioctls.KVM_SET_PIT2, state)

    def irq_line(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE: set the level of an input of the in-kernel interrupt controller."""
        self.ioctl(ioctls.KVM_IRQ_LINE, kvm_irq_level(gsi, level), f"GSI {gsi}")

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI: send a message-signalled interrupt; False if the guest blocked it."""
        msi = kvm_msi(address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=data)
        return self.ioctl(ioctls.KVM_SIGNAL_MSI, msi, f"address {address:#x}") > 0

    def irqfd(self, fd: int, gsi: int, *, resample_fd: int | None = None, deassign: bool = False) -> None:
        """KVM_IRQFD: let a write to the eventfd ``fd`` raise ``gsi`` in the kernel, edge triggered.

        With ``resample_fd`` the line stays up until the guest acknowledges it, which signals that eventfd.
        """
        request = kvm_irqfd(fd=fd, gsi=gsi)
        if resample_fd is not None:
            request.flags |= KVM_IRQFD_FLAG_RESAMPLE
            request.resamplefd = resample_fd
        if deassign:
            request.flags |= KVM_IRQFD_FLAG_DEASSIGN
        self.ioctl(ioctls.KVM_IRQFD, request, f"descriptor {fd}, GSI {gsi}")

    # --- exits that never reach user space ---------------------------------------------------------------
    def ioeventfd(
        self,
        address: int,
        length: int,
        fd: int,
        *,
        pio: bool = False,
        datamatch: int | None = None,
        deassign: bool = False,
    ) -> None:
        """KVM_IOEVENTFD: let a guest's write signal the eventfd ``fd`` instead of ending KVM_RUN.

        ``length`` is 1, 2, 4 or 8, or 0 for any; ``datamatch`` limits it to writes of that value.
        """
        request = kvm_ioeventfd(addr=address, len=length, fd=fd)
        if pio:
            request.flags |= KVM_IOEVENTFD_FLAG_PIO
        if datamatch is not None:
            request.flags |= KVM_IOEVENTFD_FLAG_DATAMATCH
            request.datamatch = datamatch
        if deassign:
            request.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN
        self.ioctl(
            ioctls.KVM_IOEVENTFD, request, f"{'port' if pio else 'address'} {address:#x}, length {length}"
        )

    def register_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO: queue the guest's writes to a range in the ring instead of exiting.

        ``pio`` means ports (KVM_CAP_COALESCED_PIO).  Read the ring with Vcpu.coalesced_ring().
        """
        self._coalesced(ioctls.KVM_REGISTER_COALESCED_MMIO, address, size, pio)

    def unregister_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO: exit for every write to the range again."""
        self._coalesced(ioctls.KVM_UNREGISTER_COALESCED_MMIO, address, size, pio)

    def _coalesced(self, request: ioctls.Ioctl, address: int, size: int, pio: bool) -> None:
        zone = kvm_coalesced_mmio_zone(address, size, pio)
        self.ioctl(request, zone, f"{size} {'ports' if pio else 'bytes'} at {address:#x}")

    # --- clock -----------------------------------------------------------------------------------------
    def get_clock(self) -> kvm_clock_data:
        """KVM_GET_CLOCK: kvm-clock's nanoseconds since the VM started (x86)."""
        clock = kvm_clock_data()
        self.ioctl(ioctls.KVM_GET_CLOCK, clock)
        return clock

    def set_clock(self, clock: kvm_clock_data) -> None:
        """KVM_SET_CLOCK: as got from get_clock(), to resume; ``flags`` must be 0 or KVM_CLOCK_REALTIME."""
        self.ioctl(ioctls.KVM_SET_CLOCK, clock)

    # --- vCPUs and devices -------------------------------------------------------------------------------
    def create_vcpu(self, id: int = 0) -> Vcpu:
        """KVM_CREATE_VCPU: the vCPU numbered ``id`` (x86: its APIC id)."""
        fd = self.ioctl(ioctls.KVM_CREATE_VCPU, id, f"vCPU {id}")
        ring_page = self.check_extension(Cap.COALESCED_MMIO)
        vcpu = Vcpu(fd, id, self._vcpu_mmap_size, ring_page * PAGESIZE)
        self._children.append(vcpu)
        return vcpu

    def create_device(self, type: int) -> Device:
        """KVM_CREATE_DEVICE: an in-kernel device of a KVM_DEV_TYPE_* type."""
        from .device import Device

        request = kvm_create_device(type=type)
        self.ioctl(ioctls.KVM_CREATE_DEVICE, request, f"type {type}")
        device = Device(request.fd)
        self._children.append(device)
        return device

    def has_device(self, type: int) -> bool:
        """Whether create_device(type) is possible on this host; creates nothing."""
        from .errors import KvmError

        try:
            self.ioctl(ioctls.KVM_CREATE_DEVICE, kvm_create_device(type=type, flags=KVM_CREATE_DEVICE_TEST))
        except KvmError:
            return False
        return True

    def close(self) -> None:
        """Close the VM with its vCPUs and devices, latest first."""
        while self._children:
            self._children.pop().close()
        super().close()
