"""The PL011, driven as Linux's driver drives it (drivers/tty/serial/amba-pl011.c), and as small guests do."""

from __future__ import annotations

from pyvmm.devices.pl011 import (
    CR,
    DR,
    FIFO_SIZE,
    FR,
    IBRD,
    ICR,
    IFLS,
    IMSC,
    LCR_H,
    MIS,
    PERIPHERAL_ID,
    POLLS,
    RIS,
    ControlRegister,
    FlagRegister,
    Interrupts,
    LineControlRegister,
    Pl011,
)
from pyvmm.devices.pl031 import CR as CLOCK_CR
from pyvmm.devices.pl031 import DR as CLOCK_DR
from pyvmm.devices.pl031 import LR, Pl031

RX, TX, RT = Interrupts.RX, Interrupts.TX, Interrupts.RT


class Line:
    """An interrupt line that remembers its changes."""

    def __init__(self) -> None:
        self.changes: list[bool] = []

    def set(self, level: bool) -> None:
        assert not self.changes or self.changes[-1] is not level, "it was so already"
        self.changes.append(level)

    @property
    def up(self) -> bool:
        return bool(self.changes) and self.changes[-1]


class Uart:
    """A PL011 and what it sent."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.line = Line()
        self.device = Pl011(self.sent.append, self.line, 0x0900_0000)

    def read(self, offset: int) -> int:
        return self.device.read(offset, 2)

    def write(self, offset: int, value: int) -> None:
        self.device.write(offset, value, 2)

    def open_as_linux(self) -> None:
        """pl011_startup and pl011_set_termios."""
        self.write(IBRD, 13)
        self.write(LCR_H, LineControlRegister.FEN | 3 << 5)
        self.write(IFLS, 2 << 3 | 2)
        self.write(ICR, RT | RX)
        for _ in range(2 * FIFO_SIZE):
            if self.read(FR) & FlagRegister.RXFE:
                break
            self.read(DR)
        self.write(CR, ControlRegister.UARTEN | ControlRegister.RXE | ControlRegister.TXE)
        self.write(IMSC, RT | RX)

    def interrupt_as_linux(self) -> bytes:
        """pl011_int without its transmitter: until nothing is pending; what came in."""
        received = bytearray()
        while status := self.read(RIS) & self.read(IMSC):
            self.write(ICR, status & ~(TX | RT | RX))
            while not self.read(FR) & FlagRegister.RXFE:
                received.append(self.read(DR) & 0xFF)
        return bytes(received)


def test_a_guest_that_only_writes_dr_is_heard() -> None:
    uart = Uart()
    for byte in b"hello":
        while uart.read(FR) & FlagRegister.TXFF:
            pass
        uart.write(DR, byte)
    assert uart.sent == b"hello"
    assert not uart.read(FR) & FlagRegister.BUSY
    assert uart.read(FR) & FlagRegister.TXFE
    assert uart.line.changes == []


def test_identification() -> None:
    uart = Uart()
    found = [uart.read(0xFE0 + 4 * index) for index in range(8)]
    assert found == [0x11, 0x10, 0x34, 0x00, 0x0D, 0xF0, 0x05, 0xB1]
    assert int.from_bytes(bytes(found[:4]), "little") == PERIPHERAL_ID


def test_the_transmit_interrupt_comes_with_each_byte_and_goes_with_icr() -> None:
    uart = Uart()
    uart.write(IMSC, TX)
    assert not uart.line.up, "nothing has been sent yet: the FIFO has not drained"
    uart.write(DR, ord("a"))
    assert uart.line.up and uart.read(MIS) == TX
    uart.write(ICR, TX)
    assert not uart.line.up and uart.read(RIS) == 0
    uart.write(DR, ord("b"))
    assert uart.line.up
    uart.write(IMSC, 0)
    assert not uart.line.up and uart.read(RIS) == TX
    uart.write(IMSC, TX)
    assert uart.line.up, "as when Linux starts to send after its first bytes"


def test_input_waits_until_linux_has_opened_the_port() -> None:
    uart = Uart()
    uart.device.receive(b"typed early")
    assert uart.read(FR) & FlagRegister.RXFE
    assert uart.device.pending == 11
    uart.open_as_linux()
    assert uart.line.up
    assert uart.interrupt_as_linux() == b"typed early"
    assert not uart.line.up and uart.device.pending == 0


def test_linux_opening_the_port_loses_no_input() -> None:
    """pl011_hwinit enables the receive interrupts for a moment, and pl011_enable_interrupts empties the FIFO."""
    uart = Uart()
    data = bytes(range(FIFO_SIZE + 8))
    uart.write(LCR_H, LineControlRegister.FEN)
    uart.device.receive(data)
    for _ in range(2):  # it is opened twice
        uart.write(CR, ControlRegister.UARTEN | ControlRegister.RXE)
        uart.write(ICR, RT | RX)
        uart.write(IMSC, RT | RX)
        uart.write(IMSC, 0)
        uart.write(CR, ControlRegister.UARTEN | ControlRegister.RXE)
        uart.write(ICR, RT | RX)
        assert uart.read(FR) & FlagRegister.RXFE, "there is something to throw away"
    uart.write(IMSC, RT | RX)
    assert bytes(uart.read(DR) for _ in data) == data


def test_a_guest_that_disables_the_interrupt_to_read_finds_the_input() -> None:
    uart = Uart()
    uart.write(LCR_H, LineControlRegister.FEN)
    uart.write(CR, ControlRegister.UARTEN | ControlRegister.RXE)
    uart.device.receive(b"abc")
    for _ in range(2):  # at first it is told that there is nothing, and enables the interrupt again
        uart.write(IMSC, RX | RT)
        assert uart.line.up
        uart.write(IMSC, 0)
    assert not uart.read(FR) & FlagRegister.RXFE
    assert bytes(uart.read(DR) for _ in range(3)) == b"abc"


def test_more_input_than_the_fifo_holds_comes_through_in_order() -> None:
    uart = Uart()
    uart.open_as_linux()
    data = bytes(range(256)) * 4
    uart.device.receive(data)
    assert uart.read(FR) & FlagRegister.RXFF
    assert uart.read(RIS) & RX
    assert uart.interrupt_as_linux() == data


def test_one_byte_raises_the_time_out_and_half_a_fifo_the_receive_interrupt() -> None:
    uart = Uart()
    uart.open_as_linux()
    uart.device.receive(b"x" * 15)
    assert uart.read(RIS) & (RX | RT) == RT
    uart.device.receive(b"x")
    assert uart.read(RIS) & (RX | RT) == RX | RT
    uart.read(DR)
    assert uart.read(RIS) & (RX | RT) == RT
    uart.write(ICR, RT)
    assert uart.read(RIS) & RT, "there is something to read still"


def test_a_guest_that_polls_fr_gets_its_input() -> None:
    uart = Uart()
    uart.device.receive(b"k")
    for _ in range(POLLS):
        status = uart.read(FR)
    assert not status & FlagRegister.RXFE
    assert uart.read(DR) == ord("k")
    assert uart.read(FR) & FlagRegister.RXFE
    assert uart.line.changes == []


def test_a_console_that_looks_before_each_byte_is_not_polling() -> None:
    uart = Uart()
    uart.device.receive(b"k")
    for byte in b"a long message of the kernel's":
        assert uart.read(FR) & FlagRegister.RXFE
        uart.write(DR, byte)
    assert uart.device.pending == 1


def test_switching_the_fifos_loses_no_input() -> None:
    uart = Uart()
    uart.open_as_linux()
    uart.device.receive(b"abc")
    uart.write(LCR_H, 3 << 5)
    assert uart.read(FR) & FlagRegister.RXFF, "one byte fills the receiver without FIFOs"
    uart.write(LCR_H, LineControlRegister.FEN | 3 << 5)
    assert uart.interrupt_as_linux() == b"abc"


def test_loopback_comes_back_and_is_not_sent() -> None:
    uart = Uart()
    uart.write(CR, ControlRegister.LBE | ControlRegister.UARTEN)
    uart.write(DR, 0x5A)
    assert uart.sent == b""
    assert uart.read(DR) == 0x5A
    uart.write(CR, ControlRegister.UARTEN)
    uart.write(DR, 0x5B)
    assert uart.sent == b"\x5b"


def test_room_is_told_of_when_half_of_it_is_free() -> None:
    uart = Uart()
    told: list[int] = []
    uart.device.on_room(lambda: told.append(1))
    uart.device.receive(b"x" * 4096)
    assert uart.device.receive_room == 0
    uart.open_as_linux()
    assert len(uart.interrupt_as_linux()) == 4096
    assert told == [1] and uart.device.receive_room == 4096


def test_a_guest_that_waits_for_its_transmit_interrupt_is_better_off_without_coalescing() -> None:
    uart = Uart()
    assert uart.device.coalesced_ports == (0x0900_0000 + DR,)
    uart.device.on_late_drain()
    assert uart.device.want_coalescing
    uart.write(IMSC, TX)
    uart.device.on_late_drain()
    assert not uart.device.want_coalescing


def test_it_describes_itself() -> None:
    uart = Uart()
    uart.open_as_linux()
    text = uart.device.describe()
    assert "IMSC RT RX" in text and "WLEN=8 FEN" in text and "\n" not in text


def test_the_clock_tells_the_host_s_time_and_can_be_set() -> None:
    now = 1_700_000_000.9
    clock = Pl031(lambda: now)
    assert clock.read(CLOCK_DR, 4) == 1_700_000_000
    assert clock.read(CLOCK_CR, 4) == 1
    clock.write(LR, 1000, 4)
    assert clock.read(CLOCK_DR, 4) == 1000 and clock.read(LR, 4) == 1000
    now += 61
    assert clock.read(CLOCK_DR, 4) == 1061
    assert [clock.read(0xFE0 + 4 * index, 4) for index in range(4)] == [0x31, 0x10, 0x04, 0x00]
