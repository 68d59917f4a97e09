"""What stands in the memory map beside RAM and the interrupt controller: UART, clock, power button, exit status."""

from __future__ import annotations

from pyvmm.arch.aarch64 import layout
from pyvmm.devices.pl011 import DR, Pl011
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.pl061 import Pl061
from pyvmm.devices.power import EXIT
from pyvmm.kvm.uapi_arm64 import spi_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.bus import Bus
    from pyvmm.devices.serial import Serial16550
    from pyvmm.kvm import Vm


class Line:
    """A level-sensitive interrupt: shared peripheral interrupt ``spi``, by KVM_IRQ_LINE."""

    __slots__ = ("_number", "_vm")

    def __init__(self, vm: Vm, spi: int) -> None:
        self._vm = vm
        self._number = spi_line(spi)

    def set(self, level: bool) -> None:
        """Raise or lower the line.  Any thread; not before the interrupt controller is initialised."""
        self._vm.irq_line(self._number, level)


def attach_devices(
    bus: Bus,
    vm: Vm,
    transmit: Callable[[int], None],
    request: Callable[[str, int], None],
    closers: list[object],
    cmdline: str = "",
) -> tuple[Pl011 | Serial16550, Pl061]:
    """Put the machine's devices on ``bus``; returns its serial port, and the one with the power button.

    The serial port is a PL011, or a 16550 in its place where the kernel's ``cmdline`` asks for one.

    ``transmit`` takes each byte the guest sends; ``request(kind, status)`` is told of the guest's own exit status.  A
    guest that powers off or resets does so by PSCI, which is KVM's (KVM_EXIT_SYSTEM_EVENT).
    """
    serial = _add_serial(bus, vm, transmit, closers, wants_16550(cmdline))
    clock = Pl031()
    bus.add_mmio("pl031", layout.RTC, layout.PAGE_SIZE, clock.read, clock.write)
    bus.add_mmio(
        "guest status", layout.GUEST_STATUS, layout.PAGE_SIZE, _read_zero, GuestStatus(request).write
    )
    gpio = Pl061(Line(vm, layout.GPIO_SPI))
    bus.add_mmio("pl061", layout.GPIO, layout.PAGE_SIZE, gpio.read, gpio.write)
    return serial, gpio


def wants_16550(cmdline: str) -> bool:
    """Whether a kernel that is told this takes its console from a 16550 (ttyS0), rather than a PL011 (ttyAMA0)."""
    return any(word.startswith(("console=ttyS", "earlycon=uart8250")) for word in cmdline.split())


def _add_serial(
    bus: Bus, vm: Vm, transmit: Callable[[int], None], closers: list[object], is_16550: bool
) -> Pl011 | Serial16550:
    """The serial port at layout.UART."""
    if not is_16550:
        pl011 = Pl011(transmit, Line(vm, layout.UART_SPI), layout.UART)
        bus.add_mmio("pl011", layout.UART, layout.PAGE_SIZE, pl011.read, pl011.write)
        return pl011
    from pyvmm.devices.serial import Serial16550
    from pyvmm.kvm.irqfd import IrqFd

    line = IrqFd(vm, layout.UART_SPI)
    closers.append(line)
    serial = Serial16550(transmit, line, layout.UART)

    def read(offset: int, size: int) -> int:
        return serial.reads[offset]() if offset < len(serial.reads) else 0

    def write(offset: int, value: int, size: int) -> None:
        if offset < len(serial.writes):
            serial.writes[offset](value & 0xFF)

    bus.add_mmio("16550", layout.UART, layout.PAGE_SIZE, read, write)
    return serial


class GuestStatus:
    """The register in which a guest leaves its exit status."""

    __slots__ = ("_request",)

    def __init__(self, request: Callable[[str, int], None]) -> None:
        self._request = request

    def write(self, offset: int, value: int, size: int) -> None:
        """End the guest with this status; more than 255 is 255, so that no failure turns into a 0."""
        if offset == 0:
            self._request(EXIT, min(value, 255))


def _read_zero(offset: int, size: int) -> int:
    return 0


def coalesced_ports(serial: Pl011 | Serial16550) -> list[tuple[int, int]]:
    """(address, size) where only the order of writes matters, so that KVM may collect them: a PL011's DR, and what a
    16550 says."""
    if isinstance(serial, Pl011):
        return [(serial.base + DR, 4)]
    return [(address, 1) for address in serial.coalesced_ports]
