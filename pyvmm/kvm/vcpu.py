"""A virtual processor: running it, ending a run from another thread, and its state.

The "vcpu ioctls" of Linux ``Documentation/virt/kvm/api.rst``; the registers of x86 are in
:mod:`pyvmm.kvm.registers_x86`, the exits in :mod:`pyvmm.kvm.exits`.
"""

from __future__ import annotations

import signal
from ctypes import addressof, c_char, get_errno
from errno import EAGAIN, EFAULT, EINTR
from mmap import MAP_SHARED, PAGESIZE, PROT_READ, PROT_WRITE, mmap

from pyvmm.errors import CapabilityMissing

from . import ioctls
from .coalesced import CoalescedRing
from .descriptor import libc_ioctl
from .errors import KvmError
from .exits import Exit, exit_objects
from .registers_x86 import X86Registers
from .uapi import (
    KVM_REG_SIZE_MASK,
    KVM_REG_SIZE_SHIFT,
    Cap,
    cap_name,
    kvm_enable_cap,
    kvm_mp_state,
    kvm_one_reg,
    kvm_translation,
)
from .uapi_run import KVM_EXIT_INTR, KVM_EXIT_MEMORY_FAULT, kvm_run

KICK_SIGNAL = signal.SIGRTMIN
_KVM_RUN = int(ioctls.KVM_RUN)


def install_kick_handler() -> None:
    """Make KICK_SIGNAL end a system call and nothing else.  Call it once, from the main thread."""
    signal.signal(KICK_SIGNAL, _ignore)


def _ignore(signum: int, frame: object) -> None:
    """A handler must exist: an ignored signal would not end KVM_RUN."""


class Vcpu(X86Registers):
    """A vCPU; a context manager.  ``id`` is its number, ``kvm_run`` the page shared with the kernel.

    Only one thread at a time may use it, except for kick().
    """

    __slots__ = ("_exits", "_memory", "_ring", "_ring_offset", "_words", "id", "kvm_run")

    def __init__(self, fd: int, id: int, mmap_size: int, ring_offset: int) -> None:
        super().__init__(fd)
        self.id = id
        self._memory = mmap(fd, mmap_size, MAP_SHARED, PROT_READ | PROT_WRITE)
        self.kvm_run = kvm_run.from_buffer(self._memory)
        self._words = memoryview(self._memory).cast("I")
        self._exits = exit_objects(self._memory)
        self._ring_offset = ring_offset
        self._ring: CoalescedRing | None = None

    def run(self) -> Exit:
        """KVM_RUN: let the guest run until it needs something, and return why it stopped.

        The object returned is the same for every exit of its kind and valid until the next run.  A signal, a
        kick or a vCPU that waits for its start-up gives the IntrExit.  Releases the GIL.  Raises KvmError.
        """
        if libc_ioctl(self.fd, _KVM_RUN, None) == 0:
            return self._exits[self._words[_EXIT_REASON]]
        return self._run_failed(get_errno())

    def _run_failed(self, number: int) -> Exit:
        if number in (EINTR, EAGAIN):
            return self._exits[KVM_EXIT_INTR]
        detail = f"vCPU {self.id}"
        if number == EFAULT and self.kvm_run.exit_reason == KVM_EXIT_MEMORY_FAULT:
            detail += f" at guest address {self.kvm_run.memory_fault.gpa:#x}"
        raise KvmError("KVM_RUN", number, detail)

    # --- ending a run from another thread ----------------------------------------------------------------
    def kick(self, thread_ident: int) -> None:
        """End the run of the thread that runs this vCPU, or keep its next one from starting.

        Until clear_kick() every run returns the IntrExit at once.  ``thread_ident`` is
        ``threading.Thread.ident`` of a thread that has not been joined; install_kick_handler() comes first.
        """
        self.kvm_run.immediate_exit = 1
        signal.pthread_kill(thread_ident, KICK_SIGNAL)

    def clear_kick(self) -> None:
        """Let the vCPU run again after a kick; from the thread that runs it."""
        self.kvm_run.immediate_exit = 0

    # --- the ring of coalesced writes --------------------------------------------------------------------
    def coalesced_ring(self) -> CoalescedRing:
        """The VM's ring of coalesced writes, seen through this vCPU's mapping; the same object every time."""
        if self._ring is None:
            if not self._ring_offset:
                raise CapabilityMissing(f"this host's KVM lacks {cap_name(Cap.COALESCED_MMIO)}")
            page = memoryview(self._memory)[self._ring_offset : self._ring_offset + PAGESIZE]
            self._ring = CoalescedRing(page)
        return self._ring

    # --- state that every architecture has ---------------------------------------------------------------
    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: one of KVM_MP_STATE_*."""
        state = kvm_mp_state()
        self.ioctl(ioctls.KVM_GET_MP_STATE, state)
        return state.mp_state  # type: ignore[no-any-return]

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE."""
        self.ioctl(ioctls.KVM_SET_MP_STATE, kvm_mp_state(state), f"state {state}")

    def get_one_reg(self, id: int) -> int:
        """KVM_GET_ONE_REG: a register as a little-endian number; its size is part of ``id``."""
        value = bytearray(_one_reg_size(id))
        self._one_reg(ioctls.KVM_GET_ONE_REG, id, value)
        return int.from_bytes(value, "little")

    def set_one_reg(self, id: int, value: int) -> None:
        """KVM_SET_ONE_REG."""
        self._one_reg(ioctls.KVM_SET_ONE_REG, id, bytearray(value.to_bytes(_one_reg_size(id), "little")))

    def _one_reg(self, request: ioctls.Ioctl, id: int, value: bytearray) -> None:
        holder = (c_char * len(value)).from_buffer(value)  # keeps the address valid during the call
        self.ioctl(request, kvm_one_reg(id, addressof(holder)), f"register {id:#x}")

    def translate(self, linear_address: int) -> int | None:
        """KVM_TRANSLATE: the guest physical address by the vCPU's page tables; None where not mapped."""
        translation = kvm_translation(linear_address=linear_address)
        self.ioctl(ioctls.KVM_TRANSLATE, translation, f"linear address {linear_address:#x}")
        return translation.physical_address if translation.valid else None

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP on the vCPU, with up to four arguments."""
        request = kvm_enable_cap(cap=cap, flags=flags, args=args)
        self.ioctl(ioctls.KVM_ENABLE_CAP, request, cap_name(cap))

    def close(self) -> None:
        """Close the vCPU.  ``kvm_run`` stays readable, as it was; end the thread that runs it first.

        An exit object kept beyond this keeps the mapping, and with it the kernel's vCPU, until it is dropped.
        """
        if self.fd < 0:
            return
        super().close()
        self.kvm_run = kvm_run.from_buffer_copy(self._memory)
        self._exits = []
        self._words.release()
        if self._ring is not None:
            self._ring.close()
        try:
            self._memory.close()
        except BufferError:  # an exit object, or a view of its data, is still in use
            del self._memory


_EXIT_REASON: int = kvm_run.exit_reason.offset // 4


def _one_reg_size(id: int) -> int:
    """Bytes of a register, from its KVM_REG_SIZE_* bits."""
    return 1 << ((id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT)
