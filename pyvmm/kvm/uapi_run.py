"""``struct kvm_run``, the page a vCPU shares with the kernel, and the reasons why a run ends.

Source: Linux ``include/uapi/linux/kvm.h``; section 5 of ``Documentation/virt/kvm/api.rst``.  The
conventions are those of :mod:`pyvmm.kvm.uapi`.
"""

from __future__ import annotations

from ctypes import Structure, Union

from .uapi import u8, u16, u32, u64

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_EXCEPTION = 1
KVM_EXIT_IO = 2
KVM_EXIT_HYPERCALL = 3
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_SET_TPR = 11
KVM_EXIT_TPR_ACCESS = 12
KVM_EXIT_NMI = 16
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_WATCHDOG = 21
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_HYPERV = 27
KVM_EXIT_ARM_NISV = 28
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_AP_RESET_HOLD = 32
KVM_EXIT_X86_BUS_LOCK = 33
KVM_EXIT_XEN = 34
KVM_EXIT_NOTIFY = 37
KVM_EXIT_MEMORY_FAULT = 39

KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0

KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3
KVM_SYSTEM_EVENT_WAKEUP = 4
KVM_SYSTEM_EVENT_SUSPEND = 5


def exit_name(reason: int) -> str:
    """The header's name of an exit reason: ``exit_name(2) == "KVM_EXIT_IO"``."""
    for name, number in globals().items():
        if number == reason and name.startswith("KVM_EXIT_") and not name.startswith("KVM_EXIT_IO_"):
            return name
    return f"KVM exit reason {reason}"


class run_hw(Structure):
    _fields_ = [("hardware_exit_reason", u64)]


class run_fail_entry(Structure):
    _fields_ = [("hardware_entry_failure_reason", u64), ("cpu", u32)]


class run_io(Structure):
    _fields_ = [("direction", u8), ("size", u8), ("port", u16), ("count", u32), ("data_offset", u64)]


class run_mmio(Structure):
    _fields_ = [("phys_addr", u64), ("data", u8 * 8), ("len", u32), ("is_write", u8)]


class run_internal(Structure):
    _fields_ = [("suberror", u32), ("ndata", u32), ("data", u64 * 16)]


class run_emulation_failure(Structure):
    _fields_ = [
        ("suberror", u32),
        ("ndata", u32),
        ("flags", u64),
        ("insn_size", u8),
        ("insn_bytes", u8 * 15),
    ]


class run_system_event(Structure):
    _fields_ = [("type", u32), ("ndata", u32), ("data", u64 * 16)]


class run_eoi(Structure):
    _fields_ = [("vector", u8)]


class run_msr(Structure):
    _fields_ = [("error", u8), ("pad", u8 * 7), ("reason", u32), ("index", u32), ("data", u64)]


class run_memory_fault(Structure):
    _fields_ = [("flags", u64), ("gpa", u64), ("size", u64)]


class run_exit(Union):
    """What the exit reason says more about; 256 bytes for ever."""

    _fields_ = [
        ("hw", run_hw),
        ("fail_entry", run_fail_entry),
        ("io", run_io),
        ("mmio", run_mmio),
        ("internal", run_internal),
        ("emulation_failure", run_emulation_failure),
        ("system_event", run_system_event),
        ("eoi", run_eoi),
        ("msr", run_msr),
        ("memory_fault", run_memory_fault),
        ("padding", u8 * 256),
    ]


class kvm_run(Structure):
    _anonymous_ = ("exit",)
    _fields_ = [
        ("request_interrupt_window", u8),
        ("immediate_exit", u8),
        ("padding1", u8 * 6),
        ("exit_reason", u32),
        ("ready_for_interrupt_injection", u8),
        ("if_flag", u8),
        ("flags", u16),
        ("cr8", u64),
        ("apic_base", u64),
        ("exit", run_exit),
        ("kvm_valid_regs", u64),
        ("kvm_dirty_regs", u64),
        ("s", u8 * 2048),
    ]


# Fields younger than some headers in use, and the macro that came with each (for the test).
NEWER_FIELDS = {"kvm_run.memory_fault": "KVM_EXIT_MEMORY_FAULT"}
