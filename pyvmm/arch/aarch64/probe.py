"""Does this KVM run a guest?  One of two instructions finds out: it writes to the UART's address, which is an exit.

On arm64 there is no KVM but that of a processor with EL2, so this is quick, and fails only where KVM is not usable.
"""

from __future__ import annotations

import struct
import time

from pyvmm.arch.aarch64 import layout, setup
from pyvmm.arch.aarch64.memory import vm_type
from pyvmm.arch.probe_result import ProbeResult
from pyvmm.kvm import MmioExit, System, arm64
from pyvmm.memory import GuestMemory

# movz x0, #0x900, lsl #16; strb w0, [x0]
CODE = struct.pack("<2I", 0xD2A1_2000, 0x3900_0000)
_MEMORY_SIZE = 1 << 16


def probe_kvm(system: System) -> ProbeResult:
    """Run the two instructions on ``system``.  Raises the errors of pyvmm.kvm."""
    started = time.perf_counter()
    memory = GuestMemory([(layout.RAM, _MEMORY_SIZE)])
    try:
        with system.create_vm(vm_type(system, memory.ranges)) as vm:
            (region,) = memory.regions
            vm.set_user_memory_region(0, region.start, region.size, region.host_address)
            vcpu = vm.create_vcpu()
            setup.prepare_vcpu(system, vm, vcpu, 0, 1)
            memory.write(layout.RAM, CODE)
            vcpu.set_one_reg(arm64.PC, layout.RAM)
            end = vcpu.run()
            works = isinstance(end, MmioExit) and end.phys_addr == layout.UART
            detail = "a guest's write to a device arrives" if works else f"a guest ended with {end}"
    finally:
        memory.close()
    elapsed = time.perf_counter() - started
    if works:
        return ProbeResult("hardware", (), detail, elapsed)
    return ProbeResult("software", ("strb",), detail, elapsed)
