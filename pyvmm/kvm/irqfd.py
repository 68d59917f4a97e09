"""An interrupt line as a file descriptor: a write to an eventfd raises it, and no ioctl is needed.

"KVM_IRQFD" in Linux ``Documentation/virt/kvm/api.rst``.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.vm import Vm


class IrqFd:
    """An edge on the interrupt controllers' input ``gsi``: each :meth:`trigger` raises and lowers the line."""

    __slots__ = ("fd",)

    def __init__(self, vm: Vm, gsi: int) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            vm.irqfd(self.fd, gsi)
        except BaseException:
            self.close()
            raise

    def trigger(self) -> None:
        """Raise the interrupt once.  Any thread."""
        os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Close the descriptor; KVM lets go of the line by itself."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
