"""What each command of the control socket does with the machine; in the event loop's thread, without blocking."""

from __future__ import annotations

import base64
import os
import signal
import time

from pyvmm import __version__
from pyvmm.control.protocol import COMMANDS, MOST_READ
from pyvmm.devices.virtio.features import BALLOON
from pyvmm.errors import PyvmmError, UsageError
from pyvmm.machine.outcome import End, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyvmm.devices.virtio.balloon import BalloonDevice
    from pyvmm.kvm import Vcpu
    from pyvmm.machine.machine import Machine

BY = "pyvmm ctl"


class Refused(PyvmmError):
    """The machine is not in the state for that."""


def state(machine: Machine) -> str:
    """running, pausing, paused or ending."""
    pause = machine.pause
    if machine.ends:
        return "ending"
    if pause is None or not pause.wanted:
        return "running"
    return "pausing" if pause.since is None else "paused"


def status(machine: Machine, name: str) -> dict[str, object]:
    """Times in seconds; ``stopping``: the power button was pressed."""
    return {
        "name": name,
        "pid": os.getpid(),
        "version": __version__,
        "state": state(machine),
        "stopping": machine.asked_to_stop,
        "uptime_s": round(time.monotonic() - machine.started, 3),
        "paused_s": round(0.0 if machine.pause is None else machine.pause.seconds(), 3),
        "vcpus": len(machine.runners),
        "memory_bytes": machine.spec.memory,
        "kernel": os.path.abspath(machine.spec.kernel),
        "attachments": [each.device.name for each in machine.transports],
        "console_bytes": machine.console.total,
    }


def pause(machine: Machine) -> None:
    """Begin to pause; :attr:`Pause.since` says when that is done."""
    if machine.ends:
        raise Refused("the machine is ending", "it cannot be paused any more")
    machine.pauser().begin()


def resume(machine: Machine) -> dict[str, object]:
    """Let it go on; how long it has been paused in all."""
    pause = machine.pause
    if pause is None or not pause.wanted or machine.ends:
        raise Refused(f"the machine is not paused, it is {state(machine)}", "pause it first")
    pause.end()
    return {"paused_s": round(pause.seconds(), 3)}


def stop(machine: Machine, force: bool) -> dict[str, object]:
    """Press the power button, or end the run; which of them it was."""
    if machine.ends:
        machine.hurry |= force
        return {"forced": force}
    if force:
        machine.ends.append(End(Outcome.INTERRUPTED, status=signal.SIGINT, detail=f"stopped by {BY}"))
        return {"forced": True}
    if state(machine) != "running" and not machine.asked_to_stop:
        raise Refused("a paused guest does not heed its power button", "resume it first, or stop it by force")
    return {"forced": machine.stop(BY)}


def exits(machine: Machine) -> dict[str, object]:
    """As in the result file."""
    counts = machine.exits()
    return {"total": sum(counts.values()), "by_device": counts}


def devices(machine: Machine) -> dict[str, object]:
    """What each device counted, by its name."""
    return {each.device.name: each.device.statistics() for each in machine.transports}


def balloon(machine: Machine, target: int | None) -> dict[str, object]:
    """The balloon's sizes, after setting its target."""
    device = _balloon(machine)
    if target is not None:
        if target > machine.spec.memory:
            raise UsageError(
                f"a balloon of {target} bytes is larger than the guest's {machine.spec.memory} bytes of RAM",
                "give a smaller target",
            )
        device.set_target(target)
    device.ask()  # new statistics for the next time
    return dict(device.statistics())


def _balloon(machine: Machine) -> BalloonDevice:
    for each in machine.transports:
        if each.device.DEVICE_ID == BALLOON:
            return each.device  # type: ignore[return-value]
    raise Refused("the machine has no balloon", "start it with pyvmm boot --balloon")


def outcome(machine: Machine) -> dict[str, object]:
    """How the run ended, of a machine that has."""
    end = machine.end
    assert end is not None, "the machine has not ended"
    return {
        "outcome": end.outcome.value,
        "detail": end.detail,
        "exit_code": machine.exit_code(),
        "guest_status": end.status if end.outcome is Outcome.EXIT else None,
    }


def help_() -> dict[str, object]:
    """The commands, what they do, and their parameters."""
    return {
        name: {
            "help": command.help,
            "parameters": {key: each.help for key, each in command.parameters.items()},
        }
        for name, command in COMMANDS.items()
    }


def _standing(machine: Machine, number: int) -> Vcpu:
    """A vCPU that does not run; Refused while it may, UsageError if there is none of that number."""
    if machine.end is None and (machine.pause is None or machine.pause.since is None):
        raise Refused(f"the vCPUs do not stand still, the machine is {state(machine)}", "pause it first")
    if number >= len(machine.runners):
        raise UsageError(
            f"there is no vCPU {number}", f"the machine has {len(machine.runners)}, counted from 0"
        )
    return machine.runners[number].vcpu


def regs(machine: Machine, vcpu: int) -> dict[str, object]:
    """The registers of a vCPU by name."""
    return {"vcpu": vcpu, "regs": machine.arch.register_values(_standing(machine, vcpu))}


def translate(machine: Machine, address: int, vcpu: int) -> dict[str, object]:
    """Where a virtual address is, by a vCPU's page tables; null where nothing is mapped."""
    return {"physical": machine.arch.translate(_standing(machine, vcpu), machine.memory, address)}


def read(machine: Machine, address: int, size: int) -> dict[str, object]:
    """Guest memory."""
    if size > MOST_READ:
        raise UsageError(f"{size} bytes are too many at once", f"read at most {MOST_READ}, several times")
    return {"data": base64.b64encode(machine.memory.read(address, size)).decode()}


def write(machine: Machine, address: int, data: bytes) -> dict[str, object]:
    """Write to guest memory."""
    machine.memory.write(address, data)
    return {"written": len(data)}


def type_(machine: Machine, data: bytes) -> dict[str, object]:
    """Type on the console."""
    if machine.end is not None:
        raise Refused("the machine has ended", "nobody reads its console any more")
    if data:
        machine.input.give(data)
    return {"pending": machine.input.pending}


#: The commands that are answered at once, from the machine alone.
SIMPLE: dict[str, Callable[..., Mapping[str, object]]] = {
    "stop": stop,
    "exits": exits,
    "devices": devices,
    "balloon": balloon,
    "regs": regs,
    "read": read,
    "write": write,
    "translate": translate,
    "input": type_,
    "help": lambda machine: help_(),
}
