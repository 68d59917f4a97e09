"""vhost-user devices: another process serves the virtqueues, on guest memory that it maps itself.

QEMU's ``docs/interop/vhost-user.rst``.  Guest memory has to be shared (``GuestMemory(shared=True)``).  Kicks and
interrupts go by eventfd from the guest to the back-end and back; nothing of a request passes through here.
"""

from __future__ import annotations

import os
import select
import socket

from pyvmm.devices.virtio import vhost_user_protocol as protocol
from pyvmm.devices.virtio.daemon import Daemon
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.features import EVENT_IDX, INDIRECT_DESC, VERSION_1
from pyvmm.devices.virtio.vhost_user_protocol import Channel, RefusedError, VhostUserError
from pyvmm.devices.virtio.worker import Worker
from pyvmm.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.device import Link
    from pyvmm.devices.virtio.queue import Queue
    from pyvmm.memory import GuestMemory

#: Seconds for each answer, unless said otherwise.
TIMEOUT = 30.0
DEVICE_BITS = (1 << 24) - 1
_RING_BITS = INDIRECT_DESC | EVENT_IDX | VERSION_1
_HUNG_UP = 0x2000 | select.POLLHUP | select.POLLERR  # POLLRDHUP: select has no name for it before Python 3.14


def connect(path: str) -> socket.socket:
    """A connection to a back-end that listens on the Unix socket ``path``; HostError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise HostError(
            f"cannot connect to the vhost-user socket {path}: {reason}", "start the back-end first"
        ) from None
    return sock


class VhostUserDevice(VirtioDevice):
    """Device ``name`` of type ``device_id``, served by the process at the other end of ``connection``.

    ``connection`` is a connected Unix socket, or the :class:`Daemon` that is ended with the device.
    ``config_size`` bytes of configuration come from the back-end; with 0, ``config`` is all there is.
    ``device_features`` limits the device's own feature bits that are offered.
    A back-end that has gone leaves the device marked NEEDS_RESET for good.  Raises HostError where the two do not
    come to an agreement.
    """

    own_ring_features = True
    kicks_are_shared = True

    def __init__(
        self,
        name: str,
        device_id: int,
        connection: socket.socket | Daemon,
        *,
        queue_sizes: tuple[int, ...],
        config: bytes = b"",
        config_size: int = 0,
        device_features: int = DEVICE_BITS,
        backend: str = "",
        timeout: float = TIMEOUT,
    ) -> None:
        self.DEVICE_ID = device_id
        self._daemon = connection if isinstance(connection, Daemon) else None
        sock = connection.socket if isinstance(connection, Daemon) else connection
        backend = backend or (self._daemon.name if self._daemon else "the vhost-user back-end")
        self._channel = Channel(sock, backend, timeout)
        self._requests: socket.socket | None = None  # what the back-end asks of us
        self._gone = ""  # why the back-end is of no use any more
        self._active: list[Queue] = []
        self._memory_sent = False
        self._worker: Worker | None = None
        try:
            self._negotiate(len(queue_sizes), config_size)
            if config_size:
                config = self._read_config(config_size)
        except HostError as error:
            self._give_up(error)
            self.close()
            raise VhostUserError(self._gone) from None
        except BaseException:
            self.close()
            raise
        super().__init__(
            name,
            features=self._backend_features & (device_features | _RING_BITS),
            queue_sizes=queue_sizes,
            config=config,
        )

    def _negotiate(self, queues: int, config_size: int) -> None:
        channel = self._channel
        self._backend_features = channel.ask_number(protocol.GET_FEATURES)
        self._protocol = 0
        if self._backend_features & protocol.F_PROTOCOL_FEATURES:
            known = protocol.MQ | protocol.REPLY_ACK
            if config_size:
                known |= protocol.CONFIG | protocol.BACKEND_REQ
            self._protocol = channel.ask_number(protocol.GET_PROTOCOL_FEATURES) & known
            channel.send(protocol.SET_PROTOCOL_FEATURES, protocol.number(self._protocol))
            channel.acknowledge = bool(self._protocol & protocol.REPLY_ACK)
        channel.send(protocol.SET_OWNER)
        if self._protocol & protocol.MQ:
            most = channel.ask_number(protocol.GET_QUEUE_NUM)
            if most < queues:
                raise HostError(f"{channel.backend} serves {most} queues, not {queues}")
        if config_size and not self._protocol & protocol.CONFIG:
            raise HostError(f"{channel.backend} offers no configuration space")
        if self._protocol & protocol.BACKEND_REQ:
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._requests.settimeout(1)
            with theirs:
                channel.send(protocol.SET_BACKEND_REQ_FD, b"", (theirs.fileno(),))

    def _read_config(self, size: int) -> bytes:
        answer = self._channel.ask(protocol.GET_CONFIG, protocol.config_space(0, bytes(size)))
        empty = protocol.config_space(0, b"")
        if len(answer) != len(empty) + size:
            raise HostError(
                f"{self._channel.backend} gives {max(len(answer) - len(empty), 0)} bytes of configuration, not {size}"
            )
        return answer[len(empty) :]

    # --- what the transport calls --------------------------------------------------------------------------
    def activate(self, link: Link) -> None:
        """Hand memory and queues to the back-end."""
        if self._gone:
            raise VhostUserError(self._gone)
        try:
            self._hand_over(link)
        except HostError as error:
            self._give_up(error)
            raise VhostUserError(self._gone) from None
        worker = self._worker = Worker(f"{self.name} back-end", link)
        worker.watch(self._channel.socket.fileno(), lambda: self._hung_up(link), _HUNG_UP)
        if self._requests is not None:
            requests = self._requests
            worker.watch(requests.fileno(), lambda: self._requested(link, requests))
        worker.start()

    def _hand_over(self, link: Link) -> None:
        channel, memory = self._channel, link.memory
        negotiated = self._backend_features & protocol.F_PROTOCOL_FEATURES
        channel.send(protocol.SET_FEATURES, protocol.number(link.features | negotiated))
        if not self._memory_sent:
            table, fds = _regions(memory)
            channel.send(protocol.SET_MEM_TABLE, protocol.memory_table(table), fds)
            self._memory_sent = True
        for queue in link.queues:
            if not queue.ready:
                continue
            index, size = queue.index, queue.size
            channel.send(protocol.SET_VRING_NUM, protocol.state(index, size))
            channel.send(protocol.SET_VRING_BASE, protocol.state(index, queue.next_avail))
            addresses = protocol.vring_address(
                index,
                memory.host_address(queue.desc, 16 * size),
                memory.host_address(queue.device, 6 + 8 * size),
                memory.host_address(queue.driver, 6 + 2 * size),
            )
            channel.send(protocol.SET_VRING_ADDR, addresses)
            self._active.append(queue)
            channel.send(protocol.SET_VRING_CALL, protocol.number(index), (link.interrupt_fd,))
            channel.send(protocol.SET_VRING_KICK, protocol.number(index), (link.kicks[index],))
            if negotiated:
                channel.send(protocol.SET_VRING_ENABLE, protocol.state(index, 1))

    def reset(self) -> None:
        """Take the queues back.  A back-end that does not give them is cut off, and ended where it is ours."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
        active, self._active = self._active, []
        try:
            for queue in active:
                if self._gone:
                    break
                answer = self._channel.ask(protocol.GET_VRING_BASE, protocol.state(queue.index, 0))
                queue.next_avail = int.from_bytes(answer[4:6], "little")
                if self._backend_features & protocol.F_PROTOCOL_FEATURES:
                    self._channel.send(protocol.SET_VRING_ENABLE, protocol.state(queue.index, 0))
        except HostError as error:
            self._give_up(error)

    def write_config(self, offset: int, data: bytes) -> None:
        """Pass what the driver wrote on to the back-end."""
        if self._gone or not self._protocol & protocol.CONFIG:
            return
        try:
            self._channel.send(protocol.SET_CONFIG, protocol.config_space(offset, data))
        except RefusedError:
            return  # the driver reads the old value
        except HostError as error:  # or each write would have a vCPU wait
            self._give_up(error)
            raise VhostUserError(self._gone) from None
        self.config[offset : offset + len(data)] = data

    def close(self) -> None:
        """Hang up, and end the back-end where it is ours."""
        self._channel.close()
        if self._requests is not None:
            self._requests.close()
        if self._daemon is not None:
            self._daemon.close()

    # --- the worker's thread -------------------------------------------------------------------------------
    def _hung_up(self, link: Link) -> None:
        worker = self._worker
        if worker is not None:
            worker.unwatch(self._channel.socket.fileno())
        self._give_up(HostError(f"{self._channel.backend} closed the connection"))
        link.fail(self._gone)

    def _requested(self, link: Link, requests: socket.socket) -> None:
        request = protocol.take_backend_request(requests)
        if request == protocol.BACKEND_CONFIG_CHANGE:
            try:
                config = self._read_config(len(self.config))
            except HostError as error:
                self._give_up(error)
                link.fail(self._gone)
                return
            link.config_changed(config)
        elif request is None and self._worker is not None:
            self._worker.unwatch(requests.fileno())

    def _give_up(self, error: HostError) -> None:
        """The back-end is of no use any more: make sure that it leaves guest memory alone, and remember why."""
        if self._gone:
            return
        self._gone = error.message  # first: the shutdown wakes the worker, which knows no better reason
        try:
            self._channel.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # they hung up first
        epitaph = ""
        if self._daemon is not None:
            epitaph = self._daemon.epitaph()
            self._daemon.close()
        if epitaph:
            self._gone = f"{error.message}; it {epitaph}"


def _regions(memory: GuestMemory) -> tuple[list[tuple[int, int, int, int]], tuple[int, ...]]:
    """The table of guest memory for SET_MEM_TABLE, and the descriptors that go with it."""
    table: list[tuple[int, int, int, int]] = []
    fds: tuple[int, ...] = ()
    for region in memory.regions:
        if region.fd is None:
            raise UsageError("a vhost-user device needs shared guest memory, and this guest's is private")
        table.append((region.start, region.size, region.host_address, region.fd_offset))
        fds += (region.fd,)
    if len(table) > protocol.MAX_REGIONS:
        raise UsageError(
            f"a vhost-user device takes {protocol.MAX_REGIONS} regions of memory, not {len(table)}"
        )
    return table, fds
