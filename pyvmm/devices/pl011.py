"""The serial port of Arm machines: an ARM PrimeCell UART, PL011 (ARM DDI 0183), revision r1p5 with FIFOs of 32 bytes.

The line is perfect and infinitely fast: a byte written is transmitted at once, the transmit FIFO is always empty, and
nothing arrives with an error.  Word length, parity and speed are remembered and have no effect, and neither do the
enable bits: small guests write DR and nothing else.  There is no DMA.

The transmit interrupt (TXRIS) is that of a FIFO which has just drained: raised by each byte written, cleared by ICR.
The receive interrupts follow the FIFO: RXRIS while it holds as much as IFLS says, RTRIS (the time-out) while it holds
anything, so that a clear of theirs has no lasting effect as long as there is something to read.

Input given to :meth:`Pl011.receive` waits until the guest is ready for it: one of the receive interrupts is enabled, or
it has read FR :data:`POLLS` times in a row and done nothing else.  Linux empties the FIFO before it enables them
(pl011_enable_interrupts, drivers/tty/serial/amba-pl011.c), and so loses none of it.  But before that, when it opens the
port, it enables them for a moment (pl011_hwinit): what was let in then goes back to wait when they are disabled.  That
happens once after each write of CR, and only until a byte is read, as other guests disable them to read in peace.

Writes to DR may be collected by KVM and handed over in order before the next exit is handled; see
:mod:`pyvmm.devices.serial` for what the machine calls then.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.devices.primecell import identification
from pyvmm.devices.uart_receiver import RECEIVE_LIMIT, Receiver
from pyvmm.registers import Bit, Bits, Register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class LevelLine(Protocol):
        """A level-sensitive interrupt line."""

        def set(self, level: bool) -> None: ...


PERIPHERAL_ID = 0x0034_1011  # part 0x011 by ARM (0x41), revision 3: Linux takes its FIFOs for 32 bytes
FIFO_SIZE = 32
POLLS = 8

DR, RSR, FR, ILPR, IBRD, FBRD, LCR_H, CR, IFLS, IMSC, RIS, MIS, ICR, DMACR = (
    0x00, 0x04, 0x18, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x3C, 0x40, 0x44, 0x48,
)  # fmt: skip


class FlagRegister(Register):
    """UARTFR, ARM DDI 0183, section 3.3.3."""

    CTS = Bit(0)
    DSR = Bit(1)
    DCD = Bit(2)
    BUSY = Bit(3)
    RXFE = Bit(4)
    TXFF = Bit(5)
    RXFF = Bit(6)
    TXFE = Bit(7)
    RI = Bit(8)


class LineControlRegister(Register):
    """UARTLCR_H, section 3.3.7."""

    BRK = Bit(0)
    PEN = Bit(1)
    EPS = Bit(2)
    STP2 = Bit(3)
    FEN = Bit(4)
    WLEN = Bits(6, 5, {0: "5", 1: "6", 2: "7", 3: "8"})
    SPS = Bit(7)


class ControlRegister(Register):
    """UARTCR, section 3.3.8."""

    UARTEN = Bit(0)
    SIREN = Bit(1)
    SIRLP = Bit(2)
    LBE = Bit(7)
    TXE = Bit(8)
    RXE = Bit(9)
    DTR = Bit(10)
    RTS = Bit(11)
    OUT1 = Bit(12)
    OUT2 = Bit(13)
    RTSEN = Bit(14)
    CTSEN = Bit(15)


class Interrupts(Register):
    """The interrupts as in UARTIMSC, UARTRIS, UARTMIS and UARTICR, sections 3.3.10 to 3.3.13."""

    RI = Bit(0)
    CTS = Bit(1)
    DCD = Bit(2)
    DSR = Bit(3)
    RX = Bit(4)
    TX = Bit(5)
    RT = Bit(6)
    FE = Bit(7)
    PE = Bit(8)
    BE = Bit(9)
    OE = Bit(10)


# As plain numbers: a field of a Register class costs a call each time it is looked up.
_CONNECTED = FlagRegister.CTS | FlagRegister.DSR | FlagRegister.DCD | FlagRegister.TXFE
_RXFE, _RXFF = FlagRegister.RXFE, FlagRegister.RXFF
_FEN, _LBE = LineControlRegister.FEN, ControlRegister.LBE
_RX, _TX, _RT = Interrupts.RX, Interrupts.TX, Interrupts.RT
_RECEIVE, _ALL = _RX | _RT, 0x7FF
_TRIGGERS = (4, 8, 16, 24, 28)  # of 32, by the receive field of IFLS
_REMEMBERED = (ILPR, IBRD, FBRD, DMACR)


class Pl011:
    """One UART, its registers from ``base``.

    ``transmit(byte)`` is called in the vCPU's thread for each byte sent, at times with the lock held: it may store the
    byte and wake somebody, and must not call the UART.  ``line.set(level)`` likewise, in any thread.  ``read`` and
    ``write`` are the handlers for a bus.
    """

    def __init__(self, transmit: Callable[[int], None], line: LevelLine, base: int) -> None:
        self.base = base
        self.coalescing = False
        self.want_coalescing = True
        self._transmit = transmit
        self._line = line
        self._lock = Lock()
        self._receiver = Receiver()
        self._waiting = self._receiver.waiting
        self._fr = _CONNECTED | _RXFE
        self._lcr_h = 0
        self._cr = ControlRegister.RXE | ControlRegister.TXE
        self._ifls = 0x12
        self._imsc = self._ris = 0
        self._level = False
        self._polls = 0
        self._unread = True  # no byte was read, and none went back to wait, since CR was written
        self._plain = False  # a write of DR is just transmitted: no loopback, and TXRIS is up already
        self._rest = dict.fromkeys(_REMEMBERED, 0)

    # -- the host's side --------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Input for the guest; it waits until the guest takes it, however much it is.  Any thread."""
        with self._lock:
            self._receiver.wait(data)
            self._update()

    @property
    def pending(self) -> int:
        """Bytes of input that the guest has not been ready for yet."""
        return len(self._waiting)

    @property
    def receive_room(self) -> int:
        """Bytes of input to hand over before waiting for :meth:`on_room`; may be 0."""
        return max(0, RECEIVE_LIMIT - len(self._waiting))

    def on_room(self, callback: Callable[[], None]) -> None:
        """Have ``callback()`` called when half the room is free again after all of it was used up.

        It is called in the vCPU's thread with the lock held, and must not call the UART.
        """
        self._receiver.on_room = callback

    def describe(self) -> str:
        """The registers in words, on one line."""
        with self._lock:
            return ", ".join(
                (
                    f"{len(self._receiver.fifo)} received",
                    f"{len(self._waiting)} waiting",
                    str(FlagRegister(self._fr)),
                    str(LineControlRegister(self._lcr_h)),
                    str(ControlRegister(self._cr)),
                    f"IMSC {Interrupts(self._imsc).decode()}",
                    f"RIS {Interrupts(self._ris).decode()}",
                )
            )

    # -- the machine's side: coalesced writes -----------------------------------------------------------

    @property
    def coalesced_ports(self) -> tuple[int, ...]:
        """Addresses where writes only matter to later accesses: DR."""
        return (self.base + DR,)

    def settle(self) -> None:
        """Nothing is held back: a byte raises TXRIS whenever it comes."""

    def on_late_drain(self) -> None:
        """The machine's timer brought writes to DR: a guest that waits for TXRIS is better off without the delay."""
        if self._imsc & _TX:
            self.want_coalescing = False

    # -- registers --------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The register at ``offset``; zero where there is none."""
        if offset == FR:
            return self._read_fr()
        with self._lock:
            self._polls = 0
            if offset == DR:
                return self._read_dr()
            if offset == RIS:
                return self._ris
            if offset == MIS:
                return self._ris & self._imsc
            if offset == IMSC:
                return self._imsc
            if offset == CR:
                return self._cr
            if offset == LCR_H:
                return self._lcr_h
            if offset == IFLS:
                return self._ifls
            if offset in self._rest:
                return self._rest[offset]
        return identification(PERIPHERAL_ID, offset)

    def write(self, offset: int, value: int, size: int) -> None:
        """The register at ``offset``; lost where there is none."""
        if offset == DR:
            self._write_dr(value & 0xFF)
            return
        with self._lock:
            self._polls = 0
            if offset == ICR:
                self._ris &= ~value
                self._plain = False
            elif offset == IMSC:
                self._set_mask(value & _ALL)
            elif offset == CR:
                self._cr = value & 0xFFFF
                self._plain = False
                self._unread = True
            elif offset == LCR_H:
                self._set_line(value & 0xFF)
            elif offset == IFLS:
                self._ifls = value & 0x3F
            elif offset in self._rest:
                self._rest[offset] = value & 0xFFFF
                return
            self._update()

    def _read_fr(self) -> int:
        if not self._waiting or not self._fr & _RXFE:
            return self._fr
        with self._lock:
            self._polls += 1
            if self._polls >= POLLS and not self._cr & _LBE:
                self._receiver.fill()
                self._update()
            return self._fr

    def _read_dr(self) -> int:
        """The oldest byte; 0 if there is none."""
        if not self._receiver.fifo:
            return 0
        value = self._receiver.pop()
        self._unread = False
        self._update()
        return value

    def _write_dr(self, value: int) -> None:
        self._polls = 0
        if self._plain:
            self._transmit(value)
            return
        with self._lock:
            if self._cr & _LBE:
                self._receiver.loop(value)
            else:
                self._transmit(value)
                self._plain = bool(self._ris & _TX)
            self._ris |= _TX
            self._update()

    def _set_mask(self, value: int) -> None:
        """IMSC.  Disabling the receive interrupts before a byte was read has the host's input wait again."""
        if self._unread and self._imsc & _RECEIVE and not value & _RECEIVE:
            self._receiver.reset()
            self._unread = False
        self._imsc = value

    def _set_line(self, value: int) -> None:
        """LCR_H.  Switching the FIFOs on or off empties them; what came from the host comes again."""
        if (value ^ self._lcr_h) & _FEN:
            self._receiver.reset()
            self._receiver.size = FIFO_SIZE if value & _FEN else 1
        self._lcr_h = value

    # -- what follows, the lock held --------------------------------------------------------------------

    def _update(self) -> None:
        """Let waiting input in, if the guest takes it by interrupt; bring FR, RIS and the line up to date."""
        receiver = self._receiver
        if self._waiting and self._imsc & _RECEIVE and not self._cr & _LBE:
            receiver.fill()
        count = len(receiver.fifo)
        fr = _CONNECTED
        ris = self._ris & ~_RECEIVE
        if count == 0:
            fr |= _RXFE
        else:
            ris |= _RT
            if count >= receiver.size:
                fr |= _RXFF
            if count >= self._trigger():
                ris |= _RX
        self._fr = fr
        self._ris = ris
        level = bool(ris & self._imsc)
        if level != self._level:
            self._level = level
            self._line.set(level)

    def _trigger(self) -> int:
        """Bytes received that raise RXRIS."""
        if not self._lcr_h & _FEN:
            return 1
        return _TRIGGERS[min(self._ifls >> 3 & 7, len(_TRIGGERS) - 1)]
