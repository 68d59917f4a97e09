"""The virtio-mmio transport: a page of registers between a driver and a device.

virtio 1.2, section 4.2 (registers: 4.2.2), 3.1 (initialization) and 2.1 (status); Linux drivers/virtio/virtio_mmio.c.

The registers stand in a page of host memory, always as the driver has to see them: a read needs no code of ours, so
the page can be given to KVM as memory that the guest may only read.  A request then makes no exit at all: QueueNotify
and InterruptACK are eventfds, and InterruptStatus says "used buffer" for as long as the device is active.
"""

from __future__ import annotations

import mmap
import os
import threading
from ctypes import addressof, c_char

from pyvmm.devices.virtio import features as f
from pyvmm.devices.virtio import mmio_registers as reg
from pyvmm.devices.virtio.device import Link
from pyvmm.devices.virtio.mmio_queues import QueueRegisters
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.memory import GuestMemory

#: Status bits that the driver can set; the device alone sets NEEDS_RESET.
_DRIVERS_BITS = f.ACKNOWLEDGE | f.DRIVER | f.FEATURES_OK | f.DRIVER_OK | f.FAILED
#: Lines that a device may print of its failures: a guest can reset it and break the rules again, for ever.
MOST_NOTES = 10


def note(text: str) -> None:
    """A line on standard error, in one write."""
    try:
        os.write(2, f"pyvmm: note: {text}\n".encode(errors="replace"))
    except OSError:
        pass


class MmioTransport:
    """The registers of ``device``.  ``page`` is the host address of the page they stand in.

    ``interrupt_fd`` is the eventfd that interrupts the guest; ``kicks`` has one for each queue, non-blocking, which
    the guest's QueueNotify writes, in the kernel or through :meth:`write`.  ``say`` prints a line for the user.
    The caller closes all of these after :meth:`close`.  A guest can do nothing that raises an exception here.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        interrupt_fd: int,
        kicks: list[int],
        say: Callable[[str], None] = note,
    ) -> None:
        assert len(kicks) == len(device.queue_sizes)
        self.device = device
        self._memory = memory
        self._interrupt_fd = interrupt_fd
        self._kicks = kicks
        self._print = say
        self._notes = 0
        self._mapping = mmap.mmap(-1, reg.PAGE_SIZE)
        self.page = addressof(c_char.from_buffer(self._mapping))
        self._bytes = memoryview(self._mapping)
        self._words = self._bytes.cast("I")
        self._lock = threading.RLock()  # the driver's registers; held while the device starts and stops
        self._page_lock = (
            threading.Lock()
        )  # what other threads change too; never held while anything else is called
        self._link: Link | None = None
        self._closed = False
        self._writers: dict[int, Callable[[int], None]] = {
            reg.DEVICE_FEATURES_SEL: self._select_device_features,
            reg.DRIVER_FEATURES: self._accept_features,
            reg.DRIVER_FEATURES_SEL: self._select_driver_features,
            reg.QUEUE_NOTIFY: self._notify,
            reg.INTERRUPT_ACK: self._acknowledge,
            reg.STATUS: self._set_status,
        }
        self._queues = QueueRegisters(self._words, device.queue_sizes)
        ring = 0 if device.own_ring_features else f.RING_FEATURES
        self._offered = device.features | ring | f.VERSION_1
        self._clear()

    # -- what the driver sees ---------------------------------------------------------------------------

    def _clear(self) -> None:
        """The registers of a device that was just reset."""
        self._accepted = 0
        self._features_sel = 0
        words = self._words
        with self._page_lock:
            words[reg.MAGIC_VALUE >> 2] = reg.MAGIC
            words[reg.VERSION >> 2] = 2
            words[reg.DEVICE_ID >> 2] = self.device.DEVICE_ID
            words[reg.VENDOR_ID >> 2] = reg.VENDOR
            for register in range(reg.DEVICE_FEATURES, reg.CONFIG_GENERATION, 4):
                words[register >> 2] = 0
            for register in (reg.SHM_LEN_LOW, reg.SHM_LEN_HIGH, reg.SHM_BASE_LOW, reg.SHM_BASE_HIGH):
                words[register >> 2] = 0xFFFFFFFF  # there are no shared memory regions
            self._show_config()
        self._select_device_features(0)
        self._queues.clear()

    def _show_config(self) -> None:
        config = self.device.config
        if self._bytes[reg.CONFIG : reg.CONFIG + len(config)] != config:
            self._bytes[reg.CONFIG : reg.CONFIG + len(config)] = config

    def read(self, offset: int, size: int) -> int:
        """What the driver reads: registers in aligned words, the configuration space in 1, 2, 4 or 8 bytes."""
        if offset < reg.CONFIG and (size != 4 or offset & 3):
            return 0
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    @property
    def needs_reset(self) -> bool:
        """Whether the device has failed since its last reset."""
        return bool(self._words[reg.STATUS >> 2] & f.NEEDS_RESET)

    # -- what the driver writes -------------------------------------------------------------------------

    def write(self, offset: int, value: int, size: int) -> None:
        """A write of the driver; one that makes no sense is lost."""
        if offset >= reg.CONFIG:
            self._write_config(offset - reg.CONFIG, value, size)
            return
        if size != 4 or offset & 3:
            return
        with self._lock:
            if self._closed:
                return
            writer = self._writers.get(offset)
            if writer is not None:
                writer(value)
            elif offset == reg.QUEUE_READY and not value & 1 and self._link is not None:
                self._take_back(self._link)
            else:
                self._queues.write(offset, value)

    def _write_config(self, offset: int, value: int, size: int) -> None:
        if offset + size > len(self.device.config):
            return
        with self._lock:
            if self._closed:
                return
            try:
                self.device.write_config(offset, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
            except Exception as error:
                self._failed(error)
            with self._page_lock:
                self._show_config()

    def _select_device_features(self, selected: int) -> None:
        self._words[reg.DEVICE_FEATURES >> 2] = (
            self._offered >> 32 * selected & 0xFFFFFFFF if selected < 2 else 0
        )

    def _select_driver_features(self, selected: int) -> None:
        self._features_sel = selected

    def _accept_features(self, value: int) -> None:
        if self._words[reg.STATUS >> 2] & f.FEATURES_OK:
            return
        selected = self._features_sel
        if selected < 2:
            shift = 32 * selected
            self._accepted = self._accepted & ~(0xFFFFFFFF << shift) | value << shift
        elif value:
            self._accepted |= 1 << 64  # nothing of that is offered

    def _notify(self, value: int) -> None:
        if value < len(self._kicks) and self._link is not None:
            try:
                os.eventfd_write(self._kicks[value], 1)
            except BlockingIOError:
                pass  # it is readable anyway

    def _acknowledge(self, value: int) -> None:
        if value & f.CONFIG_CHANGE:
            with self._page_lock:
                self._words[reg.INTERRUPT_STATUS >> 2] &= ~f.CONFIG_CHANGE

    # -- status -----------------------------------------------------------------------------------------

    def _set_status(self, value: int) -> None:
        if not value:
            self._reset()
            return
        words = self._words
        added = value & _DRIVERS_BITS & ~words[reg.STATUS >> 2]
        if added & f.FEATURES_OK and (self._accepted & ~self._offered or not self._accepted & f.VERSION_1):
            added &= ~f.FEATURES_OK
        if added & f.FEATURES_OK:
            self.device.agreed(self._accepted)
        with self._page_lock:
            words[reg.STATUS >> 2] |= added & ~f.DRIVER_OK
            self._show_config()
        if added & f.DRIVER_OK:
            self._activate()

    def _activate(self) -> None:
        words = self._words
        with self._page_lock:
            words[reg.STATUS >> 2] |= f.DRIVER_OK
            words[reg.INTERRUPT_STATUS >> 2] |= f.USED_BUFFER
        link = Link(
            self._memory,
            self._accepted,
            [],
            self._kicks,
            self._interrupt_fd,
            self._config_changed,
            self._fail,
        )
        self._link = link
        try:
            if not words[reg.STATUS >> 2] & f.FEATURES_OK:
                raise PyvmmError("the guest's driver started it without agreeing on features")
            link.queues += self._queues.make(link)
            self.device.activate(link)
        except Exception as error:
            self._failed(error)

    def _reset(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._stop(link)
            for kick in () if self.device.kicks_are_shared else self._kicks:
                try:
                    os.eventfd_read(kick)
                except BlockingIOError:
                    pass
        self._clear()

    def _stop(self, link: Link) -> None:
        # A guest that goes on filling its queues must not keep the device from coming to an end.
        for queue in link.queues:
            queue.broken = True
        try:
            self.device.reset()
        except Exception as error:
            self._say(_reason(error))

    def _take_back(self, link: Link) -> None:
        """The driver wants a queue back that is in use: nothing may touch it once QueueReady reads 0 (4.2.2.1).  No
        device can do without one, so all of it stops, until its reset."""
        queue = self._queues.release()
        if queue is not None:
            self._stop(link)
            self._fail(link, f"the guest took virtqueue {queue} back, which was in use")

    # -- what the device says ---------------------------------------------------------------------------

    def _say(self, reason: str) -> None:
        self._notes += 1
        if self._notes <= MOST_NOTES:
            last = "; what follows is not said any more" if self._notes == MOST_NOTES else ""
            self._print(f"{self.device.name}: {reason}{last}")

    def _failed(self, error: Exception) -> None:
        if self._link is not None:
            self._fail(self._link, _reason(error))
        else:
            self._say(_reason(error))

    def _fail(self, link: Link, reason: str) -> None:
        with self._page_lock:
            if link.failed or link is not self._link:
                return
            link.failed = True
            for queue in link.queues:
                queue.broken = True
        self._say(reason)  # before the guest sees it, and does whatever it does about it
        with self._page_lock:
            if link is not self._link:
                return
            self._words[reg.STATUS >> 2] |= f.NEEDS_RESET
            self._words[reg.INTERRUPT_STATUS >> 2] |= f.CONFIG_CHANGE
        link.interrupt()

    def _config_changed(self, link: Link, config: bytes | None) -> None:
        words = self._words
        with self._page_lock:
            if config is not None:
                self.device.config[:] = config
            if link is not self._link:
                return  # it is shown after the reset
            self._show_config()
            words[reg.CONFIG_GENERATION >> 2] = (words[reg.CONFIG_GENERATION >> 2] + 1) & 0xFFFFFFFF
            words[reg.INTERRUPT_STATUS >> 2] |= f.CONFIG_CHANGE
        link.interrupt()

    def close(self) -> None:
        """Stop the device, and close it; the registers stay mapped until nothing refers to them.  Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._reset()
            self._closed = True
            try:
                self.device.close()
            except Exception as error:  # the other devices have to be closed as well
                self._say(_reason(error))


def _reason(error: Exception) -> str:
    """What to say of ``error``, in a line."""
    if isinstance(error, PyvmmError):
        words = (
            f"the guest broke {error.message}" if error.message.startswith("virtqueue ") else error.message
        )
        return f"{words} ({error.hint})" if error.hint else words
    return f"internal error: {type(error).__name__}: {error}"
