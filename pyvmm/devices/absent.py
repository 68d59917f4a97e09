"""What is not in the machine, and answers accordingly.

A kernel probes for PC hardware it has not been told about.  Absent hardware floats: reads are all ones and
writes are lost, which is what the bus does by itself.  Naming the places keeps such probes apart, in the
count of exits, from ports that nobody thought of.

PCI configuration mechanism 1 (PCI 3.0, section 3.2.2.3.2) is absent because its address register at 0xcf8
does not read back what was written (Linux: pci_check_type1); mechanism 2 because 0xcf8 does not read zero.
"""

from __future__ import annotations

from pyvmm.devices.bus import all_ones, ignore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.devices.bus import Bus


def add_absent(bus: Bus, places: Iterable[tuple[str, int, int]]) -> None:
    """Name hardware that is not there: (device, first port, number of ports), many under one name if liked.

    To be called after the machine's devices have been added: ports that are taken stay with their device.
    """
    for device, base, count in places:
        ports = range(base, base + count)
        bus.add_pio(
            device,
            base,
            [None if port in bus.pio_in else all_ones for port in ports],
            [None if port in bus.pio_out else ignore for port in ports],
        )
