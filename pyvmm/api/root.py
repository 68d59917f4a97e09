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
DISK_DRIVERS = ("virtio_blk",)
OVERLAY_DRIVERS = ("overlay",)
#: File systems by what a disk has at an offset, each with its driver.  Only that is loaded: others bring drivers that
#: take their time (btrfs has raid6_pq measure how fast the processor is).
#: ext4: Documentation/filesystems/ext4/super.rst; xfs, btrfs, squashfs, erofs: fs/xfs/libxfs/xfs_format.h,
#: include/uapi/linux/btrfs_tree.h, fs/squashfs/squashfs_fs.h, fs/erofs/erofs_fs.h; FAT: its boot sector.
FILE_SYSTEMS: tuple[tuple[int, bytes, str], ...] = (
    (0x438, b"\x53\xef", "ext4"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"hsqs", "squashfs"),
    (0x400, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0x52, b"FAT32   ", "vfat"),
    (0x36, b"FAT", "vfat"),
)


def _quoted(text: str) -> str:
    """``text`` as a value of a device option, where a comma separates."""
    return text.replace(",", ",,")


def file_system(path: str) -> str | None:
    """The driver for the file system on the disk at ``path``; None if it is none of :data:`FILE_SYSTEMS`.  OSError."""
    with open(path, "rb", buffering=0) as disk:
        for offset, magic, driver in FILE_SYSTEMS:
            if os.pread(disk.fileno(), len(magic), offset) == magic:
                return driver
    return None


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
        if not text:  # an unset variable of a shell's, and not the current directory
            raise UsageError("the root is an empty text", "give a directory, a disk image or 'initramfs'")
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
        """The drivers that the guest needs for it.  UsageError for a disk that cannot be read."""
        if self.kind == "directory":
            return SHARE_DRIVERS + (() if self.writable else OVERLAY_DRIVERS)
        if self.kind == "disk":
            try:
                found = file_system(self.path)
            except OSError as error:
                raise UsageError(
                    f"the root {self.text} cannot be read: {error.strerror}", "may this user read it?"
                ) from None
            # A kernel without a module for it may have it built in, and else says that it cannot mount it.
            return DISK_DRIVERS if found is None else (*DISK_DRIVERS, f"?{found}")
        return ()

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
        if not host or not guest:
            raise UsageError(f"'{text}' lacks a directory", "give HOST or HOST:GUEST, HOST a directory here")
        self.host = os.path.abspath(host)
        self.guest = guest if guest.startswith("/") else os.path.abspath(guest)
        self.writable = writable
        self.tag = f"pyvmm{number}"
        if not os.path.isdir(self.host):
            raise UsageError(f"{host}: no such directory", "give HOST or HOST:GUEST, HOST a directory here")

    def device(self) -> str:
        """The device that brings it."""
        return f"share={_quoted(self.host)}:{self.tag}{'' if self.writable else ',ro'}"
