"""The bus: which device answers a port or a memory address, and how often it was asked.

Ports follow the PC's I/O space: 64 Ki ports of one byte, little endian, where a wider access to one-byte
registers is as many accesses to consecutive ports (Intel SDM volume 1, section 19.3), a read that nobody
answers is all ones, and a write that nobody takes is lost.  Memory-mapped devices live by the last two rules.

The run loop looks ports up itself, so that an exit costs one dictionary look-up and one call::

    slot = bus.pio_out.get(port) or bus.unknown_out(port)
    slot.count += 1
    slot.access(value, size)
"""

from __future__ import annotations

from bisect import bisect_right

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    ReadSized = Callable[[int], int]  # size in bytes -> value
    WriteSized = Callable[[int, int], None]  # value, size in bytes
    ReadByte = Callable[[], int]
    WriteByte = Callable[[int], None]
    ReadAt = Callable[[int, int], int]  # offset into the device, size in bytes -> value
    WriteAt = Callable[[int, int, int], None]  # offset into the device, value, size in bytes

#: The device name under which accesses that nobody answers are counted.
UNHANDLED = "unhandled"
#: How many addresses that nobody answers are remembered one by one: a guest that scans fills no memory.
UNHANDLED_KEPT = 256

PORTS = 0x1_0000
_ALL_ONES = tuple((1 << 8 * size) - 1 for size in range(9))


def all_ones(size: int) -> int:
    """What a read of ``size`` bytes (1 to 8) gives where there is no device."""
    return _ALL_ONES[size]


def ignore(value: int, size: int) -> None:
    """What becomes of a write where there is no device."""


def _all_ones_byte() -> int:
    return 0xFF


def _ignore_byte(value: int) -> None:
    pass


class Slot:
    """A place on the bus: the name of the device that answers, and how many exits it has served."""

    __slots__ = ("count", "device")

    def __init__(self, device: str) -> None:
        self.device = device
        self.count = 0


class InSlot(Slot):
    """A port that is read: ``access(size)`` gives the value; size is 1, 2 or 4 bytes."""

    __slots__ = ("access",)

    def __init__(self, device: str, access: ReadSized) -> None:
        super().__init__(device)
        self.access = access


class OutSlot(Slot):
    """A port that is written: ``access(value, size)``; size is 1, 2 or 4 bytes."""

    __slots__ = ("access",)

    def __init__(self, device: str, access: WriteSized) -> None:
        super().__init__(device)
        self.access = access


class MmioRange(Slot):
    """A memory-mapped device: ``start`` to ``end`` (exclusive), and its two handlers."""

    __slots__ = ("end", "read", "start", "write")

    def __init__(self, device: str, start: int, size: int, read: ReadAt, write: WriteAt) -> None:
        super().__init__(device)
        self.start = start
        self.end = start + size
        self.read = read
        self.write = write


class Bus:
    """The I/O ports and the memory-mapped devices of one machine.

    ``pio_in`` and ``pio_out`` are public, for the run loop.  Devices are added while the machine is built;
    after that only the slots' counts change, and slots for unhandled ports are added.
    """

    def __init__(self) -> None:
        self.pio_in: dict[int, InSlot] = {}
        self.pio_out: dict[int, OutSlot] = {}
        self._ranges: list[MmioRange] = []
        self._starts: list[int] = []
        self._unknown_mmio: dict[tuple[str, int], Slot] = {}
        self._room = UNHANDLED_KEPT
        self._elsewhere_in = Slot(UNHANDLED)
        self._elsewhere_out = Slot(UNHANDLED)
        self._elsewhere_mmio = Slot(UNHANDLED)

    # -- ports ------------------------------------------------------------------------------------------

    def add_pio(
        self,
        device: str,
        base: int,
        reads: Sequence[ReadSized | None],
        writes: Sequence[WriteSized | None],
    ) -> None:
        """Register handlers that take the access size: ``read(size)`` and ``write(value, size)``.

        The index is the port minus ``base``.  None leaves the port, in that direction, to others.
        UsageError if a port has a handler already or does not exist; then nothing is registered.
        """
        self._check_free(device, base, reads, self.pio_in)
        self._check_free(device, base, writes, self.pio_out)
        for port, read in enumerate(reads, base):
            if read is not None:
                self.pio_in[port] = InSlot(device, read)
        for port, write in enumerate(writes, base):
            if write is not None:
                self.pio_out[port] = OutSlot(device, write)

    def add_pio_bytes(
        self,
        device: str,
        base: int,
        reads: Sequence[ReadByte | None],
        writes: Sequence[WriteByte | None],
    ) -> None:
        """Register one-byte registers: ``read()`` and ``write(value)``, whatever the size of the access.

        An access of 2 or 4 bytes is split into bytes at consecutive ports, the lowest first, each going to
        whichever device stands there.  Otherwise as :meth:`add_pio`.
        """
        self.add_pio(
            device,
            base,
            [read and self._split_in(port, read) for port, read in enumerate(reads, base)],
            [write and self._split_out(port, write) for port, write in enumerate(writes, base)],
        )

    def _split_in(self, port: int, read: ReadByte) -> ReadSized:
        def access(size: int) -> int:
            value = read()
            if size != 1:
                for index in range(1, size):
                    slot = self.pio_in.get(port + index)
                    value |= (0xFF if slot is None else slot.access(1) & 0xFF) << 8 * index
            return value

        return access

    def _split_out(self, port: int, write: WriteByte) -> WriteSized:
        def access(value: int, size: int) -> None:
            if size == 1:
                write(value)
                return
            write(value & 0xFF)
            for index in range(1, size):
                slot = self.pio_out.get(port + index)
                if slot is not None:
                    slot.access(value >> 8 * index & 0xFF, 1)

        return access

    def unknown_in(self, port: int) -> InSlot:
        """The slot for reads of a port that nobody registered; the next look-up finds it by itself, unless too
        many are remembered already."""
        slot = InSlot(UNHANDLED, self._split_in(port, _all_ones_byte))
        if self._room <= 0:
            self._elsewhere_in.count += 1
            return slot
        self._room -= 1
        self.pio_in[port] = slot
        return slot

    def unknown_out(self, port: int) -> OutSlot:
        """The slot for writes to a port that nobody registered; the next look-up finds it by itself."""
        slot = OutSlot(UNHANDLED, self._split_out(port, _ignore_byte))
        if self._room <= 0:
            self._elsewhere_out.count += 1
            return slot
        self._room -= 1
        self.pio_out[port] = slot
        return slot

    @staticmethod
    def _check_free(device: str, base: int, handlers: Sequence[object], taken: Mapping[int, Slot]) -> None:
        for port, handler in enumerate(handlers, base):
            if handler is None:
                continue
            if not 0 <= port < PORTS:
                raise UsageError(f"{device} cannot stand at port {port:#x}", "I/O ports go from 0 to 0xffff")
            slot = taken.get(port)
            if slot is not None and slot.device != UNHANDLED:
                raise UsageError(f"{device} and {slot.device} both want port {port:#x}", "move one of them")

    # -- memory -----------------------------------------------------------------------------------------

    def add_mmio(self, device: str, base: int, size: int, read: ReadAt, write: WriteAt) -> None:
        """Register a memory-mapped device at ``base`` to ``base + size`` (exclusive).

        ``read(offset, size)`` and ``write(offset, value, size)`` get every access that lies inside.
        UsageError if the range is empty or overlaps another device's.
        """
        if base < 0 or size <= 0:
            raise UsageError(f"{device} cannot stand at {base:#x} with {size} bytes", "give it a size")
        at = bisect_right(self._starts, base)
        for other in self._ranges[max(at - 1, 0) : at + 1]:
            if base < other.end and other.start < base + size:
                raise UsageError(
                    f"{device} at {base:#x}-{base + size - 1:#x} overlaps "
                    f"{other.device} at {other.start:#x}-{other.end - 1:#x}",
                    "move one of them",
                )
        self._ranges.insert(at, MmioRange(device, base, size, read, write))
        self._starts.insert(at, base)

    def mmio_read(self, address: int, size: int) -> int:
        """A read of ``size`` bytes (1 to 8: KVM cuts an access at a page's end).

        All ones unless one device holds all of it.
        """
        at = bisect_right(self._starts, address)
        if at:
            device = self._ranges[at - 1]
            if address + size <= device.end:
                device.count += 1
                return device.read(address - device.start, size)
        self._unknown("read", address)
        return all_ones(size)

    def mmio_write(self, address: int, value: int, size: int) -> None:
        """A write of ``size`` bytes (1 to 8); lost unless one device holds all of it."""
        at = bisect_right(self._starts, address)
        if at:
            device = self._ranges[at - 1]
            if address + size <= device.end:
                device.count += 1
                device.write(address - device.start, value, size)
                return
        self._unknown("write", address)

    def mmio_deliver(self, address: int, value: int, size: int) -> None:
        """A write that made no exit, since KVM kept it for later: the same, and nothing is counted."""
        at = bisect_right(self._starts, address)
        if at and address + size <= self._ranges[at - 1].end:
            self._ranges[at - 1].write(address - self._ranges[at - 1].start, value, size)

    def _unknown(self, direction: str, address: int) -> None:
        slot = self._unknown_mmio.get((direction, address))
        if slot is None:
            if self._room <= 0:
                slot = self._elsewhere_mmio
            else:
                self._room -= 1
                slot = self._unknown_mmio[direction, address] = Slot(UNHANDLED)
        slot.count += 1

    # -- counts -----------------------------------------------------------------------------------------

    def detail(self) -> list[tuple[str, str, int]]:
        """What was accessed: (device, ``in 0x3fd``, exits), the most frequent first.

        The second is ``in`` or ``out`` and a port, ``mmio`` and a device's first address, ``read`` or
        ``write`` and an address nobody answers, or ``elsewhere`` for all beyond :data:`UNHANDLED_KEPT`.
        """
        found = [
            *((slot, f"in {port:#x}") for port, slot in list(self.pio_in.items())),
            *((slot, f"out {port:#x}") for port, slot in list(self.pio_out.items())),
            *((device, f"mmio {device.start:#x}") for device in self._ranges),
            *((slot, f"{direction} {at:#x}") for (direction, at), slot in list(self._unknown_mmio.items())),
        ]
        rows = [(slot.device, what, slot.count) for slot, what in found if slot.count]
        elsewhere = self._elsewhere_in.count + self._elsewhere_out.count + self._elsewhere_mmio.count
        if elsewhere:
            rows.append((UNHANDLED, "elsewhere", elsewhere))
        return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))

    def counts(self) -> dict[str, int]:
        """Exits by device, the busiest first; devices that served none are left out."""
        totals: dict[str, int] = {}
        for device, _, count in self.detail():
            totals[device] = totals.get(device, 0) + count
        return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))

    def unhandled(self) -> dict[str, int]:
        """Exits for addresses that nobody answers, by address as in :meth:`detail`."""
        return {what: count for device, what, count in self.detail() if device == UNHANDLED}
