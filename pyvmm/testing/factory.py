"""The machine of a case: what :class:`pyvmm.Machine` is given for a spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvmm.testing.case import CaseSpec

if TYPE_CHECKING:
    from pyvmm.api.machine import Machine


def machine_for(spec: CaseSpec, log: str | None) -> Machine:
    """The machine of a case, with pyvmm's agent in it if the case has a command."""
    from pyvmm.api.machine import Machine

    stops_at = spec.expect if spec.command is None and spec.status is None else ()
    options = [*spec.options, *(word for text in stops_at for word in ("--expect", text))]
    guest: dict[str, Any] = {}  # what only a guest with the agent can have
    if spec.command is not None:
        guest = {"agent": True, "root": spec.root, "modules": spec.modules, "drivers": spec.drivers}
        guest |= {"rodirs": spec.rodirs, "rwdirs": spec.rwdirs}
    return Machine(
        spec.path, cmdline=_cmdline(spec), initrd=spec.initrd, memory=spec.memory, cpus=spec.cpus,
        timeout=spec.timeout, devices=spec.devices, options=options, lab=spec.lab,
        log=log, expect_timeout=spec.timeout, **guest,
    )  # fmt: skip


def _cmdline(spec: CaseSpec) -> str | None:
    """The whole command line; None for the default.

    A kernel that is booted for its test results alone is asked to power off after them (lib/kunit/executor.c), as it
    would panic then for want of a root file system; where it has no KUnit that says nothing to it.
    """
    words = [spec.cmdline] if spec.cmdline else []
    if (
        spec.ktap
        and not (spec.command or spec.expect or spec.initrd)
        and "kunit_shutdown" not in spec.cmdline
    ):
        words.append("kunit_shutdown=poweroff")
    if words and "console=" not in spec.cmdline:
        from pyvmm.api.kernel import find_image
        from pyvmm.arch import CMDLINES, DEFAULT_CMDLINE
        from pyvmm.lab import architecture_for

        default = DEFAULT_CMDLINE
        if spec.lab:
            default = CMDLINES.get(architecture_for(find_image(spec.path)), default)
        words.insert(0, default)
    return " ".join(words) or None
