"""``--disk``: a block device, from a raw image or block device by own code, or from what qemu-storage-daemon opens."""

from __future__ import annotations

import os

from pyvmm.errors import UsageError
from pyvmm.machine.attachments.base import Attachment, Key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.devices.virtio.disk_file import Disk as OpenDisk
    from pyvmm.machine.attachments.base import Host

#: The value of ``overlay`` that keeps nothing.
TEMPORARY = "temporary"

_QCOW2_MAGIC = b"QFI\xfb"
_MOST_SERIAL = 20


class Disk(Attachment):
    """A disk with the content of ``path``."""

    KIND = "disk"
    POSITIONAL = "path"
    KEYS = {
        "path": Key(
            str,
            required=True,
            path=True,
            help="an image file, a block device, or the URL of an image (nbd://, https://)",
        ),
        "ro": Key(bool, help="the guest may not write"),
        "overlay": Key(
            str,
            bare=TEMPORARY,
            path=True,
            help="leave the file as it is: changes go to a temporary file, or with overlay=FILE to one that is kept",
        ),
        "format": Key(
            str,
            default="auto",
            choices=("auto", "raw", "qcow2"),
            help="auto: qcow2 if the name ends so, else raw",
        ),
        "serial": Key(str, help=f"what the guest knows it by, up to {_MOST_SERIAL} characters"),
        "cache": Key(
            str,
            default="writeback",
            choices=("writeback", "unsafe"),
            help="unsafe: flushes do not reach the storage, which is quick, and loses data with the host's power",
        ),
    }

    path: str
    ro: bool
    overlay: str | None
    format: str
    serial: str | None
    cache: str

    def __init__(self, **values: object) -> None:
        super().__init__(**values)
        if not self.path:
            raise UsageError("a disk without a name", "write --disk FILE")
        if self.ro and self.overlay is not None:
            raise UsageError(
                f"disk {self.path}: ro and overlay exclude each other",
                "an overlay is there to be written to, and leaves the file alone anyway: leave out ro",
            )
        if self.overlay == "":
            raise UsageError(
                f"disk {self.path}: overlay= has no file",
                "write overlay=FILE to keep the changes, overlay to drop them",
            )
        if self.serial is not None and not (
            self.serial.isascii() and self.serial.isprintable() and len(self.serial) <= _MOST_SERIAL
        ):
            raise UsageError(
                f"disk {self.path}: the serial {self.serial!r} cannot be used",
                f"give up to {_MOST_SERIAL} plain characters",
            )
        self.shared_memory = self.remote or self.kind == "qcow2"
        if self.shared_memory and self.serial is not None:
            raise UsageError(
                f"disk {self.path}: qemu-storage-daemon gives its disks no serial", "leave out serial"
            )
        if self.shared_memory and self.overlay not in (None, TEMPORARY):
            raise UsageError(
                f"disk {self.path}: an overlay that is kept is for raw images of this host",
                f"make one that is an image itself: qemu-img create -f qcow2 -F {self.kind} "
                f"-b {self.path} {self.overlay}, and use that",
            )

    @property
    def remote(self) -> bool:
        """Whether it is the URL of an image."""
        return "://" in self.path

    @property
    def kind(self) -> str:
        """The format: raw or qcow2.  The content has no say, as the guest can write what it likes there."""
        if self.format != "auto":
            return self.format
        return "qcow2" if self.path.lower().endswith(".qcow2") else "raw"

    def files(self) -> list[str]:
        """The image, and the overlay if there is one already."""
        found = [] if self.remote else [self.path]
        if self.overlay is not None and self.overlay != TEMPORARY and os.path.exists(self.overlay):
            found.append(self.overlay)
        return found

    def program(self) -> str:
        """What serves it, if it is not a raw image of this host's."""
        return "qemu-storage-daemon" if self.remote or self.kind == "qcow2" else ""

    def changed_files(self) -> list[str]:
        """The image, unless it stays as it is, or the overlay that is kept."""
        if self.overlay is not None:
            return [] if self.overlay == TEMPORARY else [self.overlay]
        return [] if self.ro or self.remote else [self.path]

    def check(self) -> None:
        """Whether the image is there, can be opened, and is of the format; whether what serves it is installed."""
        if self.shared_memory:
            from pyvmm.devices.virtio.disk_daemon import find

            find()
        if self.remote:
            return
        from pyvmm.devices.virtio.disk_file import DiskFile

        file = DiskFile(self.path, self.ro or self.overlay is not None)
        try:
            looks_like_qcow2 = os.pread(file.fd, 4, 0) == _QCOW2_MAGIC
        finally:
            file.close()
        if self.format == "auto" and self.kind == "raw" and looks_like_qcow2:
            raise UsageError(
                f"disk {self.path} looks like a qcow2 image, but its name does not say so",
                f"say which: --disk {self.path},format=qcow2, or format=raw where a guest may have written that",
            )

    def create(self, host: Host) -> VirtioDevice:
        """Open and lock the files, and make the device."""
        self.check()
        if self.shared_memory:
            from pyvmm.devices.virtio import disk_daemon

            return disk_daemon.disk(
                host.name,
                self.path,
                self.kind,
                read_only=self.ro,
                overlay=self.overlay is not None,
                unsafe=self.cache == "unsafe",
            )
        from pyvmm.devices.virtio.block import BlockDevice

        def note(text: str) -> None:
            host.say(f"note: {text}")

        return BlockDevice(host.name, self._open(note), serial=self.serial or "", say=note)

    def _open(self, note: Callable[[str], None]) -> OpenDisk:
        """The disk behind a raw image, with its overlay."""
        from pyvmm.devices.virtio.disk_file import DiskFile
        from pyvmm.devices.virtio.disk_raw import RawDisk

        synchronous = self.cache != "unsafe"
        file = DiskFile(self.path, self.ro or self.overlay is not None)
        try:
            file.check_size(note)
            file.lock(note)
            if self.overlay is None:
                return RawDisk(file, synchronous=synchronous)
            from pyvmm.devices.virtio.disk_overlay_file import kept_overlay, temporary_overlay

            if self.overlay == TEMPORARY:
                return temporary_overlay(file)
            return kept_overlay(self.overlay, file, note, synchronous=synchronous)
        except BaseException:
            file.close()
            raise


ATTACHMENT = Disk
