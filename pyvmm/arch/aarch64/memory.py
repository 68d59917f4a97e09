"""How many bits a guest physical address has: the type of the VM.

"KVM_CREATE_VM" and KVM_CAP_ARM_VM_IPA_SIZE in Linux ``Documentation/virt/kvm/api.rst``: the intermediate physical
address space has 32 bits or more, 40 by default, and at most what the capability says; hosts with fewer than 40
exist.  The fewer bits, the fewer levels has the table by which KVM translates.
"""

from __future__ import annotations

from pyvmm.errors import CapabilityMissing
from pyvmm.kvm.uapi import Cap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.kvm.system import System

DEFAULT_BITS = 40
FEWEST_BITS = 36  # what the smallest processors of today have


def vm_type(system: System, ranges: Sequence[tuple[int, int]]) -> int:
    """The type to create a VM with that has RAM in ``ranges``: its address bits, or 0 for KVM's default of 40.

    CapabilityMissing if this host's KVM cannot address that much.
    """
    needed = max(start + size - 1 for start, size in ranges).bit_length()
    most = system.check_extension(Cap.ARM_VM_IPA_SIZE)
    limit = most or DEFAULT_BITS
    if needed > limit:
        raise CapabilityMissing(
            f"guest addresses of {needed} bits are needed, and this host's KVM has {limit}",
            "give less --memory",
        )
    return min(max(needed, FEWEST_BITS), limit) if most else 0
