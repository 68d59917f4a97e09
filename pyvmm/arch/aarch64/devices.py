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
) -> tuple[Pl011, Pl061]:
    """Put the machine's devices on ``bus``; returns its serial port, and the one with the power button.

    ``transmit`` takes each byte the guest sends; ``request(kind, status)`` is told of the guest's own exit status.  A
    guest that powers off or resets does so by PSCI, which is KVM's (KVM_EXIT_SYSTEM_EVENT).
    """
    serial = Pl011(transmit, Line(vm, layout.UART_SPI), layout.UART)
    bus.add_mmio("pl011", layout.UART, layout.PAGE_SIZE, serial.read, serial.write)
    clock = Pl031()
    bus.add_mmio("pl031", layout.RTC, layout.PAGE_SIZE, clock.read, clock.write)
    bus.add_mmio(
        "guest status", layout.GUEST_STATUS, layout.PAGE_SIZE, _read_zero, GuestStatus(request).write
    )
    gpio = Pl061(Line(vm, layout.GPIO_SPI))
    bus.add_mmio("pl061", layout.GPIO, layout.PAGE_SIZE, gpio.read, gpio.write)
    return serial, gpio


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


def coalesced_ports(serial: Pl011) -> list[tuple[int, int]]:
    """(address, size) where only the order of writes matters, so that KVM may collect them: the UART's DR."""
    return [(serial.base + DR, 4)]
