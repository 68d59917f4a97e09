"""The ports that end or restart the guest.

- The sleep registers of hardware-reduced ACPI (ACPI 6.5, sections 4.8.3.7): a write to the sleep control
  register with SLP_EN enters the sleep state whose type the DSDT gives.  The DSDT knows S5 alone, soft off.
- The ACPI reset register (section 4.8.3.6).
- The older ways to reset a PC, which boot code and kernels fall back to: the keyboard controller's command
  0xfe at port 0x64, and the reset control register of Intel's chipsets at port 0xcf9.
- The guest's exit status, a port of pyvmm's own.

There is no keyboard controller otherwise.  Its status register reads as "output buffer full" for ever,
which tells a driver that looks for one that there is none (Linux: i8042_flush gives up), and as "input
buffer empty", so that a kernel which waits for that before it sends 0xfe (Linux: kb_wait) does not read the
port 65,536 times.
"""

from __future__ import annotations

from pyvmm.registers import Bit, Bits, Register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.bus import Bus


class SleepControl(Register):
    """The sleep control register (ACPI 6.5, table 4.20)."""

    WIDTH = 8
    SLP_TYP = Bits(4, 2)
    SLP_EN = Bit(5)


class SleepStatus(Register):
    """The sleep status register (ACPI 6.5, table 4.21)."""

    WIDTH = 8
    WAK_STS = Bit(7)


class ResetControl(Register):
    """The reset control register: a rising RST_CPU resets, SYS_RST and FULL_RST say how hard."""

    WIDTH = 8
    SYS_RST = Bit(1)
    RST_CPU = Bit(2)
    FULL_RST = Bit(3)


#: The sleep type of S5 in the DSDT (``_S5``).
S5_TYPE = 5
#: The keyboard controller's command that pulses the reset line.
PULSE_RESET = 0xFE
#: The keyboard controller's status: all ones but "input buffer full".
NO_KEYBOARD_CONTROLLER = 0xFD

#: What a guest asks for, the first argument of ``request``.
SHUTDOWN, RESET, EXIT = "shutdown", "reset", "exit"


class PowerPorts:
    """``request(kind, status)`` is called in the vCPU's thread with :data:`SHUTDOWN`, :data:`RESET` or
    :data:`EXIT`; ``status`` is the guest's exit status (0-255), and 0 for the others.

    The request may come more than once: a guest goes on until the machine stops it.
    """

    def __init__(self, request: Callable[[str, int], None], *, reset_value: int = 1) -> None:
        self._request = request
        self._reset_value = reset_value
        self._sleep_status = 0
        self._reset_control = 0

    def connect(
        self,
        bus: Bus,
        *,
        sleep_control: int,
        sleep_status: int,
        reset_register: int,
        reset_control: int,
        keyboard_command: int,
        guest_status: int,
    ) -> None:
        """Put each register at its port."""
        bus.add_pio_bytes("power", sleep_control, [lambda: 0], [self.write_sleep_control])
        bus.add_pio_bytes("power", sleep_status, [self.read_sleep_status], [self.write_sleep_status])
        bus.add_pio_bytes("power", reset_register, [lambda: 0], [self.write_reset_register])
        bus.add_pio_bytes("power", reset_control, [self.read_reset_control], [self.write_reset_control])
        bus.add_pio_bytes(
            "i8042", keyboard_command, [self.read_keyboard_status], [self.write_keyboard_command]
        )
        bus.add_pio("guest status", guest_status, [], [self.write_guest_status])

    # -- ACPI -------------------------------------------------------------------------------------------

    def write_sleep_control(self, value: int) -> None:
        """Enter a sleep state: S5 is the end.

        For a type that the DSDT does not declare the machine wakes at once, as the waiting guest would
        otherwise spin on WAK_STS for ever; type 0 is S0, which Linux writes after waking up.
        """
        control = SleepControl(value)
        if not control.SLP_EN:
            return
        if control.SLP_TYP == S5_TYPE:
            self._request(SHUTDOWN, 0)
        else:
            self._sleep_status = SleepStatus.WAK_STS

    def read_sleep_status(self) -> int:
        """WAK_STS once the guest has woken up."""
        return self._sleep_status

    def write_sleep_status(self, value: int) -> None:
        """WAK_STS is cleared by writing a one."""
        self._sleep_status &= ~value

    def write_reset_register(self, value: int) -> None:
        """The value that the FADT gives resets, any other does nothing."""
        if value == self._reset_value:
            self._request(RESET, 0)

    # -- the PC -----------------------------------------------------------------------------------------

    def read_reset_control(self) -> int:
        """What was written last."""
        return self._reset_control

    def write_reset_control(self, value: int) -> None:
        """A rising RST_CPU resets; soft or hard is all the same here."""
        rising = value & ~self._reset_control & ResetControl.RST_CPU
        self._reset_control = value
        if rising:
            self._request(RESET, 0)

    def read_keyboard_status(self) -> int:
        """See the module's text."""
        return NO_KEYBOARD_CONTROLLER

    def write_keyboard_command(self, value: int) -> None:
        """0xfe pulses the reset line; there is no other command without a controller."""
        if value == PULSE_RESET:
            self._request(RESET, 0)

    # -- pyvmm's own ------------------------------------------------------------------------------------

    def write_guest_status(self, value: int, size: int) -> None:
        """End the guest with this status; more than 255 is 255, so that no failure turns into a 0."""
        self._request(EXIT, min(value, 255))
