"""busybox in an initramfs: the program, a link for each of its applets, and an init that gives a shell.

The applets' names stand in the program, as busybox's applets/applet_tables.c puts them there: sorted, each with a zero
after it.  So a busybox for another architecture need not be run.
"""

from __future__ import annotations

import os
import re
import shutil

from pyvmm.errors import UsageError
from pyvmm.initramfs import CONSOLE, directory, file, symlink
from pyvmm.initramfs_files import Contents

#: Where the modules are, and the list of them in the order in which they are loaded.
MODULES = "modules"
ORDER = f"{MODULES}/order"

#: /init, unless another is given.  A module that does not load is said; the machine goes off after the shell.
INIT = b"""\
#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM="${TERM:-vt100}"
[ -e /bin/mount ] || /bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /run /tmp /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
if [ -e /modules/order ]; then
    while read -r module; do
        insmod "/modules/$module" || echo "init: the module $module was not loaded"
    done </modules/order
fi
cd /root
setsid cttyhack sh
sync
poweroff -f
"""

_APPLETS = re.compile(rb"\0(\[\0(?:[a-z0-9_.\[+-]{1,32}\0){2,1000})\0")
#: Directories that are one with /bin.
_ALIASES = {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin"}


def find_busybox(path: str) -> str:
    """The program: ``path``, or this host's if that is "".

    :raises UsageError: there is none
    """
    found = path or shutil.which("busybox") or ""
    if not found:
        raise UsageError(
            "there is no busybox on this host", "install busybox-static, or give its path: --busybox PATH"
        )
    if not os.path.isfile(found):
        raise UsageError(f"--busybox {found}: no such file", "give the path of a busybox program")
    return found


def applets(program: bytes) -> list[str]:
    """The applets that a busybox ``program`` says it has; none if that cannot be seen."""
    match = max(_APPLETS.finditer(program), key=lambda each: len(each[1]), default=None)
    names = match[1].decode("ascii").split("\0")[:-1] if match else []
    return names if "sh" in names else []


def add_layout(contents: Contents) -> None:
    """One directory for programs, before any are added."""
    contents.add(directory("bin"), weak=True)
    for path, target in _ALIASES.items():
        contents.add(symlink(path, target), weak=True)


def add_busybox(contents: Contents, path: str) -> None:
    """The busybox at ``path``, after all files that are to have a place of an applet's.

    :raises UsageError: it cannot be read, or is no busybox
    """
    contents.add_file(path, "bin/busybox", mode=0o755)
    try:
        with open(path, "rb") as opened:
            program = opened.read()
    except OSError as error:
        raise UsageError(
            f"--busybox {path}: {error.strerror}", "give the path of a busybox program"
        ) from None
    if not program.startswith(b"\x7fELF") or b"BusyBox" not in program:
        raise UsageError(f"--busybox {path}: is no busybox", "give the path of a busybox program")
    for name in applets(program) or ["sh"]:
        contents.add(symlink(f"bin/{name}", "busybox"), weak=True)


def add_shell_init(contents: Contents) -> None:
    """The init that loads the modules and gives a shell."""
    contents.add(file("init", INIT, 0o755))
    contents.add(CONSOLE, weak=True)
