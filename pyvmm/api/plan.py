"""What a machine is to be, and the process that it becomes: the command line of ``pyvmm boot``, here or in a lab."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence

from pyvmm.api.process import LabProcess, LocalProcess, Process
from pyvmm.machine.attachments import KINDS, attachment
from pyvmm.machine.attachments.base import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.api.guest import Guest

#: The port that the guest's agent opens.
AGENT_PORT = "org.pyvmm.agent"


class Plan:
    """A machine to be; the arguments are :class:`pyvmm.Machine`'s."""

    def __init__(
        self,
        kernel: str,
        *,
        cmdline: str | None,
        initrd: str | os.PathLike[str] | bytes | None,
        memory: int | str | None,
        cpus: int,
        timeout: float | None,
        devices: Sequence[str],
        options: Sequence[str],
        lab: bool,
        guest: Guest | None,
    ) -> None:
        self.kernel = kernel
        self.guest = guest
        self._lab = lab
        self._initrd = initrd
        self._options = list(options)
        self._values = [
            ("--cmdline", cmdline),
            ("--memory", f"{memory >> 10}k" if isinstance(memory, int) else memory),
            ("--cpus", cpus),
            ("--timeout", timeout),
        ]
        self._devices = [each.removeprefix("--") for each in devices]
        if guest is not None:
            self._devices = [*guest.devices(), f"console=port={AGENT_PORT},control", *self._devices]

    def launch(self, files: contextlib.ExitStack) -> Process:
        """Start the process; ``files`` are temporary ones, to be kept until it has read them.

        :raises UsageError: something is not as it should be
        :raises HostError: the process, or the lab, cannot be started
        """
        initrd = self._initrd_path(files)
        arguments = ["boot", self.kernel, "--control", "-"]
        for option, value in (*self._values, ("--initrd", initrd)):
            if value is not None:
                arguments += [option, str(value)]
        for device in self._devices:
            kind, _, value = device.partition("=")
            arguments += [f"--{kind}", value] if value else [f"--{kind}"]
        arguments += self._options
        return self._in_lab(arguments, initrd) if self._lab else LocalProcess(arguments)

    def _initrd_path(self, files: contextlib.ExitStack) -> str | None:
        initrd = self._initrd
        if initrd is None and self.guest is not None:
            initrd = self.guest.initramfs()
        if not isinstance(initrd, bytes):
            return None if initrd is None else os.fspath(initrd)
        file = files.enter_context(tempfile.NamedTemporaryFile(prefix="pyvmm-initrd-"))  # noqa: SIM115
        file.write(initrd)
        file.flush()
        return file.name

    def _in_lab(self, arguments: list[str], initrd: str | None) -> Process:
        from pyvmm.lab import architecture_for
        from pyvmm.lab.machine_files import MachineFiles

        architecture = architecture_for(self.kernel)
        files = MachineFiles((self.kernel, initrd), self._attachments(), architecture)
        into = [path for path in files.into if path != "/"]  # the root there is the lab's own system
        # The lab has no cache of unpacked kernels, and would unpack slower than the guest in it.
        return LabProcess([*arguments, "--no-extract"], architecture, into, files.back, files.env)

    def _attachments(self) -> list[Attachment]:
        """The devices as the machine will have them, to learn which files they use."""
        known = {kind for kind, *_ in KINDS}
        found = []
        for device in self._devices:
            kind, _, value = device.partition("=")
            if kind in known:
                found.append(attachment(kind).parse(value))
        return found
