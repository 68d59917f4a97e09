"""The fixture ``initramfs``: small archives for tests, with pyvmm's own init or a script that busybox runs.

Commands in the guest and modules of its kernel need none: ``@pytest.mark.vm(agent=True)`` makes its own.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Mapping

from pyvmm import initramfs
from pyvmm.errors import UsageError

#: What runs a script: its exit status is printed as "script: exit N", then the guest powers off.
INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /bin /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
sh /script
echo "script: exit $?"
sync
poweroff -f
"""

_PT_INTERP = 3


class Initramfs:
    """Makes archives, as bytes for ``initrd=``."""

    def __call__(
        self,
        script: str | None = None,
        *,
        files: Mapping[str, bytes | str | os.PathLike[str]] | None = None,
        init: bytes | str | os.PathLike[str] | None = None,
        busybox: str | os.PathLike[str] | None = None,
        arch: str | None = None,
    ) -> bytes:
        """An archive.  Without any argument it holds pyvmm's own init, which says that it was reached and powers off.

        ``script``: for busybox's shell, with all of its commands, /proc, /sys and /dev; what it prints goes to the
        console, and then ``script: exit N``.  ``init``: a program or script to run instead.  ``files``: more, by their
        paths in the guest; bytes are contents, everything else is the path of a host's file.  All can be executed.
        ``busybox``: a static one, by default the host's.  ``arch``: of pyvmm's own init, by default this host's.

        :raises UsageError: there is no busybox, or no static one
        :raises ImageError: a file cannot be read
        """
        if script is not None and init is not None:
            raise UsageError("an archive has one init", "give a script or an init, not both")
        entries = [_entry(path, content) for path, content in (files or {}).items()]
        if script is not None:
            path = _static(os.fspath(busybox) if busybox is not None else shutil.which("busybox"))
            entries += [
                initramfs.host_file("bin/busybox", path, 0o755),
                initramfs.file("init", INIT.encode(), 0o755),
                initramfs.file("script", script.encode(), 0o755),
            ]
        elif init is not None:
            entries.append(_entry("init", init))
        else:  # the kernel unpacks archives one after another
            return initramfs.verify_initramfs(arch or os.uname().machine) + (
                initramfs.archive(entries) if entries else b""
            )
        return initramfs.archive([initramfs.CONSOLE, *entries])


def _entry(path: str, content: bytes | str | os.PathLike[str]) -> initramfs.Entry:
    if isinstance(content, bytes):
        return initramfs.file(path, content, 0o755)
    return initramfs.host_file(path, os.fspath(content), 0o755)


def _static(busybox: str | None) -> str:
    """The path, if it is that of a program that needs no libraries."""
    hint = "install busybox-static, or give busybox="
    if busybox is None:
        raise UsageError("there is no busybox on this host", hint)
    try:
        with open(busybox, "rb") as file:
            header = file.read(64)
            if header[:5] != b"\x7fELF\x02":
                raise UsageError(f"{busybox} is no 64-bit program", hint)
            (at,) = struct.unpack_from("<Q", header, 32)  # e_phoff
            size, count = struct.unpack_from("<HH", header, 54)  # e_phentsize, e_phnum
            file.seek(at)
            table = file.read(size * count)
        kinds = {struct.unpack_from("<I", table, number * size)[0] for number in range(count)}
    except OSError as error:
        raise UsageError(f"cannot read {busybox}: {error.strerror}", hint) from None
    except struct.error:
        raise UsageError(f"{busybox} is a damaged program", hint) from None
    if _PT_INTERP in kinds:
        raise UsageError(f"{busybox} needs libraries, which a guest has not", hint)
    return busybox
