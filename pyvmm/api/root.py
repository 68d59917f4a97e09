"""The guest's root file system: the host's own, a directory, a disk image, or the initramfs alone.

Directories come by virtiofs.  Unless they are to be written to, the guest works on a copy: an overlay in its memory,
which is gone with it.
"""

from __future__ import annotations

import os
import stat

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.agent import RootSpec

#: The virtiofs tag of a root directory.
ROOT_TAG = "pyvmmroot"
#: Drivers for what a guest may have: loaded where the kernel has them as modules, "?" where it may do without.
AGENT_DRIVERS = ("virtio_mmio", "virtio_console")
SHARE_DRIVERS = ("virtiofs",)
DISK_DRIVERS = ("virtio_blk", "?ext4", "?xfs", "?btrfs", "?squashfs", "?erofs", "?vfat")
OVERLAY_DRIVERS = ("overlay",)


def _quoted(text: str) -> str:
    """``text`` as a value of a device option, where a comma separates."""
    return text.replace(",", ",,")


class Root:
    """Where the guest's files come from.

    ``text``: "initramfs", the path of a directory ("/" is the host's own system), or that of a disk image or a block
    device with a file system on it.  ``writable``: changes go there instead of into a copy.

    :raises UsageError: there is nothing of that name, or it is neither
    """

    def __init__(self, text: str = "initramfs", *, writable: bool = False) -> None:
        self.text = text
        self.writable = writable
        self.path = ""
        self.kind = "initramfs"
        if text == "initramfs":
            return
        self.path = os.path.abspath(text)
        try:
            mode = os.stat(self.path).st_mode
        except OSError as error:
            raise UsageError(
                f"the root {text} cannot be used: {error.strerror}",
                "give a directory, a disk image or 'initramfs'",
            ) from None
        if stat.S_ISDIR(mode):
            self.kind = "directory"
        elif stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            self.kind = "disk"
        else:
            raise UsageError(
                f"the root {text} is no directory and no disk", "give a directory or a disk image"
            )

    @property
    def is_host(self) -> bool:
        """Whether it is the host's own system."""
        return self.path == "/"

    def devices(self) -> list[str]:
        """The devices that bring it, as ``pyvmm boot`` takes them."""
        if self.kind == "directory":
            return [f"share={_quoted(self.path)}:{ROOT_TAG}{'' if self.writable else ',ro'}"]
        if self.kind == "disk":
            return [f"disk={_quoted(self.path)}{'' if self.writable else ',overlay'}"]
        return []

    def drivers(self) -> tuple[str, ...]:
        """The drivers that the guest needs for it."""
        if self.kind == "directory":
            return SHARE_DRIVERS + (() if self.writable else OVERLAY_DRIVERS)
        return DISK_DRIVERS if self.kind == "disk" else ()

    def spec(self) -> RootSpec | None:
        """What the agent has to know of it."""
        from pyvmm.agent import RootSpec

        if self.kind == "directory":
            return RootSpec("virtiofs", ROOT_TAG, read_only=not self.writable, overlay=not self.writable)
        if self.kind == "disk":
            return RootSpec("block", "/dev/vda")
        return None


class Share:
    """A directory of the host at a place in the guest: ``HOST[:GUEST]``, with ``writable`` or without."""

    def __init__(self, text: str, number: int, *, writable: bool) -> None:
        host, colon, guest = text.rpartition(":")
        if not colon:
            host = guest = text
        self.host = os.path.abspath(host)
        self.guest = guest if guest.startswith("/") else os.path.abspath(guest)
        self.writable = writable
        self.tag = f"pyvmm{number}"
        if not os.path.isdir(self.host):
            raise UsageError(f"{host}: no such directory", "give HOST or HOST:GUEST, HOST a directory here")

    def device(self) -> str:
        """The device that brings it."""
        return f"share={_quoted(self.host)}:{self.tag}{'' if self.writable else ',ro'}"
