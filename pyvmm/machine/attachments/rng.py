"""``--rng``: an entropy device, fed by the host's random numbers."""

from __future__ import annotations

from pyvmm.machine.attachments.base import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.machine.attachments.base import Host


class Rng(Attachment):
    """An entropy device; it has no settings."""

    KIND = "rng"

    def create(self, host: Host) -> VirtioDevice:
        """Make the device."""
        from pyvmm.devices.virtio.rng import RngDevice

        return RngDevice(host.name)


ATTACHMENT = Rng
