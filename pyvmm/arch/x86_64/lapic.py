"""The local APIC's two interrupt pins, wired as firmware leaves them: Intel SDM volume 3, section 11.5.1.

In the MP specification's virtual wire mode (1.4, section 3.6.2.2) LINT0 takes the 8259's interrupts (ExtINT)
and LINT1 is the NMI; a kernel that has not set up its IOAPIC yet relies on it.
"""

from __future__ import annotations

from pyvmm.registers import Bit, Bits, Register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.uapi_x86 import kvm_lapic_state

LVT_LINT0, LVT_LINT1 = 0x350, 0x360  # offsets in the register page


class LocalVectorEntry(Register):
    """An entry of the local vector table."""

    MASKED = Bit(16)
    LEVEL = Bit(15)
    REMOTE_IRR = Bit(14)
    ACTIVE_LOW = Bit(13)
    PENDING = Bit(12)
    DELIVERY = Bits(10, 8, {0: "fixed", 2: "SMI", 4: "NMI", 5: "INIT", 7: "ExtINT"})
    VECTOR = Bits(7, 0)


LINT0 = 7 << 8  # ExtINT, not masked
LINT1 = 4 << 8  # NMI, not masked


def wire_pins(state: kvm_lapic_state) -> None:
    """Set LINT0 and LINT1 in ``state``, the APIC's register page."""
    state.regs[LVT_LINT0 : LVT_LINT0 + 4] = LINT0.to_bytes(4, "little")
    state.regs[LVT_LINT1 : LVT_LINT1 + 4] = LINT1.to_bytes(4, "little")
