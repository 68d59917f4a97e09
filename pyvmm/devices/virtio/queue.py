"""A split virtqueue as the device sees it: chains of descriptors come out of it, used elements go back.

virtio 1.2, section 2.7; Linux drivers/virtio/virtio_ring.c is the other side.
"""

from __future__ import annotations

from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.memory import GuestMemory


class QueueError(PyvmmError):
    """The guest broke the rules of a virtqueue: its device needs a reset."""


class Chain:
    """One request: buffers of the driver, in order, all checked to lie in guest RAM.

    ``readable`` and ``writable`` are (guest address, length in bytes); ``readable_size`` and ``writable_size`` their
    sums.
    """

    __slots__ = ("_memory", "head", "readable", "readable_size", "writable", "writable_size")

    def __init__(
        self,
        memory: GuestMemory,
        head: int,
        readable: list[tuple[int, int]],
        writable: list[tuple[int, int]],
        readable_size: int,
        writable_size: int,
    ) -> None:
        self._memory = memory
        self.head = head
        self.readable = readable
        self.writable = writable
        self.readable_size = readable_size
        self.writable_size = writable_size

    def read_views(self) -> list[memoryview]:
        """The buffers the driver wrote, as views of guest RAM: for os.pwritev and sendmsg."""
        raise NotImplementedError

    def write_views(self) -> list[memoryview]:
        """The buffers for the device to fill, as views of guest RAM: for os.preadv and recvmsg_into."""
        raise NotImplementedError

    def read(self, size: int = -1, offset: int = 0) -> bytes:
        """A copy of at most ``size`` bytes (all: -1) of what the driver wrote, from ``offset``, across descriptors."""
        raise NotImplementedError

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Copy ``data`` to the writable buffers from ``offset``, across descriptors; how many bytes fitted."""
        raise NotImplementedError


class Queue:
    """The device's side of virtqueue ``index`` with ``size`` descriptors.

    ``desc``, ``driver`` and ``device`` are the guest addresses of the descriptor table, the available ring and the
    used ring.  ``next_avail`` is the index, modulo 2**16, of the next available element to be taken.
    """

    index: int
    size: int
    desc: int
    driver: int
    device: int
    ready: bool
    next_avail: int
    broken: bool

    def pop(self) -> Chain | None:
        """The next request; None if there is none.  QueueError where the guest broke the rules.  One thread."""
        raise NotImplementedError

    def push(self, chain: Chain, written: int) -> None:
        """Give ``chain`` back, ``written`` bytes having been put into its writable buffers.  Any thread."""
        raise NotImplementedError

    def should_interrupt(self) -> bool:
        """Whether the driver wants an interrupt for what was pushed since the last call.  Any thread."""
        raise NotImplementedError

    def enable_kicks(self) -> bool:
        """Ask for a kick when something becomes available; True if something has already: look again."""
        raise NotImplementedError

    def disable_kicks(self) -> None:
        """Ask for no kicks (the driver may kick nevertheless)."""
        raise NotImplementedError

    def drain(self, handler: Callable[[Chain], int | None]) -> None:
        """Pass all requests to ``handler``, which returns how many bytes it wrote, or None if it keeps the chain and
        pushes it later.  Kicks are enabled and nothing is available when this returns; the driver has been
        interrupted if it wants to be."""
        raise NotImplementedError
