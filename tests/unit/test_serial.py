"""The UART against its data sheet, and against what Linux's 8250 driver and simple kernels do with it."""

from __future__ import annotations

import random
import threading

import pytest

from pyvmm.devices.bus import Bus
from pyvmm.devices.serial import POLLS, Serial16550
from pyvmm.devices.uart_interrupts import LATE_DRAINS
from pyvmm.devices.uart_receiver import RECEIVE_LIMIT
from pyvmm.devices.uart_registers import (
    FCR,
    IER,
    IIR,
    LCR,
    LSR,
    MCR,
    MSR,
    RBR,
    SCR,
    THR,
    InterruptEnable,
    InterruptId,
    LineStatus,
    ModemStatus,
)

DLL, DLM = 0, 1
DLAB = 0x80
FIFO_ON, FIFO_64 = 0x01, 0x20
LOOP, OUT2, OUT1, RTS, DTR = 0x10, 0x08, 0x04, 0x02, 0x01
RDI, THRI, RLSI, MSI = 0x01, 0x02, 0x04, 0x08
DR, OE, BI, THRE, TEMT = 0x01, 0x02, 0x10, 0x20, 0x40
NO_INT, INT_MODEM, INT_THRE, INT_DATA, INT_LINE, INT_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C


class Line:
    """An edge-triggered interrupt with its latch: what an IOAPIC pin and a LAPIC's IRR bit make of it."""

    def __init__(self) -> None:
        self.latched = False
        self.edges = 0

    def trigger(self) -> None:
        self.latched = True
        self.edges += 1

    def take(self) -> bool:
        """Deliver the interrupt, if there is one."""
        latched, self.latched = self.latched, False
        return latched


class Guest:
    """A CPU in front of the UART: ``inb``, ``outb`` and, if asked, KVM's ring of coalesced writes.

    ``exits`` counts what would leave the kernel.
    """

    def __init__(self, coalescing: bool = False) -> None:
        self.sent = bytearray()
        self.line = Line()
        self.uart = Serial16550(self.sent.append, self.line, base=0x3F8)
        self.uart.coalescing = coalescing
        self.bus = Bus()
        self.bus.add_pio_bytes("com1", 0x3F8, self.uart.reads, self.uart.writes)
        self.ring: list[tuple[int, int]] = []
        self.exits = 0

    def inb(self, register: int) -> int:
        drained = self._drain()
        self.exits += 1
        value = self.bus.pio_in[0x3F8 + register].access(1)
        if drained:
            self.uart.settle()
        assert 0 <= value <= 0xFF
        return value

    def outb(self, register: int, value: int) -> None:
        if self.uart.coalescing and 0x3F8 + register in self.uart.coalesced_ports:
            self.ring.append((0x3F8 + register, value))
            return
        drained = self._drain()
        self.exits += 1
        self.bus.pio_out[0x3F8 + register].access(value, 1)
        if drained:
            self.uart.settle()

    def _drain(self) -> bool:
        drained = bool(self.ring)
        for port, value in self.ring:
            self.bus.pio_out[port].access(value, 1)
        self.ring.clear()
        return drained

    def timer(self) -> None:
        """What the machine does every few milliseconds."""
        if self._drain():
            self.uart.on_late_drain()

    def read_all(self) -> bytes:
        """Everything the receiver has, by polling DR."""
        data = bytearray()
        while self.inb(LSR) & DR:
            data.append(self.inb(RBR))
        return bytes(data)


@pytest.fixture
def guest() -> Guest:
    return Guest()


# -- the data sheet -------------------------------------------------------------------------------------


def test_after_reset(guest: Guest) -> None:
    """TI SLLS191C, table 1 (reset functions), with the modem inputs asserted."""
    expected = {IER: 0, IIR: NO_INT, LCR: 0, MCR: 0, LSR: THRE | TEMT, MSR: 0xB0, RBR: 0}
    assert {register: guest.inb(register) for register in expected} == expected
    assert guest.line.edges == 0


def test_a_byte_written_is_transmitted_at_once(guest: Guest) -> None:
    for byte in b"\x00A\xff":
        guest.outb(THR, byte)
        assert guest.inb(LSR) == THRE | TEMT
    assert guest.sent == b"\x00A\xff"


def test_the_divisor_latch_hides_the_first_two_registers(guest: Guest) -> None:
    guest.outb(IER, MSI)
    guest.outb(LCR, DLAB | 3)
    guest.outb(DLL, 0x34)
    guest.outb(DLM, 0x12)
    assert (guest.inb(DLL), guest.inb(DLM)) == (0x34, 0x12)
    guest.outb(DLL, 0x56)
    assert (guest.inb(DLL), guest.inb(DLM)) == (0x56, 0x12)
    guest.outb(LCR, 3)
    assert guest.inb(IER) == MSI
    assert guest.sent == b""
    guest.outb(THR, 0x34)
    assert guest.sent == b"\x34"


def test_the_divisor_starts_as_9600_baud(guest: Guest) -> None:
    """A kernel that probes the speed divides by it (probe_baud)."""
    guest.outb(LCR, DLAB)
    assert 115200 // (guest.inb(DLM) << 8 | guest.inb(DLL)) == 9600


def test_registers_keep_only_the_bits_they_have(guest: Guest) -> None:
    for register, kept in ((IER, 0x3F), (MCR, 0x3F), (LCR, 0xFF), (SCR, 0xFF)):
        guest.outb(register, 0xFF)
        assert guest.inb(register) == kept
        guest.outb(LCR, 0)
        guest.outb(register, 0)
        assert guest.inb(register) == 0


def test_status_registers_ignore_writes(guest: Guest) -> None:
    for register in (LSR, MSR):
        before = guest.inb(register)
        guest.outb(register, ~before & 0xFF)
        assert guest.inb(register) == before


@pytest.mark.parametrize(
    ("fifo64", "level", "trigger"),
    [
        *((False, level, trigger) for level, trigger in enumerate((1, 4, 8, 14))),
        *((True, level, trigger) for level, trigger in enumerate((1, 16, 32, 56))),
    ],
)
def test_received_data_interrupt_at_the_trigger_level_and_timeout_below(
    guest: Guest, fifo64: bool, level: int, trigger: int
) -> None:
    if fifo64:
        guest.outb(LCR, DLAB)
    guest.outb(FCR, FIFO_ON | level << 6 | (FIFO_64 if fifo64 else 0))
    guest.outb(LCR, 3)
    guest.outb(IER, RDI)
    seen = []
    for count in range(1, 64 if fifo64 else 16):
        guest.uart.receive(b"x")
        seen.append((guest.inb(IIR) & 0x0F, count))
    assert seen == [(INT_DATA if count >= trigger else INT_TIMEOUT, count) for _, count in seen]


def test_the_data_interrupt_ends_below_the_trigger_level(guest: Guest) -> None:
    guest.outb(FCR, FIFO_ON | 0x40)
    guest.outb(IER, RDI)
    guest.uart.receive(b"abcd")
    assert guest.inb(IIR) & 0x0F == INT_DATA
    assert guest.inb(RBR) == ord("a")
    assert guest.inb(IIR) & 0x0F == INT_TIMEOUT
    assert bytes(guest.inb(RBR) for _ in range(3)) == b"bcd"
    assert guest.inb(IIR) == 0xC0 | NO_INT


def test_without_fifo_one_byte_is_there_at_a_time(guest: Guest) -> None:
    guest.outb(IER, RDI)
    guest.uart.receive(b"ab")
    assert guest.uart.pending == 1
    assert guest.inb(IIR) == INT_DATA
    assert guest.inb(RBR) == ord("a")
    assert guest.uart.pending == 0
    assert guest.inb(RBR) == ord("b")
    assert guest.inb(LSR) == THRE | TEMT


@pytest.mark.parametrize(("fifo64", "capacity"), [(False, 16), (True, 64)])
def test_the_fifo_holds_no_more_than_it_has(guest: Guest, fifo64: bool, capacity: int) -> None:
    guest.outb(LCR, DLAB)
    guest.outb(FCR, FIFO_ON | FIFO_64 * fifo64)
    guest.outb(LCR, 3)
    guest.outb(IER, RDI)
    guest.uart.receive(bytes(100))
    assert guest.uart.pending == 100 - capacity


def test_iir_shows_the_fifo(guest: Guest) -> None:
    assert guest.inb(IIR) >> 5 == 0
    guest.outb(FCR, FIFO_ON)
    assert guest.inb(IIR) >> 5 == 6
    guest.outb(FCR, FIFO_ON | FIFO_64)
    assert guest.inb(IIR) >> 5 == 6, "the 64-byte bit is protected while DLAB is clear"
    guest.outb(LCR, DLAB)
    guest.outb(FCR, FIFO_ON | FIFO_64)
    assert guest.inb(IIR) >> 5 == 7
    guest.outb(LCR, 0)
    guest.outb(FCR, FIFO_ON)
    assert guest.inb(IIR) >> 5 == 7, "and stays as it is"
    guest.outb(FCR, 0)
    assert guest.inb(IIR) >> 5 == 0


def test_interrupt_priorities(guest: Guest) -> None:
    """TI SLLS191C, table 5: line status, data, THRE, modem status; each is cleared in its own way."""
    guest.outb(MCR, LOOP)
    guest.inb(MSR)
    for byte in b"ab":
        guest.outb(THR, byte)  # without FIFO the second overruns the first
    guest.outb(MCR, LOOP | RTS)  # CTS changes
    guest.outb(IER, RDI | THRI | RLSI | MSI)
    order = [guest.inb(IIR)]
    assert guest.inb(LSR) & (OE | DR) == OE | DR
    order.append(guest.inb(IIR))
    assert guest.inb(RBR) == ord("b")
    order.append(guest.inb(IIR))  # reading IIR clears THRE
    order.append(guest.inb(IIR))
    assert guest.inb(MSR) & 0x0F == ModemStatus.DCTS
    order.append(guest.inb(IIR))
    assert order == [INT_LINE, INT_DATA, INT_THRE, INT_MODEM, NO_INT]


@pytest.mark.parametrize("enable", [RDI, THRI, RLSI, MSI])
def test_only_enabled_causes_interrupt(guest: Guest, enable: int) -> None:
    guest.outb(MCR, LOOP)
    guest.outb(THR, 1)
    guest.outb(THR, 2)
    guest.outb(MCR, LOOP | RTS)
    assert guest.inb(IIR) == NO_INT
    assert guest.line.edges == 0
    guest.outb(IER, enable)
    assert guest.inb(IIR) == {RDI: INT_DATA, THRI: INT_THRE, RLSI: INT_LINE, MSI: INT_MODEM}[enable]
    assert guest.line.edges == 1
    guest.outb(IER, 0)
    assert guest.inb(IIR) == NO_INT


def test_thre_is_latched_by_enabling_it_and_by_writing_and_cleared_by_iir(guest: Guest) -> None:
    guest.outb(IER, THRI)
    assert [guest.inb(IIR), guest.inb(IIR)] == [INT_THRE, NO_INT]
    guest.outb(IER, THRI | RDI)
    assert guest.inb(IIR) == NO_INT, "it was enabled already"
    guest.outb(THR, 1)
    assert [guest.inb(IIR), guest.inb(IIR)] == [INT_THRE, NO_INT]
    guest.outb(IER, 0)
    guest.outb(IER, THRI)
    assert guest.inb(IIR) == INT_THRE


def test_reading_iir_for_another_cause_leaves_thre(guest: Guest) -> None:
    guest.outb(IER, THRI | RDI)
    guest.uart.receive(b"x")
    assert guest.inb(IIR) == INT_DATA
    guest.inb(RBR)
    assert guest.inb(IIR) == INT_THRE


def test_modem_inputs_in_loopback_and_their_deltas(guest: Guest) -> None:
    guest.outb(MCR, LOOP)
    assert guest.inb(MSR) == 0x0B, "CTS, DSR and DCD went away"
    wiring = {RTS: ModemStatus.CTS, DTR: ModemStatus.DSR, OUT1: ModemStatus.RI, OUT2: ModemStatus.DCD}
    for output, wired in wiring.items():
        guest.outb(MCR, LOOP | output)
        assert guest.inb(MSR) & 0xF0 == wired
        guest.outb(MCR, LOOP)
        delta = guest.inb(MSR)
        assert delta == wired >> 4, "the change shows once"
        assert guest.inb(MSR) == 0
    guest.outb(MCR, 0)
    assert guest.inb(MSR) & 0xF0 == 0xB0


def test_a_ring_is_told_at_its_end_only(guest: Guest) -> None:
    guest.outb(MCR, LOOP)
    guest.inb(MSR)
    guest.outb(MCR, LOOP | OUT1)
    assert guest.inb(MSR) == ModemStatus.RI
    guest.outb(MCR, LOOP)
    assert guest.inb(MSR) == ModemStatus.TERI


def test_deltas_add_up_until_msr_is_read(guest: Guest) -> None:
    guest.outb(MCR, LOOP)
    guest.inb(MSR)
    guest.outb(MCR, LOOP | RTS)
    guest.outb(MCR, LOOP | RTS | DTR)
    assert guest.inb(MSR) & 0x0F == ModemStatus.DCTS | ModemStatus.DDSR


def test_loopback_sends_to_itself_only(guest: Guest) -> None:
    guest.outb(FCR, FIFO_ON)
    guest.outb(MCR, LOOP)
    for byte in b"echo":
        guest.outb(THR, byte)
    assert guest.read_all() == b"echo"
    assert guest.sent == b""


def test_loopback_overrun_keeps_the_fifo_and_is_told_once(guest: Guest) -> None:
    guest.outb(FCR, FIFO_ON)
    guest.outb(MCR, LOOP)
    for byte in range(20):
        guest.outb(THR, byte)
    assert guest.inb(LSR) & OE
    assert not guest.inb(LSR) & OE
    assert guest.read_all() == bytes(range(16))


def test_loopback_overrun_without_fifo_keeps_the_newest(guest: Guest) -> None:
    guest.outb(MCR, LOOP)
    guest.outb(THR, 1)
    guest.outb(THR, 2)
    assert guest.inb(LSR) & (OE | DR) == OE | DR
    assert guest.inb(RBR) == 2


def test_a_fifo_reset_discards_what_the_guest_sent_to_itself(guest: Guest) -> None:
    guest.outb(FCR, FIFO_ON)
    guest.outb(MCR, LOOP)
    guest.outb(THR, 1)
    guest.outb(FCR, FIFO_ON | 2)
    assert not guest.inb(LSR) & DR
    guest.outb(MCR, 0)
    guest.outb(IER, RDI)
    assert not guest.inb(LSR) & DR
    assert guest.uart.pending == 0


def test_a_break_arrives_in_its_place(guest: Guest) -> None:
    guest.outb(FCR, FIFO_ON)
    guest.outb(IER, RDI | RLSI)
    guest.uart.receive(b"a")
    guest.uart.receive_break()
    guest.uart.receive(b"b")
    assert guest.inb(LSR) & (BI | DR | LineStatus.FIFO_ERROR) == DR | LineStatus.FIFO_ERROR
    assert guest.inb(RBR) == ord("a")
    assert guest.inb(IIR) & 0x0F == INT_LINE
    assert guest.inb(LSR) & (BI | DR) == BI | DR
    assert guest.inb(LSR) & (BI | LineStatus.FIFO_ERROR) == 0, "reading LSR clears it"
    assert guest.inb(RBR) == 0
    assert guest.inb(RBR) == ord("b")


def test_a_break_in_loopback_comes_back(guest: Guest) -> None:
    guest.outb(MCR, LOOP)
    guest.outb(LCR, 0x43)
    assert guest.inb(LSR) & (BI | DR) == BI | DR
    assert guest.inb(RBR) == 0
    guest.outb(LCR, 0x40)
    assert not guest.inb(LSR) & DR, "the same break goes on"


def test_a_break_leaves_no_error_behind(guest: Guest) -> None:
    """Neither when the guest reads on without a look at LSR, nor when it resets the FIFO."""
    guest.outb(FCR, FIFO_ON)
    guest.outb(IER, RDI)
    guest.uart.receive_break()
    guest.inb(RBR)
    guest.uart.receive(b"x")
    assert guest.inb(LSR) == DR | THRE | TEMT
    guest.inb(RBR)
    guest.uart.receive_break()
    guest.outb(FCR, FIFO_ON | 2)
    guest.uart.receive(b"y")
    assert guest.inb(LSR) == LineStatus.FIFO_ERROR | BI | DR | THRE | TEMT
    guest.inb(RBR)
    assert guest.inb(LSR) == DR | THRE | TEMT


def test_describe_names_what_is_set(guest: Guest) -> None:
    guest.outb(LCR, DLAB | 3)
    guest.outb(DLL, 1)
    guest.outb(LCR, 0x1B)
    guest.outb(FCR, FIFO_ON)
    guest.outb(IER, THRI)
    guest.uart.receive(b"xyz")
    text = guest.uart.describe()
    for part in ("115200 8e1", "FIFO 16", "0 received", "3 waiting", "ETBEI", "THRE"):
        assert part in text, text
    assert "ERBFI" not in text


# -- input is never lost --------------------------------------------------------------------------------


def test_input_waits_for_the_receive_interrupt(guest: Guest) -> None:
    guest.uart.receive(b"early")
    assert guest.inb(LSR) == THRE | TEMT
    assert guest.uart.pending == 5
    guest.outb(FCR, FIFO_ON)
    guest.outb(IER, RDI)
    assert guest.line.take()
    assert guest.read_all() == b"early"


def test_a_fifo_reset_gives_input_back(guest: Guest) -> None:
    guest.outb(FCR, FIFO_ON)
    guest.outb(IER, RDI)
    guest.uart.receive(b"typed ahead of the reset")
    assert guest.inb(RBR) == ord("t")
    guest.outb(IER, 0)
    guest.outb(FCR, FIFO_ON | 2)
    assert not guest.inb(LSR) & DR, "a reset FIFO is empty"
    guest.outb(FCR, 0)
    guest.outb(FCR, FIFO_ON)
    guest.outb(IER, RDI)
    assert guest.read_all() == b"yped ahead of the reset"


@pytest.mark.parametrize("change", [0x00, FIFO_ON])
def test_switching_the_fifo_resets_it_without_loss(guest: Guest, change: int) -> None:
    guest.outb(FCR, change ^ FIFO_ON)
    guest.outb(IER, RDI)
    guest.uart.receive(b"abc")
    guest.outb(IER, 0)
    guest.outb(FCR, change)
    assert not guest.inb(LSR) & DR
    guest.outb(IER, RDI)
    assert guest.read_all() == b"abc"


def test_a_polling_guest_gets_its_input_byte_by_byte(guest: Guest) -> None:
    guest.uart.receive(b"go")
    got = bytearray()
    reads = 0
    while len(got) < 2:
        reads += 1
        if guest.inb(LSR) & DR:
            got.append(guest.inb(RBR))
            assert guest.uart.pending == 2 - len(got)
            guest.outb(THR, got[-1])  # an echo does not make it wait again
    assert got == b"go" == guest.sent
    assert reads == POLLS + 1


def test_a_polling_guest_need_not_wait_for_what_comes_later(guest: Guest) -> None:
    guest.uart.receive(b"1")
    while not guest.inb(LSR) & DR:
        pass
    guest.inb(RBR)
    guest.uart.receive(b"2")
    assert guest.inb(LSR) & DR


def test_printing_is_not_polling(guest: Guest) -> None:
    """A kernel reads LSR before each character of its console."""
    guest.uart.receive(b"early")
    for _ in range(10 * POLLS):
        assert not guest.inb(LSR) & DR
        guest.outb(THR, ord("."))
    assert guest.uart.pending == 5


@pytest.mark.parametrize("register", [IIR, MSR, RBR])
def test_other_accesses_are_not_polling(guest: Guest, register: int) -> None:
    guest.uart.receive(b"early")
    for _ in range(10 * POLLS):
        assert not guest.inb(LSR) & DR
        guest.inb(register)
    assert guest.uart.pending == 5


def test_a_polling_guest_that_sets_the_port_up_again_has_to_show_it_again(guest: Guest) -> None:
    guest.uart.receive(b"12")
    while not guest.inb(LSR) & DR:
        pass
    guest.inb(RBR)
    guest.outb(FCR, 0)
    assert not guest.inb(LSR) & DR


def test_nothing_arrives_in_loopback(guest: Guest) -> None:
    guest.outb(FCR, FIFO_ON)
    guest.outb(MCR, LOOP)
    guest.uart.receive(b"host")
    for enabled in (0, RDI):
        guest.outb(IER, enabled)
        for _ in range(2 * POLLS):
            assert not guest.inb(LSR) & DR
    guest.outb(MCR, 0)
    assert guest.read_all() == b"host"


def test_a_guest_that_drops_rts_is_left_alone(guest: Guest) -> None:
    """Linux with crtscts, its buffers full (uart_throttle)."""
    guest.outb(FCR, FIFO_ON)
    guest.outb(MCR, DTR | RTS | OUT2)
    guest.outb(IER, RDI)
    guest.outb(MCR, DTR | OUT2)
    guest.uart.receive(b"wait")
    assert not guest.inb(LSR) & DR
    guest.line.take()
    guest.outb(MCR, DTR | RTS | OUT2)
    assert guest.line.take()
    assert guest.read_all() == b"wait"


def test_room_for_input_and_the_call_when_there_is_room_again(guest: Guest) -> None:
    calls: list[int] = []
    guest.uart.on_room(lambda: calls.append(guest.uart.receive_room))
    assert guest.uart.receive_room == RECEIVE_LIMIT
    guest.uart.receive(bytes(RECEIVE_LIMIT + 100))
    assert guest.uart.receive_room == 0
    assert guest.uart.pending == RECEIVE_LIMIT + 100, "nothing is dropped"
    guest.outb(FCR, FIFO_ON)
    guest.outb(IER, RDI)
    while guest.inb(LSR) & DR:
        guest.inb(RBR)
    assert calls == [RECEIVE_LIMIT // 2]
    guest.uart.receive(b"x")
    guest.inb(RBR)
    assert len(calls) == 1, "only after it was used up"


# -- Linux ----------------------------------------------------------------------------------------------


class Linux:
    """What drivers/tty/serial/8250 (6.1) does with the port, in its order.

    ``variants`` is CONFIG_SERIAL_8250_16550A_VARIANTS, which Debian's kernels do without.
    """

    def __init__(self, guest: Guest, variants: bool = False) -> None:
        self.inb, self.outb, self.guest = guest.inb, guest.outb, guest
        self.variants = variants
        self.type = "unknown"
        self.fcr = self.ier = self.mctrl = 0
        self.load = 1
        self.xmit = bytearray()
        self.got = bytearray()
        self.unhandled = 0

    # autoconfig()

    def autoconfig(self, skip_test: bool = False) -> None:
        inb, outb = self.inb, self.outb
        saved = inb(IER)
        outb(IER, 0)
        without = inb(IER) & 0x0F
        outb(IER, 0x0F)
        all_set = inb(IER) & 0x0F
        outb(IER, saved)
        if without != 0 or all_set != 0x0F:
            return
        mcr, lcr = inb(MCR), inb(LCR)
        if not skip_test:
            outb(MCR, LOOP | 0x0A)
            looped = inb(MSR) & 0xF0
            outb(MCR, mcr)
            if looped != 0x90:
                return
        outb(LCR, 0xBF)
        outb(FCR, 0)
        outb(LCR, 0)
        outb(FCR, FIFO_ON)
        kind = inb(IIR) >> 6
        if kind == 0:
            self.type = "8250"
        elif kind == 2:
            self.type = "16550"
        elif kind == 3:
            self.type = "16550A"
            if self.variants:
                self.autoconfig_16550a()
        outb(LCR, lcr)
        self.load = {"16550A": 16, "16750": 64}.get(self.type, 1)
        self.fcr = {"16550A": 0x87, "16750": 0xA1}.get(self.type, 0)
        outb(MCR, mcr)
        self.clear_fifos()
        inb(RBR)
        outb(IER, 0)

    def autoconfig_16550a(self) -> None:
        inb, outb = self.inb, self.outb
        outb(LCR, DLAB)
        if inb(IIR) == 0:
            self.type = "16650 or DUART"
            return
        outb(LCR, 0xBF)
        if inb(IIR) == 0:
            self.type = "EFR"
            return
        outb(LCR, 0)
        mcr = inb(MCR)
        outb(LCR, 0xE0)
        exc = inb(IIR)
        if not (exc ^ mcr) & LOOP:
            outb(LCR, 0)
            outb(MCR, mcr ^ LOOP)
            outb(LCR, 0xE0)
            exc = inb(IIR)
            outb(LCR, 0)
            outb(MCR, mcr)
            if (exc ^ mcr) & LOOP:
                self.type = "NS16550A"
                return
        outb(LCR, 0)
        outb(FCR, FIFO_ON | FIFO_64)
        plain = inb(IIR) >> 5
        outb(FCR, FIFO_ON)
        outb(LCR, DLAB)
        outb(FCR, FIFO_ON | FIFO_64)
        latched = inb(IIR) >> 5
        outb(FCR, FIFO_ON)
        outb(LCR, 0)
        if (plain, latched) == (6, 7):
            self.type = "16750"
            return
        saved = inb(IER)
        outb(IER, saved & ~0x40)
        if not inb(IER) & 0x40:
            outb(IER, saved | 0x40)
            if inb(IER) & 0x40:
                self.type = "XScale"
                return
        outb(IER, saved)
        if self.size_fifo() == 64:
            self.type = "U6_16550A"

    def size_fifo(self) -> int:
        inb, outb = self.inb, self.outb
        lcr = inb(LCR)
        outb(LCR, 0)
        fcr, mcr = inb(IIR), inb(MCR)
        outb(FCR, 0x07)
        outb(MCR, LOOP)
        outb(LCR, DLAB)
        divisor = inb(DLL), inb(DLM)
        outb(DLL, 1)
        outb(DLM, 0)
        outb(LCR, 3)
        for value in range(256):
            outb(THR, value)
        count = 0
        while inb(LSR) & DR and count < 256:
            inb(RBR)
            count += 1
        outb(FCR, fcr)
        outb(MCR, mcr)
        outb(LCR, DLAB)
        outb(DLL, divisor[0])
        outb(DLM, divisor[1])
        outb(LCR, lcr)
        return count

    def clear_fifos(self) -> None:
        for value in (0x01, 0x07, 0x00):
            self.outb(FCR, value)

    # serial8250_do_startup(), serial8250_do_set_termios(), serial8250_do_shutdown()

    def startup(self) -> None:
        inb, outb = self.inb, self.outb
        self.clear_fifos()
        for register in (LSR, RBR, IIR, MSR):
            inb(register)
        assert inb(LSR) != 0xFF, "LSR safety check engaged!"
        assert inb(LSR) & THRE
        outb(IER, THRI)
        first = inb(IIR)
        outb(IER, 0)
        outb(IER, THRI)
        second = inb(IIR)
        outb(IER, 0)
        self.bug_thre = not first & NO_INT and bool(second & NO_INT)
        assert not first & NO_INT
        outb(LCR, 3)
        self.mctrl = OUT2
        outb(MCR, self.mctrl)
        outb(IER, THRI)
        lsr, iir = inb(LSR), inb(IIR)
        outb(IER, 0)
        self.bug_txen = bool(lsr & TEMT and iir & NO_INT)
        for register in (LSR, RBR, IIR, MSR):
            inb(register)
        self.ier = RLSI | RDI
        self.set_termios()
        self.mctrl |= DTR | RTS
        outb(MCR, self.mctrl)

    def set_termios(self) -> None:
        inb, outb = self.inb, self.outb
        del inb
        outb(IER, self.ier)
        outb(LCR, DLAB | 3)
        outb(DLL, 12)
        outb(DLM, 0)
        if self.type == "16750":
            outb(FCR, self.fcr)
        outb(LCR, 3)
        if self.type != "16750":
            outb(FCR, FIFO_ON)
            outb(FCR, self.fcr)
        outb(MCR, self.mctrl)

    def shutdown(self) -> None:
        self.ier = 0
        self.outb(IER, 0)
        self.mctrl = 0
        self.outb(MCR, 0)
        self.outb(LCR, self.inb(LCR) & ~0x40)
        self.clear_fifos()
        self.inb(RBR)

    # serial8250_interrupt(), serial8250_handle_irq(), serial8250_tx_chars()

    def interrupts(self) -> None:
        """Serve interrupts until none is latched."""
        while self.guest.line.take():
            handled = False
            for _ in range(512):
                if not self.handle_irq(self.inb(IIR)):
                    break
                handled = True
            self.unhandled += not handled

    def handle_irq(self, iir: int) -> bool:
        if iir & NO_INT:
            return False
        status = self.inb(LSR)
        if status & (DR | BI):
            for _ in range(256):
                self.got.append(self.inb(RBR))
                status = self.inb(LSR)
                if not status & (DR | BI):
                    break
        self.inb(MSR)
        if status & THRE and self.ier & THRI:
            self.tx_chars()
        return True

    def tx_chars(self) -> None:
        for _ in range(self.load):
            if not self.xmit:
                break
            self.outb(THR, self.xmit.pop(0))
        if not self.xmit:
            self.stop_tx()

    def stop_tx(self) -> None:
        if self.ier & THRI:
            self.ier &= ~THRI
            self.outb(IER, self.ier)

    def write(self, data: bytes) -> None:
        """uart_write(): the open tty."""
        self.xmit += data
        if not self.ier & THRI:
            self.ier |= THRI
            self.outb(IER, self.ier)

    def console_write(self, data: bytes, fifo: bool) -> None:
        """serial8250_console_write(): printk, by FIFO bursts once the tty is open."""
        ier = self.inb(IER)
        self.outb(IER, 0)
        for start in range(0, len(data), self.load if fifo else 1):
            assert self.inb(LSR) & THRE
            for byte in data[start : start + (self.load if fifo else 1)]:
                self.outb(THR, byte)
        if fifo:
            assert self.inb(LSR) & THRE
        assert self.inb(LSR) & (THRE | TEMT) == THRE | TEMT
        self.outb(IER, ier)


@pytest.mark.parametrize("coalescing", [False, True])
@pytest.mark.parametrize(("variants", "kind", "load"), [(False, "16550A", 16), (True, "16750", 64)])
def test_linux_detects_the_port(coalescing: bool, variants: bool, kind: str, load: int) -> None:
    guest = Guest(coalescing)
    guest.uart.receive(b"typed before the kernel ran")
    linux = Linux(guest, variants)
    linux.autoconfig()
    assert (linux.type, linux.load) == (kind, load)
    guest.inb(SCR)
    assert guest.sent == b""
    linux.startup()
    linux.interrupts()
    assert not linux.bug_thre
    assert not linux.bug_txen
    assert linux.got == b"typed before the kernel ran"


@pytest.mark.parametrize("coalescing", [False, True])
def test_linux_counts_the_fifo_by_loopback(coalescing: bool) -> None:
    guest = Guest(coalescing)
    linux = Linux(guest)
    assert linux.size_fifo() == 16
    guest.outb(LCR, DLAB)
    guest.outb(FCR, FIFO_ON | FIFO_64)
    guest.outb(LCR, 0)
    assert linux.size_fifo() == 64
    assert guest.sent == b""


@pytest.mark.parametrize("coalescing", [False, True])
@pytest.mark.parametrize("variants", [False, True])
def test_linux_loses_no_input_when_the_tty_is_opened_set_and_closed(coalescing: bool, variants: bool) -> None:
    guest = Guest(coalescing)
    linux = Linux(guest, variants)
    linux.autoconfig()
    typed = bytes(range(1, 251))
    for start in range(0, 250, 25):
        guest.uart.receive(typed[start : start + 10])
        linux.startup()
        guest.uart.receive(typed[start + 10 : start + 20])
        linux.set_termios()
        linux.interrupts()
        linux.set_termios()
        guest.uart.receive(typed[start + 20 : start + 25])  # not seen before the port is closed
        linux.shutdown()
    linux.startup()
    linux.interrupts()
    assert linux.got == typed


def test_linux_writes_sixteen_bytes_for_three_exits(guest: Guest) -> None:
    """The floor for a 16550A: IIR, LSR and MSR for each burst, the THR writes coalesced."""
    guest = Guest(coalescing=True)
    linux = Linux(guest)
    linux.autoconfig()
    linux.startup()
    linux.interrupts()
    guest.exits = linux.unhandled = guest.line.edges = 0
    linux.write(b"x" * 1600)
    linux.interrupts()
    guest.timer()
    assert guest.sent == b"x" * 1600
    assert guest.exits == 1 + 100 * 3 + 1 + 1, (
        "THRI on, the bursts, THRI off, and IIR saying nothing is pending"
    )
    assert (guest.line.edges, linux.unhandled) == (1, 0), "one interrupt, and no pointless one"


def test_linux_with_a_16750_writes_sixty_four_bytes_for_three_exits() -> None:
    guest = Guest(coalescing=True)
    linux = Linux(guest, variants=True)
    linux.autoconfig()
    linux.startup()
    guest.exits = 0
    linux.write(b"x" * 1600)
    linux.interrupts()
    assert guest.sent == b"x" * 1600
    assert guest.exits == 1 + 25 * 3 + 1 + 1


@pytest.mark.parametrize(("fifo", "exits"), [(False, 100 + 1 + 3), (True, 7 + 2 + 3)])
def test_linux_prints_by_the_burst_once_the_tty_is_open(fifo: bool, exits: int) -> None:
    guest = Guest(coalescing=True)
    linux = Linux(guest)
    linux.autoconfig()
    linux.startup()
    guest.exits = 0
    linux.console_write(b"y" * 100, fifo)
    assert guest.sent == b"y" * 100
    assert guest.exits == exits


def test_printk_amid_a_write_to_the_tty_keeps_the_tty_going() -> None:
    """printk clears IER and restores it; THRI set again must interrupt again."""
    guest = Guest(coalescing=True)
    linux = Linux(guest)
    linux.autoconfig()
    linux.startup()
    linux.interrupts()
    linux.write(b"t" * 40)
    linux.handle_irq(guest.inb(IIR))
    guest.line.take()
    linux.console_write(b"k" * 20, fifo=True)
    assert guest.line.latched
    linux.interrupts()
    assert guest.sent == b"t" * 16 + b"k" * 20 + b"t" * 24


# -- interrupt handlers ---------------------------------------------------------------------------------


class OneThing:
    """A handler that serves one cause for each interrupt, one byte at a time, and reads IIR once."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.xmit = bytearray()
        self.got = bytearray()
        self.fifo = False

    def start(self) -> None:
        self.guest.outb(LCR, 3)
        self.guest.outb(FCR, 0x81 if self.fifo else 0)
        self.guest.outb(IER, RDI | THRI | RLSI | MSI)

    def write(self, data: bytes) -> None:
        was_idle = not self.xmit
        self.xmit += data
        if was_idle:
            self.guest.outb(THR, self.xmit.pop(0))

    def interrupts(self) -> None:
        while self.guest.line.take():
            self.once()

    def once(self) -> None:
        cause = self.guest.inb(IIR) & 0x0F
        if cause in (INT_DATA, INT_TIMEOUT):
            self.got.append(self.guest.inb(RBR))
        elif cause == INT_THRE:
            if self.xmit:
                self.guest.outb(THR, self.xmit.pop(0))
        elif cause == INT_LINE:
            self.guest.inb(LSR)
        elif cause == INT_MODEM:
            self.guest.inb(MSR)


class OneThingWithFifo(OneThing):
    """The same with the FIFO on and a trigger level of 8."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest)
        self.fifo = True


class NoIir(OneThing):
    """A handler that never reads IIR: it takes what LSR shows, and sends a byte (as xv6's does)."""

    def start(self) -> None:
        self.guest.outb(FCR, FIFO_ON)
        self.guest.outb(IER, RDI | THRI)

    def once(self) -> None:
        while self.guest.inb(LSR) & DR:
            self.got.append(self.guest.inb(RBR))
        if self.xmit:
            self.guest.outb(THR, self.xmit.pop(0))


class OpenedLinux(Linux):
    """Linux with the tty open."""

    def start(self) -> None:
        self.autoconfig()
        self.startup()


@pytest.mark.parametrize("coalescing", [False, True])
@pytest.mark.parametrize("handler", [OpenedLinux, OneThing, OneThingWithFifo, NoIir])
@pytest.mark.parametrize("seed", range(25))
def test_every_handler_moves_all_data_both_ways(seed: int, handler: type, coalescing: bool) -> None:
    """Host and guest act in a random order; in the end nothing is left anywhere."""
    chance = random.Random(seed)
    guest = Guest(coalescing)
    driver = handler(guest)
    typed, printed = bytearray(), bytearray()
    if chance.random() < 0.5:
        typed += b"early"
        guest.uart.receive(b"early")
    driver.start()
    for _ in range(200):
        action = chance.randrange(6)
        if action == 0:
            data = chance.randbytes(chance.choice((1, 1, 3, 40)))
            typed += data
            guest.uart.receive(data)
        elif action == 1:
            data = chance.randbytes(chance.choice((1, 2, 15, 16, 17, 60)))
            printed += data
            driver.write(data)
        elif action == 2:
            guest.timer()
        else:
            driver.interrupts()
    for _ in range(5000):  # what is left comes by interrupts and the timer alone
        driver.interrupts()
        guest.timer()
        if not (guest.line.latched or guest.ring):
            break
    assert bytes(driver.got) == typed
    assert bytes(guest.sent) == printed
    assert guest.uart.pending == 0


@pytest.mark.parametrize("handler", [OpenedLinux, OneThing, OneThingWithFifo, NoIir])
def test_input_from_another_thread_meets_the_handler_at_any_moment(handler: type) -> None:
    guest = Guest()
    driver = handler(guest)
    driver.start()
    typed = random.Random(1).randbytes(20_000)

    def host() -> None:
        for start in range(0, len(typed), 7):
            guest.uart.receive(typed[start : start + 7])

    thread = threading.Thread(target=host)
    thread.start()
    while thread.is_alive() or guest.line.latched:
        driver.interrupts()
    thread.join()
    driver.interrupts()
    assert bytes(driver.got) == typed


# -- coalesced writes -----------------------------------------------------------------------------------


def test_coalesced_writes_keep_their_order_with_the_divisor_latch() -> None:
    guest = Guest(coalescing=True)
    guest.outb(THR, ord("a"))
    guest.outb(LCR, DLAB)
    guest.outb(DLL, 0x55)
    guest.outb(LCR, 3)
    guest.outb(THR, ord("b"))
    assert guest.exits == 0
    assert guest.inb(LSR) & THRE
    assert guest.sent == b"ab"
    guest.outb(LCR, DLAB)
    assert guest.inb(DLL) == 0x55


def test_where_writes_may_be_coalesced() -> None:
    guest = Guest()
    assert guest.uart.thr_port == 0x3F8
    assert 0x3F9 not in guest.uart.coalesced_ports, "enabling an interrupt must take effect at once"
    assert guest.uart.coalescing_safe
    for register, value in ((LCR, DLAB), (MCR, LOOP)):
        guest.outb(register, value)
        assert not guest.uart.coalescing_safe
        guest.outb(register, 0)
        assert guest.uart.coalescing_safe


def test_an_exit_elsewhere_raises_the_interrupt_that_was_held_back() -> None:
    guest = Guest(coalescing=True)
    guest.outb(IER, THRI)
    guest.inb(IIR)
    guest.line.take()
    guest.outb(THR, 1)
    guest.inb(SCR)
    assert guest.line.latched


def test_coalescing_ends_for_a_guest_that_waits_for_thre() -> None:
    guest = Guest(coalescing=True)
    driver = OneThing(guest)
    driver.start()
    driver.interrupts()
    for count in range(LATE_DRAINS):
        assert guest.uart.want_coalescing, count
        driver.write(b"z")
        driver.interrupts()
        assert len(guest.sent) == count
        guest.timer()
        assert len(guest.sent) == count + 1
        driver.interrupts()
    assert not guest.uart.want_coalescing


def test_coalescing_stays_for_linux_though_the_timer_hits_some_bursts() -> None:
    guest = Guest(coalescing=True)
    linux = OpenedLinux(guest)
    linux.start()
    linux.interrupts()
    for _ in range(10 * LATE_DRAINS):
        linux.write(b"w" * 40)
        linux.handle_irq(guest.inb(IIR))
        guest.timer()
        linux.interrupts()
    assert guest.uart.want_coalescing
    assert guest.sent == b"w" * 400 * LATE_DRAINS


def test_late_drains_without_the_thre_interrupt_do_not_count() -> None:
    guest = Guest(coalescing=True)
    for _ in range(10 * LATE_DRAINS):
        guest.outb(THR, 1)
        guest.timer()
    assert guest.uart.want_coalescing


def test_the_register_names_decode_a_value() -> None:
    assert str(InterruptEnable(0x05)) == "InterruptEnable = 0x5 [ELSI ERBFI]"
    assert "ID=timeout" in str(InterruptId(0xCC))
