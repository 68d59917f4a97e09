"""What a failed ioctl says: its name, the errno, and the cause in words where it is known."""

from __future__ import annotations

from errno import errorcode
from os import strerror

from pyvmm.errors import HostError


class KvmError(HostError):
    """An ioctl of KVM failed.

    ``ioctl`` is its name as in <linux/kvm.h>, ``errno`` the number; ``detail`` says what it was asked for.
    """

    def __init__(self, ioctl: str, errno: int, detail: str = "") -> None:
        from .causes import cause_of  # a table only a failure needs

        cause, hint = cause_of(ioctl, errno)
        message = f"{ioctl} failed: {errorcode.get(errno, 'errno')} ({errno}, {strerror(errno)})"
        if detail:
            message += f" for {detail}"
        if cause:
            message += f": {cause}"
        super().__init__(message, hint)
        self.ioctl = ioctl
        self.errno = errno
