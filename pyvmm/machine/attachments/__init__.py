"""The kinds of things that can be attached to a machine; each is a module of this package, imported when used.

A module exports ``ATTACHMENT``, its subclass of :class:`pyvmm.machine.attachments.base.Attachment`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.machine.attachments.base import Attachment

#: (kind, option, metavar, help); an option with an empty metavar takes no value.
KINDS: tuple[tuple[str, str, str, str], ...] = (
    (
        "disk",
        "--disk",
        "FILE[,ro][,overlay[=FILE]]",
        "a block device: a raw image, or what qemu-storage-daemon opens",
    ),
    (
        "net",
        "--net",
        "user|tap=NAME[,...]",
        "a network card: without root through passt, or on a TAP interface",
    ),
    (
        "console",
        "--console",
        "hvc|port=NAME,socket=PATH",
        "a virtio console: a terminal, /dev/hvc0, or a named port joined to a Unix socket (or file=PATH)",
    ),
    ("rng", "--rng", "", "an entropy device, fed by the host's random numbers"),
    ("vsock", "--vsock", "CID[,...]", "a socket between host and guest"),
    ("balloon", "--balloon", "SIZE[,...]", "a memory balloon, with free page reporting"),
    ("share", "--share", "DIR:TAG[,...]", "a directory of the host, through virtiofsd"),
)


def attachment(kind: str) -> type[Attachment]:
    """The class of the attachments of a ``kind`` in KINDS."""
    module = __import__(f"pyvmm.machine.attachments.{kind}", fromlist=["ATTACHMENT"])
    found: type[Attachment] = module.ATTACHMENT
    return found
