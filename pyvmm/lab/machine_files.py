"""The files of a machine that is to run in a lab: what goes in with it, and what comes back."""

from __future__ import annotations

import os

from pyvmm.errors import UsageError
from pyvmm.lab import programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyvmm.machine.attachments.base import Attachment


class MachineFiles:
    """``into``: paths to carry into a lab of ``architecture``, ``back``: those to carry out of it, ``env``: the
    environment in which the programs that go along are found.

    ``files`` are the machine's own (kernel, initrd, ...; None stands for one that it does not have).

    :raises UsageError: one of them is not there
    :raises HostError: a program for that architecture cannot be had
    """

    def __init__(
        self, files: Iterable[str | None], attachments: Sequence[Attachment], architecture: str
    ) -> None:
        self.into = [path for path in files if path is not None]
        self.back: list[str] = []
        for each in attachments:
            self.into += each.files()
            self.back += each.changed_files()
        for path in self.into:
            if not os.path.exists(path):
                raise UsageError(f"{path}: no such file", "check the name")
        served = programs.find((each.program() for each in attachments), architecture)
        self.into += served.carry
        self.env = served.env
