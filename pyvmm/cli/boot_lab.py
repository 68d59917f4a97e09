"""``pyvmm boot --lab``: the same boot, inside an emulated host of the kernel's architecture."""

from __future__ import annotations

import os
import tempfile

from pyvmm import lab
from pyvmm.arch import DEFAULT_CMDLINE
from pyvmm.cli.lab import report
from pyvmm.errors import HostError, UsageError
from pyvmm.lab import foreground
from pyvmm.lab.machine_files import MachineFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from pyvmm.machine.spec import MachineSpec

#: Seconds beyond --timeout after which a boot in the lab is given up: start-up and clean-up are slow there.
LAB_GRACE = 60.0


def boot_in_lab(options: argparse.Namespace, spec: MachineSpec, arguments: list[str]) -> int:
    """The same boot inside the lab for the kernel's architecture: the same paths, the same files coming back."""
    if options.control not in (None, "-") or options.name is not None:
        raise UsageError(
            "--control and --name reach no machine in the lab",
            "run both there: pyvmm lab -- sh -c 'pyvmm boot ...'",
        )
    for path in (options.kernel, options.initrd):
        if path is not None and os.path.isdir(path):  # all of it would be carried in
            raise UsageError(f"{path}: a directory, not a file", "give the file inside it")
    architecture = lab.architecture_for(options.kernel)
    files = MachineFiles((options.kernel, options.initrd, options.dtb), spec.attachments, architecture)
    written = (options.console_log, options.result, options.dump_dtb)
    carry_out = [*(path for path in written if path is not None), *files.back]
    command = ["pyvmm", "boot", *(argument for argument in arguments if argument != "--lab")]
    resolved = None
    if options.machine is not None:  # what it says by now, as one file
        from pyvmm.machine.file import dump

        resolved = tempfile.NamedTemporaryFile("w", prefix="pyvmm-machine-", suffix=".toml")  # noqa: SIM115
        values = {**vars(options), "lab": False}
        if options.cmdline == DEFAULT_CMDLINE:
            values["cmdline"] = None  # the lab's own default, where the console may have another name
        resolved.write(dump(values, spec.attachments))
        resolved.flush()
        command = ["pyvmm", "boot", "--machine", resolved.name]
    if not options.no_extract:
        command.append("--no-extract")  # the lab has no cache, and would unpack slower than the guest in it
    # pyvmm in the lab keeps the time; the limit here is for a lab that does not answer any more.
    limit = None if options.timeout is None else float(options.timeout) + LAB_GRACE
    session = lab.Lab(architecture, report=report)
    try:
        status = foreground.run_in_foreground(
            session,
            command,
            carry_in=files.into,
            carry_out=carry_out,
            timeout=limit,
            env=files.env,
        )
    finally:
        if resolved is not None:
            resolved.close()
    if session.timed_out:
        raise HostError("the lab did not answer any more and was stopped", "run it again")
    return status
