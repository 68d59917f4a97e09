"""Put the attachments into the machine: a device, a page of registers, eventfds and an interrupt line for each.

After this a request of the guest and its completion make no exit: KVM signals the kick's eventfd, and raises the line
for the interrupt's; registers are read from memory that KVM shows the guest (see pyvmm.devices.virtio.mmio).
"""

from __future__ import annotations

import os
import sys

from pyvmm.devices.virtio.mmio import MmioTransport
from pyvmm.devices.virtio.mmio_registers import INTERRUPT_ACK, PAGE_SIZE, QUEUE_NOTIFY
from pyvmm.kvm import Cap
from pyvmm.kvm.irqfd import IrqFd
from pyvmm.kvm.uapi import KVM_MEM_READONLY
from pyvmm.machine.attachments.base import Host
from pyvmm.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from pyvmm.console import Console
    from pyvmm.devices.bus import Bus
    from pyvmm.kvm import Vm
    from pyvmm.machine.attachments.base import Attachment
    from pyvmm.memory import GuestMemory


class _EventFds:
    """Eventfds that close with the machine; KVM lets go of them by itself."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def new(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fds.append(fd)
        return fd

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def attach(
    vm: Vm,
    bus: Bus,
    arch: ModuleType,
    memory: GuestMemory,
    attachments: Sequence[Attachment],
    console: Console,
    closers: list[object],
) -> list[MmioTransport]:
    """Make the devices, in order, and connect each to the guest.  Raises PyvmmError.

    What has to be closed is appended to ``closers``: a device before the eventfds it uses.
    """
    fds = _EventFds()
    closers.append(fds)
    read_only = arch.READ_ONLY_REGISTERS and vm.check_extension(Cap.READONLY_MEM)
    unread = fds.new()  # interrupts are acknowledged, and nobody need know
    transports: list[MmioTransport] = []
    for index, (name, attachment) in enumerate(zip(names(attachments), attachments, strict=True)):
        base, gsi = arch.virtio_slot(index)
        line = IrqFd(vm, gsi)
        closers.append(line)
        device = attachment.create(Host(name, memory, console, closers, say))
        kicks = [fds.new() for _ in device.queue_sizes]
        transport = MmioTransport(device, memory, line.fd, kicks, say=_note)
        closers.append(transport)
        transports.append(transport)
        for queue, kick in enumerate(kicks):
            vm.ioeventfd(base + QUEUE_NOTIFY, 4, kick, datamatch=queue)
        vm.ioeventfd(base + INTERRUPT_ACK, 4, unread, datamatch=1)
        if read_only:
            slot = len(memory.regions) + index
            vm.set_user_memory_region(slot, base, PAGE_SIZE, transport.page, KVM_MEM_READONLY)
        bus.add_mmio(name, base, PAGE_SIZE, transport.read, transport.write)
    return transports


def names(attachments: Sequence[Attachment]) -> list[str]:
    """What the devices are called: disk0, disk1, rng0."""
    counts: dict[str, int] = {}
    found = []
    for attachment in attachments:
        number = counts.get(attachment.KIND, 0)
        counts[attachment.KIND] = number + 1
        found.append(f"{attachment.KIND}{number}")
    return found


def say(text: str) -> None:
    """A line for the user on standard error, from any thread."""
    try:
        sys.stderr.write(f"pyvmm: {printable(text)}\n")
        sys.stderr.flush()
    except (OSError, AttributeError):  # it went away, or was never there
        pass


def _note(text: str) -> None:
    say(f"note: {text}")
