"""From what the user asked for to a machine ready to run: :func:`build` is the table of contents of a boot."""

from __future__ import annotations

import errno
import os

from pyvmm import arch as architectures
from pyvmm.console import PANIC_END, PANIC_START, Console, Watch
from pyvmm.devices.bus import Bus
from pyvmm.errors import UsageError
from pyvmm.kvm import Cap, System
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.runner import Coalescer, GuestEnded, VcpuRunner
from pyvmm.memory import GuestMemory
from pyvmm.terminal import nonblocking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import NoReturn, TypeVar

    from pyvmm.devices.serial import Serial16550
    from pyvmm.kvm import Vcpu, Vm
    from pyvmm.machine.spec import MachineSpec

    T = TypeVar("T")


#: APIC ids have 8 bits, the last of which is the broadcast.
MOST_VCPUS = 255


class _File:
    """A file descriptor that closes with the machine."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)


def build(spec: MachineSpec) -> Machine:
    """Build the machine ``spec`` describes, its guest loaded, its vCPUs at their entry.

    Everything that can be wrong with the user's files is found before KVM is touched.  Raises PyvmmError
    or LoaderError, with nothing left open.
    """
    arch = architectures.host()
    _check_vcpus(spec.cpus, MOST_VCPUS)
    closers: list[object] = []
    try:
        for attachment in spec.attachments:
            attachment.check()
        kernel = _keep(closers, arch.open_image(spec.kernel))
        memory = _keep(closers, _memory(spec, arch))
        entry = arch.load(kernel, spec, memory)

        system = _keep(closers, System())
        system.require(*(number for number, required, _ in arch.CAPABILITIES if required))
        _check_vcpus(spec.cpus, system.check_extension(Cap.MAX_VCPUS) or 4)
        if entry.needs_full_cpu:
            arch.require_hardware(system)
        vm = _keep(closers, system.create_vm(arch.vm_type(system, memory.ranges)))
        arch.prepare_vm(vm)
        for slot, region in enumerate(memory.regions):
            vm.set_user_memory_region(slot, region.start, region.size, region.host_address)
        supported = arch.supported_features(system)
        vcpus = [_keep(closers, vm.create_vcpu(index)) for index in range(spec.cpus)]
        for index, vcpu in enumerate(vcpus):
            arch.prepare_vcpu(system, vm, vcpu, index, spec.cpus, supported)
        arch.complete_vm(vm, vcpus, memory, entry)
        arch.enter(vcpus[0], memory, entry)

        console = _keep(closers, Console(_outputs(spec, closers), _watches(spec)))
        bus = Bus()
        serial, events = arch.attach_devices(bus, vm, console.put, _guest_ended, closers, spec.cmdline)

        transports = []
        if spec.attachments:
            from pyvmm.machine.virtio import attach

            transports = attach(vm, bus, arch, memory, spec.attachments, console, closers)

        coalescer = _coalescer(system, vm, vcpus[0], bus, serial, arch) if spec.coalesce else None
        ends: list[End] = []
        runners = [VcpuRunner(vcpu, bus, console, ends, coalescer, arch.is_halted) for vcpu in vcpus]
        return Machine(
            spec=spec, arch=arch, vm=vm, memory=memory, runners=runners, bus=bus, serial=serial,
            console=console, coalescer=coalescer, transports=transports, ends=ends, closers=closers, events=events,
        )  # fmt: skip
    except BaseException:
        while closers:
            closers.pop().close()  # type: ignore[attr-defined]
        raise


def _keep(closers: list[object], part: T) -> T:
    closers.append(part)
    return part


def _memory(spec: MachineSpec, arch: ModuleType) -> GuestMemory:
    """Guest RAM, which other processes can map if a device is in one of them."""
    return GuestMemory(
        arch.ram_ranges(spec.memory),
        huge_pages=spec.huge_pages,
        poison=spec.poison,
        shared=any(attachment.shared_memory for attachment in spec.attachments),
    )


def _check_vcpus(count: int, most: int) -> None:
    """UsageError for more than ``most`` vCPUs: what has an APIC id of 8 bits, and then what this host's KVM gives."""
    if count > most:
        raise UsageError(
            f"{count} vCPUs are more than the {most} that are possible here", "give fewer --cpus"
        )


def _guest_ended(kind: str, status: int) -> NoReturn:
    """What the power ports call, in the vCPU's thread: ``kind`` is shutdown, reset or exit."""
    outcome = Outcome(kind)
    raise GuestEnded(End(outcome, status=status if outcome is Outcome.EXIT else None))


def _outputs(spec: MachineSpec, closers: list[object]) -> list[tuple[int, str]]:
    """Where the console goes: standard output, unless somebody else shows it, and the log file if there is one."""
    outputs = []
    if spec.show_console:
        output = nonblocking(1)
        closers.append(_File(output))
        outputs.append((output, "standard output"))
    if spec.console_log is not None:
        try:
            # O_NONBLOCK: a FIFO that nobody reads is refused, and one whose reader is slow does not hold us up.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            fd = os.open(spec.console_log, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise UsageError(
                    f"nobody reads the pipe {spec.console_log}", "start its reader before pyvmm"
                ) from None
            raise UsageError(
                f"cannot write the console log {spec.console_log}: {error.strerror}",
                "choose a writable place",
            ) from None
        closers.append(_File(fd))
        outputs.append((fd, spec.console_log))
    return outputs


def _watches(spec: MachineSpec) -> list[Watch]:
    """What to look for on the console; an expected text counts before the panic it may be part of."""
    return [
        *(Watch("expect", os.fsencode(text)) for text in spec.expect),
        *(Watch("require", os.fsencode(text)) for text in spec.require),
        Watch("panic", PANIC_START),
        Watch("panic", PANIC_END),
    ]


def _coalescer(
    system: System, vm: Vm, vcpu: Vcpu, bus: Bus, serial: Serial16550, arch: ModuleType
) -> Coalescer | None:
    """Let the kernel collect writes to places where only their order matters; None where it cannot."""
    if not system.check_extension(Cap.COALESCED_PIO if arch.PORT_IO else Cap.COALESCED_MMIO):
        return None
    for port, size in arch.coalesced_ports(serial):
        vm.register_coalesced(port, size, pio=arch.PORT_IO)
    serial.coalescing = True
    return Coalescer(vcpu.coalesced_ring(), bus, serial.settle)
