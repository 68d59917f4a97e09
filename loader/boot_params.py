"""Boot parameters without regard to a protocol: a header, sections and modules, each with its address.

The shape of the crate ``linux-loader``'s ``BootParams``.  For the Linux protocols the header is the zero page
(Linux Documentation/arch/x86/zero-page.rst); for PVH it is the start_info, with the memory map as sections
and the module list as modules (include/xen/interface/hvm/start_info.h); for the others, the device tree blob.
The configurators' ``write_bootparams`` put it into memory.
"""

from __future__ import annotations

from loader import errors
from loader.enums import U64_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from ctypes import Structure
    from typing import TypeAlias

    Element: TypeAlias = Structure | bytes | bytearray | memoryview

#: The bytes a list may grow to.  The largest real one, a PVH memory map, has 3 KiB.
LIST_SIZE_MAX = 1 << 20


class BootParams:
    """What goes into memory for the kernel to find: bytes and where.

    ``header`` at ``header_start``; ``sections`` at ``sections_start`` and ``modules`` at ``modules_start``,
    None where there are none.  Elements are ctypes structures or bytes.
    """

    __slots__ = ("header", "header_start", "modules", "modules_start", "sections", "sections_start")

    def __init__(self, header: Element, header_start: int) -> None:
        self.header = _encoded(header)
        self.header_start = header_start
        self.sections: bytes | None = None
        self.sections_start: int | None = None
        self.modules: bytes | None = None
        self.modules_start: int | None = None

    def set_sections(self, sections: Sequence[Element], start: int) -> None:
        """Make ``sections`` at ``start`` all the sections there are.  Raises BootParamsOverflow."""
        self.sections, self.sections_start = _joined(sections, start, "sections"), start

    def set_modules(self, modules: Sequence[Element], start: int) -> None:
        """Make ``modules`` at ``start`` all the modules there are.  Raises BootParamsOverflow."""
        self.modules, self.modules_start = _joined(modules, start, "modules"), start

    def add_section(self, section: Element, addr: int | None = None) -> None:
        """Add a section at ``addr``, or after the last.

        The address of the first becomes the start of all.  What lies between is zero; what is there already
        is overwritten.  Raises MissingStartAddress, InvalidAddress (before the start), BootParamsOverflow,
        and, other than the crate, BootParamsGap rather than fill a gap of any size with zeroes.
        """
        self.sections, self.sections_start = _add(self.sections, self.sections_start, section, addr)

    def add_module(self, module: Element, addr: int | None = None) -> None:
        """Add a module at ``addr``, or after the last, by the rules of :meth:`add_section`."""
        self.modules, self.modules_start = _add(self.modules, self.modules_start, module, addr)


def _encoded(element: Element) -> bytes:
    return memoryview(element).tobytes()  # bytes() would take a number for a count of zeroes


def _joined(elements: Sequence[Element], start: int, what: str) -> bytes:
    data = b"".join(map(_encoded, elements))
    if start < 0 or start + len(data) - 1 > U64_MAX:
        raise errors.BootParamsOverflow(f"{len(data):#x} bytes of {what} at {start:#x} pass 64 bits")
    return data


def _add(old: bytes | None, start: int | None, element: Element, addr: int | None) -> tuple[bytes, int]:
    """The bytes and start of a list after an element has been added to it."""
    old = old or b""
    data = _encoded(element)
    if start is None:
        start = addr
    if start is None:
        raise errors.MissingStartAddress(
            f"no address for an element of {len(data):#x} bytes, the first of its list", "give it one"
        )
    if addr is None:
        addr = start + len(old)
    if addr < start:
        raise errors.InvalidAddress(
            f"an element at {addr:#x}, before its list at {start:#x}", "add it further up"
        )
    end = addr + len(data)
    if addr < 0 or end - 1 > U64_MAX:
        raise errors.BootParamsOverflow(f"an element of {len(data):#x} bytes at {addr:#x} passes 64 bits")
    if end - start > LIST_SIZE_MAX:
        raise errors.BootParamsGap(
            f"an element of {len(data):#x} bytes at {addr:#x} would make its list at {start:#x} larger than"
            f" {LIST_SIZE_MAX:#x} bytes",
            "set the list's start near it",
        )
    at = addr - start
    return old[:at].ljust(at, b"\0") + data + old[at + len(data) :], start
