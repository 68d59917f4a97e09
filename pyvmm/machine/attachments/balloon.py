"""``--balloon TARGET``: a memory balloon, with which the guest gives RAM back to the host."""

from __future__ import annotations

from pyvmm.devices.virtio.balloon import BalloonDevice
from pyvmm.errors import UsageError
from pyvmm.machine.attachments.base import Attachment, Host, Key, size


class Balloon(Attachment):
    """A balloon; whatever its size, the guest reports the memory it does not use, and the host takes it back."""

    KIND = "balloon"
    POSITIONAL = "target"
    KEYS = {
        "target": Key(
            size, default=0, help="how much of its RAM the guest is to give away, as 64M (default: none)"
        )
    }

    target: int

    def create(self, host: Host) -> BalloonDevice:
        """Make the device; UsageError if the target is more than all of the guest's RAM."""
        if self.target > host.memory.size:
            raise UsageError(
                f"a balloon of {self.target >> 20} MiB is larger than the guest's {host.memory.size >> 20} MiB of RAM",
                "give a smaller target",
            )
        return BalloonDevice(host.name, self.target)


ATTACHMENT = Balloon
