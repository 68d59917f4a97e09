"""The agent's end of the port: frames in, frames out, and the end of the lab when the host is gone."""

from __future__ import annotations

import collections
import os
import select
import time

from pyvmm.lab.protocol import PORT, Decoder


def open_port() -> int:
    """Open the virtio-serial port named :data:`PORT`, waiting for it to appear."""
    folder = "/sys/class/virtio-ports"
    while True:
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            with open(f"{folder}/{name}/name") as file:
                if file.read().strip() == PORT:
                    return os.open(f"/dev/{name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        time.sleep(0.01)


def power_off() -> None:
    """End the lab at once.  Nothing in it is worth keeping."""
    with open("/proc/sysrq-trigger", "w") as file:
        file.write("b")
    time.sleep(60)


class Channel:
    """The port: frames in, frames out, never blocking except in :meth:`flush` and :meth:`receive`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._decoder = Decoder()
        self._out: collections.deque[memoryview] = collections.deque()
        self.received: collections.deque[tuple[int, bytes]] = collections.deque()

    @property
    def pending(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._out)

    def send(self, data: bytes) -> None:
        """Queue a frame and write what can be written at once."""
        self._out.append(memoryview(data))
        self.write()

    def write(self) -> None:
        """Write what can be written at once."""
        while self._out:
            try:
                written = os.write(self.descriptor, self._out[0])
            except BlockingIOError:
                return
            if written == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][written:]

    def read(self) -> None:
        """Take in what has arrived; complete frames go to :attr:`received`."""
        for _ in range(64):  # the driver gives at most a page for each read
            try:
                data = os.read(self.descriptor, 4096)
            except BlockingIOError:
                return
            if not data:
                power_off()
            self.received.extend(self._decoder.feed(data))

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self.descriptor, events)
        for _descriptor, ready in poll.poll():
            if ready & select.POLLHUP:
                power_off()

    def flush(self) -> None:
        """Wait until everything queued has been written."""
        while self._out:
            self._wait(select.POLLOUT)
            self.write()

    def receive(self) -> tuple[int, bytes]:
        """Wait for the next frame."""
        while not self.received:
            self._wait(select.POLLIN | (select.POLLOUT if self._out else 0))
            self.write()
            self.read()
        return self.received.popleft()
