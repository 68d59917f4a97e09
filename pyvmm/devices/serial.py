"""The serial port: a 16550A UART with the 64-byte FIFOs of a 16750 (TI SLLS191C, TL16C750; NS PC16550D).

The line is perfect and infinitely fast: a byte written is transmitted at once, THRE and TEMT are always
set, and nothing arrives with a parity or framing error.  Word length, parity and speed are remembered and
have no effect.  OUT2 does not gate the interrupt line, as it does on a PC: small kernels leave it clear.
The interrupts are in :mod:`pyvmm.devices.uart_interrupts`.

Input given to :meth:`Serial16550.receive` waits until the guest is ready for it: its receive interrupt is
enabled, or it has read LSR :data:`POLLS` times in a row and done nothing else.  Linux probes and opens a
port with FIFO resets and blind reads of RBR, and resets the FIFO whenever the line's settings change; none
of that loses input (see :mod:`pyvmm.devices.uart_receiver`).  A guest that asserts DTR but not RTS is
exercising flow control, and gets nothing until it asserts RTS.

Coalesced writes.  KVM may collect writes to :attr:`Serial16550.coalesced_ports` and hand them over in
order, before the next exit of any kind is handled; so every access sees the writes that went before it,
those with DLAB or loopback set included.  What changes is the THRE interrupt.  The machine sets
:attr:`Serial16550.coalescing`, calls :meth:`Serial16550.settle` after it has handled the exit that brought
writes, and :meth:`Serial16550.on_late_drain` when not an exit but its timer brought them: then the guest may
be waiting for THRE.  A guest that lives that way is better off without coalescing, and
:attr:`Serial16550.want_coalescing` says so.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.devices.uart_interrupts import DATA, LINE, MODEM, THRE, TIMEOUT, Interrupts
from pyvmm.devices.uart_receiver import BREAK, RECEIVE_LIMIT, Receiver
from pyvmm.devices.uart_registers import (
    FCR,
    LCR,
    SCR,
    THR,
    TRIGGERS_16,
    TRIGGERS_64,
    FifoControl,
    InterruptEnable,
    InterruptId,
    LineControl,
    LineStatus,
    ModemControl,
    ModemStatus,
    describe_format,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.uart_interrupts import InterruptLine

#: LSR reads in a row, with input waiting and nothing else accessed, that show a guest polling for it.
#: Linux reads LSR at most twice in a row where a byte would be thrown away (serial8250_do_startup).
POLLS = 8

# Register bits as plain numbers: a field of a Register class costs a call each time it is looked up.
_ERBFI, _ETBEI = InterruptEnable.ERBFI, InterruptEnable.ETBEI
_IER_BITS, _MCR_BITS = 0x3F, 0x3F
_ENABLE, _RESET_RX, _RESET_TX, _FIFO64 = (
    FifoControl.ENABLE,
    FifoControl.RESET_RX,
    FifoControl.RESET_TX,
    FifoControl.FIFO64,
)
_DLAB, _BREAK_ON = LineControl.DLAB, LineControl.BREAK
_LOOP, _DTR, _RTS = ModemControl.LOOP, ModemControl.DTR, ModemControl.RTS
_OUT1, _OUT2 = ModemControl.OUT1, ModemControl.OUT2
_DR, _ERRORS = LineStatus.DR, LineStatus.OE | LineStatus.BI
_IDLE = LineStatus.THRE | LineStatus.TEMT
_CTS, _DSR, _RI, _DCD = ModemStatus.CTS, ModemStatus.DSR, ModemStatus.RI, ModemStatus.DCD
_INPUTS, _DELTAS = 0xF0, 0x0F


class Serial16550:
    """One UART at the ports from ``base``.

    ``transmit(byte)`` is called in the vCPU's thread for each byte sent, at times with the lock held: it may
    store the byte and wake somebody, and must not call the UART.  ``line.trigger()`` likewise, in any thread.

    ``reads`` and ``writes`` are the handlers for :meth:`pyvmm.devices.bus.Bus.add_pio_bytes`.
    """

    def __init__(self, transmit: Callable[[int], None], line: InterruptLine, base: int = 0x3F8) -> None:
        self.base = base
        self._transmit = transmit
        self._lock = Lock()
        self._interrupts = Interrupts(line)
        self._receiver = Receiver()
        self._waiting = self._receiver.waiting
        self._lsr = _IDLE
        self._msr = _CTS | _DSR | _DCD
        self._fcr = self._lcr = self._mcr = self._scr = 0
        self._divisor = 12  # 9600 baud; not zero, which kernels divide by
        self._trigger = 1
        self._iir_fifo = 0
        self._polls = 0
        self._plain = True  # THR writes are just transmitted: DLAB, loopback and ETBEI are clear
        self._open = True  # the receiver is connected: no loopback, no flow control
        self.reads = (
            self.read_rbr, self.read_ier, self.read_iir, self.read_lcr,
            self.read_mcr, self.read_lsr, self.read_msr, self.read_scr,
        )  # fmt: skip
        self.writes = (
            self.write_thr, self.write_ier, self.write_fcr, self.write_lcr,
            self.write_mcr, self.write_nothing, self.write_nothing, self.write_scr,
        )  # fmt: skip

    # -- the host's side --------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Input for the guest; it waits until the guest takes it, however much it is.  Any thread."""
        with self._lock:
            self._receiver.wait(data)
            self._feed()
            self._changed()

    def receive_break(self) -> None:
        """A break condition on the line, in its place among the input.  Any thread."""
        with self._lock:
            self._receiver.wait_break()
            self._feed()
            self._changed()

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
            words = [
                describe_format(self._lcr, self._divisor),
                f"FIFO {self._receiver.size}",
                f"{len(self._receiver.fifo)} received",
                f"{len(self._waiting)} waiting",
                str(InterruptEnable(self._interrupts.ier)),
                str(LineControl(self._lcr)),
                str(ModemControl(self._mcr)),
                str(LineStatus(self._lsr)),
                str(ModemStatus(self._msr)),
            ]
        return ", ".join(words)

    # -- the machine's side: coalesced writes -----------------------------------------------------------

    @property
    def thr_port(self) -> int:
        """The port of THR, where nearly all writes go."""
        return self.base + THR

    @property
    def coalesced_ports(self) -> tuple[int, ...]:
        """Ports whose writes only matter to later accesses; IER and MCR are not among them."""
        return (self.base + THR, self.base + FCR, self.base + LCR, self.base + SCR)

    @property
    def coalescing(self) -> bool:
        """Whether writes come late: set by the machine while KVM collects those to :attr:`thr_port`."""
        return self._interrupts.coalescing

    @coalescing.setter
    def coalescing(self, value: bool) -> None:
        self._interrupts.coalescing = value

    @property
    def want_coalescing(self) -> bool:
        """False for a guest that waits for the THRE interrupt without making an exit."""
        return self._interrupts.want_coalescing

    @property
    def coalescing_safe(self) -> bool:
        """Whether a write to :attr:`thr_port` is a byte for the line at present (no DLAB, no loopback).

        Not needed for correctness as long as the ring is emptied before each exit is handled.
        """
        return not (self._lcr & _DLAB or self._mcr & _LOOP)

    def settle(self) -> None:
        """After the exit that brought coalesced writes: raise what was held back and is still due."""
        if self._interrupts.held_back:
            with self._lock:
                self._interrupts.settle()

    def on_late_drain(self) -> None:
        """The machine's timer brought coalesced writes, if any to THR."""
        with self._lock:
            self._interrupts.late_drain()

    # -- registers, read --------------------------------------------------------------------------------

    def read_lsr(self) -> int:
        """LSR.  Reading it clears the error bits, and shows a polling guest its next byte."""
        lsr = self._lsr
        if lsr == _IDLE and not self._waiting:
            return lsr
        with self._lock:
            lsr = self._lsr
            if lsr & _ERRORS:
                self._receiver.clear_errors()
                self._changed()
            elif not lsr & _DR and self._waiting and self._open:
                self._polls += 1
                if self._polls >= POLLS:
                    self._receiver.take()
                    self._changed()
                    lsr = self._lsr
            return lsr

    def read_rbr(self) -> int:
        """RBR, or DLL: the oldest byte received; 0 if there is none."""
        with self._lock:
            if self._lcr & _DLAB:
                return self._divisor & 0xFF
            if not self._receiver.fifo:
                self._polls = 0
                return 0
            value = self._receiver.pop()
            self._feed()
            self._changed(DATA | TIMEOUT)
            return value

    def read_ier(self) -> int:
        """IER, or DLM."""
        return self._divisor >> 8 if self._lcr & _DLAB else self._interrupts.ier

    def read_iir(self) -> int:
        """IIR: the pending cause of the highest priority, which it clears if it is THRE."""
        with self._lock:
            self._polls = 0
            return self._interrupts.identify() | self._iir_fifo

    def read_lcr(self) -> int:
        """LCR."""
        return self._lcr

    def read_mcr(self) -> int:
        """MCR."""
        return self._mcr

    def read_msr(self) -> int:
        """MSR.  Reading it clears the delta bits."""
        with self._lock:
            self._polls = 0
            msr = self._msr
            if msr & _DELTAS:
                self._msr = msr & _INPUTS
                self._changed()
            return msr

    def read_scr(self) -> int:
        """SCR: the byte the guest left there."""
        return self._scr

    # -- registers, written -----------------------------------------------------------------------------

    def write_thr(self, value: int) -> None:
        """THR, or DLL: transmit a byte."""
        if self._polls < POLLS:
            self._polls = 0
        if self._plain:
            self._transmit(value)
            return
        with self._lock:
            if self._lcr & _DLAB:
                self._divisor = self._divisor & 0xFF00 | value
                return
            if self._mcr & _LOOP:
                self._receiver.loop(value)
            else:
                self._transmit(value)
            self._interrupts.sent()
            self._changed(THRE, hold_back=self._interrupts.coalescing)

    def write_ier(self, value: int) -> None:
        """IER, or DLM."""
        with self._lock:
            if self._lcr & _DLAB:
                self._divisor = self._divisor & 0xFF | value << 8
                return
            self._interrupts.enable(value & _IER_BITS)
            self._configured()

    def write_fcr(self, value: int) -> None:
        """FCR: FIFO enable, reset, trigger level; the 64-byte mode only while DLAB is set."""
        with self._lock:
            enable = value & _ENABLE
            if enable != self._fcr & _ENABLE or (enable and value & _RESET_RX):
                self._receiver.reset()
            if not self._lcr & _DLAB:
                value = value & ~_FIFO64 | self._fcr & _FIFO64
            self._fcr = value & ~(_RESET_RX | _RESET_TX)
            level = value >> 6 & 3
            if not enable:
                size, self._trigger, self._iir_fifo = 1, 1, 0
            elif value & _FIFO64:
                size, self._trigger = 64, TRIGGERS_64[level]
                self._iir_fifo = InterruptId.FIFO | InterruptId.FIFO64
            else:
                size, self._trigger, self._iir_fifo = 16, TRIGGERS_16[level], InterruptId.FIFO
            self._receiver.size = size
            self._configured()

    def write_lcr(self, value: int) -> None:
        """LCR.  A break in loopback comes back as one."""
        with self._lock:
            if value & ~self._lcr & _BREAK_ON and self._mcr & _LOOP:
                self._receiver.loop(BREAK)
            self._lcr = value
            self._configured()

    def write_mcr(self, value: int) -> None:
        """MCR.  In loopback the outputs drive the inputs of MSR, and THR drives the receiver."""
        with self._lock:
            self._mcr = value = value & _MCR_BITS
            inputs = _CTS | _DSR | _DCD
            if value & _LOOP:
                inputs = 0
                for output, wired in ((_RTS, _CTS), (_DTR, _DSR), (_OUT1, _RI), (_OUT2, _DCD)):
                    if value & output:
                        inputs |= wired
            changed = (inputs ^ self._msr) & _INPUTS
            changed &= ~(_RI & inputs)  # TERI tells of the end of a ring, not of its start
            self._msr = inputs | self._msr & _DELTAS | changed >> 4
            self._configured()

    def write_scr(self, value: int) -> None:
        """SCR."""
        self._scr = value

    def write_nothing(self, value: int) -> None:
        """LSR and MSR: writing them is for factory tests."""

    # -- what follows, the lock held --------------------------------------------------------------------

    def _configured(self) -> None:
        """IER, FCR, LCR or MCR was written."""
        ier, mcr = self._interrupts.ier, self._mcr
        self._polls = 0
        self._plain = not (self._lcr & _DLAB or mcr & _LOOP or ier & _ETBEI)
        self._open = not mcr & _LOOP and mcr & (_DTR | _RTS) != _DTR
        self._feed()
        self._changed()

    def _feed(self) -> None:
        """Let waiting input in, if the guest takes it by interrupt."""
        if self._waiting and self._open and self._interrupts.ier & _ERBFI:
            self._receiver.fill()

    def _changed(self, again: int = 0, hold_back: bool = False) -> None:
        """Bring LSR and the interrupt up to date; ``again`` and ``hold_back`` as in Interrupts.update."""
        fifo = self._receiver.fifo
        self._lsr = lsr = _IDLE | self._receiver.status()
        causes = 0
        if fifo:
            causes = DATA if len(fifo) >= self._trigger else TIMEOUT
        if lsr & _ERRORS:
            causes |= LINE
        if self._msr & _DELTAS:
            causes |= MODEM
        self._interrupts.update(causes, again, hold_back)
