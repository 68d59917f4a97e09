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


# An AMD host as recorded from KVM_GET_SUPPORTED_CPUID: an EPYC 7003, itself under a hypervisor.
EPYC = {
    (0, 0): (0x00000010, 0x68747541, 0x444D4163, 0x69746E65),
    (1, 0): (0x00A00F11, 0x01020800, 0x81202000, 0x078BFBFF),
    (4, 0): (0, 0, 0, 0),
    (6, 0): (0x00000004, 0, 0, 0),
    (0xA, 0): (0, 0, 0, 0),
    (0xB, 0): (0, 0, 0, 1),
    (0x80000000, 0): (0x80000022, 0x68747541, 0x444D4163, 0x69746E65),
    (0x80000001, 0): (0x00A00F11, 0x40000000, 0x00400393, 0x23D3FBFF),
    (0x80000007, 0): (0, 0, 0, 0x100),
    (0x80000008, 0): (0x00003030, 0x110AD205, 0x00007001, 0),
    (0x8000001D, 0): (0x00000121, 0x01C0003F, 0x0000003F, 0),
    (0x8000001D, 1): (0x00000122, 0x01C0003F, 0x0000003F, 0),
    (0x8000001D, 2): (0x00000143, 0x01C0003F, 0x000003FF, 2),
    (0x8000001D, 3): (0x00004163, 0x03C0003F, 0x00007FFF, 1),
    (0x8000001D, 4): (0, 0, 0, 0),
    (0x8000001E, 0): (0, 0, 0, 0),
    **KVM,
}

# An Intel host since Linux 6.2: leaf 0xb is empty, leaf 4 is still the host's.
INTEL_NEWER = {**INTEL, (0xB, 0): (0, 0, 0, 5), (0x1F, 0): (0, 0, 0, 5)}
del INTEL_NEWER[0xB, 1]


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


# --- the topology, from each of the leaves that tell it ---------------------------------------------------

HOSTS = {"intel": INTEL, "newer intel": INTEL_NEWER, "amd": AMD, "epyc": EPYC}
Leaves = dict[tuple[int, int], Leaf]


def bits(count: int) -> int:
    """The width of a number that tells ``count`` things apart."""
    return (count - 1).bit_length()


def extended(leaves: Leaves, leaf: int) -> tuple[int, int, int, int, int]:
    """SDM volume 3, 9.9.3, from leaf 0xb or 0x1f: package, core, thread, threads of a core, threads of a package."""
    level, threads, widths = 0, {}, {}
    while (kind := leaves[leaf, level][2] >> 8 & 0xFF) != 0:
        assert leaves[leaf, level][2] & 0xFF == level
        widths[kind], threads[kind] = leaves[leaf, level][0] & 0x1F, leaves[leaf, level][1] & 0xFFFF
        level += 1
    id = leaves[leaf, 0][3]
    core = (id & ((1 << widths[2]) - 1)) >> widths[1]
    return id >> widths[2], core, id & ((1 << widths[1]) - 1), threads[1], threads[2]


def caches(leaves: Leaves, leaf: int) -> dict[tuple[int, int], int]:
    """(level, type) of each cache, and how many logical processors may share it."""
    return {
        (eax >> 5 & 7, eax & 0x1F): (eax >> 14 & 0xFFF) + 1
        for (function, _), (eax, _, _, _) in leaves.items()
        if function == leaf and eax & 0x1F
    }


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 64, 255])
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_every_leaf_tells_of_one_package_with_a_core_for_each_vcpu(host: Leaves, count: int) -> None:
    amd = host[0, 0] in (AMD[0, 0], EPYC[0, 0])
    ids = set()
    for index in range(count):
        leaves = patched(host, index, count)
        # Leaf 1, and with it leaf 4 (Intel) or 0x80000008 (AMD): how many ids there are for threads and for cores.
        _, ebx, _, edx = leaves[1, 0]
        ids.add(ebx >> 24)
        assert ebx >> 24 == index
        threads = ebx >> 16 & 0xFF if edx & HTT else 1
        if amd:
            assert bool(leaves[0x80000001, 0][2] & 2) == (
                count > 1
            )  # CMP_LEGACY: the threads of leaf 1 are cores
            size = leaves[0x80000008, 0][2]
            assert (size & 0xFF) + 1 == count
            assert size >> 12 & 0xF == bits(count)
            cores = 1 << (size >> 12 & 0xF)
        else:
            cores = {
                (eax >> 26) + 1 for (leaf, _), (eax, *_) in leaves.items() if leaf == 4 and eax & 0x1F
            }.pop()
            assert cores == min(1 << bits(count), 64)
        if count <= 64:
            assert threads == cores == 1 << bits(count)
        # The extended leaves.
        for leaf in (0xB,) if amd else (0xB, 0x1F):
            assert extended(leaves, leaf) == (0, index, 0, 1, count)
        # AMD's own.
        if amd:
            eax, ebx, ecx, _ = leaves[0x8000001E, 0]
            assert (eax, ebx & 0xFF, ebx >> 8 & 0xFF, ecx & 0x7FF) == (index, index, 0, 0)
        # Caches: the first two levels are each core's own, the third everybody's.
        for (level, _), sharing in caches(leaves, 0x8000001D if amd else 4).items():
            groups = {vcpu >> bits(sharing) for vcpu in range(count)}
            assert len(groups) == (1 if level == 3 else count)
    assert ids == set(range(count))


def test_amds_extended_topology_leaf_is_not_the_hosts() -> None:
    host = {**EPYC, (0x80000026, 0): (1, 2, 0x100, 5), (0x80000026, 1): (4, 8, 0x201, 5)}
    assert not [key for key in patched(host, 1, 4) if key[0] == 0x80000026]
