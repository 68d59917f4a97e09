"""What a VM, a vCPU and a device have in common: a file descriptor that takes ioctls and is closed once."""

from __future__ import annotations

import errno
from ctypes import CDLL, c_ulong
from fcntl import ioctl as fcntl_ioctl
from os import close

from .errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import Structure, _SimpleCData
    from typing import Any, Self

    from .ioctls import Ioctl

# fcntl.ioctl retries EINTR from Python 3.14 on, so KVM_RUN goes through this one; it releases the GIL too.
# Without argtypes a call is 0.4 us quicker; pass integers of 31 bits at most, or a ctypes object.
libc_ioctl = CDLL(None, use_errno=True).ioctl


class Descriptor:
    """An open descriptor of KVM; a context manager.  ``fd`` is -1 once closed."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def ioctl(
        self, request: Ioctl, argument: int | Structure | _SimpleCData[Any] | bytearray = 0, detail: str = ""
    ) -> int:
        """Do one ioctl and return its result; a structure or bytearray is written back in place.

        Raises KvmError, which ``detail`` tells what it was for.
        """
        if self.fd < 0:
            raise KvmError(request.name, errno.EBADF, detail)
        if isinstance(argument, int) and argument > 0x7FFFFFFF:  # more than fcntl takes as an integer
            argument = c_ulong(argument)
            return self._wide_ioctl(request, argument, detail)
        while True:
            try:
                return fcntl_ioctl(self.fd, request, argument)
            except InterruptedError:
                continue
            except OSError as error:
                raise KvmError(request.name, error.errno or 0, detail) from None

    def _wide_ioctl(self, request: Ioctl, argument: _SimpleCData[int], detail: str) -> int:
        from ctypes import get_errno

        result: int = libc_ioctl(self.fd, c_ulong(request), argument)
        if result < 0:
            raise KvmError(request.name, get_errno(), detail)
        return result

    def fileno(self) -> int:
        """The descriptor's number, for select and friends."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor; closing twice is no error."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
