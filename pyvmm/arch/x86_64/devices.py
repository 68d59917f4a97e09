"""What stands on the PC's I/O ports: COM1, the ports that end the guest, and what is known to be absent."""

from __future__ import annotations

import os

from pyvmm.arch.x86_64 import layout
from pyvmm.devices.absent import add_absent
from pyvmm.devices.cmos import Cmos
from pyvmm.devices.power import PowerPorts
from pyvmm.devices.serial import Serial16550
from pyvmm.kvm.irqfd import IrqFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.bus import Bus
    from pyvmm.devices.ged import GenericEventDevice
    from pyvmm.kvm import Vm

ABSENT = (
    ("absent uarts", layout.COM2, 8),
    ("absent uarts", layout.COM3, 8),
    ("absent uarts", layout.COM4, 8),
    ("absent pci", layout.PCI_CONFIG, layout.PCI_CONFIG_SIZE),
    ("absent i8042", 0x60, 5),
    ("post code", layout.POST_CODE, 1),
    ("absent vga", 0x3C0, 0x20),
)


class _SilentPort:
    """Writes of exactly ``size`` bytes to ``port`` end in an eventfd that nobody reads, and make no exit.

    For the address register of the absent PCI: Linux writes it before each of its probes.  The reset control register
    lies within it, so writes of other sizes must come through at once, which rules coalescing out.
    """

    def __init__(self, vm: Vm, port: int, size: int) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)
        vm.ioeventfd(port, size, self._fd, pio=True)

    def close(self) -> None:
        """Close the descriptor; KVM lets go of the port by itself."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def attach_devices(
    bus: Bus,
    vm: Vm,
    transmit: Callable[[int], None],
    request: Callable[[str, int], None],
    closers: list[object],
    cmdline: str = "",
) -> tuple[Serial16550, None]:
    """Put the machine's devices on ``bus``; returns its serial port, and no power button: :func:`event_device` has it.

    ``transmit`` takes each byte the guest sends; ``request(kind, status)`` is told when the guest asks for
    its end.  What has to be closed with the machine is appended to ``closers``.  Whatever ``cmdline`` says, the
    serial port is the one that PCs have.
    """
    line = IrqFd(vm, layout.COM1_IRQ)
    closers.append(line)
    serial = Serial16550(transmit, line, layout.COM1)
    bus.add_pio_bytes("com1", layout.COM1, serial.reads, serial.writes)
    PowerPorts(request, reset_value=layout.RESET_VALUE).connect(
        bus,
        sleep_control=layout.SLEEP_CONTROL,
        sleep_status=layout.SLEEP_STATUS,
        reset_register=layout.RESET_REGISTER,
        reset_control=layout.RESET_CONTROL,
        keyboard_command=layout.KEYBOARD_CONTROLLER,
        guest_status=layout.GUEST_STATUS,
    )
    cmos = Cmos()
    bus.add_pio_bytes("cmos", layout.CMOS_INDEX, cmos.reads, cmos.writes)
    add_absent(bus, ABSENT)
    closers.append(_SilentPort(vm, layout.PCI_CONFIG, 4))
    return serial, None


def event_device(vm: Vm, closers: list[object]) -> GenericEventDevice:
    """The device that tells the guest of a pressed power button; made when first needed, as most runs never do."""
    from pyvmm.devices.ged import GenericEventDevice

    line = IrqFd(vm, layout.GED_GSI)
    closers.append(line)
    return GenericEventDevice(line)


def coalesced_ports(serial: Serial16550) -> list[tuple[int, int]]:
    """(port, size) of the ports where only the order of writes matters, so that KVM may collect them."""
    return [
        *((port, 1) for port in serial.coalesced_ports),
        (layout.POST_CODE, 1),
    ]
