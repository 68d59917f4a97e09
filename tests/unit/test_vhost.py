"""vhost without a kernel that has it: what is asked of the kernel, in which order, and what its refusals become."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtio_driver import Driver

from pyvmm.devices.virtio import features as f
from pyvmm.devices.virtio import vhost, vhost_uapi
from pyvmm.devices.virtio.vhost import OFFERED, Vhost, VhostError
from pyvmm.devices.virtio.vsock import Vsock
from pyvmm.errors import HostError, UsageError
from pyvmm.memory import GuestMemory

LOG_ALL, NET_HDR = 1 << vhost_uapi.VHOST_F_LOG_ALL, 1 << vhost_uapi.VHOST_NET_F_VIRTIO_NET_HDR


class Kernel:
    """Stands in for the kernel: records the requests and refuses those in ``errors``."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.errors: dict[str, int] = {}
        self.features = (
            f.VERSION_1 | f.INDIRECT_DESC | f.EVENT_IDX | f.ACCESS_PLATFORM | LOG_ALL | NET_HDR | 1 << 1
        )
        self.bases = {0: 0, 1: 0}

    def ioctl(self, fd: int, request: vhost_uapi.VhostIoctl, argument: object) -> int:
        os.fstat(fd)  # it must be open
        if request.name in self.errors:
            raise OSError(self.errors[request.name], "refused")
        if request == vhost_uapi.VHOST_GET_FEATURES:
            argument.value = self.features  # type: ignore[attr-defined]
        if request == vhost_uapi.VHOST_GET_VRING_BASE:
            argument.num = self.bases[argument.index]  # type: ignore[attr-defined]
        self.calls.append((request.name, b"" if isinstance(argument, int) else bytes(argument)))  # type: ignore[call-overload]
        return 0

    def names(self) -> list[str]:
        return [name.removeprefix("VHOST_") for name, _ in self.calls]

    def all(self, name: str, layout: str) -> list[tuple[int, ...]]:
        """The arguments of each request ``name``."""
        return [struct.unpack(layout, data) for each, data in self.calls if each == f"VHOST_{name}"]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(vhost, "ioctl", made.ioctl)
    return made


@pytest.fixture
def node(tmp_path: Path) -> str:
    path = tmp_path / "vhost-vsock"
    path.touch()
    return str(path)


@pytest.fixture
def driver(kernel: Kernel, node: str) -> Iterator[Driver]:
    with Driver(Vsock("vsock0", 42, path=node)) as made:
        yield made


def test_what_is_between_us_and_the_kernel_is_not_offered(kernel: Kernel, node: str) -> None:
    device = Vhost(node)
    assert device.features() == f.VERSION_1 | f.INDIRECT_DESC | f.EVENT_IDX | 1 << 1
    assert not OFFERED & (LOG_ALL | NET_HDR | f.ACCESS_PLATFORM | f.RING_PACKED)
    device.close()


def test_a_vsock_says_its_cid_and_claims_it_at_once(kernel: Kernel, node: str) -> None:
    device = Vsock("vsock0", 0x1234567, path=node)
    assert kernel.all("VSOCK_SET_GUEST_CID", "<Q") == [(0x1234567,)]
    assert device.config == struct.pack("<Q", 0x1234567)
    assert kernel.names()[0] == "SET_OWNER"
    device.close()


def test_rings_are_handed_over_with_host_addresses_and_eventfds(kernel: Kernel, driver: Driver) -> None:
    memory = driver.memory
    assert kernel.all("SET_FEATURES", "<Q") == [(driver.features,)]
    assert driver.features & f.EVENT_IDX and driver.features & 1 << 1
    start = memory.regions[0].host_address
    assert kernel.all("SET_MEM_TABLE", "<IIQQQQ") == [(1, 0, 0, memory.size, start, 0)]
    for vring, index in enumerate((0, 1)):  # rx and tx; the event queue stays here
        queue = driver.queue(index)
        assert kernel.all("SET_VRING_NUM", "<II")[vring] == (vring, queue.size)
        assert kernel.all("SET_VRING_ADDR", "<IIQQQQ")[vring] == (
            vring, 0, start + queue.desc, start + queue.used, start + queue.avail, 0,
        )  # fmt: skip
        assert kernel.all("SET_VRING_KICK", "<Ii")[vring] == (vring, driver.kick_fds[index])
        assert kernel.all("SET_VRING_CALL", "<Ii")[vring] == (vring, driver.interrupt_fd)
    assert len(kernel.all("SET_VRING_ADDR", "<IIQQQQ")) == 2
    assert kernel.all("VSOCK_SET_RUNNING", "<i") == [(1,)]
    assert kernel.names()[-1] == "VSOCK_SET_RUNNING", "it runs when all the rest has been said"


def test_a_reset_stops_first_and_then_takes_the_rings_back(kernel: Kernel, driver: Driver) -> None:
    kernel.calls.clear()
    kernel.bases = {0: 5, 1: 7}
    driver.reset()
    assert kernel.all("VSOCK_SET_RUNNING", "<i") == [(0,)]
    assert kernel.names()[:2] == ["VSOCK_SET_RUNNING", "GET_VRING_BASE"]
    assert kernel.all("SET_VRING_KICK", "<Ii") == [(0, -1), (1, -1)]
    kernel.calls.clear()
    driver.negotiate()
    assert kernel.all("SET_VRING_BASE", "<II") == [(0, 0), (1, 0)], "a new driver starts at 0"
    assert kernel.all("VSOCK_SET_RUNNING", "<i") == [(1,)]
    assert not driver.notes


def test_a_second_reset_asks_nothing(kernel: Kernel, driver: Driver) -> None:
    driver.reset()
    kernel.calls.clear()
    driver.reset()
    assert kernel.calls == []


def test_what_the_kernel_finds_broken_fails_the_device(kernel: Kernel, driver: Driver) -> None:
    ((_, fd), (_, other)) = kernel.all("SET_VRING_ERR", "<Ii")
    assert fd == other
    os.eventfd_write(fd, 1)
    limit = time.monotonic() + 5
    while not driver.needs_reset and time.monotonic() < limit:
        time.sleep(0.01)
    assert driver.needs_reset
    assert driver.notes == ["vsock0: the kernel's vhost found a virtqueue broken"]


def test_a_refusal_at_activation_marks_the_device(kernel: Kernel, node: str) -> None:
    with Driver(Vsock("vsock0", 42, path=node), start=False) as driver:
        kernel.errors["VHOST_SET_VRING_ADDR"] = errno.EFAULT
        driver.negotiate()
        assert driver.needs_reset
        assert driver.notes == ["vsock0: VHOST_SET_VRING_ADDR (virtqueue 0): Bad address"]
        del kernel.errors["VHOST_SET_VRING_ADDR"]
        driver.negotiate()
        assert not driver.needs_reset


def test_a_ring_outside_ram_never_reaches_the_kernel(kernel: Kernel, node: str) -> None:
    with Driver(Vsock("vsock0", 42, path=node), start=False) as driver:
        driver.reset()
        assert driver.accept(driver.offered())
        for index in range(3):
            driver.place_queue(index, 128, 0x1000, 0x2000, driver.memory.size - 8)
        driver.driver_ok()
        assert driver.needs_reset and not kernel.all("SET_VRING_ADDR", "<IIQQQQ")


def test_a_ring_that_the_driver_left_out_is_an_error_of_the_driver(kernel: Kernel, node: str) -> None:
    with Driver(Vsock("vsock0", 42, path=node), start=False) as driver:
        driver.reset()
        assert driver.accept(driver.offered())
        driver.set_up_queue(0)
        driver.driver_ok()
        assert driver.needs_reset and "virtqueue 1" in driver.notes[0]


def test_vhost_net_has_a_backend_for_each_vring_and_loses_it_at_the_stop(kernel: Kernel, node: str) -> None:
    class Net(Vsock):
        def activate(self, link) -> None:  # type: ignore[no-untyped-def]
            self.vhost.activate(link, link.features, (0, 1))
            self.vhost.set_net_backend(0, 77)
            self.vhost.set_net_backend(1, 77)

    with Driver(Net("net0", 42, path=node)) as driver:
        assert kernel.all("NET_SET_BACKEND", "<Ii") == [(0, 77), (1, 77)]
        kernel.calls.clear()
        driver.reset()
        assert kernel.names()[:3] == ["NET_SET_BACKEND", "NET_SET_BACKEND", "GET_VRING_BASE"]
        assert kernel.all("NET_SET_BACKEND", "<Ii") == [(0, -1), (1, -1)]


def test_all_regions_are_in_the_table() -> None:
    with GuestMemory([(0, 0x4000), (1 << 32, 0x2000)]) as memory:
        table = vhost.memory_table(memory)
        low, high = (region.host_address for region in memory.regions)
        assert struct.unpack("<II8Q", table) == (2, 0, 0, 0x4000, low, 0, 1 << 32, 0x2000, high, 0)


def test_closing_closes_everything(kernel: Kernel, node: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    driver = Driver(Vsock("vsock0", 42, path=node))
    driver.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOENT, "modprobe vhost_vsock"),
        (errno.ENODEV, "modprobe vhost_vsock"),
        (errno.EACCES, "run as root"),
        (errno.EBUSY, "another program"),
    ],
)
def test_a_device_that_cannot_be_opened(code: int, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=f"cannot open /dev/vhost-vsock: {os.strerror(code)}") as caught:
        Vsock("vsock0", 3)
    assert hint in caught.value.hint


def test_a_cid_in_use_and_an_owner_elsewhere(kernel: Kernel, node: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    kernel.errors["VHOST_VSOCK_SET_GUEST_CID"] = errno.EADDRINUSE
    with pytest.raises(HostError, match="vsock CID 3 is in use by another guest") as caught:
        Vsock("vsock0", 3, path=node)
    assert caught.value.hint == "choose another CID"
    kernel.errors["VHOST_SET_OWNER"] = errno.EBUSY
    with pytest.raises(VhostError, match="VHOST_SET_OWNER"):
        Vsock("vsock0", 3, path=node)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 0xFFFFFFFF, 1 << 32])
def test_reserved_cids_are_refused_before_anything_is_opened(cid: int) -> None:
    with pytest.raises(UsageError, match=f"vsock CID {cid} cannot be a guest's") as caught:
        Vsock("vsock0", cid, path="/nowhere")
    assert "3 to" in caught.value.hint
