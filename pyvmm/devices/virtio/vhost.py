"""vhost: virtqueues that the host's kernel serves, so that no request passes through this process.

The kernel is given guest memory, each queue's rings, the eventfd that the guest's kick writes (ioeventfd) and the
one that raises its interrupt (irqfd), and works on its own from then on: Linux ``drivers/vhost/vhost.c``,
``net.c`` and ``vsock.c``, whose interface is ``include/uapi/linux/vhost.h``.
"""

from __future__ import annotations

import os
from ctypes import Structure, c_uint64
from errno import EACCES, EBUSY, ENODEV, ENOENT, ENXIO, EPERM
from fcntl import ioctl

from pyvmm.devices.virtio import vhost_uapi as uapi
from pyvmm.devices.virtio.features import EVENT_IDX, INDIRECT_DESC, VERSION_1
from pyvmm.devices.virtio.queue import QueueError
from pyvmm.devices.virtio.worker import Worker
from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from ctypes import _SimpleCData

    from pyvmm.devices.virtio.device import Link
    from pyvmm.devices.virtio.queue import Queue
    from pyvmm.devices.virtio.vhost_uapi import VhostIoctl
    from pyvmm.memory import GuestMemory

# What a guest may see of the kernel's features.  Not: VHOST_F_LOG_ALL and VHOST_NET_F_VIRTIO_NET_HDR, which are
# between the kernel and us, VIRTIO_F_ACCESS_PLATFORM (an IOMMU) and VIRTIO_F_RING_PACKED.
OFFERED = (1 << 24) - 1 | INDIRECT_DESC | EVENT_IDX | VERSION_1


class VhostError(HostError):
    """A vhost ioctl failed: its ``name`` and ``errno``."""

    def __init__(self, name: str, errno: int, detail: str = "", hint: str = "") -> None:
        super().__init__(f"{name}{detail and f' ({detail})'}: {os.strerror(errno)}", hint)
        self.name = name
        self.errno = errno


class Vhost:
    """An open vhost device, such as ``/dev/vhost-net``; ``module`` is the kernel's module behind it.

    :meth:`activate`, give each queue what it works for (:meth:`set_net_backend`), :meth:`stop`, again and again;
    :meth:`close` for good.  Raises HostError with a hint where the device cannot be opened.
    """

    __slots__ = ("_active", "_error_fd", "_net", "_worker", "fd", "path")

    def __init__(self, path: str, module: str = "") -> None:
        module = module or path.rpartition("/")[2].replace("-", "_")
        self.path = path
        self.fd = -1
        self._error_fd = -1
        self._active: list[Queue] = []
        self._net: list[int] = []  # vrings that have a backend
        self._worker: Worker | None = None
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot_open(path, module, error.errno or 0) from None
        try:
            self._error_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.ioctl(uapi.VHOST_SET_OWNER)
        except BaseException:
            self.close()
            raise

    def ioctl(
        self,
        request: VhostIoctl,
        argument: int | Structure | _SimpleCData[int] | bytearray = 0,
        detail: str = "",
    ) -> int:
        """Do one ioctl; a structure or bytearray is written back in place.  Raises VhostError."""
        while True:
            try:
                return ioctl(self.fd, request, argument)
            except InterruptedError:
                continue
            except OSError as error:
                raise VhostError(request.name, error.errno or 0, detail or self.path) from None

    def features(self) -> int:
        """The feature bits to offer to the guest, ring features included (``own_ring_features``)."""
        bits = c_uint64()
        self.ioctl(uapi.VHOST_GET_FEATURES, bits)
        return bits.value & OFFERED

    def activate(self, link: Link, features: int, queue_indices: Sequence[int]) -> None:
        """Hand the queues ``queue_indices`` of ``link`` to the kernel, as its vrings 0, 1 ... in this order.

        ``features`` is what driver and device agreed on, without bits that the kernel was not asked for.
        Nothing runs until the vrings have a backend.  What the kernel finds broken later fails the device.
        """
        self.ioctl(uapi.VHOST_SET_FEATURES, c_uint64(features))
        self.ioctl(uapi.VHOST_SET_MEM_TABLE, memory_table(link.memory), "guest memory")
        queues = [link.queues[index] for index in queue_indices]
        for queue in queues:
            if not queue.ready:
                raise QueueError(f"the driver did not set up virtqueue {queue.index}")
        self._active = queues
        for vring, queue in enumerate(self._active):
            self._set_vring(vring, queue, link)
        self._worker = Worker(f"{self.path.rpartition('/')[2]} errors", link)
        self._worker.watch(self._error_fd, lambda: self._report(link))
        self._worker.start()

    def _set_vring(self, vring: int, queue: Queue, link: Link) -> None:
        """All there is to one ring; the order is that of Linux ``drivers/vhost/vhost.c``'s checks."""
        memory, size = link.memory, queue.size
        detail = f"virtqueue {queue.index}"
        self.ioctl(uapi.VHOST_SET_VRING_NUM, uapi.vhost_vring_state(vring, size), detail)
        self.ioctl(uapi.VHOST_SET_VRING_BASE, uapi.vhost_vring_state(vring, queue.next_avail), detail)
        address = uapi.vhost_vring_addr(
            index=vring,
            desc_user_addr=memory.host_address(queue.desc, 16 * size),
            used_user_addr=memory.host_address(queue.device, 6 + 8 * size),
            avail_user_addr=memory.host_address(queue.driver, 6 + 2 * size),
        )
        self.ioctl(uapi.VHOST_SET_VRING_ADDR, address, detail)
        self._set_file(uapi.VHOST_SET_VRING_ERR, vring, self._error_fd)
        self._set_file(uapi.VHOST_SET_VRING_CALL, vring, link.interrupt_fd)
        self._set_file(uapi.VHOST_SET_VRING_KICK, vring, link.kicks[queue.index])

    def _set_file(self, request: VhostIoctl, vring: int, fd: int) -> None:
        self.ioctl(request, uapi.vhost_vring_file(vring, fd), f"{self.path}, vring {vring}")

    def _report(self, link: Link) -> None:
        os.eventfd_read(self._error_fd)
        link.fail("the kernel's vhost found a virtqueue broken")

    def set_net_backend(self, vring: int, fd: int) -> None:
        """Let ``vring`` of an active vhost-net (0 receives, 1 transmits) work for the tap or socket ``fd``."""
        self._set_file(uapi.VHOST_NET_SET_BACKEND, vring, fd)
        self._net.append(vring)

    def stop(self) -> None:
        """Take the queues back: nothing touches guest memory any more.  Each queue is left at what comes next.

        Only vhost-net: other kinds have stopped their queues before.  Stopping twice is no error.
        Raises VhostError, after all of it, for the first thing that the kernel refused.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
        refused: list[VhostError] = []

        def attempt(request: VhostIoctl, argument: Structure) -> None:
            try:
                self.ioctl(request, argument)
            except VhostError as error:
                refused.append(error)

        net, self._net = self._net, []
        for vring in net:
            attempt(uapi.VHOST_NET_SET_BACKEND, uapi.vhost_vring_file(vring, -1))
        active, self._active = self._active, []
        for vring, queue in enumerate(active):
            state = uapi.vhost_vring_state(vring, queue.next_avail)
            attempt(uapi.VHOST_GET_VRING_BASE, state)
            queue.next_avail = state.num & 0xFFFF
            attempt(uapi.VHOST_SET_VRING_KICK, uapi.vhost_vring_file(vring, -1))
            attempt(uapi.VHOST_SET_VRING_CALL, uapi.vhost_vring_file(vring, -1))
        try:
            os.eventfd_read(self._error_fd)  # what was wrong with these queues is not to fail the next ones
        except BlockingIOError:
            pass
        if refused:
            raise refused[0]

    def close(self) -> None:
        """Stop, and close the device.  Closing twice is no error."""
        if self.fd >= 0:
            try:
                self.stop()
            finally:
                fd, self.fd = self.fd, -1
                os.close(fd)  # the kernel stops all that still ran, before this returns
        error_fd, self._error_fd = self._error_fd, -1
        if error_fd >= 0:
            os.close(error_fd)


def memory_table(memory: GuestMemory) -> bytearray:
    """``struct vhost_memory`` with all of guest RAM and where it is in this process."""
    regions = memory.regions
    table = bytearray(uapi.vhost_memory(nregions=len(regions)))
    for region in regions:
        table += bytearray(uapi.vhost_memory_region(region.start, region.size, region.host_address, 0))
    return table


def _cannot_open(path: str, module: str, errno: int) -> HostError:
    message = f"cannot open {path}: {os.strerror(errno)}"
    if errno in (ENOENT, ENODEV, ENXIO):
        return HostError(message, f"load the kernel's module: modprobe {module}")
    if errno in (EACCES, EPERM):
        return HostError(
            message, f"run as root, or get access to {path} (on Debian: the group kvm, or a udev rule)"
        )
    if errno == EBUSY:
        return HostError(message, f"is another program using {path}?")
    return HostError(message)
