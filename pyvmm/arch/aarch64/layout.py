"""The address map of the aarch64 machine: everything that stands at a fixed place, in ascending order.

An arm64 kernel finds all of this in the device tree, so the places are free to choose.  They are those of QEMU's
"virt" machine (its hw/arm/virt.c), RAM at 1 GiB included: bare-metal programs, boot loaders and ``earlycon=``
habits made for that machine, the most common one, find the UART and the interrupt controller here too.  A
virtio-mmio device has a page of its own, where that machine has 512 bytes.

The sizes of the interrupt controllers' parts are those of the GICv3 architecture (Arm IHI 0069, section 12.1) and of
Linux ``arch/arm64/include/uapi/asm/kvm.h``.
"""

from __future__ import annotations

from mmap import PAGESIZE

from pyvmm.errors import UsageError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE_SIZE = 4 * KIB

GIC_DISTRIBUTOR = 0x0800_0000
GIC_DISTRIBUTOR_SIZE = 0x1_0000
GIC_V2_CPU = 0x0801_0000  # a GICv2's CPU interface; a GICv3's is in system registers
GIC_V2_CPU_SIZE = 0x1_0000
GIC_ITS = 0x0808_0000
GIC_ITS_SIZE = 0x2_0000
GIC_REDISTRIBUTORS = 0x080A_0000  # one for each vCPU
GIC_REDISTRIBUTOR_SIZE = 0x2_0000
UART = 0x0900_0000
RTC = 0x0901_0000
GPIO = 0x0903_0000
VIRTIO = 0x0A00_0000
GUEST_STATUS = 0x0B00_0000  # the guest's exit status, a byte of pyvmm's own; writing it ends the guest
RAM = 0x4000_0000

MOST_VCPUS = (UART - GIC_REDISTRIBUTORS) // GIC_REDISTRIBUTOR_SIZE  # 123, as on that machine
MOST_VIRTIO = 32

MEMORY_MAP: tuple[tuple[int, int, str], ...] = (
    # start            size                                 what
    (GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_SIZE, "GIC distributor"),
    (GIC_V2_CPU, GIC_V2_CPU_SIZE, "GICv2 CPU interface"),
    (GIC_ITS, GIC_ITS_SIZE, "GIC ITS"),
    (GIC_REDISTRIBUTORS, MOST_VCPUS * GIC_REDISTRIBUTOR_SIZE, "GIC redistributors"),
    (UART, 0x1000, "UART"),
    (RTC, 0x1000, "PL031"),
    (GPIO, 0x1000, "PL061"),
    (VIRTIO, MOST_VIRTIO * 0x1000, "virtio devices"),
    (GUEST_STATUS, 0x1000, "guest exit status"),
    (RAM, (1 << 40) - RAM, "RAM"),
)

# -- interrupts: shared peripheral interrupts by number, 0 being interrupt ID 32 ------------------------------

UART_SPI = 1
RTC_SPI = 2
GPIO_SPI = 7
VIRTIO_SPI = 16  # and those after it, one for each device
SPIS = 64  # how many the interrupt controller has; with the 32 that each vCPU has to itself a multiple of 32

TIMER_PPIS = (13, 14, 11, 10)  # secure and non-secure physical, virtual, hypervisor (Arm BSA, section 3.8)

# -- RAM ------------------------------------------------------------------------------------------------------

MINIMUM_MEMORY = 4 * MIB  # the 2 MiB boundary for an image, and a device tree
MAXIMUM_MEMORY = (1 << 40) - RAM  # the guest physical addresses that every host's KVM offers by default

MACHINE_CLOCK_HZ = 24_000_000  # UARTCLK and the peripheral bus clock
UART_16550_HZ = 1_843_200  # where the UART is a 16550: the PC's


def ram_ranges(size: int) -> list[tuple[int, int]]:
    """Where ``size`` bytes of RAM stand: one (start, size).

    UsageError if there is too little, too much, or a part of one of the host's pages.
    """
    if size < MINIMUM_MEMORY:
        raise UsageError(
            f"memory of {size >> 10} KiB is less than the smallest machine's {MINIMUM_MEMORY >> 20} MiB",
            "give more with --memory; a distribution kernel needs 128M or more",
        )
    if size > MAXIMUM_MEMORY:
        raise UsageError(
            f"memory of {size >> 30} GiB is more than the largest machine's {MAXIMUM_MEMORY >> 30} GiB",
            "give less with --memory",
        )
    if size % PAGESIZE:
        raise UsageError(
            f"memory of {size} bytes is not a whole number of {PAGESIZE}-byte pages",
            "give --memory in mebibytes, as in 512M",
        )
    return [(RAM, size)]


def virtio_slot(index: int) -> tuple[int, int]:
    """Where virtio device ``index`` stands: (address of its registers, GSI).  UsageError if there is no room for it.

    KVM's default routing makes GSI n the shared peripheral interrupt n.
    """
    if index >= MOST_VIRTIO:
        raise UsageError(
            f"there is no room for more than {MOST_VIRTIO} virtio devices", "attach fewer devices"
        )
    return VIRTIO + index * PAGE_SIZE, VIRTIO_SPI + index


def check_vcpus(count: int) -> None:
    """UsageError for more vCPUs than there is room for redistributors."""
    if count > MOST_VCPUS:
        raise UsageError(
            f"{count} vCPUs are more than the {MOST_VCPUS} of the largest machine", "give fewer --cpus"
        )
