"""The thread of a device: what wakes it, in which order it stops, and what becomes of its errors."""

from __future__ import annotations

import os
import select
import threading
import time

import pytest
from virtio_driver import Driver

from pyvmm.devices.virtio.device import Link, VirtioDevice
from pyvmm.devices.virtio.queue import QueueError
from pyvmm.devices.virtio.worker import Worker


class Served(VirtioDevice):
    """A device with two queues, each served by ``handler``; ``extra(worker)`` adds to its thread."""

    def __init__(self, handler=lambda chain: 0, extra=None) -> None:
        super().__init__("served0", queue_sizes=(16, 16))
        self.handler = handler
        self.extra = extra
        self.worker: Worker | None = None
        self.woken = [0, 0]

    def activate(self, link: Link) -> None:
        self.worker = worker = Worker(self.name, link)
        for queue in link.queues:
            worker.watch_queue(queue.index, lambda queue=queue: self._serve(queue))
        if self.extra is not None:
            self.extra(worker)
        worker.start()

    def _serve(self, queue) -> None:
        self.woken[queue.index] += 1
        queue.drain(self.handler)

    def reset(self) -> None:
        if self.worker is not None:
            self.worker.stop()


def until(condition, seconds: float = 5) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.001)
    return True


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_requests_on_two_queues():
    with Driver(Served(lambda chain: chain.write(chain.read()[::-1]))) as driver:
        assert driver.request(1, [b"abc"], [3]) == [b"cba"]
        assert driver.request(0, [b"de"], [2], indirect=True) == [b"ed"]


def test_many_requests_none_of_them_lost():
    """Kicks and interrupts are suppressed most of the time here: one that is lost would stop the test."""
    with Driver(Served(lambda chain: chain.write(chain.read()))) as driver:
        queue, pending, answered = driver.queue(0), {}, 0
        for number in range(3000):
            data = number.to_bytes(4, "little")
            pending[queue.add([data], [4], indirect=bool(number & 1))] = data
            driver.kick(0)
            if len(queue.free) < 4 or number % 7 == 0:
                done = driver.wait(0)
                assert done, f"nothing came back after request {number}"
                for token, written in done:
                    assert (driver.written(token), written) == ([pending.pop(token)], 4)
                    answered += 1
        assert answered + len(driver.wait_all(0, len(pending))) == 3000


def test_what_was_available_before_the_device_was_ready():
    driver = Driver(Served(lambda chain: chain.write(b"!")), start=False)
    driver.reset()
    assert driver.accept(driver.offered())
    driver._queues = [driver.set_up_queue(0), driver.set_up_queue(1)]
    token = driver.queue(0).add([], [1])
    driver.driver_ok()
    assert driver.wait(0) == [(token, 1)]
    driver.close()


def test_descriptors_and_calls():
    end, other = os.pipe()
    os.set_blocking(end, False)
    heard: list[bytes] = []
    inside: list[str] = []
    driver = Driver(Served(extra=lambda worker: worker.watch(end, lambda: heard.append(os.read(end, 99)))))
    worker = driver.device.worker
    os.write(other, b"one")
    assert until(lambda: heard == [b"one"])
    worker.call(lambda: inside.append(threading.current_thread().name))
    assert until(lambda: inside == ["served0"])
    worker.call(lambda: worker.unwatch(end))
    worker.call(lambda: inside.append("unwatched"))
    assert until(lambda: len(inside) == 2)
    os.write(other, b"two")
    assert not until(lambda: len(heard) > 1, 0.1)
    worker.call(lambda: worker.watch(end, lambda: heard.append(os.read(end, 99)), select.POLLIN))
    assert until(lambda: heard == [b"one", b"two"])
    driver.close()
    os.close(end)
    os.close(other)


def test_calls_before_the_start_and_after_the_stop():
    done: list[int] = []
    driver = Driver(Served(extra=lambda worker: worker.call(lambda: done.append(1))))
    assert until(lambda: done == [1])
    worker = driver.device.worker
    worker.stop()
    worker.call(lambda: done.append(2))
    worker.stop()
    assert done == [1]
    driver.close()


def test_reset_returns_only_when_the_thread_has_ended():
    """A request that takes its time is finished, or not begun, but not under way any more."""
    state = []

    def slow(chain) -> int:
        state.append("begun")
        time.sleep(0.2)
        state.append("ended")
        return 0

    driver = Driver(Served(slow))
    driver.queue(0).add([b"x"], [])
    driver.kick(0)
    assert until(lambda: state == ["begun"])
    driver.reset()
    assert state == ["begun", "ended"]
    assert "served0" not in threads()
    driver.negotiate()
    assert "served0" in threads()
    driver.close()
    assert "served0" not in threads()


def test_reset_of_a_queue_that_is_filled_all_the_time():
    """Another vCPU may go on making requests for ever."""
    served = []

    def handler(chain) -> int:
        served.append(1)
        driver.queue(0).publish(chain.head)
        time.sleep(0.0005)
        return 0

    driver = Driver(Served(handler))
    driver.queue(0).add([b"x"], [])
    driver.kick(0)
    assert until(lambda: len(served) > 40)
    resetting = threading.Thread(target=driver.write, args=(0x70, 0), daemon=True)
    resetting.start()
    resetting.join(5)
    assert not resetting.is_alive()
    driver.close()


def test_stale_kicks_are_gone_after_a_reset():
    driver = Driver(Served())
    driver.device.worker.stop()
    driver.kick(0, force=True)
    driver.reset()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(driver.kick_fds[0])
    driver.close()


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (QueueError("virtqueue 0: a test"), "served0: the guest broke virtqueue 0: a test"),
        (ZeroDivisionError("a test"), "served0: internal error: ZeroDivisionError: a test"),
    ],
)
def test_an_error_stops_the_device_until_its_reset(error, note):
    broken = [error]

    def handler(chain) -> int:
        if broken:
            raise broken.pop()
        return 0

    driver = Driver(Served(handler))
    driver.queue(0).add([b"x"], [])
    driver.kick(0)
    assert until(lambda: driver.needs_reset)
    assert until(lambda: driver.notes == [note]), driver.notes
    assert driver.interrupts() >= 1
    assert driver.acknowledge() & 2, "a configuration interrupt, so that the driver reads the status"
    driver.queue(1).add([b"x"], [])
    driver.kick(1, force=True)
    assert driver.wait(1, 0.1) == [], "nothing is processed any more"
    driver.negotiate()
    assert not driver.needs_reset
    driver.queue(1).add([b"x"], [])
    driver.kick(1)
    assert len(driver.wait(1)) == 1
    assert driver.notes == [note]
    driver.close()


def test_a_failed_device_does_nothing_any_more():
    end, other = os.pipe()
    heard: list[bytes] = []
    driver = Driver(Served(extra=lambda worker: worker.watch(end, lambda: heard.append(os.read(end, 99)))))
    driver.device.worker.link.fail("by another thread")
    os.write(other, b"x")
    assert until(lambda: "served0" not in threads()), "its thread has ended, and does not spin"
    assert heard == []
    driver.close()
    os.close(end)
    os.close(other)


def test_a_broken_ring_is_the_guests_fault():
    driver = Driver(Served())
    driver.queue(0).publish(99)
    driver.kick(0, force=True)
    assert until(lambda: bool(driver.notes))
    assert driver.notes == ["served0: the guest broke virtqueue 0: available descriptor 99 of 16"]
    assert driver.needs_reset
    driver.close()
