"""What each vCPU is told by CPUID, from lists such as KVM gives on Intel and AMD hosts, old and new."""

import pytest

from pyvmm.arch.x86_64 import cpuid
from pyvmm.kvm.uapi_x86 import kvm_cpuid_entry2

Leaf = tuple[int, int, int, int]
HTT, HYPERVISOR, TSC_DEADLINE, X2APIC = 1 << 28, 1 << 31, 1 << 24, 1 << 21


def listed(leaves: dict[tuple[int, int], Leaf]) -> list[kvm_cpuid_entry2]:
    with_subleaves = (4, 7, 0xB, 0xD, 0x1F, 0x8000001D)
    return [
        kvm_cpuid_entry2(function, index, int(function in with_subleaves), *registers)
        for (function, index), registers in leaves.items()
    ]


def words(text: bytes) -> list[int]:
    return [int.from_bytes(text[i : i + 4], "little") for i in range(0, 12, 4)]


def signature(vendor: bytes, highest: int) -> Leaf:
    ebx, edx, ecx = words(vendor)
    return highest, ebx, ecx, edx


KVM: dict[tuple[int, int], Leaf] = {
    (0x40000000, 0): (0x40000001, *words(b"KVMKVMKVM\0\0\0")),  # type: ignore[dict-item]
    (0x40000001, 0): (0x01007EFB, 0, 0, 0),
}

# An Intel host before Linux 6.2: the host's topology (4 cores of 2 threads), APIC id 5, no hypervisor bit.
INTEL = {
    (0, 0): signature(b"GenuineIntel", 0x1F),
    (1, 0): (0x000806C1, 0x05100800, X2APIC | 0x1, 0x0FABFBFF | HTT),
    (4, 0): (0x1C004121, 0x02C0003F, 0x3F, 0),  # L1d, shared by 2, 8 cores in the package
    (4, 3): (0x1C03C163, 0x02C0003F, 0x1FFF, 6),  # L3, shared by 16
    (4, 4): (0, 0, 0, 0),
    (6, 0): (4, 0, 0x9, 0),
    (0xA, 0): (0x07300802, 0, 0, 0x603),
    (0xB, 0): (1, 2, 0x100, 5),
    (0xB, 1): (4, 8, 0x201, 5),
    (0x1F, 0): (1, 2, 0x100, 5),
    (0x80000001, 0): (0, 0, 0x121, 0x2C100800),
    (0x80000007, 0): (0, 0, 0, 0x100),
    (0x80000008, 0): (0x3027, 0, 0, 0),
    **KVM,
}

# An AMD host, as Linux 6.12's KVM reports it.
AMD = {
    (0, 0): signature(b"AuthenticAMD", 0x10),
    (1, 0): (0x00A00F11, 0x00020800, X2APIC | HYPERVISOR | TSC_DEADLINE, 0x078BFBFF | HTT),
    (4, 0): (0, 0, 0, 0),
    (0xA, 0): (0, 0, 0, 0),
    (0xB, 0): (0, 0, 0, 0),
    (0x80000001, 0): (0, 0, 0x00400393, 0x23D3FBFF),
    (0x80000007, 0): (0, 0, 0, 0x100),
    (0x80000008, 0): (0x3030, 0x110AD205, 0x00017001, 0),
    (0x8000001D, 0): (0x4121, 0x01C0003F, 0x3F, 0),
    (0x8000001D, 2): (0x4143, 0x01C0003F, 0x3FF, 2),
    (0x8000001D, 3): (0x3C163, 0x03C0003F, 0x7FFF, 1),
    (0x8000001E, 0): (0x55, 0x101, 0x203, 0),
    **KVM,
}


def patched(
    leaves: dict[tuple[int, int], Leaf], index: int, count: int, **options: int
) -> dict[tuple[int, int], Leaf]:
    entries = cpuid.patch(
        listed(leaves),
        index,
        count,
        tsc_khz=options.get("tsc_khz", 0),
        tsc_deadline=bool(options.get("tsc_deadline")),
    )
    found = {(e.function, e.index): (e.eax, e.ebx, e.ecx, e.edx) for e in entries}
    assert len(found) == len(entries), "a leaf is listed twice"
    return found


@pytest.mark.parametrize("host", [INTEL, AMD], ids=["intel", "amd"])
@pytest.mark.parametrize(
    ("index", "count", "ids"), [(0, 1, 1), (1, 2, 2), (2, 3, 4), (7, 8, 8), (254, 255, 255)]
)
def test_leaf_1_identifies_the_vcpu(
    host: dict[tuple[int, int], Leaf], index: int, count: int, ids: int
) -> None:
    _, ebx, ecx, edx = patched(host, index, count)[1, 0]
    assert ebx >> 24 == index
    assert ebx >> 16 & 0xFF == ids
    assert ebx >> 8 & 0xFF == 8  # CLFLUSH line, kept
    assert ecx & HYPERVISOR
    assert ecx & X2APIC
    assert bool(edx & HTT) == (count > 1)
    assert edx & ~HTT == host[1, 0][3] & ~HTT


@pytest.mark.parametrize("host", [INTEL, AMD], ids=["intel", "amd"])
def test_tsc_deadline_is_the_hosts_to_offer(host: dict[tuple[int, int], Leaf]) -> None:
    assert patched(host, 0, 1, tsc_deadline=1)[1, 0][2] & TSC_DEADLINE
    assert not patched(host, 0, 1, tsc_deadline=0)[1, 0][2] & TSC_DEADLINE


@pytest.mark.parametrize(("index", "count", "width"), [(0, 1, 0), (1, 2, 1), (2, 3, 2), (5, 8, 3)])
@pytest.mark.parametrize(("host", "leaves"), [(INTEL, (0xB, 0x1F)), (AMD, (0xB,))], ids=["intel", "amd"])
def test_topology_leaves_are_one_thread_per_core(
    host: dict[tuple[int, int], Leaf], leaves: tuple[int, ...], index: int, count: int, width: int
) -> None:
    found = patched(host, index, count)
    for leaf in leaves:
        assert found[leaf, 0] == (0, 1, 0x100, index)
        assert found[leaf, 1] == (width, count, 0x201, index)
        assert found[leaf, 2] == (0, 0, 2, index)
    assert {function for function, _ in found if function in (0xB, 0x1F)} == set(leaves)


def test_topology_leaves_carry_the_flag_that_makes_subleaves_count() -> None:
    flags = {e.flags for e in cpuid.patch(listed(AMD), 0, 1) if e.function == 0xB}
    assert flags == {1}


def test_topology_leaf_is_not_invented_beyond_the_highest_leaf() -> None:
    host = {**AMD, (0, 0): signature(b"AuthenticAMD", 0x7)}
    assert not [key for key in patched(host, 0, 2) if key[0] == 0xB]


def test_intel_caches_are_private_but_the_last() -> None:
    found = patched(INTEL, 0, 3)
    assert found[4, 0] == (3 << 26 | 0x121, 0x02C0003F, 0x3F, 0)
    assert found[4, 3] == (3 << 26 | 3 << 14 | 0x163, 0x02C0003F, 0x1FFF, 6)
    assert found[4, 4] == (0, 0, 0, 0)
    assert patched(INTEL, 0, 1)[4, 3][0] == 0x163


def test_amd_caches_are_private_but_the_last() -> None:
    found = patched(AMD, 0, 3)
    assert found[0x8000001D, 0][0] == 0x121
    assert found[0x8000001D, 2][0] == 0x143
    assert found[0x8000001D, 3][0] == 2 << 14 | 0x163


def test_amd_core_counts_and_ids() -> None:
    found = patched(AMD, 2, 3)
    assert found[0x80000008, 0] == (0x3030, 0x110AD205, 0x00012002, 0)
    assert found[0x8000001E, 0] == (2, 2, 0, 0)
    assert found[0x80000001, 0][2] & 2
    assert not patched(AMD, 0, 1)[0x80000001, 0][2] & 2


def test_amd_extended_id_is_empty_without_topoext() -> None:
    host = {**AMD, (0x80000001, 0): (0, 0, 0x00000393, 0)}
    assert patched(host, 2, 3)[0x8000001E, 0] == (0, 0, 0, 0)


def test_intel_is_spared_what_is_amds() -> None:
    found = patched(INTEL, 1, 4)
    assert found[0x80000008, 0] == INTEL[0x80000008, 0]
    assert found[0x80000001, 0] == INTEL[0x80000001, 0]


def test_energy_bias_is_hidden() -> None:
    assert patched(INTEL, 0, 1)[6, 0] == (4, 0, 0x1, 0)


@pytest.mark.parametrize(
    ("leaf", "kept"),
    [((0x07300802, 0, 0, 0x603), True), ((0x07300001, 0, 0, 3), False), ((0x07300002, 1, 2, 3), False)],
    ids=["usable", "version 1", "no counters"],
)
def test_a_pmu_without_counters_is_hidden(leaf: Leaf, kept: bool) -> None:
    assert patched({**INTEL, (0xA, 0): leaf}, 0, 1)[0xA, 0] == (leaf if kept else (0, 0, 0, 0))


@pytest.mark.parametrize("host", [INTEL, AMD], ids=["intel", "amd"])
def test_kvm_leaves_stay_and_timing_is_added_where_known(host: dict[tuple[int, int], Leaf]) -> None:
    plain = patched(host, 0, 1)
    assert plain[0x40000000, 0] == KVM[0x40000000, 0]
    assert plain[0x40000001, 0] == KVM[0x40000001, 0]
    assert (0x40000010, 0) not in plain
    timed = patched(host, 0, 1, tsc_khz=2_400_000)
    assert timed[0x40000000, 0] == (0x40000010, *KVM[0x40000000, 0][1:])
    assert timed[0x40000010, 0] == (2_400_000, 1_000_000, 0, 0)
    assert timed[0x40000001, 0] == KVM[0x40000001, 0]


def test_no_frequency_is_promised_for_a_tsc_that_varies() -> None:
    varying = {**AMD, (0x80000007, 0): (0, 0, 0, 0)}
    found = patched(varying, 0, 1, tsc_khz=2_400_000)
    assert (0x40000010, 0) not in found
    assert found[0x40000000, 0] == KVM[0x40000000, 0]


def test_the_list_is_not_changed_and_serves_every_vcpu() -> None:
    supported = listed(AMD)
    before = [bytes(entry) for entry in supported]
    for index in range(3):
        cpuid.patch(supported, index, 3, tsc_khz=1000)
    assert [bytes(entry) for entry in supported] == before


def test_an_empty_list_is_no_error() -> None:
    assert cpuid.patch([], 0, 1, tsc_khz=1000) == []
