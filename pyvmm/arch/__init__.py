"""The architectures: each folder offers the same few names, and the machine chooses one when it is built.

``NAME``                the kernel architecture's name, as ``uname -m`` prints it
``CAPABILITIES``        (KVM capability, whether it is required, what it is for)
``open_image``          open a kernel image made for it
``ram_ranges(size)``    where RAM stands
``prepare_vm``          interrupt controllers, before there are vCPUs
``attach_devices``      the serial port and the ports that end the guest, on the bus
``event_device``        the device with the power button, made when it is first pressed
``virtio_slot(index)``  where a virtio device stands: (address, GSI)
``READ_ONLY_REGISTERS`` whether a device's registers may be memory that the guest only reads
``load``                kernel, initrd, command line and tables into RAM; returns how the first vCPU starts
``supported_features``  what this KVM can give a vCPU
``prepare_vcpu``        what firmware would have set up in each vCPU
``enter``               the first vCPU's registers for what ``load`` returned
``pause_clock(vm, vcpus)``  take note of the guest's clocks; ``resume_clock(vm, vcpus, noted)`` goes on from there
``is_halted``           whether a vCPU waits for what cannot come
``advice``              a line for each word of a command line that this machine cannot honour
``post_mortem``         the lines that explain a triple fault or an internal error
``whereabouts``         a line that says where a vCPU was when the time was up
``coalesced_ports``     (port, size) of ports whose writes need not leave the kernel one by one
``probe``               whether this host's KVM can run a stock kernel; ``require_hardware`` insists on it
"""

from __future__ import annotations

import os

from pyvmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def host() -> ModuleType:
    """The module of this host's architecture.  HostError where pyvmm has none."""
    machine = os.uname().machine
    if machine == "x86_64":
        from pyvmm.arch import x86_64

        return x86_64
    raise HostError(f"pyvmm does not run on {machine} hosts", "use an x86_64 Linux host")
