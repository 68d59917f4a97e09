"""A program: make a directory read-only for what it then executes, and for nothing else.

    python -I read_only.py DIRECTORY COMMAND [ARGUMENT...]

In a mount namespace of its own (unshare(2)) the directory is mounted over itself, and that mount, with those in it,
made read-only (mount_setattr(2), Linux 5.12).  It needs CAP_SYS_ADMIN, in a user namespace at least.  It stands alone:
nothing of pyvmm is imported.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CLONE_NEWNS = 0x20000  # linux/sched.h
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
_SYS_MOUNT_SETATTR = 442  # the same on every architecture
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000  # linux/fcntl.h
_MOUNT_ATTR_RDONLY = 1


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def make_read_only(directory: str) -> None:
    """Make ``directory`` read-only for this process from now on.  OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(directory)
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)

    def check(what: str, result: int) -> None:
        if result != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")

    check("unshare", libc.unshare(_CLONE_NEWNS))
    check("mount", libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    check("mount", libc.mount(path, path, None, ctypes.c_ulong(_MS_BIND | _MS_REC), None))
    check(
        "mount_setattr",
        libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            path,
            ctypes.c_uint(_AT_RECURSIVE),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        ),
    )


def main() -> None:
    """Do it, and become the command."""
    directory, *command = sys.argv[1:]
    try:
        make_read_only(directory)
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"cannot share {directory} read-only: {error.strerror}")


if __name__ == "__main__":
    main()
