"""The agent in an initramfs: the program as /init, the modules it loads, and what it has to know of roots and shares
(``kernels/agent/boot.c``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from pyvmm.errors import HostError, UsageError
from pyvmm.initramfs import CONSOLE, DATA_FOLDER, Entry, directory, file


class RootSpec(NamedTuple):
    """The root file system that the agent mounts.

    ``type``: "virtiofs" (``source`` is the tag) or "block" (``source`` is the device, ``fstype`` its file system, ""
    for any the kernel knows).  ``overlay``: a copy-on-write layer in the guest's memory over it.
    """

    type: str
    source: str
    fstype: str = ""
    read_only: bool = False
    overlay: bool = False

    def lines(self) -> bytes:
        """As the agent reads it."""
        settings = [f"type={self.type}", f"source={self.source}", f"fstype={self.fstype}"]
        settings += ["ro=1"] * self.read_only + ["overlay=1"] * self.overlay
        return _lines(settings)


class Mount(NamedTuple):
    """A virtiofs directory, by its ``tag``, at ``path`` in the guest."""

    tag: str
    path: str
    read_only: bool = True


def _lines(texts: Sequence[str]) -> bytes:
    for text in texts:
        if "\n" in text or "\0" in text:
            raise UsageError(f"{text!r} cannot be passed on to the guest", "use a name without a line break")
    return "".join(f"{text}\n" for text in texts).encode("utf-8", "surrogateescape")


def agent_binary(architecture: str) -> bytes:
    """The agent's program for "x86_64" or "aarch64".  HostError if it was not built."""
    path = os.path.join(DATA_FOLDER, f"agent-{architecture}")
    try:
        with open(path, "rb") as program:
            return program.read()
    except OSError as error:
        raise HostError(
            f"there is no agent for {architecture}: {path}: {error.strerror}",
            f"build it: scripts/build-guests --arch {architecture}",
        ) from None


def agent_entries(
    architecture: str,
    *,
    modules: Sequence[tuple[str, bytes]] = (),
    root: RootSpec | None = None,
    mounts: Sequence[Mount] = (),
) -> list[Entry]:
    """What an initramfs needs whose first process is the agent: ``modules`` are names and contents, in the order in
    which they are loaded; without ``root`` the initramfs is the root."""
    entries = [CONSOLE, file("init", agent_binary(architecture), 0o755), directory("root", 0o700)]
    paths = []
    for name, data in modules:
        paths.append(f"/pyvmm/modules.d/{name}.ko")
        entries.append(file(paths[-1], data))
    if paths:
        entries.append(file("pyvmm/modules", _lines(paths)))
    if root is not None:
        entries.append(file("pyvmm/root", root.lines()))
    if mounts:
        texts = [f"{'ro' if mount.read_only else 'rw'} {mount.tag} {mount.path}" for mount in mounts]
        entries.append(file("pyvmm/mounts", _lines(texts)))
    entries.append(directory("pyvmm"))
    return entries
