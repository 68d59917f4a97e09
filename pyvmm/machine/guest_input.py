"""Input for the guest's console: for its UART, unless it has one that is meant for that, and has opened it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.console import Console
    from pyvmm.devices.serial import Serial16550

#: Bytes that may be waiting for the guest before whoever has more should wait.
INPUT_WAITING = 4096


class GuestInput:
    """What is typed, on its way to the guest.  Event loop only."""

    def __init__(self, console: Console, serial: Serial16550) -> None:
        self._console = console
        self._serial = serial

    @property
    def pending(self) -> int:
        """Bytes that the guest has not taken yet."""
        other = self._console.input
        return other.pending if other is not None and other.is_open else self._serial.pending

    def room(self) -> bool:
        """Whether the guest can be given more: what nobody types is kept for the console it is meant for."""
        other = self._console.input
        return (other is None or other.is_open) and self.pending < INPUT_WAITING

    def give(self, data: bytes) -> None:
        """Hand ``data`` to the guest, however much is waiting."""
        other = self._console.input
        if other is not None and other.is_open:
            other.receive(data)
        else:
            self._serial.receive(data)
