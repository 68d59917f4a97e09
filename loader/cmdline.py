"""The kernel command line: checked, and put into memory.  (One made step by step: :mod:`loader.cmdline_builder`.)

Linux Documentation/arch/x86/boot.rst ("The Kernel Command Line"): a NUL-terminated string of at most
cmdline_size characters; the kernel cuts a longer one without a word, so it is refused here.
"""

from __future__ import annotations

from loader import errors
from loader.enums import U64_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.cmdline_builder import Cmdline
    from loader.memory import Memory


def check(text: str, limit: int) -> bytes:
    """The bytes of a command line, without the NUL, once it is found to be one.

    ``limit`` is the largest number of characters, NUL not counted (cmdline_size).  Raises NullTerminator,
    InvalidAscii (anything outside 0x20 to 0x7e, line breaks and tabs included) and TooLarge.
    """
    for position, character in enumerate(text):
        if character == "\0":
            raise errors.NullTerminator(
                f"the command line has a NUL at position {position}, which would end it there", "remove it"
            )
        if not " " <= character <= "~":
            raise errors.InvalidAscii(
                f"the command line has {character!a} at position {position}, which is not printable ASCII",
                "use spaces between parameters, on one line",
            )
    if len(text) > limit:
        raise errors.TooLarge(
            f"the command line has {len(text)} characters, and this kernel keeps {limit}",
            f"shorten it by {len(text) - limit}",
        )
    return text.encode("ascii")


def load_cmdline(memory: Memory, addr: int, text: str | bytes | Cmdline) -> int:
    """Write a command line and its NUL to ``addr``; returns the address after the NUL.

    Raises InvalidCommandLine for a Cmdline of init arguments alone.

    Nothing is written unless all of it lies in RAM: CommandLineOverflow if it would end past the last
    address, CommandLineCopy if in a hole.  (The crate writes the part before the hole.)
    """
    data = _encoded(text) + b"\0"
    end = addr + len(data)
    if not memory.contains(addr, len(data)):
        last = max((start + size for start, size in memory.ranges), default=0) - 1
        where = f"the command line of {len(data)} bytes, NUL included, at {addr:#x}"
        if end - 1 > min(last, U64_MAX):
            raise errors.CommandLineOverflow(f"{where} ends past the last address {last:#x}")
        raise errors.CommandLineCopy(f"{where} does not lie in RAM")
    memory.write(addr, data)
    return end


def _encoded(text: str | bytes | Cmdline) -> bytes:
    if isinstance(text, bytes):
        return text
    if isinstance(text, str):
        return text.encode("ascii")
    try:
        return text.as_cstring()
    except errors.NoBootArgsInserted as error:
        raise errors.InvalidCommandLine(error.message, error.hint) from None
