"""A driver for KVM, the Linux kernel's hypervisor: a file for each kind of descriptor.

:class:`System` is /dev/kvm, :class:`Vm` a machine, :class:`Vcpu` a processor of it and :class:`Device` an
in-kernel device.  Structures and constants are in :mod:`pyvmm.kvm.uapi`, named as in <linux/kvm.h>.

A VM in six steps: add two numbers in real mode and write the sum to a port.

>>> from pyvmm.kvm import HltExit, IoExit, System
>>> from pyvmm.memory import GuestMemory
>>> system = System()                                                   # 1. open /dev/kvm
>>> vm = system.create_vm()                                             # 2. an empty machine
>>> memory = GuestMemory([(0, 0x10000)])                                # 3. its RAM, with code in it:
>>> code = "00d8  0430  baf803  ee  f4"     # add al, bl; add al, '0'; mov dx, 0x3f8; out dx, al; hlt
>>> memory.write(0x1000, bytes.fromhex(code))
>>> for slot, region in enumerate(memory.regions):
...     vm.set_user_memory_region(slot, region.start, region.size, region.host_address)
>>> vcpu = vm.create_vcpu()                                             # 4. a processor
>>> sregs = vcpu.get_sregs()                                            # 5. its registers
>>> sregs.cs.base = sregs.cs.selector = 0
>>> vcpu.set_sregs(sregs)
>>> regs = vcpu.get_regs()
>>> regs.rip, regs.rax, regs.rbx = 0x1000, 2, 3
>>> vcpu.set_regs(regs)
>>> while not isinstance(exit := vcpu.run(), HltExit):                  # 6. run, and serve its exits
...     if isinstance(exit, IoExit):
...         print(hex(exit.port), chr(exit.value))
0x3f8 5
>>> vm.close()
>>> system.close()
>>> memory.close()
"""

from .coalesced import CoalescedRing
from .errors import KvmError
from .exits import (
    DebugExit,
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    IntrExit,
    IoapicEoiExit,
    IoExit,
    IrqWindowOpenExit,
    MmioExit,
    MsrExit,
    ShutdownExit,
    SystemEventExit,
    UnknownExit,
)
from .system import System
from .uapi import Cap
from .vcpu import KICK_SIGNAL, Vcpu, install_kick_handler
from .vm import Vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .device import Device

__all__ = [
    "KICK_SIGNAL",
    "Cap",
    "CoalescedRing",
    "DebugExit",
    "Device",
    "Exit",
    "FailEntryExit",
    "HltExit",
    "InternalErrorExit",
    "IntrExit",
    "IoExit",
    "IoapicEoiExit",
    "IrqWindowOpenExit",
    "KvmError",
    "MmioExit",
    "MsrExit",
    "ShutdownExit",
    "System",
    "SystemEventExit",
    "UnknownExit",
    "Vcpu",
    "Vm",
    "install_kick_handler",
]


def __getattr__(name: str) -> object:
    """``Device`` is imported when asked for: booting a PC needs none."""
    if name == "Device":
        from .device import Device

        return Device
    raise AttributeError(name)
