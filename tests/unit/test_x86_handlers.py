"""The handlers for a guest's first exception: the page they live in, and what is recovered from it."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyvmm.arch.x86_64 import diagnose, handlers, layout, paging, segments
from pyvmm.arch.x86_64.stop import Stop
from pyvmm.kvm.uapi_x86 import kvm_regs, kvm_sregs
from pyvmm.memory import GuestMemory

PAGE = layout.EXCEPTION_HANDLERS
TOP = PAGE + 0x1000

SOURCE_64 = """
    push rax; push rcx; push rdx; push rbx; push rbp; push rsi; push rdi
    push r8; push r9; push r10; push r11; push r12; push r13; push r14; push r15
    mov rax, cr0; push rax; mov rax, cr2; push rax; mov rax, cr3; push rax; mov rax, cr4; push rax
    mov ecx, 0xc0000080; rdmsr; push rax
    push 0; push 0; lidt [rsp]
    ud2
"""
SOURCE_32 = """
    pushad
    mov esi, esp; mov esp, 0x6000
    mov ecx, 13
1:  push dword ptr [esi]; add esi, 4; loop 1b
    mov eax, cr0; push eax; mov eax, cr2; push eax; mov eax, cr3; push eax; mov eax, cr4; push eax
    mov ecx, 0xc0000080; rdmsr; push eax
    push 0; push 0; lidt [esp]
    ud2
"""


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("objcopy")), reason="needs binutils")
@pytest.mark.parametrize(
    ("bits", "source", "code"), [(64, SOURCE_64, handlers.HANDLER_64), (32, SOURCE_32, handlers.HANDLER_32)]
)
def test_handlers_are_what_their_comments_say(tmp_path: Path, bits: int, source: str, code: bytes) -> None:
    text = tmp_path / "handler.s"
    text.write_text(f".intel_syntax noprefix\n.code{bits}\n{source}")
    subprocess.run(["as", f"--{bits}", text, "-o", tmp_path / "o"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "o", tmp_path / "bin"], check=True)
    assert (tmp_path / "bin").read_bytes() == code


@pytest.mark.parametrize(("code", "size"), [(segments.CODE_64, 16), (segments.CODE_32, 8)])
def test_every_gate_leads_to_the_handler(code: int, size: int) -> None:
    page = handlers.page(code)
    assert len(page) == layout.PAGE_SIZE
    targets = set()
    for vector in range(32):
        low, selector, ist, rights, high = struct.unpack_from("<HHBBH", page, vector * size)
        assert (selector, rights, high) == (segments.BOOT_CS, 0x8E, 0)
        assert ist == (1 if size == 16 else 0)
        if size == 16:
            assert page[vector * size + 8 : (vector + 1) * size] == bytes(8)
        call = low - PAGE
        assert page[call] == 0xE8
        (distance,) = struct.unpack_from("<i", page, call + 1)
        targets.add(call + 5 + distance)
    (target,) = targets
    assert page[target:].startswith(handlers.HANDLER_64 if size == 16 else handlers.HANDLER_32)


def test_registers_point_into_the_page() -> None:
    sregs = kvm_sregs()
    segments.load_flat(sregs, segments.CODE_64)
    handlers.load(sregs, segments.CODE_64)
    assert (sregs.idt.base, sregs.idt.limit) == (PAGE, 0x1FF)
    page = handlers.page(segments.CODE_64)
    (stack,) = struct.unpack_from("<Q", page, sregs.tr.base - PAGE + 0x24)
    assert stack == TOP
    segments.load_flat(sregs, segments.CODE_32)
    handlers.load(sregs, segments.CODE_32)
    assert (sregs.idt.base, sregs.idt.limit) == (PAGE, 0xFF)
    assert (sregs.tr.base, sregs.tr.limit) == (0, 0x67)  # as PVH asks


# --- recovery ------------------------------------------------------------------------------------------


def reset() -> Stop:
    """A vCPU as KVM on AMD leaves it."""
    regs, sregs = kvm_regs(rip=0xFFF0, rflags=2), kvm_sregs(cr0=0x60000010)
    sregs.cs.selector, sregs.cs.base, sregs.cs.limit = 0xF000, 0xFFFF0000, 0xFFFF
    return Stop(8, regs, sregs)


def return_address(vector: int) -> int:
    return PAGE + 0x200 + (vector + 1) * 5


def memory_64(vector: int, error_code: int | None, cr2: int = 0x1234_0000_0000) -> GuestMemory:
    """Identity-mapped RAM after an exception at 0x100000 with RAX 100, RCX 101, ..., R15 114."""
    memory = GuestMemory([(0, 0x200000)])
    memory.write(PAGE, handlers.page(segments.CODE_64))
    paging.write_identity_map(memory)
    words = [0x18, 0x8FF0, 0x10046, 0x10, 0x100000]
    words += [] if error_code is None else [error_code]
    words += [return_address(vector), *range(100, 115), 0x80000031, cr2, 0x9000, 0x20, 0x500]
    memory.write(TOP - 8 * len(words), struct.pack(f"<{len(words)}Q", *reversed(words)))
    return memory


def memory_32(vector: int, error_code: int | None) -> GuestMemory:
    """RAM after an exception at 0x100000 with EDI 200, ..., EAX 207 and ESP 0x8f00."""
    memory = GuestMemory([(0, 0x200000)])
    memory.write(PAGE, handlers.page(segments.CODE_32))
    frame = [] if error_code is None else [error_code]
    frame += [0x100000, 0x10, 0x10046]
    words = [200, 201, 202, 0x8F00 - 4 * len(frame) - 4, 204, 205, 206, 207, return_address(vector), *frame]
    words = (words + [0xDEAD] * 2)[:13] + [0x11, 0, 0, 0, 0]
    memory.write(TOP - 4 * len(words), struct.pack(f"<{len(words)}I", *reversed(words)))
    return memory


@pytest.mark.parametrize(
    ("vector", "error_code"), [(6, None), (0, None), (31, None), (13, 0x30), (14, 2), (8, 0)]
)
def test_recovery_in_64_bit_mode(vector: int, error_code: int | None) -> None:
    stop = reset()
    with memory_64(vector, error_code) as memory:
        assert handlers.recover(stop, memory)
    assert stop.exception == (vector, error_code)
    regs, sregs = stop.regs, stop.sregs
    assert (regs.rip, regs.rsp, regs.rflags) == (0x100000, 0x8FF0, 0x10046)
    assert (regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rbp, regs.rsi, regs.rdi) == tuple(range(100, 107))
    assert (regs.r8, regs.r15) == (107, 114)
    assert (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer) == (
        0x80000031,
        0x1234_0000_0000,
        0x9000,
        0x20,
        0x500,
    )
    assert stop.mode == "64-bit mode, 4-level paging"
    assert stop.segments_lost
    assert not stop.was_reset


@pytest.mark.parametrize(
    ("vector", "error_code"), [(6, None), (0, None), (31, None), (13, 0x30), (14, 2), (8, 0)]
)
def test_recovery_in_32_bit_mode(vector: int, error_code: int | None) -> None:
    stop = reset()
    with memory_32(vector, error_code) as memory:
        assert handlers.recover(stop, memory)
    assert stop.exception == (vector, error_code)
    regs = stop.regs
    assert (regs.rip, regs.rsp, regs.rflags) == (0x100000, 0x8F00, 0x10046)
    assert (regs.rdi, regs.rsi, regs.rbp, regs.rbx, regs.rdx, regs.rcx, regs.rax) == (
        200,
        201,
        202,
        204,
        205,
        206,
        207,
    )
    assert stop.mode == "32-bit protected mode, no paging"


def test_segments_that_kvm_still_has_are_kept() -> None:
    stop = reset()
    segments.load_flat(stop.sregs, segments.CODE_64)
    stop.sregs.fs.base, stop.regs.rip = 0x777, PAGE + 0x300
    with memory_64(6, None) as memory:
        assert handlers.recover(stop, memory)
    assert stop.sregs.fs.base == 0x777
    assert not stop.segments_lost


def test_nothing_is_recovered_where_no_handler_ran() -> None:
    for memory in (memory_64(6, None), memory_32(6, None)):
        with memory:
            elsewhere = reset()
            elsewhere.regs.rip = 0x100000
            elsewhere.sregs.cs.selector = 0x10
            assert not handlers.recover(elsewhere, memory)
            memory.fill(TOP - 0x100, 0x100)  # handlers in place, but none ran
            assert not handlers.recover(reset(), memory)
            memory.fill(PAGE, 0x1000, 0xA5)  # the guest has used the page
            assert not handlers.recover(reset(), memory)
    with GuestMemory([(0x100000, 0x1000)]) as memory:
        assert not handlers.recover(reset(), memory)


# --- reports ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "error_code", "words"),
    [
        (0, None, "#DE divide error"),
        (3, None, "#BP breakpoint (int3): the guest executed int3"),
        (13, 0x30, "#GP general protection with error code 0x30 (selector 0x30 of the GDT)"),
        (11, 0x34, "#NP segment not present with error code 0x34 (selector 0x30 of the LDT)"),
        (13, 0x402, "#GP general protection with error code 0x402 (gate 0x80 of the IDT)"),
        (
            14,
            2,
            "#PF page fault with error code 0x2 [W] at CR2 0x123400000000: that address is not mapped, the PML4E",
        ),
    ],
)
def test_the_exception_is_the_likely_cause(vector: int, error_code: int | None, words: str) -> None:
    with memory_64(vector, error_code) as memory:
        memory.write(0x100000, bytes.fromhex("90 91 92 93"))
        lines = diagnose.report(reset(), memory)
    assert lines[1].startswith(f"likely cause: {words}")
    assert lines[1].endswith((words, "is not present"))
    assert (
        "        also: no exception can be handled: the guest has no interrupt table of its own yet" in lines
    )
    assert (
        "registers at the exception, saved by pyvmm's handler; KVM has lost the segments, these are the entry's:"
        in lines
    )


@pytest.mark.parametrize(
    ("error_code", "entry", "words"),
    [
        (0x3, 0x81, "that address is in a read-only page"),
        (0x11, 0x83 | 1 << 63, "that address is in a no-execute page"),
        (0x5, 0x83, "that address is in a page for the supervisor only"),
        (0x1, 0x83, "the page tables allow it now"),
    ],
)
def test_page_faults_by_rights(error_code: int, entry: int, words: str) -> None:
    with memory_64(14, error_code, cr2=0x1234) as memory:
        memory.write_u64(TOP - 8 * (6 + 1 + 15 + 5), 0xD00)  # EFER with NXE
        memory.write_u64(0x9000, 0xA007)
        memory.write_u64(0xA000, 0xB007)
        memory.write_u64(0xB000, entry)
        lines = diagnose.report(reset(), memory)
    assert lines[1].endswith(words)
