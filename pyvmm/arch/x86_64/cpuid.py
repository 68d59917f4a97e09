"""What CPUID tells each vCPU: the host KVM's list, with topology, identity and a few repairs put in.

KVM_GET_SUPPORTED_CPUID (Linux Documentation/virt/kvm/api.rst, 4.46) says what KVM could offer, with the
identity of whatever host processor answered; KVM_SET_CPUID2 wants what this vCPU is.  The leaves are those
of Intel SDM volume 2, CPUID, and AMD APM volume 3, appendix E.  The topology told is one package with one
thread in each core, so that APIC ids are the vCPU's indices.
"""

from __future__ import annotations

from pyvmm.kvm.uapi_x86 import KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2
from pyvmm.registers import Bit, Bits, Register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

KVM_SIGNATURE_LEAF = 0x4000_0000
TIMING_LEAF = 0x4000_0010
APIC_BUS_KHZ = 1_000_000  # KVM's LAPIC timer counts nanoseconds

_AMD_VENDORS = (b"AuthenticAMD", b"HygonGenuine")


class Leaf1Ebx(Register):
    """Leaf 1, EBX: identity of the logical processor."""

    APIC_ID = Bits(31, 24)
    COUNT = Bits(23, 16)
    CLFLUSH = Bits(15, 8)
    BRAND = Bits(7, 0)


class Leaf1Ecx(Register):
    """Leaf 1, ECX: the feature bits patched here."""

    X2APIC = Bit(21)
    TSC_DEADLINE = Bit(24)
    HYPERVISOR = Bit(31)


class Leaf1Edx(Register):
    """Leaf 1, EDX: the feature bit patched here."""

    HTT = Bit(28)


class CacheEax(Register):
    """Leaf 4 and AMD's leaf 0x8000001d, EAX: who shares a cache."""

    CORES = Bits(31, 26)
    SHARING = Bits(25, 14)
    LEVEL = Bits(7, 5)
    TYPE = Bits(4, 0)


CMP_LEGACY = 1 << 1  # leaf 0x80000001 ECX, AMD: HTT means cores, not threads
TOPOEXT = 1 << 22  # leaf 0x80000001 ECX, AMD: leaves 0x8000001d and 0x8000001e are valid
INVARIANT_TSC = 1 << 8  # leaf 0x80000007 EDX
EPB = 1 << 3  # leaf 6 ECX, Intel: IA32_ENERGY_PERF_BIAS exists


def patch(
    supported: Iterable[kvm_cpuid_entry2],
    index: int,
    count: int,
    *,
    tsc_khz: int = 0,
    tsc_deadline: bool = False,
) -> list[kvm_cpuid_entry2]:
    """The entries for vCPU ``index`` of ``count``, for KVM_SET_CPUID2; ``supported`` is left as it is.

    ``tsc_khz`` is the guest's TSC frequency in kHz, 0 if unknown; ``tsc_deadline`` says whether the host has
    KVM_CAP_TSC_DEADLINE_TIMER (with the in-kernel LAPIC).
    """
    entries = [kvm_cpuid_entry2.from_buffer_copy(entry) for entry in supported]
    by_leaf = {entry.function: entry for entry in entries}
    amd = _vendor(by_leaf.get(0)) in _AMD_VENDORS
    width = (count - 1).bit_length()  # bits of APIC id that tell the cores apart
    for entry in entries:
        function = entry.function
        if function == 1:
            _patch_features(entry, index, count, width, tsc_deadline)
        elif function == 4:
            _patch_cache(entry, (1 << width) - 1)
            if entry.eax & CacheEax.TYPE:
                # The host's number of cores in the package would contradict leaves 1 and 0xb.  The field ends at 64,
                # beyond which only leaf 0xb can say the truth.
                entry.eax = entry.eax & ~CacheEax.CORES | min((1 << width) - 1, 63) << 26
        elif function == 6:
            # KVM has no IA32_ENERGY_PERF_BIAS: Linux would read it, fault, and warn on each CPU.
            entry.ecx &= ~EPB
        elif function == 0xA:
            # A version without counters (a host that has no PMU to give, as under another hypervisor)
            # makes Linux probe counters that fault; all zeroes say "no PMU".
            if entry.eax & 0xFF < 2 or not entry.eax >> 8 & 0xFF:
                entry.eax = entry.ebx = entry.ecx = entry.edx = 0
        elif amd and function == 0x8000_0001:
            entry.ecx = entry.ecx | CMP_LEGACY if count > 1 else entry.ecx & ~CMP_LEGACY
        elif amd and function == 0x8000_0008:
            # Number of cores less one, and the width of the core id, are the host's.
            entry.ecx = entry.ecx & ~0xF0FF | min(count - 1, 0xFF) | width << 12
        elif amd and function == 0x8000_001D:
            _patch_cache(entry, count - 1)
        elif amd and function == 0x8000_001E:
            # Extended APIC id, core id with one thread per core, node 0 of 1: zero since Linux 6.2, and the
            # host's own before; Linux takes the APIC id from here and complains when leaf 1 disagrees.
            topoext = by_leaf[0x8000_0001].ecx & TOPOEXT if 0x8000_0001 in by_leaf else 0
            entry.eax, entry.ebx, entry.ecx = (index, index & 0xFF, 0) if topoext else (0, 0, 0)
    return _with_timing(_with_topology(entries, by_leaf, index, count, width), tsc_khz)


def _vendor(leaf0: kvm_cpuid_entry2 | None) -> bytes:
    """The 12 bytes of the vendor's name."""
    if leaf0 is None:
        return b""
    return b"".join(word.to_bytes(4, "little") for word in (leaf0.ebx, leaf0.edx, leaf0.ecx))


def _patch_features(entry: kvm_cpuid_entry2, index: int, count: int, width: int, tsc_deadline: bool) -> None:
    """Leaf 1."""
    # The APIC id and the number of ids are those of the host CPU that ran the ioctl.  The id must match the
    # in-kernel LAPIC and the MADT, or the kernel rejects its own CPU.
    entry.ebx &= ~(Leaf1Ebx.APIC_ID | Leaf1Ebx.COUNT)
    entry.ebx |= (index & 0xFF) << 24 | min(1 << width, 0xFF) << 16
    # Older KVMs leave it to us; without it the kernel never looks for kvm-clock and calibrates against a PIT
    # that hardware-reduced ACPI says is not there.
    entry.ecx |= Leaf1Ecx.HYPERVISOR
    # Likewise: this one saves the calibration of the LAPIC timer.
    if tsc_deadline:
        entry.ecx |= Leaf1Ecx.TSC_DEADLINE
    else:
        entry.ecx &= ~Leaf1Ecx.TSC_DEADLINE
    # Says that EBX[23:16] counts; a host with threads has it set, a guest with one vCPU must not.
    if count > 1:
        entry.edx |= Leaf1Edx.HTT
    else:
        entry.edx &= ~Leaf1Edx.HTT


def _patch_cache(entry: kvm_cpuid_entry2, others: int) -> None:
    """Who shares this cache: the third level and beyond all vCPUs (``others`` besides one), others nobody.

    The host's sharing would group vCPUs that are not there, and confuse the scheduler's domains.
    """
    eax = CacheEax(entry.eax)
    if eax.TYPE:
        entry.eax = eax & ~CacheEax.SHARING | (min(others, 0xFFF) if eax.LEVEL >= 3 else 0) << 14


def _with_topology(
    entries: list[kvm_cpuid_entry2], by_leaf: dict[int, kvm_cpuid_entry2], index: int, count: int, width: int
) -> list[kvm_cpuid_entry2]:
    """Leaves 0xb and 0x1f anew: KVM empties them since Linux 6.2, and gave the host's topology before.

    Subleaf 0 is the thread level (one), 1 the core level, 2 ends the list; EDX is the x2APIC id in each.  AMD's own
    leaf of the kind, 0x80000026, which Linux would ask first, is left out: it reads as "not there".
    """
    leaf0 = by_leaf.get(0)
    highest = leaf0.eax if leaf0 is not None else 0
    leaves = [leaf for leaf in (0xB, 0x1F) if leaf <= highest and (leaf == 0xB or leaf in by_leaf)]
    topology = [
        kvm_cpuid_entry2(
            leaf, level, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, shift, processors, level | kind << 8, index
        )
        for leaf in leaves
        for level, kind, shift, processors in ((0, 1, 0, 1), (1, 2, width, count), (2, 0, 0, 0))
    ]
    return [entry for entry in entries if entry.function not in (0xB, 0x1F, 0x8000_0026)] + topology


def _with_timing(entries: list[kvm_cpuid_entry2], tsc_khz: int) -> list[kvm_cpuid_entry2]:
    """Leaf 0x40000010 (TSC and APIC bus frequency in kHz), an agreement among hypervisors, if they are fixed.

    Guests that know it need no calibration; a TSC that is not invariant has no frequency to promise.  The
    leaves of KVM itself stay: signature and features, and with them kvm-clock.  A guest looks no further than
    the signature leaf's EAX, so that is raised.
    """
    signature = next((entry for entry in entries if entry.function == KVM_SIGNATURE_LEAF), None)
    power = next((entry for entry in entries if entry.function == 0x8000_0007), None)
    if signature is None or power is None or not power.edx & INVARIANT_TSC or not tsc_khz:
        return entries
    signature.eax = max(signature.eax, TIMING_LEAF)
    entries = [entry for entry in entries if entry.function != TIMING_LEAF]
    return entries + [kvm_cpuid_entry2(TIMING_LEAF, 0, 0, tsc_khz, APIC_BUS_KHZ, 0, 0)]
