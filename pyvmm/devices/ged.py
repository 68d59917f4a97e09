"""The Generic Event Device, and the power button behind it: ACPI 6.5, sections 5.6.9 and 4.8.2.2.1.2.

A machine with hardware-reduced ACPI has no SCI.  Its events are interrupts of a device ACPI0013 in the DSDT, whose
method ``_EVT`` the guest's kernel calls with the interrupt's number; this machine's tells the power button
(PNP0C0C) that it was pressed, by ``Notify (PWRB, 0x80)``.  With one event there is nothing to ask a register for,
so the device has none, and costs no exit.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Line(Protocol):
        """An edge-triggered interrupt line."""

        def trigger(self) -> None: ...


class GenericEventDevice:
    """The device's side that the user has a finger on: ``line`` is the interrupt of its one event."""

    __slots__ = ("_line", "presses")

    def __init__(self, line: Line) -> None:
        self.presses = 0
        self._line = line

    def press_power_button(self) -> None:
        """Press the power button and let it go.  Any thread.

        What comes of it is the guest's affair: nothing, if it has no driver for the button yet.
        """
        self.presses += 1
        self._line.trigger()
