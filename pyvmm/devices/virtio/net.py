"""virtio-net: a network card on a TAP interface, by the kernel (vhost-net) or by this process, or on passt.

virtio 1.2, section 5.1; Linux drivers/net/virtio_net.c is the driver.  Of the control queue there is what a driver
cannot do without: every frame is passed on whatever filter it asks for.
"""

from __future__ import annotations

import os
import struct

from pyvmm.devices.virtio import features, queue
from pyvmm.devices.virtio import net_features as feature
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.net_queues import Counts, Interest, Receiver, Transmitter
from pyvmm.devices.virtio.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.device import Link
    from pyvmm.devices.virtio.net_queues import Backend
    from pyvmm.devices.virtio.queue import Chain
    from pyvmm.devices.virtio.vhost import Vhost

QUEUE_SIZES = (256, 256, 64)
_ALWAYS = (
    feature.MAC | feature.STATUS | feature.MRG_RXBUF | feature.CTRL_VQ | feature.CTRL_RX | feature.CTRL_MAC_ADDR
)  # fmt: skip
#: What a guest may be told of vhost-net's own features; the others are the card's and the backend's business.
_OF_VHOST = feature.MRG_RXBUF | features.RING_FEATURES | features.VERSION_1


class NetDevice(VirtioDevice):
    """A network card with the address ``mac`` (6 bytes) whose frames ``backend`` carries.

    ``mtu`` is what the driver is told to use (None: nothing).  With ``vhost``, an open vhost-net, the kernel moves
    the frames of a backend that is a TAP interface.  ``say`` prints a line for the user, should the backend fail.
    Both belong to the device from now on.
    """

    DEVICE_ID = features.NET

    def __init__(
        self, name: str, backend: Backend, mac: bytes, *, mtu: int | None = None, vhost: Vhost | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        offered = _ALWAYS | backend.features | (feature.MTU if mtu else 0)
        if vhost is not None:
            self.own_ring_features = True
            ring = vhost.features() & _OF_VHOST
            offered = offered & ~feature.MRG_RXBUF | ring
        config = struct.pack(feature.CONFIG, mac, feature.LINK_UP, 1, mtu or 0)
        super().__init__(name, features=offered, queue_sizes=QUEUE_SIZES, config=config)
        self.backend = backend
        self._mac = mac
        self._vhost = vhost
        self._say = say
        self._counts = Counts()
        self._lost = False
        self._link: Link | None = None
        self._worker: Worker | None = None

    def activate(self, link: Link) -> None:
        """Start to move frames."""
        self._link = link
        self.backend.start(link.features)
        self._worker = worker = Worker(self.name, link)
        control = link.queues[feature.CONTROL]
        worker.watch_queue(feature.CONTROL, lambda: control.drain(self._command))
        if self._vhost is None:
            self._move_frames(link, worker)
        else:
            self._let_the_kernel(link, self._vhost)
        worker.start()

    def _move_frames(self, link: Link, worker: Worker) -> None:
        interest = Interest(worker, self.backend.fd, lambda: self._ready(receiver, transmitter))
        receiver = Receiver(link, self.backend, worker, interest, self._counts, self._backend_lost)
        transmitter = Transmitter(link, self.backend, worker, interest, self._counts)
        worker.watch_queue(feature.RECEIVE, receiver.kicked)
        worker.watch_queue(feature.TRANSMIT, transmitter.run)

    @staticmethod
    def _ready(receiver: Receiver, transmitter: Transmitter) -> None:
        receiver.run()
        transmitter.resume()

    def _let_the_kernel(self, link: Link, vhost: Vhost) -> None:
        moved = (feature.RECEIVE, feature.TRANSMIT)
        vhost.activate(link, link.features & _OF_VHOST, moved)
        for vring, index in enumerate(moved):
            vhost.set_net_backend(vring, self.backend.fd)
            os.eventfd_write(link.kicks[index], 1)  # whatever is there already may have been kicked too early

    def reset(self) -> None:
        """Stop: nothing touches guest memory any more.  Frames that come meanwhile are lost."""
        worker, self._worker, self._link = self._worker, None, None
        if worker is not None:
            worker.stop()
        if self._vhost is not None:
            self._vhost.stop()
        self.backend.stop()
        self.config[:6] = self._mac

    def close(self) -> None:
        """Close the backend, and vhost."""
        if self._vhost is not None:
            self._vhost.close()
        self.backend.close()

    def statistics(self) -> dict[str, int]:
        """Frames and bytes (without headers) each way, as the guest sees them, and the frames lost here.

        With vhost they are the interface's, which counts since it was made.
        """
        if self._vhost is not None:
            return self.backend.statistics()
        return {name: getattr(self._counts, name) for name in Counts.__slots__}

    def _backend_lost(self, error: OSError) -> None:
        """Nothing will come from the backend any more: the cable is out."""
        if self._lost or self._link is None:
            return
        self._lost = True
        self._say(f"note: {self.name}: {self.backend.label}: {error.strerror}; the link is down")
        config = bytearray(self.config)
        struct.pack_into("<H", config, feature.STATUS_OFFSET, 0)
        self._link.config_changed(bytes(config))

    def _command(self, chain: Chain) -> int:
        """Obey a command of the driver: class, command, data; the answer is one byte."""
        command = chain.read(2)
        if len(command) < 2 or not chain.writable_size:
            raise queue.QueueError(f"virtqueue {feature.CONTROL}: {chain} is no command")
        return chain.write(bytes((self._obey(command[0], command[1], chain),)))

    def _obey(self, kind: int, command: int, chain: Chain) -> int:
        if kind == feature.CLASS_RX and command in feature.RX_COMMANDS and chain.readable_size == 3:
            return feature.OK  # the guest gets more frames than it asks for, and drops them itself
        if kind == feature.CLASS_MAC and command == feature.MAC_TABLE_SET:
            return feature.OK
        if kind == feature.CLASS_MAC and command == feature.MAC_ADDR_SET:
            mac = chain.read(6, 2)
            if chain.readable_size == 8 and not mac[0] & 1:
                self.config[:6] = mac
                if self._link is not None:
                    self._link.config_changed()  # before the command is given back (5.1.6.5.2.1)
                return feature.OK
        return feature.ERR
