"""--share DIR:TAG[,ro]: a directory of the host, which the guest mounts: mount -t virtiofs TAG /mnt."""

from __future__ import annotations

import os

from pyvmm.errors import HostError, UsageError
from pyvmm.machine.attachments.base import Attachment, Key, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Self

    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.machine.attachments.base import Host


class Share(Attachment):
    """A directory through virtiofsd.  The option's first word is DIR:TAG; the tag follows the last colon."""

    KIND = "share"
    POSITIONAL = "path"
    KEYS: ClassVar[dict[str, Key]] = {
        "path": Key(str, required=True, path=True, help="the directory of the host"),
        "tag": Key(str, required=True, help="the name by which the guest mounts it"),
        "ro": Key(bool, help="the guest cannot write"),
        "sandbox": Key(
            str,
            choices=("namespace", "chroot", "none"),
            help="what keeps virtiofsd in the directory; as a rule the best that works here",
        ),
    }
    shared_memory = True

    path: str
    tag: str
    ro: bool
    sandbox: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """DIR:TAG and the rest of the keys; or path=DIR,tag=TAG."""
        first, *rest = split(text)
        name, equals, _ = first.partition("=")
        if equals and name in cls.KEYS:
            return super().parse(text)
        path, _, tag = first.rpartition(":")
        if not path or not tag:
            raise UsageError(f"share {first!r} is not of the form DIR:TAG", "write, say, --share ./src:src")
        parts = [f"path={path}", f"tag={tag}", *rest]
        return super().parse(",".join(part.replace(",", ",,") for part in parts))

    def files(self) -> list[str]:
        """The directory."""
        return [self.path]

    def program(self) -> str:
        """What serves it."""
        return "virtiofsd"

    def changed_files(self) -> list[str]:
        """The directory, unless the guest cannot write."""
        return [] if self.ro else [self.path]

    def check(self) -> None:
        """The directory is there, and so is virtiofsd."""
        from pyvmm.devices.virtio.fs import check_tag
        from pyvmm.devices.virtio.virtiofsd import find

        check_tag(self.tag)
        if not os.path.isdir(self.path):
            if os.path.exists(self.path):
                raise UsageError(f"share {self.path}: not a directory", "share the directory it is in")
            raise UsageError(f"share {self.path}: no such directory", "check the name, or make it first")
        find()

    def create(self, host: Host) -> VirtioDevice:
        """The device, with its virtiofsd running."""
        from pyvmm.devices.virtio import virtiofsd
        from pyvmm.devices.virtio.fs import Fs

        daemon = virtiofsd.start(self.path, read_only=self.ro, sandbox=self.sandbox)
        try:
            return Fs(host.name, self.tag, daemon)
        except HostError as error:
            hint = (
                "" if self.sandbox else "where a namespace cannot be had (in a container), try sandbox=chroot"
            )
            raise HostError(f"share {self.path}: {error.message}", hint) from None


ATTACHMENT = Share
