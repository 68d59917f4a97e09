"""Saved states: a lab that is up, with its agent waiting, started again in a fraction of the time.

The lab that is saved has its memory in a file, mapped shared; with QEMU's ``x-ignore-shared`` the saved
state then holds only the devices (about 1 MB).  A lab that is started from it maps the same file
privately: no byte is read before it is used, the page cache is shared by all labs that run, and what a lab
writes is its own copy.  A state belongs to one base image, one QEMU binary and one set of options, all in
the hash that names its directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time

from pyvmm import cache
from pyvmm.lab.image import Base
from pyvmm.lab.platforms import Platform
from pyvmm.lab.qemu import LabError, Qemu, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

MEMORY, DEVICES = "memory", "devices"
_UNUSABLE = "unusable"
KEPT: Final = 3
"""So many saved states (of different sizes, say) are kept; the least recently used go first."""

_HOLE = 64 * 1024


class Configuration:
    """A lab's hardware and software: everything that a saved state depends on."""

    __slots__ = ("base", "cpus", "memory_mib", "platform", "program")

    def __init__(self, platform: Platform, base: Base, program: str, cpus: int, memory_mib: int) -> None:
        self.platform = platform
        self.base = base
        self.program = program
        self.cpus = cpus
        self.memory_mib = memory_mib

    def options(self) -> list[str]:
        """QEMU's options, except where the memory comes from and what is started."""
        return [
            *self.platform.machine, "-m", f"{self.memory_mib}M", "-smp", str(self.cpus),
            "-kernel", self.base.kernel, "-initrd", self.base.archive, "-append", self.platform.cmdline,
        ]  # fmt: skip

    def name(self) -> str:
        """The name of the directory that a state of this configuration has in the cache."""
        parts = [self.base.identity, identity(self.program), _our_code(), *self.options()]
        return "state-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def start_cold(self) -> Qemu:
        """Start QEMU to boot the base image."""
        return Qemu(
            self.program, ["-object", f"memory-backend-ram,id=ram,size={self.memory_mib}M", *self.options()]
        )

    def start_to_save(self, work: str) -> Qemu:
        """The same, with the memory in a file in the directory ``work``."""
        memory = _escaped(os.path.join(work, MEMORY))
        ram = f"memory-backend-file,id=ram,size={self.memory_mib}M,mem-path={memory},share=on"
        return Qemu(self.program, ["-object", ram, *self.options()])

    def start_saved(self, saved: Saved) -> Qemu:
        """Start QEMU from a saved state; returns before it has been loaded.

        :raises LabError: it could not be started
        """
        memory = _escaped(os.path.join(saved.directory, MEMORY))
        ram = f"memory-backend-file,id=ram,size={self.memory_mib}M,mem-path={memory},share=off"
        qemu = Qemu(self.program, ["-object", ram, *self.options(), "-incoming", "defer"])
        try:
            with _opened(os.path.join(saved.directory, DEVICES), os.O_RDONLY) as devices:
                _ignore_shared(qemu)
                qemu.pass_descriptor("devices", devices)
            qemu.execute("migrate-incoming", uri="fd:devices")
        except BaseException:
            qemu.stop()
            raise
        return qemu


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LabError(f"cannot open {path}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _our_code() -> str:
    """A hash of the modules that give QEMU its devices and warm the lab up."""
    digest = hashlib.sha256()
    for name in ("qemu.py", "starter.py", "state.py"):
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def _escaped(path: str) -> str:
    """A path as a value among QEMU's comma-separated options."""
    return path.replace(",", ",,")


def _ignore_shared(qemu: Qemu) -> None:
    qemu.execute("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])


class Saved:
    """A saved state in the directory ``directory``; ``stamp`` tells it from others that were there."""

    __slots__ = ("directory", "stamp")

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.stamp = os.stat(os.path.join(directory, DEVICES)).st_mtime_ns

    @property
    def unusable(self) -> bool:
        """Whether it did not work when it was new, so that another one need not be tried."""
        return os.path.exists(os.path.join(self.directory, _UNUSABLE))

    def mark_unusable(self) -> None:
        """Remember that it does not work."""
        with contextlib.suppress(OSError), open(os.path.join(self.directory, _UNUSABLE), "w"):
            pass


def find(name: str, architecture: str) -> Saved | None:
    """The saved state ``name``, marked as used just now; None if there is none."""
    directory = cache.path("lab", architecture, name)
    try:
        os.utime(directory)
        return Saved(directory)
    except OSError:
        return None


def save(qemu: Qemu, work: str) -> None:
    """Save the state of a lab that ``start_to_save`` started in the directory ``work``, there; QEMU ends.

    :raises LabError: QEMU could not
    """
    _ignore_shared(qemu)
    with _opened(os.path.join(work, DEVICES), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as devices:
        qemu.pass_descriptor("devices", devices)
    qemu.execute("migrate", uri="fd:devices")
    while True:
        status = qemu.execute("query-migrate").get("status")
        if status == "completed":
            break
        if status in ("failed", "cancelled"):
            raise qemu.failure(f"saving the lab's state {status}")
        time.sleep(0.01)
    qemu.execute("quit")
    qemu.wait(10)
    qemu.stop()
    _dig_holes(os.path.join(work, MEMORY))


def _dig_holes(path: str) -> None:
    """Rewrite a file so that what is all zero takes no space."""
    zero = bytes(_HOLE)
    sparse = f"{path}.sparse"
    with open(path, "rb", buffering=0) as source, open(sparse, "wb", buffering=0) as target:
        size = os.fstat(source.fileno()).st_size
        os.truncate(target.fileno(), size)
        position = 0
        while position < size:
            try:
                position = os.lseek(source.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            data = os.pread(source.fileno(), _HOLE - position % _HOLE, position)
            if data != zero[: len(data)]:
                os.pwrite(target.fileno(), data, position)
            position += len(data)
    os.replace(sparse, path)
