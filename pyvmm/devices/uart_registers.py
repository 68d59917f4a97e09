"""The registers of a 16550A and what its 16750 superset adds, bit by bit.

Bit names are those of the data sheets: TI SLLS191C (TL16C750), tables 3 and 5, and National Semiconductor
PC16550D, section 8.  Linux spells them in include/uapi/linux/serial_reg.h.
"""

from __future__ import annotations

from pyvmm.registers import Bit, Bits, Register

# Offsets from the base port.  DLL and DLM stand in for the first two while LCR.DLAB is set.
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7
COUNT = 8

#: The clock of a PC's UART divided by 16: the baud rate for a divisor of 1.
BAUD_BASE = 115200


class InterruptEnable(Register):
    """IER: which causes raise the interrupt line."""

    WIDTH = 8
    ERBFI = Bit(0)  # received data, and the character timeout
    ETBEI = Bit(1)  # transmitter holding register empty (Linux: THRI)
    ELSI = Bit(2)  # receiver line status
    EDSSI = Bit(3)  # modem status
    SLEEP = Bit(4)  # 16750
    LOW_POWER = Bit(5)  # 16750


class InterruptId(Register):
    """IIR: the pending cause of the highest priority, and which FIFO there is."""

    WIDTH = 8
    NONE = Bit(0)  # set when nothing is pending
    ID = Bits(3, 1, {0: "modem", 1: "THRE", 2: "data", 3: "line", 6: "timeout"})
    FIFO64 = Bit(5)  # 16750
    FIFO = Bits(7, 6)


# The values of IIR bits 3-0, from the highest priority to the lowest.
IIR_LINE_STATUS = 0x06
IIR_DATA = 0x04
IIR_TIMEOUT = 0x0C
IIR_THRE = 0x02
IIR_MODEM = 0x00
IIR_NONE = 0x01


class FifoControl(Register):
    """FCR, write-only: the FIFOs' switch, resets and receive trigger level."""

    WIDTH = 8
    ENABLE = Bit(0)
    RESET_RX = Bit(1)
    RESET_TX = Bit(2)
    DMA = Bit(3)
    FIFO64 = Bit(5)  # 16750; writable only while LCR.DLAB is set
    TRIGGER = Bits(7, 6)


#: Received bytes that raise the data interrupt, by FCR.TRIGGER.
TRIGGERS_16 = (1, 4, 8, 14)
TRIGGERS_64 = (1, 16, 32, 56)


class LineControl(Register):
    """LCR: the format of a character, and the divisor latch's access bit."""

    WIDTH = 8
    WLS = Bits(1, 0)
    STB = Bit(2)
    PEN = Bit(3)
    EPS = Bit(4)
    STICK = Bit(5)
    BREAK = Bit(6)
    DLAB = Bit(7)


class ModemControl(Register):
    """MCR: the modem outputs and the loopback switch."""

    WIDTH = 8
    DTR = Bit(0)
    RTS = Bit(1)
    OUT1 = Bit(2)
    OUT2 = Bit(3)
    LOOP = Bit(4)
    AFE = Bit(5)  # 16750: automatic flow control


class LineStatus(Register):
    """LSR: what has arrived, with its errors, and whether the transmitter is empty."""

    WIDTH = 8
    DR = Bit(0)
    OE = Bit(1)
    PE = Bit(2)
    FE = Bit(3)
    BI = Bit(4)
    THRE = Bit(5)
    TEMT = Bit(6)
    FIFO_ERROR = Bit(7)


class ModemStatus(Register):
    """MSR: the modem inputs, and which of them changed since the last read."""

    WIDTH = 8
    DCTS = Bit(0)
    DDSR = Bit(1)
    TERI = Bit(2)
    DDCD = Bit(3)
    CTS = Bit(4)
    DSR = Bit(5)
    RI = Bit(6)
    DCD = Bit(7)


def describe_format(lcr: int, divisor: int) -> str:
    """The line's speed and format as people write it: ``115200 8n1``."""
    parity = {0: "n", 1: "o", 3: "e", 5: "m", 7: "s"}[lcr >> 3 & 7 if lcr & LineControl.PEN else 0]
    speed = BAUD_BASE // divisor if divisor else 0
    return f"{speed} {LineControl(lcr).WLS + 5}{parity}{2 if lcr & LineControl.STB else 1}"
