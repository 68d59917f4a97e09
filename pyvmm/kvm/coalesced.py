"""The ring in which KVM queues the guest's writes to coalesced ranges, instead of exiting for each.

``struct kvm_coalesced_mmio_ring`` of <linux/kvm.h>: one page of every vCPU's mapping, the same page for all
vCPUs of a VM; "KVM_REGISTER_COALESCED_MMIO" in Linux ``Documentation/virt/kvm/api.rst``.
"""

from __future__ import annotations

from ctypes import sizeof
from mmap import PAGESIZE

from pyvmm.errors import HostError

from .exits import MASKS
from .uapi import kvm_coalesced_mmio, kvm_coalesced_mmio_ring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_HEADER = sizeof(kvm_coalesced_mmio_ring) // 8  # in 64-bit words
_ENTRY = sizeof(kvm_coalesced_mmio) // 8
CAPACITY = (PAGESIZE - sizeof(kvm_coalesced_mmio_ring)) // sizeof(kvm_coalesced_mmio)  # one stays free


class CoalescedRing:
    """Reads the ring in ``page``.  The kernel adds at ``last``, we take at ``first``.

    Any thread may drain it, one at a time: where several may, the caller holds a lock.
    """

    __slots__ = ("_indices", "_words")

    def __init__(self, page: memoryview) -> None:
        self._indices = page.cast("I")  # first, last
        self._words = page.cast("Q")

    @property
    def pending(self) -> int:
        """How many writes wait in the ring."""
        return (self._indices[1] - self._indices[0]) % CAPACITY

    def drain(self, handle: Callable[[int, int, int, bool], object]) -> int:
        """Call ``handle(address, size, value, is_pio)`` for each write that waits, in order; return how many.

        A slot goes back to the kernel after its call, so that :attr:`pending` tells of writes that have not been
        handled; an exception from ``handle`` loses that write only.
        """
        indices, words = self._indices, self._words
        first, last = indices[0], indices[1]
        if first == last:
            return 0
        if first >= CAPACITY or last >= CAPACITY:
            raise HostError(
                f"the coalesced write ring is corrupt: first {first}, last {last}, capacity {CAPACITY}"
            )
        count = (last - first) % CAPACITY
        while first != last:
            word = _HEADER + _ENTRY * first
            address = words[word]
            size = words[word + 1]
            is_pio, size = size >> 32 != 0, size & 0xFFFFFFFF
            data = words[word + 2]
            first += 1
            if first == CAPACITY:
                first = 0
            try:
                if size > 8:
                    raise HostError(
                        f"the coalesced write ring is corrupt: {size} bytes written at {address:#x}"
                    )
                handle(address, size, data & MASKS[size], is_pio)
            finally:
                indices[0] = first
        return count

    def close(self) -> None:
        """Let go of the page."""
        self._indices.release()
        self._words.release()
