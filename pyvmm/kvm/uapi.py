"""The structures and constants of <linux/kvm.h> that are the same on every architecture.

Source: Linux ``include/uapi/linux/kvm.h``; described in ``Documentation/virt/kvm/api.rst``.  Names are
the header's own.  A class named ``kvm_*`` is a struct with that tag; any other class here is an untagged
struct inside one (``run_io`` is ``kvm_run.io``).  A flexible array member is declared with length 0, so
that ``sizeof`` is the size that goes into the ioctl number.  ``tests/unit/test_kvm_uapi.py`` compares
every size, offset and number here with the compiler's.
"""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64

u8, u16, u32, u64 = c_uint8, c_uint16, c_uint32, c_uint64
s32, s64 = c_int32, c_int64

KVM_API_VERSION = 12
KVMIO = 0xAE


class Cap:
    """KVM_CAP_* numbers, for KVM_CHECK_EXTENSION (plain integers: an enum costs milliseconds at start-up)."""

    IRQCHIP = 0
    HLT = 1
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    COALESCED_MMIO = 15
    SYNC_MMU = 16
    USER_NMI = 22
    SET_GUEST_DEBUG = 23
    IRQ_ROUTING = 25
    IRQFD = 32
    PIT2 = 33
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    ENABLE_CAP = 54
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    ONE_REG = 70
    TSC_DEADLINE_TIMER = 72
    KVMCLOCK_CTRL = 76
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    IRQFD_RESAMPLE = 82
    ARM_PSCI = 87
    DEVICE_CTRL = 89
    ARM_EL1_32BIT = 93
    ENABLE_CAP_VM = 98
    ARM_PSCI_0_2 = 102
    CHECK_EXTENSION_VM = 105
    SPLIT_IRQCHIP = 121
    IOEVENTFD_ANY_LENGTH = 122
    VCPU_ATTRIBUTES = 127
    MAX_VCPU_ID = 128
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    COALESCED_PIO = 162
    ARM_VM_IPA_SIZE = 165
    ARM_SVE = 170
    ARM_PTRAUTH_ADDRESS = 171
    ARM_PTRAUTH_GENERIC = 172
    ARM_NISV_TO_USER = 177
    EXIT_ON_EMULATION_FAILURE = 204
    SYSTEM_EVENT_DATA = 215
    X86_TRIPLE_FAULT_EVENT = 218
    MEMORY_FAULT_INFO = 232


def cap_name(cap: int) -> str:
    """The header's name of a capability number: ``cap_name(0) == "KVM_CAP_IRQCHIP"``."""
    for name, number in vars(Cap).items():
        if number == cap and name.isupper():
            return "KVM_CAP_" + name
    return f"KVM capability {cap}"


# --- memory slots ------------------------------------------------------------------------------------
KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1


class kvm_userspace_memory_region(Structure):
    _fields_ = [
        ("slot", u32),
        ("flags", u32),
        ("guest_phys_addr", u64),
        ("memory_size", u64),
        ("userspace_addr", u64),
    ]


# --- interrupts, eventfds ----------------------------------------------------------------------------
KVM_IRQFD_FLAG_DEASSIGN = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE = 1 << 1
KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2


class kvm_irq_level(Structure):
    _fields_ = [("irq", u32), ("level", u32)]


class kvm_irqfd(Structure):
    _fields_ = [("fd", u32), ("gsi", u32), ("flags", u32), ("resamplefd", u32), ("pad", u8 * 16)]


class kvm_ioeventfd(Structure):
    _fields_ = [
        ("datamatch", u64),
        ("addr", u64),
        ("len", u32),
        ("fd", s32),
        ("flags", u32),
        ("pad", u8 * 36),
    ]


class kvm_msi(Structure):
    _fields_ = [
        ("address_lo", u32),
        ("address_hi", u32),
        ("data", u32),
        ("flags", u32),
        ("devid", u32),
        ("pad", u8 * 12),
    ]


# --- coalesced MMIO and port I/O ---------------------------------------------------------------------
class kvm_coalesced_mmio_zone(Structure):
    _fields_ = [("addr", u64), ("size", u32), ("pio", u32)]


class kvm_coalesced_mmio(Structure):
    _fields_ = [("phys_addr", u64), ("len", u32), ("pio", u32), ("data", u8 * 8)]


class kvm_coalesced_mmio_ring(Structure):
    _fields_ = [("first", u32), ("last", u32), ("coalesced_mmio", kvm_coalesced_mmio * 0)]


# --- vCPU state common to architectures --------------------------------------------------------------
KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4
KVM_MP_STATE_STOPPED = 5

KVM_REG_SIZE_SHIFT = 52
KVM_REG_SIZE_MASK = 0x00F0000000000000


class kvm_mp_state(Structure):
    _fields_ = [("mp_state", u32)]


class kvm_translation(Structure):
    _fields_ = [
        ("linear_address", u64),
        ("physical_address", u64),
        ("valid", u8),
        ("writeable", u8),
        ("usermode", u8),
        ("pad", u8 * 5),
    ]


class kvm_one_reg(Structure):
    _fields_ = [("id", u64), ("addr", u64)]


# --- capabilities, clock, devices --------------------------------------------------------------------
KVM_CREATE_DEVICE_TEST = 1
KVM_CLOCK_TSC_STABLE = 2
KVM_CLOCK_REALTIME = 1 << 2
KVM_CLOCK_HOST_TSC = 1 << 3


class kvm_enable_cap(Structure):
    _fields_ = [("cap", u32), ("flags", u32), ("args", u64 * 4), ("pad", u8 * 64)]


class kvm_clock_data(Structure):
    _fields_ = [
        ("clock", u64),
        ("flags", u32),
        ("pad0", u32),
        ("realtime", u64),
        ("host_tsc", u64),
        ("pad", u32 * 4),
    ]


class kvm_create_device(Structure):
    _fields_ = [("type", u32), ("fd", u32), ("flags", u32)]


class kvm_device_attr(Structure):
    _fields_ = [("flags", u32), ("group", u32), ("attr", u64), ("addr", u64)]
