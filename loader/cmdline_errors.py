"""The errors of command lines."""

from __future__ import annotations

from loader.errors import LoaderError


class CommandLineError(LoaderError):
    """Something is wrong with a kernel command line."""


class NullTerminator(CommandLineError):
    """A NUL inside the text would cut it short."""


class InvalidAscii(CommandLineError):
    """A character outside printable ASCII (0x20 to 0x7e)."""


class TooLarge(CommandLineError):
    """More characters than the kernel keeps."""


class InvalidCommandLine(CommandLineError):
    """A command line that cannot be put into words, as one of init arguments alone."""


class InvalidCapacity(CommandLineError):
    """A capacity of 0, or one too small for the text to start from."""


class HasSpace(CommandLineError):
    """A key with a space, which would end it."""


class HasEquals(CommandLineError):
    """A key with an equals sign, where its value would start."""


class InvalidQuote(CommandLineError):
    """A quote inside a value, or one without another to end it, which takes in all that follows."""


class NoQuoteSpace(CommandLineError):
    """A value with a space and without quotes around it."""


class MissingVal(CommandLineError):
    """A key without any value."""


class MmioSize(CommandLineError):
    """A virtio-mmio device of no size, or of an impossible range of addresses."""


class MmioInterrupt(CommandLineError):
    """A virtio-mmio device with interrupt 0, which Linux refuses. (ours)"""


class NoBootArgsInserted(CommandLineError):
    """Arguments for init alone: the kernel looks for its own in front of them."""


class CommandLineOverflow(CommandLineError):
    """The command line would end past the last address of RAM."""


class CommandLineCopy(CommandLineError):
    """The command line would lie in a hole of RAM."""
