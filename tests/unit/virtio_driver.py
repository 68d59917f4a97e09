"""A virtio driver in this process, for tests of devices: it does to a device's registers and rings what a guest does.

    driver = Driver(device)                        # reset, features, queues, DRIVER_OK
    token = driver.queue(0).add([b"header"], [512, 1])
    driver.kick(0)
    assert driver.wait(0) == [(token, 513)]        # (token, bytes the device says it wrote)
    data, status = driver.written(token)
    driver.close()

It kicks and waits as Linux does: only where the device has asked for a kick, and by the interrupt, not by polling; so a
kick or an interrupt that is lost shows.
"""

from __future__ import annotations

import itertools
import os
import select
import struct
import time

from pyvmm.devices.virtio import features as f
from pyvmm.devices.virtio import mmio_registers as reg
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.mmio import MmioTransport
from pyvmm.memory import GuestMemory

NEXT, WRITE, INDIRECT = 1, 2, 4
#: What writable buffers hold before the device writes.
UNWRITTEN = 0xEE


class Allocator:
    """Guest memory by the piece, aligned to 64 bytes or to a page where it is that large; pieces can be given back."""

    def __init__(self, start: int, end: int) -> None:
        self._next, self._end = start, end
        self._free: dict[int, list[int]] = {}

    @staticmethod
    def _rounded(size: int) -> int:
        return max(64, 1 << (size - 1).bit_length()) if size > 1 else 64

    def get(self, size: int) -> int:
        size = self._rounded(size)
        if self._free.get(size):
            return self._free[size].pop()
        alignment = min(size, 4096)
        at = (self._next + alignment - 1) & -alignment
        assert at + size <= self._end, "the test needs more guest memory"
        self._next = at + size
        return at

    def give(self, address: int, size: int) -> None:
        self._free.setdefault(self._rounded(size), []).append(address)


class DriverQueue:
    """The driver's side of queue ``index``; ``size`` descriptors."""

    _tokens = itertools.count(1)

    def __init__(self, driver: Driver, index: int, size: int) -> None:
        self.driver = driver
        self.index = index
        self.size = size
        allocator = driver.allocator
        self.desc = allocator.get(16 * size)
        self.avail = allocator.get(6 + 2 * size)
        self.used = allocator.get(6 + 8 * size)
        for address, length in (
            (self.desc, 16 * size), (self.avail, 6 + 2 * size), (self.used, 6 + 8 * size),
        ):  # fmt: skip
            driver.memory.fill(address, length)
        self.free = list(range(size))
        self.avail_idx = 0
        self.last_used = 0
        self.kicked_at = 0
        self._tokens_by_head: dict[int, int] = {}
        self._held: dict[int, tuple[list[int], list[tuple[int, int]], list[tuple[int, int]]]] = {}

    # -- raw access, for tests that break the rules -----------------------------------------------------

    def set_descriptor(
        self, index: int, address: int, length: int, flags: int = 0, follower: int = 0
    ) -> None:
        """Write entry ``index`` of the descriptor table."""
        self.driver.memory.write(
            self.desc + 16 * index, struct.pack("<QIHH", address, length, flags, follower)
        )

    def publish(self, head: int) -> None:
        """Make the chain that starts at descriptor ``head`` available."""
        memory = self.driver.memory
        memory.write(self.avail + 4 + 2 * (self.avail_idx % self.size), struct.pack("<H", head))
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        memory.write(self.avail + 2, struct.pack("<H", self.avail_idx))

    @property
    def used_idx(self) -> int:
        """The device's index in the used ring."""
        return self.driver.memory.read_u16(self.used + 2)

    # -- as a driver does -------------------------------------------------------------------------------

    def add(self, readable: list[bytes], writable: list[int], indirect: bool = False) -> int:
        """Make a request available: buffers that hold ``readable``, then empty ones of the ``writable`` sizes."""
        allocator, memory = self.driver.allocator, self.driver.memory
        pieces: list[tuple[int, int]] = []
        entries = []
        for data in readable:
            address = allocator.get(len(data))
            memory.write(address, data)
            pieces.append((address, len(data)))
            entries.append((address, len(data), 0))
        outputs = []
        for size in writable:
            address = allocator.get(size)
            memory.fill(address, size, UNWRITTEN)
            outputs.append((address, size))
            entries.append((address, size, WRITE))
        pieces += outputs
        count = 1 if indirect else len(entries)
        assert len(self.free) >= count, "the queue is full"
        heads, self.free = self.free[:count], self.free[count:]
        if indirect:
            table = b"".join(
                struct.pack(
                    "<QIHH", address, size, flags | (NEXT if number + 1 < len(entries) else 0), number + 1
                )
                for number, (address, size, flags) in enumerate(entries)
            )
            address = allocator.get(len(table))
            memory.write(address, table)
            pieces.append((address, len(table)))
            self.set_descriptor(heads[0], address, len(table), INDIRECT)
        else:
            for number, (address, size, flags) in enumerate(entries):
                last = number + 1 == count
                self.set_descriptor(
                    heads[number],
                    address,
                    size,
                    flags | (0 if last else NEXT),
                    0 if last else heads[number + 1],
                )
        token = next(self._tokens)
        self._tokens_by_head[heads[0]] = token
        self._held[token] = (heads, pieces, outputs)
        self.publish(heads[0])
        return token

    def wants_kick(self) -> bool:
        """Whether the device has asked for a kick for what was made available since the last one."""
        memory, new, old = self.driver.memory, self.avail_idx, self.kicked_at
        self.kicked_at = new
        if self.driver.features & f.EVENT_IDX:
            event = memory.read_u16(self.used + 4 + 8 * self.size)
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not memory.read_u16(self.used) & 1

    def collect(self) -> list[tuple[int, int]]:
        """What the device has given back: (token, bytes written); the buffers' contents are kept for written()."""
        done = []
        memory = self.driver.memory
        while self.last_used != self.used_idx:
            head, written = struct.unpack(
                "<II", memory.read(self.used + 4 + 8 * (self.last_used % self.size), 8)
            )
            self.last_used = (self.last_used + 1) & 0xFFFF
            token = self._tokens_by_head.pop(head)
            heads, pieces, outputs = self._held.pop(token)
            self.driver.results[token] = [memory.read(address, size) for address, size in outputs]
            for address, size in pieces:
                self.driver.allocator.give(address, size)
            self.free += heads
            done.append((token, written))
        return done

    def ask_for_interrupt(self) -> None:
        """Let the next used buffer interrupt."""
        memory = self.driver.memory
        if self.driver.features & f.EVENT_IDX:
            memory.write(self.avail + 4 + 2 * self.size, struct.pack("<H", self.last_used))
        else:
            memory.write(self.avail, struct.pack("<H", 0))

    def no_interrupts(self) -> None:
        """Ask for no interrupts (with EVENT_IDX: for one far away)."""
        memory = self.driver.memory
        if self.driver.features & f.EVENT_IDX:
            memory.write(
                self.avail + 4 + 2 * self.size, struct.pack("<H", (self.last_used + 0x8000) & 0xFFFF)
            )
        else:
            memory.write(self.avail, struct.pack("<H", 1))


class Driver:
    """A driver for ``device``, initialized unless ``start`` is false; ``features`` limits what it accepts.

    ``shared`` makes guest memory a memfd, as vhost-user needs it.  ``notes`` has the lines said for the user.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory_size: int = 16 << 20,
        *,
        features: int | None = None,
        start: bool = True,
        shared: bool = False,
    ) -> None:
        self.device = device
        self.memory = GuestMemory([(0, memory_size)], **({"shared": True} if shared else {}))
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self.interrupt_fd = os.eventfd(0, flags)
        self.kick_fds = [os.eventfd(0, flags) for _ in device.queue_sizes]
        self.notes: list[str] = []
        self.results: dict[int, list[bytes]] = {}
        self.features = 0
        self.transport = MmioTransport(
            device, self.memory, self.interrupt_fd, self.kick_fds, self.notes.append
        )
        self._queues: list[DriverQueue] = []
        self._closed = False
        if start:
            self.negotiate(features)

    def read(self, register: int) -> int:
        """A register."""
        return self.transport.read(register, 4)

    def write(self, register: int, value: int) -> None:
        """Write a register."""
        self.transport.write(register, value, 4)

    # -- initialization, virtio 1.2 section 3.1.1 -------------------------------------------------------

    def reset(self) -> None:
        """Reset the device; all memory is free again."""
        self.write(reg.STATUS, 0)
        assert self.read(reg.STATUS) == 0
        self.allocator = Allocator(0x1000, self.memory.size)
        self._queues = []

    def offered(self) -> int:
        """The features the device offers."""
        value = 0
        for half in (0, 1):
            self.write(reg.DEVICE_FEATURES_SEL, half)
            value |= self.read(reg.DEVICE_FEATURES) << 32 * half
        return value

    def accept(self, features: int) -> bool:
        """Accept features and set FEATURES_OK; whether the device agreed."""
        self.write(reg.STATUS, f.ACKNOWLEDGE)
        self.write(reg.STATUS, f.ACKNOWLEDGE | f.DRIVER)
        for half in (0, 1):
            self.write(reg.DRIVER_FEATURES_SEL, half)
            self.write(reg.DRIVER_FEATURES, features >> 32 * half & 0xFFFFFFFF)
        self.write(reg.STATUS, f.ACKNOWLEDGE | f.DRIVER | f.FEATURES_OK)
        self.features = features
        return bool(self.status & f.FEATURES_OK)

    def set_up_queue(self, index: int, size: int | None = None) -> DriverQueue:
        """Set a queue up with as many descriptors as it can have, or ``size``."""
        self.write(reg.QUEUE_SEL, index)
        assert self.read(reg.QUEUE_READY) == 0
        queue = DriverQueue(self, index, size or self.read(reg.QUEUE_NUM_MAX))
        self.place_queue(index, queue.size, queue.desc, queue.avail, queue.used)
        assert self.read(reg.QUEUE_READY) == 1
        return queue

    def place_queue(self, index: int, size: int, desc: int, avail: int, used: int) -> None:
        """Tell the device where a queue is, and that it is ready."""
        self.write(reg.QUEUE_SEL, index)
        self.write(reg.QUEUE_NUM, size)
        for register, address in (
            (reg.QUEUE_DESC_LOW, desc), (reg.QUEUE_DRIVER_LOW, avail), (reg.QUEUE_DEVICE_LOW, used),
        ):  # fmt: skip
            self.write(register, address & 0xFFFFFFFF)
            self.write(register + 4, address >> 32)
        self.write(reg.QUEUE_READY, 1)

    def driver_ok(self) -> None:
        """Say that the driver is ready."""
        self.write(reg.STATUS, self.status | f.DRIVER_OK)

    def negotiate(self, features: int | None = None, sizes: tuple[int | None, ...] | None = None) -> None:
        """The whole initialization: all offered features, or those of ``features``; all queues."""
        self.reset()
        assert self.read(reg.MAGIC_VALUE) == 0x74726976 and self.read(reg.VERSION) == 2
        offered = self.offered()
        wanted = offered if features is None else offered & (features | f.VERSION_1)
        assert self.accept(wanted), "the device did not take its own features"
        for index in range(len(self.device.queue_sizes)):
            self._queues.append(self.set_up_queue(index, sizes[index] if sizes else None))
        self.driver_ok()

    # -- use --------------------------------------------------------------------------------------------

    def queue(self, index: int) -> DriverQueue:
        """Queue ``index``."""
        return self._queues[index]

    def kick(self, index: int, force: bool = False) -> bool:
        """Notify the device of queue ``index``, if it has asked for that; whether it was notified."""
        wanted = self.queue(index).wants_kick()
        if wanted or force:
            self.write(reg.QUEUE_NOTIFY, index)
        return wanted or force

    def wait(self, index: int, timeout: float = 5) -> list[tuple[int, int]]:
        """Wait for an interrupt until queue ``index`` has used buffers; [] when the time (seconds) is up."""
        queue = self.queue(index)
        limit = time.monotonic() + timeout
        while True:
            queue.ask_for_interrupt()
            done = queue.collect()
            if done:
                return done
            left = limit - time.monotonic()
            if left <= 0 or not select.select([self.interrupt_fd], [], [], left)[0]:
                return []
            self.interrupts()

    def wait_all(self, index: int, count: int, timeout: float = 5) -> list[tuple[int, int]]:
        """As wait(), until there are ``count`` used buffers."""
        done: list[tuple[int, int]] = []
        while len(done) < count:
            more = self.wait(index, timeout)
            if not more:
                break
            done += more
        return done

    def request(
        self, index: int, readable: list[bytes], writable: list[int], indirect: bool = False
    ) -> list[bytes]:
        """One request, waited for: what the device wrote into each buffer."""
        token = self.queue(index).add(readable, writable, indirect)
        self.kick(index)
        assert [each for each, _ in self.wait(index)] == [token], "no answer"
        return self.written(token)

    def written(self, token: int) -> list[bytes]:
        """What the writable buffers of a used request hold, whole; bytes that nobody wrote are UNWRITTEN."""
        return self.results[token]

    def interrupts(self) -> int:
        """How often the device has interrupted since the last call."""
        try:
            return os.eventfd_read(self.interrupt_fd)
        except BlockingIOError:
            return 0

    def acknowledge(self) -> int:
        """The interrupt status, acknowledged."""
        status = self.read(reg.INTERRUPT_STATUS)
        self.write(reg.INTERRUPT_ACK, status)
        return status

    def config(self, offset: int, size: int) -> bytes:
        """Bytes of the configuration space, read one by one."""
        return bytes(self.transport.read(reg.CONFIG + offset + at, 1) for at in range(size))

    def write_config(self, offset: int, data: bytes) -> None:
        """Write 1, 2, 4 or 8 bytes of the configuration space at once."""
        self.transport.write(reg.CONFIG + offset, int.from_bytes(data, "little"), len(data))

    @property
    def status(self) -> int:
        """The status register."""
        return self.read(reg.STATUS)

    @property
    def needs_reset(self) -> bool:
        """Whether the device asks to be reset."""
        return bool(self.status & f.NEEDS_RESET)

    def close(self) -> None:
        """Close the device, and all that is here.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.transport.close()
        for fd in (self.interrupt_fd, *self.kick_fds):
            os.close(fd)
        self.memory.close()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
