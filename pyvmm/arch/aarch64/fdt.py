"""What the guest is told of the machine: its device tree.

Devicetree Specification 0.4, chapter 3, and the bindings of Linux ``Documentation/devicetree/bindings``: arm/cpus.yaml,
arm/psci.yaml, interrupt-controller/arm,gic.yaml and arm,gic-v3.yaml, timer/arm,arch_timer.yaml, serial/pl011.yaml,
serial/8250.yaml, rtc/arm,pl031.yaml, gpio/pl061-gpio.yaml, input/gpio-keys.yaml, virtio/mmio.yaml; chosen/ in
chosen.yaml of dt-schema.

``arm,primecell-periphid`` gives the kernel the identification registers of a PrimeCell, which it would otherwise read
one by one.  virtio devices raise their interrupts by an edge (an eventfd has no level), the others by a level.
"""

from __future__ import annotations

from pyvmm.arch.aarch64 import layout
from pyvmm.arch.aarch64.devices import wants_16550
from pyvmm.arch.aarch64.devicetree import Node, cells, strings, wide
from pyvmm.devices import pl011, pl031, pl061

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.arch.aarch64.gic import Gic

GIC_PHANDLE, CLOCK_PHANDLE, ITS_PHANDLE, GPIO_PHANDLE = 1, 2, 3, 4
KEY_POWER = 116  # Linux include/uapi/linux/input-event-codes.h

SPI, PPI = 0, 1
EDGE_RISING, LEVEL_HIGH = 1, 4

AFFINITY = 0xFF_FFFF  # the affinity fields of MPIDR_EL1 that KVM uses: Aff2, Aff1, Aff0


class Chosen:
    """What /chosen says: the command line, the initrd as (start, size) or None, and random bytes ("" for none)."""

    __slots__ = ("cmdline", "initrd", "kaslr_seed", "rng_seed")

    def __init__(
        self, cmdline: str, initrd: tuple[int, int] | None, rng_seed: bytes = b"", kaslr_seed: bytes = b""
    ) -> None:
        self.cmdline = cmdline
        self.initrd = initrd
        self.rng_seed = rng_seed
        self.kaslr_seed = kaslr_seed


def build(
    *, ram: Sequence[tuple[int, int]], mpidrs: Sequence[int], gic: Gic, virtio: int, chosen: Chosen
) -> Node:
    """The tree of the machine with RAM in ``ram``, a vCPU for each MPIDR_EL1 of ``mpidrs``, ``virtio`` devices."""
    root = Node(
        "",
        {
            "compatible": strings("linux,dummy-virt"),
            "model": strings("pyvmm"),
            "#address-cells": cells(2),
            "#size-cells": cells(2),
            "interrupt-parent": cells(GIC_PHANDLE),
        },
    )
    choose(root, chosen)
    uart = _name("serial", layout.UART)
    root.child("chosen").properties["stdout-path"] = strings(f"/{uart}")
    root.add("aliases", {"serial0": strings(f"/{uart}")})
    describe_memory(root, ram)
    _add_cpus(root, mpidrs)
    # The function numbers are those of PSCI 0.2 and later, which need no properties.
    root.add("psci", {"compatible": strings("arm,psci-1.0", "arm,psci-0.2"), "method": strings("hvc")})
    _add_gic(root, gic, len(mpidrs))
    _add_timer(root, gic, len(mpidrs))
    root.add(
        "apb-pclk",
        {
            "compatible": strings("fixed-clock"),
            "#clock-cells": cells(0),
            "clock-frequency": cells(layout.MACHINE_CLOCK_HZ),
            "clock-output-names": strings("clk24mhz"),
            "phandle": cells(CLOCK_PHANDLE),
        },
    )
    _add_serial(root, wants_16550(chosen.cmdline))
    _add_primecell(root, "rtc", layout.RTC, "arm,pl031", pl031.PERIPHERAL_ID, None, ("apb_pclk",))
    _add_power_button(root)
    for index in range(virtio):
        address, spi = layout.virtio_slot(index)
        root.add(
            _name("virtio", address),
            {
                "compatible": strings("virtio,mmio"),
                "reg": wide(address, layout.PAGE_SIZE),
                "interrupts": cells(SPI, spi, EDGE_RISING),
                "dma-coherent": b"",
            },
        )
    return root


def choose(root: Node, chosen: Chosen) -> None:
    """Put ``chosen`` into the tree's /chosen; what else stands there stays."""
    properties = root.child("chosen").properties
    properties["bootargs"] = strings(chosen.cmdline)
    if chosen.initrd is not None:
        start, size = chosen.initrd
        properties["linux,initrd-start"] = wide(start)
        properties["linux,initrd-end"] = wide(start + size)
    if chosen.rng_seed:
        properties["rng-seed"] = chosen.rng_seed
    if chosen.kaslr_seed:
        properties["kaslr-seed"] = chosen.kaslr_seed


def describe_memory(root: Node, ram: Sequence[tuple[int, int]]) -> None:
    """Put the machine's RAM into the tree, for what it says of memory.  OverflowError if its cells do not suit."""
    root.children = [
        child for child in root.children if child.properties.get("device_type") != strings("memory")
    ]
    # The specification's defaults are those of section 2.3.5.
    wide_address, wide_size = (
        int.from_bytes(root.properties.get(f"#{what}-cells", cells(default)), "big")
        for what, default in (("address", 2), ("size", 1))
    )
    if max(wide_address, wide_size) > 4:
        raise OverflowError("no number has more than four cells")
    for start, size in ram:
        reg = start.to_bytes(4 * wide_address, "big") + size.to_bytes(4 * wide_size, "big")
        root.add(_name("memory", start), {"device_type": strings("memory"), "reg": reg})


def _name(device: str, address: int) -> str:
    """A node's name with its unit address."""
    return f"{device}@{address:x}"


def _add_cpus(root: Node, mpidrs: Sequence[int]) -> None:
    cpus = root.add("cpus", {"#address-cells": cells(1), "#size-cells": cells(0)})
    for mpidr in mpidrs:
        affinity = mpidr & AFFINITY
        cpus.add(
            _name("cpu", affinity),
            {
                "device_type": strings("cpu"),
                "compatible": strings("arm,armv8"),
                "enable-method": strings("psci"),
                "reg": cells(affinity),
            },
        )


def _add_gic(root: Node, gic: Gic, vcpus: int) -> None:
    properties = {
        "compatible": strings("arm,gic-v3" if gic.version == 3 else "arm,cortex-a15-gic"),
        "#interrupt-cells": cells(3),
        "interrupt-controller": b"",
        "#address-cells": cells(2),
        "#size-cells": cells(2),
        "ranges": b"",
        "phandle": cells(GIC_PHANDLE),
    }
    distributor = (layout.GIC_DISTRIBUTOR, layout.GIC_DISTRIBUTOR_SIZE)
    if gic.version == 3:
        size = layout.GIC_REDISTRIBUTOR_SIZE * vcpus
        properties["reg"] = wide(*distributor, layout.GIC_REDISTRIBUTORS, size)
    else:
        # Of 64 KiB each only the first pages are used: KVM has 4 and 8 KiB there.
        properties["reg"] = wide(layout.GIC_DISTRIBUTOR, 0x1000, layout.GIC_V2_CPU, 0x2000)
    node = root.add(_name("intc", layout.GIC_DISTRIBUTOR), properties)
    if gic.its:
        node.add(
            _name("its", layout.GIC_ITS),
            {
                "compatible": strings("arm,gic-v3-its"),
                "msi-controller": b"",
                "#msi-cells": cells(1),
                "reg": wide(layout.GIC_ITS, layout.GIC_ITS_SIZE),
                "phandle": cells(ITS_PHANDLE),
            },
        )


def _add_timer(root: Node, gic: Gic, vcpus: int) -> None:
    # A GICv2's binding wants the CPUs in bits 15 to 8; a GICv3's has nothing there.
    flags = LEVEL_HIGH | (((1 << vcpus) - 1) << 8 if gic.version == 2 else 0)
    interrupts = [number for ppi in layout.TIMER_PPIS for number in (PPI, ppi, flags)]
    root.add(
        "timer",
        {"compatible": strings("arm,armv8-timer"), "interrupts": cells(*interrupts), "always-on": b""},
    )


def _add_primecell(
    root: Node, name: str, address: int, compatible: str, id: int, spi: int | None, clocks: Sequence[str]
) -> Node:
    properties = {
        "compatible": strings(compatible, "arm,primecell"),
        "arm,primecell-periphid": cells(id),
        "reg": wide(address, layout.PAGE_SIZE),
        "clocks": cells(*[CLOCK_PHANDLE] * len(clocks)),
        "clock-names": strings(*clocks),
    }
    if spi is not None:
        properties["interrupts"] = cells(SPI, spi, LEVEL_HIGH)
    return root.add(_name(name, address), properties)


def _add_serial(root: Node, is_16550: bool) -> None:
    if not is_16550:
        clocks = ("uartclk", "apb_pclk")
        _add_primecell(root, "serial", layout.UART, "arm,pl011", pl011.PERIPHERAL_ID, layout.UART_SPI, clocks)
        return
    root.add(
        _name("serial", layout.UART),
        {
            "compatible": strings("ns16550a"),
            "reg": wide(layout.UART, layout.PAGE_SIZE),
            "interrupts": cells(SPI, layout.UART_SPI, EDGE_RISING),
            "clock-frequency": cells(layout.UART_16550_HZ),
        },
    )


def _add_power_button(root: Node) -> None:
    gpio = _add_primecell(
        root, "gpio", layout.GPIO, "arm,pl061", pl061.PERIPHERAL_ID, layout.GPIO_SPI, ("apb_pclk",)
    )
    gpio.properties |= {
        "gpio-controller": b"",
        "#gpio-cells": cells(2),
        "interrupt-controller": b"",
        "#interrupt-cells": cells(2),
        "#address-cells": cells(0),
        "phandle": cells(GPIO_PHANDLE),
    }
    root.add("gpio-keys", {"compatible": strings("gpio-keys")}).add(
        "power",
        {
            "label": strings("power button"),
            "linux,code": cells(KEY_POWER),
            "gpios": cells(GPIO_PHANDLE, pl061.POWER_BUTTON, 0),
        },
    )
