"""The entropy device."""

from __future__ import annotations

import threading
import time

import pytest
from virtio_driver import UNWRITTEN, Driver

from pyvmm.devices.virtio import mmio_registers as reg
from pyvmm.devices.virtio.rng import MOST_BYTES, RngDevice


@pytest.fixture
def driver():
    with Driver(RngDevice("rng0")) as driver:
        yield driver


def test_identity(driver):
    assert driver.read(reg.DEVICE_ID) == 4
    assert driver.offered() & 0xFFFFFF == 0
    assert driver.config(0, 8) == bytes(8)


@pytest.mark.parametrize("indirect", [False, True])
def test_every_byte_asked_for_is_random(driver, indirect):
    first, second = driver.request(0, [], [64, 300], indirect)
    third, _ = driver.request(0, [], [64, 300], indirect)
    assert (len(first), len(second)) == (64, 300)
    assert first != third
    assert len(set(first)) > 20 and len(set(second)) > 100
    assert driver.device.statistics() == {"requests": 2, "bytes": 728}


def test_a_large_request_is_answered_in_part(driver):
    token = driver.queue(0).add([], [MOST_BYTES, 4096])
    driver.kick(0)
    assert driver.wait(0) == [(token, MOST_BYTES)]
    assert driver.written(token)[1] == bytes([UNWRITTEN]) * 4096


def test_a_buffer_it_cannot_fill(driver):
    driver.queue(0).add([b"nothing to write to"], [])
    driver.kick(0)
    limit = time.monotonic() + 5
    while not driver.notes and time.monotonic() < limit:
        time.sleep(0.001)
    assert driver.needs_reset
    assert driver.notes == [
        "rng0: the guest broke virtqueue 0: a request for entropy without a buffer to fill"
    ]
    driver.negotiate()
    assert len(driver.request(0, [], [8])[0]) == 8


def test_close_ends_its_thread(driver):
    assert "rng0" in [thread.name for thread in threading.enumerate()]
    driver.close()
    assert "rng0" not in [thread.name for thread in threading.enumerate()]
