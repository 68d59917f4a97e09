"""The virtio console device: ports that carry bytes between the guest and the host.

virtio 1.2, section 5.3; Linux drivers/char/virtio_console.c.  Every device has MULTIPORT: each port has a number,
perhaps a name (/dev/virtio-ports/NAME), and may be a console (/dev/hvcN).  A single console could do without, but then
nothing would say when the guest has opened it, and what arrives before that, Linux throws away.

The terminal's size (SIZE) is not offered: with MULTIPORT it travels in RESIZE messages, and kernels disagree about the
order of columns and rows in them.
"""

from __future__ import annotations

import struct
import time

from pyvmm.devices.virtio.console_ports import LAST_SECONDS
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.features import CONSOLE
from pyvmm.devices.virtio.queue import QueueError
from pyvmm.devices.virtio.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.devices.virtio.console_ports import Endpoint
    from pyvmm.devices.virtio.device import Link
    from pyvmm.devices.virtio.queue import Chain

# Feature bits (section 5.3.3).
F_MULTIPORT = 1 << 1

# Control messages (section 5.3.6.2): le32 id, le16 event, le16 value; after PORT_NAME the name, without a NUL.
DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(8)
_MESSAGE = struct.Struct("<IHH")
#: The configuration space: le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr.
_CONFIG = struct.Struct("<HHII")
#: Queues of the control messages, to the guest and from it; port 0 has those before, port 1 those after.
CONTROL_INPUT, CONTROL_OUTPUT = 2, 3

#: Linux fills a port's input queue with as many pages, and blocks a writer when its output queue is full.
INPUT_BUFFERS = 64
OUTPUT_BUFFERS = 64
CONTROL_BUFFERS = 32
#: Messages waiting for buffers of the guest's beyond which it is not listened to: it could ask for ever.
MESSAGES_WAITING = 256
#: Requests of one port that are served before another port has its turn.
TURN = 64


class Port:
    """One port of a console device: ``endpoint`` is its side on the host.

    ``name`` is seen by the guest; ``console`` asks it for a terminal (hvc) on the port.  The pump methods are for the
    device's thread.  ``bytes_in`` have gone to the guest, ``bytes_out`` have come from it.
    """

    def __init__(self, endpoint: Endpoint, name: str = "", *, console: bool = False) -> None:
        self.endpoint = endpoint
        self.name = name
        self.console = console
        self.number = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.guest_open = False
        self.announced = False  # the guest has said PORT_READY
        self._device: ConsoleDevice | None = None
        self._link: Link | None = None
        self._worker: Worker | None = None
        self._sending: Chain | None = None  # output that the endpoint has not taken all of, ...
        self._views: list[memoryview] = []  # ... and what is left of it
        self._room: Chain | None = None  # a buffer of the guest's for which there was no input

    def start(self, device: ConsoleDevice, link: Link, worker: Worker) -> None:
        """The device is active; called before its thread starts."""
        self._device, self._link, self._worker = device, link, worker
        self._input, self._output = (link.queues[number] for number in queues_of(self.number))
        self.announced = False
        self.endpoint.start(self, worker)
        if self._input.ready:
            worker.watch_queue(self._input.index, self.pump_input)
        if self._output.ready:
            worker.watch_queue(self._output.index, self.pump_output)

    def stop(self) -> None:
        """The thread is gone: pass on what the guest had written, as far as it is taken soon, and forget the rest."""
        until = time.monotonic() + LAST_SECONDS
        link, output = self._link, self._output
        # A reset closes the queues, so that no guest can keep a device busy by filling them; one more round ends.
        output.broken = link is None or link.failed or not output.ready
        try:
            while not output.broken and self._pass_on(output.size, until) and self.endpoint.last_wait():
                if time.monotonic() > until:
                    break
        except QueueError:
            pass  # a device that failed has nothing worth passing on
        output.broken = True
        self.endpoint.stop()
        self._sending = self._room = None
        self._views = []
        self._device = self._link = self._worker = None
        self.opened(False)

    @property
    def active(self) -> bool:
        """Whether the guest's driver uses it."""
        return self._worker is not None

    def opened(self, is_open: bool) -> None:
        """The guest has opened or closed the port."""
        if is_open == self.guest_open:
            return
        self.guest_open = is_open
        self.endpoint.guest_opened(is_open)
        if is_open:
            self.pump_input()

    def host_changed(self) -> None:
        """Somebody on the host has come or gone: tell the guest."""
        if self._device is not None and self.announced:
            self._device.send(self.number, PORT_OPEN, int(self.endpoint.connected))

    def pump_output(self) -> None:
        """Pass output to the endpoint until there is none, or the endpoint takes no more for now."""
        link, worker = self._link, self._worker
        if link is None or worker is None or not self._output.ready:
            return
        if self._pass_on(TURN) and self._sending is None:  # its turn is over, and the endpoint takes more
            worker.call(self.pump_output)
        if self._output.should_interrupt():
            link.interrupt()

    def _pass_on(self, turn: int, until: float | None = None) -> bool:
        """Pass on at most ``turn`` requests; whether there may be more.

        A request may hold gigabytes, the same few pages again and again: at the reset, or ``until`` then, it is left.
        """
        queue, take = self._output, self.endpoint.take
        while turn:
            if self._sending is None:
                chain = queue.pop()
                if chain is None:
                    if queue.enable_kicks():
                        continue
                    return False
                self._sending, self._views = chain, chain.read_views()
                queue.disable_kicks()
            while self._views:
                if queue.broken or (until is not None and time.monotonic() > until):
                    return True
                taken = take(self._views)
                if not taken:
                    return True
                self.bytes_out += taken
                self._views = _rest(self._views, taken)
            queue.push(self._sending, 0)
            self._sending = None
            turn -= 1
        return True

    def pump_input(self) -> None:
        """Put input into the guest's buffers until there is none, or the guest has no buffer."""
        link, worker = self._link, self._worker
        if link is None or worker is None or not self._input.ready or not self.guest_open:
            return
        queue, fill = self._input, self.endpoint.fill
        turn = TURN
        while turn:
            chain = self._room or queue.pop()
            self._room = None
            if chain is None:
                if queue.enable_kicks():
                    continue
                break
            size = fill(chain.write_views()) if chain.writable_size else 0
            if not size and chain.writable_size:
                self._room = chain
                break
            self.bytes_in += size
            queue.push(chain, size)
            turn -= 1
        else:
            worker.call(self.pump_input)
        if queue.should_interrupt():
            link.interrupt()


class ConsoleDevice(VirtioDevice):
    """A console device with these ``ports``, at least one."""

    DEVICE_ID = CONSOLE

    def __init__(self, name: str, ports: Sequence[Port]) -> None:
        self.ports = list(ports)
        sizes = (INPUT_BUFFERS, OUTPUT_BUFFERS)
        super().__init__(
            name,
            features=F_MULTIPORT,
            queue_sizes=sizes + (CONTROL_BUFFERS, CONTROL_BUFFERS) + sizes * (len(self.ports) - 1),
            config=_CONFIG.pack(0, 0, len(self.ports), 0),
        )
        for number, port in enumerate(self.ports):
            port.number = number
        self._link: Link | None = None
        self._worker: Worker | None = None
        self._messages: list[bytes] = []  # for the guest, as soon as it has buffers for them
        self._deaf = False  # there are so many that it is not listened to

    def activate(self, link: Link) -> None:
        """Start the thread; ports wait for the guest to open them, where it can say so."""
        worker = Worker(self.name, link)
        self._link, self._worker = link, worker
        multiport = bool(link.features & F_MULTIPORT)
        for port in self.ports if multiport else self.ports[:1]:
            port.start(self, link, worker)
        if multiport:
            worker.watch_queue(CONTROL_INPUT, self._deliver)
            worker.watch_queue(CONTROL_OUTPUT, self._control)
        else:
            first = self.ports[0]
            worker.call(lambda: first.opened(True))
        worker.start()

    def reset(self) -> None:
        """Stop the thread; what the guest had written before is passed on where it is taken soon."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.stop()
        for port in self.ports:
            if port.active:
                port.stop()
        self._messages.clear()
        self._deaf = False
        self._link = None

    def close(self) -> None:
        """Close the ports' endpoints."""
        for port in self.ports:
            port.endpoint.close()

    def statistics(self) -> dict[str, int]:
        """Bytes to the guest and from it, of all ports."""
        return {
            "bytes_in": sum(port.bytes_in for port in self.ports),
            "bytes_out": sum(port.bytes_out for port in self.ports),
        }

    # -- control messages, in the device's thread -------------------------------------------------------

    def send(self, number: int, event: int, value: int) -> None:
        """Tell the guest ``event`` of port ``number``; what it has not heard of that before is left out if it lags."""
        message = _MESSAGE.pack(number, event, value)
        if (
            len(self._messages) >= MESSAGES_WAITING
        ):  # somebody on the host comes and goes, and the guest does not listen
            kind = message[:6]
            self._messages[:] = [each for each in self._messages if each[:6] != kind]
        self._messages.append(message)
        self._deliver()

    def _deliver(self) -> None:
        """Put messages into the guest's buffers, as long as it has some."""
        link, worker = self._link, self._worker
        if link is None or worker is None:
            return
        queue, messages = link.queues[CONTROL_INPUT], self._messages
        queue.disable_kicks()
        while messages:
            chain = queue.pop()
            if chain is None:
                if queue.enable_kicks():
                    continue
                break
            queue.push(chain, chain.write(messages.pop(0)))
        if queue.should_interrupt():
            link.interrupt()
        if self._deaf and len(messages) < MESSAGES_WAITING:
            self._deaf = False
            worker.call(self._control)

    def _control(self) -> None:
        """The guest has sent messages: answer them."""
        link = self._link
        if link is None:
            return
        queue = link.queues[CONTROL_OUTPUT]
        while not self._deaf:
            chain = queue.pop()
            if chain is None:
                if queue.enable_kicks():
                    continue
                break
            data = chain.read(_MESSAGE.size)
            if len(data) == _MESSAGE.size:
                self._answer(*_MESSAGE.unpack(data))
            queue.push(chain, 0)
            self._deaf = len(self._messages) >= MESSAGES_WAITING
        if queue.should_interrupt():
            link.interrupt()
        self._deliver()

    def _answer(self, number: int, event: int, value: int) -> None:
        """A message of the guest's; those that make no sense are ignored."""
        pack, messages = _MESSAGE.pack, self._messages
        if event == DEVICE_READY:
            if value:
                messages += [pack(port.number, PORT_ADD, 1) for port in self.ports]
            return
        if number >= len(self.ports):
            return
        port = self.ports[number]
        if event == PORT_READY:
            port.announced = bool(value)
            if value:
                if port.console:
                    messages.append(pack(number, CONSOLE_PORT, 1))
                if port.name:
                    messages.append(pack(number, PORT_NAME, 1) + port.name.encode())
                messages.append(pack(number, PORT_OPEN, int(port.endpoint.connected)))
        elif event == PORT_OPEN:
            port.opened(bool(value))


def queues_of(number: int) -> tuple[int, int]:
    """The numbers of the queues of port ``number``: to the guest, and from it."""
    first = 2 * number + 2 if number else 0
    return first, first + 1


def _rest(views: list[memoryview], taken: int) -> list[memoryview]:
    """What is left of ``views`` after the first ``taken`` bytes."""
    for index, view in enumerate(views):
        if taken < len(view):
            return [view[taken:], *views[index + 1 :]]
        taken -= len(view)
    return []
