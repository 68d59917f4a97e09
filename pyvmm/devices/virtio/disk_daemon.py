"""Disks that qemu-storage-daemon serves over vhost-user: qcow2 images, and images on other hosts.

qemu-storage-daemon(1) ("--blockdev", "--export"), QEMU's ``docs/interop/vhost-user.rst`` and, for the empty image that
a temporary overlay starts as, ``docs/interop/qcow2.rst``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from urllib.parse import parse_qs, unquote, urlsplit

from pyvmm.devices.virtio.daemon import Daemon
from pyvmm.devices.virtio.disk_overlay_file import nameless_file
from pyvmm.devices.virtio.features import BLOCK
from pyvmm.devices.virtio.vhost_user import DEVICE_BITS, VhostUserDevice
from pyvmm.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Node = Mapping[str, object]

PROGRAM = "qemu-storage-daemon"
QUEUE_SIZE = 256
_CONFIG_SIZE = 60  # struct virtio_blk_config, up to write_zeroes
#: Not offered: several queues; and a cache that can be switched, as the daemon says that there is none (its "writeback"
#: is 0) and has one: the guest would send no flushes.
_NOT_OFFERED = 1 << 12 | 1 << 11
_NBD_PORT = 10809
_CLUSTER = 1 << 16

#: What precedes the reason in its messages: the program, and the option with all that was in it.
_PREFIX = re.compile(rf"^{PROGRAM}: (?:--\S+ (?:\{{.*\}}|\S+): )?")


def find() -> str:
    """The path of the program; HostError where it is missing."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise HostError(
            f"{PROGRAM} is not installed, which serves images that are not raw files of this host",
            "install it: apt install qemu-system-common (Debian, Ubuntu), qemu-img (Fedora), qemu (elsewhere)",
        )
    return found


def disk(
    name: str, path: str, format: str, *, read_only: bool = False, overlay: bool = False, unsafe: bool = False
) -> VhostUserDevice:
    """Device ``name`` with the image at ``path``, a file or a URL, of ``format`` "raw" or "qcow2".

    ``overlay``: changes go to a temporary file.  ``unsafe``: flushes do not reach the storage.  Raises HostError, with
    the daemon's own words, or UsageError.
    """
    if not overlay:
        nodes = _image(path, format, read_only=read_only, unsafe=unsafe)
        return _start(name, path, nodes, writable=not read_only)
    base = _image(path, format, read_only=True, unsafe=False)
    probe = _start(name, path, base, writable=False)  # the daemon alone knows how large the disk is
    size = int.from_bytes(probe.config[:8], "little") * 512
    probe.close()
    changes = nameless_file()
    try:
        write_empty_image(changes, size)
        top: list[Node] = [
            {
                "driver": "file",
                "node-name": "changes",
                "filename": f"/proc/self/fd/{changes}",
                "discard": "unmap",
                "cache": {"no-flush": True},
            },
            {
                "driver": "qcow2",
                "node-name": "overlay",
                "file": "changes",
                "backing": base[-1]["node-name"],
                "discard": "unmap",
                "cache": {"no-flush": True},
            },
        ]
        return _start(name, path, base + top, writable=True, pass_fds=(changes,))
    finally:
        os.close(changes)


def _start(
    name: str, path: str, nodes: list[Node], *, writable: bool, pass_fds: tuple[int, ...] = ()
) -> VhostUserDevice:
    program = find()
    options = [word for node in nodes for word in ("--blockdev", json.dumps(node))]
    top = nodes[-1]["node-name"]

    def command(fd: int) -> list[str]:
        export = {
            "type": "vhost-user-blk",
            "id": "disk",
            "node-name": top,
            "addr": {"type": "fd", "str": str(fd)},
            "writable": writable,
        }
        return [program, *options, "--export", json.dumps(export)]

    daemon = Daemon(PROGRAM, command, pass_fds=pass_fds)
    try:
        return VhostUserDevice(
            name,
            BLOCK,
            daemon,
            queue_sizes=(QUEUE_SIZE,),
            config_size=_CONFIG_SIZE,
            device_features=DEVICE_BITS & ~_NOT_OFFERED,
        )
    except HostError as error:
        words = daemon.epitaph(0).partition(": ")[2]
        if not words:
            raise HostError(f"disk {path}: {error.message}", error.hint) from None
        if "using the image" in words:  # what it says last where a lock is taken
            raise HostError(
                f"disk {path} is in use: another machine or tool has it open", "end the other one first"
            ) from None
        raise HostError(
            f"disk {path}: {PROGRAM}: {_PREFIX.sub('', words)}",
            "check the image, and that its format is what you say",
        ) from None


def _image(path: str, format: str, *, read_only: bool, unsafe: bool) -> list[Node]:
    """The nodes that give the content of the image, the last on top."""
    common: dict[str, object] = {"read-only": read_only, "discard": "unmap", "cache": {"no-flush": unsafe}}
    storage = {**common, **_storage(path, read_only), "node-name": "storage"}
    return [storage, {**common, "driver": format, "node-name": "image", "file": "storage"}]


def _storage(path: str, read_only: bool) -> dict[str, object]:
    """What opens the file or URL ``path``, in the daemon's terms."""
    if "://" not in path:
        driver = "file" if os.path.isfile(path) else "host_device"
        return {"driver": driver, "filename": os.path.abspath(path)}
    try:
        url = urlsplit(path)
        port = url.port or _NBD_PORT
    except ValueError as error:
        raise UsageError(f"disk {path}: {error}", "write, say, nbd://host:10809/name") from None
    if url.scheme in ("http", "https"):
        if not read_only:
            raise UsageError(
                f"disk {path}: what is at the other end cannot be written to",
                f"use --disk {path},ro or --disk {path},overlay",
            )
        return {"driver": url.scheme, "url": path}
    export = unquote(url.path.removeprefix("/"))
    if url.scheme == "nbd" and url.hostname:
        server = {"type": "inet", "host": url.hostname, "port": str(port)}
        return {"driver": "nbd", "server": server, "export": export}
    if url.scheme == "nbd+unix":
        sockets = parse_qs(url.query).get("socket", [])
        if len(sockets) == 1:
            return {"driver": "nbd", "server": {"type": "unix", "path": sockets[0]}, "export": export}
    raise UsageError(
        f"disk {path}: not a URL that can be used",
        "use nbd://HOST[:PORT]/NAME, nbd+unix:///NAME?socket=FILE, http:// or https://",
    )


def write_empty_image(fd: int, size: int) -> None:
    """Make the empty file ``fd`` a qcow2 image, version 3, of a disk of ``size`` bytes in which nothing is allocated.

    It has the header, a refcount table with one block, and the L1 table, each in clusters of its own.  OSError.
    """
    tables = -(-size // (_CLUSTER // 8 * _CLUSTER))  # L2 tables: what an entry of the L1 table stands for
    l1_clusters = max(1, -(-tables * 8 // _CLUSTER))
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        3,
        0,  # no backing file: the daemon is told which
        0,
        _CLUSTER.bit_length() - 1,
        size,
        0,  # not encrypted
        tables,
        3 * _CLUSTER,  # L1 table
        1 * _CLUSTER,  # refcount table
        1,
        0,  # no snapshots
        0,
        0,  # no features
        0,
        0,
        4,  # refcounts of 16 bits
        104,  # the header's length
    )
    os.ftruncate(fd, (3 + l1_clusters) * _CLUSTER)
    os.pwrite(fd, header, 0)
    os.pwrite(fd, struct.pack(">Q", 2 * _CLUSTER), 1 * _CLUSTER)
    os.pwrite(fd, struct.pack(">H", 1) * (3 + l1_clusters), 2 * _CLUSTER)
