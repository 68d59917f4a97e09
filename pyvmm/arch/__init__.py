"""The architectures: each folder offers the same few names, and the machine chooses one when it is built.

``NAME``                the kernel architecture's name, as ``uname -m`` prints it
``CAPABILITIES``        (KVM capability, whether it is required, what it is for)
``open_image``          open a kernel image made for it
``ram_ranges(size)``    where RAM stands
``vm_type(system, ranges)``  the type of VM to create for RAM in those ranges
``prepare_vm``          what KVM must be told before there are vCPUs: on a PC the interrupt controllers
``attach_devices``      what stands on the bus from the start: returns (serial port, power button or None)
``event_device``        the device with the power button, made when it is first pressed, where it was not attached
``virtio_slot(index)``  where a virtio device stands: (address, GSI)
``READ_ONLY_REGISTERS`` whether a device's registers may be memory that the guest only reads
``load``                kernel, initrd, command line and tables into RAM; returns how the first vCPU starts
``supported_features``  what this KVM can give a vCPU
``prepare_vcpu``        what firmware would have set up in each vCPU
``complete_vm``         once all vCPUs exist, and before a device has an interrupt: on Arm the interrupt controller
``enter``               the first vCPU's registers for what ``load`` returned
``pause_clock(vm, vcpus)``  take note of the guest's clocks; ``resume_clock(vm, vcpus, noted)`` goes on from there
``is_halted``           whether a vCPU waits for what cannot come
``advice``              a line for each word of a command line that this machine cannot honour
``post_mortem``         the lines that explain a triple fault or an internal error
``whereabouts``         a line that says where a vCPU was when the time was up
``register_values``     the registers of a vCPU that stands still, by name
``translate``           the physical address that such a vCPU's page tables give a virtual one
``PORT_IO``             whether devices stand at I/O ports, and not in memory alone
``coalesced_ports``     (port or address, size) of places whose writes need not leave the kernel one by one
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
    if machine == "aarch64":
        from pyvmm.arch import aarch64

        return aarch64
    raise HostError(f"pyvmm does not run on {machine} hosts", "use an x86_64 or arm64 Linux host")


def host_name() -> str:
    """This host's architecture, as ``uname -m`` prints it, whether pyvmm has it or not."""
    return os.uname().machine


#: The command line of a guest that is given none, by architecture: the console is the serial port, whatever its driver
#: calls it.
CMDLINES = {"x86_64": "console=ttyS0", "aarch64": "console=ttyAMA0"}
#: The same for a guest of this host's architecture.
DEFAULT_CMDLINE = CMDLINES.get(os.uname().machine, "console=ttyS0")
