"""The registers of virtio-mmio with which a driver says where its queues are: virtio 1.2, section 4.2.3.2."""

from __future__ import annotations

from pyvmm.devices.virtio import mmio_registers as reg
from pyvmm.devices.virtio.queue import Queue
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.device import Link

#: The addresses of a queue's parts: register -> (index in _Setup.addresses, shift).
_ADDRESSES = {
    reg.QUEUE_DESC_LOW: (0, 0), reg.QUEUE_DESC_HIGH: (0, 32),
    reg.QUEUE_DRIVER_LOW: (1, 0), reg.QUEUE_DRIVER_HIGH: (1, 32),
    reg.QUEUE_DEVICE_LOW: (2, 0), reg.QUEUE_DEVICE_HIGH: (2, 32),
}  # fmt: skip


class _Setup:
    """What the driver has said of one queue."""

    __slots__ = ("addresses", "ready", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.addresses = [0, 0, 0]  # of the descriptor table, the driver's area, the device's area
        self.ready = False


class QueueRegisters:
    """The queues' registers in ``words``, the page of a device with queues of at most ``sizes``.

    From :meth:`make` on the queues are in use, and stay as they are until :meth:`clear`, but for :meth:`release`.
    """

    __slots__ = ("_in_use", "_selected", "_setups", "_sizes", "_words")

    def __init__(self, words: memoryview, sizes: tuple[int, ...]) -> None:
        self._words = words
        self._sizes = sizes
        self.clear()

    def clear(self) -> None:
        """As after a reset; the page's words have been cleared."""
        self._in_use = False
        self._setups = [_Setup(size) for size in self._sizes]
        self.write(reg.QUEUE_SEL, 0)

    def write(self, register: int, value: int) -> None:
        """The driver wrote a register, one of these or another; lost if it makes no sense."""
        if register == reg.QUEUE_SEL:
            self._selected = value
            present = value < len(self._setups)
            self._words[reg.QUEUE_NUM_MAX >> 2] = self._sizes[value] if present else 0
            self._words[reg.QUEUE_READY >> 2] = present and self._setups[value].ready
            return
        if self._in_use or self._selected >= len(self._setups):
            return
        setup = self._setups[self._selected]
        if register == reg.QUEUE_READY:
            setup.ready = bool(value & 1)
            self._words[reg.QUEUE_READY >> 2] = value & 1
        elif setup.ready:
            return
        elif register == reg.QUEUE_NUM:
            setup.size = value
        elif register in _ADDRESSES:
            part, shift = _ADDRESSES[register]
            setup.addresses[part] = setup.addresses[part] & ~(0xFFFFFFFF << shift) | value << shift

    def release(self) -> int | None:
        """The selected queue is ready no more, though in use; its number, None if it was not ready."""
        selected = self._selected
        if selected >= len(self._setups) or not self._setups[selected].ready:
            return None
        self._setups[selected].ready = False
        self._words[reg.QUEUE_READY >> 2] = 0
        return selected

    def make(self, link: Link) -> list[Queue]:
        """The queues of a device that starts.  QueueError or PyvmmError if one is not as it may be."""
        self._in_use = True
        return [self._queue(index, setup, link) for index, setup in enumerate(self._setups)]

    def _queue(self, index: int, setup: _Setup, link: Link) -> Queue:
        if not setup.ready:
            return Queue.unused(index)
        most = self._sizes[index]
        if setup.size > most:
            raise PyvmmError(f"virtqueue {index}: {setup.size} descriptors are more than {most}")
        return Queue(
            link.memory, index, setup.size, *setup.addresses, features=link.features, interrupt=link.interrupt
        )  # fmt: skip
