"""Loops of x86-64 machine code: adding a number at each of 200,000 places takes Python 170 ms, these 2 ms.

The relocation sites of a kernel are unaligned and follow no pattern, so nothing in the standard library
adds to many of them in one call, and importing numpy alone costs ten times what it would save.  The code
is mapped writable, filled, then made executable and read-only.  Where that cannot be done (another
processor, a security policy that forbids it), :func:`routines` is None, and the caller loops in Python.

System V ABI, x86-64: arguments in RDI, RSI, RDX, RCX; the result in RAX.
"""

from __future__ import annotations

import mmap
import os
from ctypes import CDLL, CFUNCTYPE, addressof, c_char, c_int, c_size_t, c_uint32, c_uint64, c_void_p

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CODE = bytes.fromhex(
    # first_outside(sites, count, low, span)
    "31c0"  # xor eax, eax              the index
    "4839f0"  # 1: cmp rax, rsi
    "7311"  # jae 2f
    "448b0487"  # mov r8d, [rdi+rax*4]
    "4129d0"  # sub r8d, edx              modulo 2**32: below low is far above
    "4139c8"  # cmp r8d, ecx
    "7705"  # ja 2f
    "48ffc0"  # inc rax
    "ebea"  # jmp 1b
    "c3"  # 2: ret
    "cccccccccccccc"
    # add32(sites, count, base, delta)
    "4885f6"  # test rsi, rsi
    "740e"  # jz 2f
    "8b07"  # 1: mov eax, [rdi]
    "010c02"  # add [rdx+rax], ecx
    "4883c704"  # add rdi, 4
    "48ffce"  # dec rsi
    "75f2"  # jnz 1b
    "c3"  # 2: ret
    "cccccccccccccccccccccccc"
    # add64(sites, count, base, delta)
    "4885f6"  # test rsi, rsi
    "740f"  # jz 2f
    "8b07"  # 1: mov eax, [rdi]
    "48010c02"  # add [rdx+rax], rcx
    "4883c704"  # add rdi, 4
    "48ffce"  # dec rsi
    "75f1"  # jnz 1b
    "c3"  # 2: ret
)


class Routines:
    """The loops as functions.  All work on ``count`` little-endian u32 sites at host address ``sites``.

    - ``first_outside(sites, count, low, span)``: the index of the first site not in low..low+span (both
      included), ``count`` if all are
    - ``add32(sites, count, base, delta)``, ``add64(...)``: add ``delta`` to the number at each base + site,
      modulo 2**32 or 2**64.  Nothing is checked: an address that is none ends the process.
    """

    __slots__ = ("_page", "add32", "add64", "first_outside")

    def __init__(self, page: mmap.mmap, address: int) -> None:
        self._page = page
        count, pointer = c_size_t, c_void_p
        self.first_outside: Callable[[int, int, int, int], int] = CFUNCTYPE(
            count, pointer, count, c_uint32, c_uint32
        )(address)
        loop = CFUNCTYPE(None, pointer, count, c_uint64, c_uint64)
        self.add32: Callable[[int, int, int, int], None] = loop(address + 0x20)
        self.add64: Callable[[int, int, int, int], None] = loop(address + 0x40)


def routines() -> Routines | None:
    """The loops, ready to be called; None where they cannot run."""
    if os.uname().machine != "x86_64" or c_void_p(-1).value != (1 << 64) - 1:
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return None
    page.write(_CODE)
    address = addressof(c_char.from_buffer(page))
    mprotect = CDLL(None).mprotect
    mprotect.argtypes = (c_void_p, c_size_t, c_int)
    if mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
        return None
    return Routines(page, address)
