"""The errors pyvmm raises on purpose: each is one line that says what and why, and a hint that says what to do.

The command line prints ``pyvmm: <message>`` and ``hint: <hint>`` and exits with 125; nothing here ever
reaches a user as a traceback.  The loader has its own base class, :class:`loader.errors.LoaderError`,
of the same shape.
"""

from __future__ import annotations


class PyvmmError(Exception):
    """Base of every error pyvmm raises on purpose.

    ``message`` is one line without a full stop; ``hint`` says what to do about it (may be empty).
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PyvmmError):
    """What the user asked for makes no sense or cannot be done: bad option, bad combination, bad size."""


class HostError(PyvmmError):
    """The host lacks something or refused something."""


class KvmMissing(HostError):
    """There is no /dev/kvm, or no KVM behind it."""


class KvmPermission(HostError):
    """/dev/kvm exists but may not be opened."""


class CapabilityMissing(HostError):
    """The host's KVM lacks a capability that pyvmm needs."""


class ImageError(PyvmmError):
    """A kernel, initrd or other input file cannot be used."""


class GuestMemoryError(PyvmmError):
    """An access outside guest RAM, or a placement that overlaps another."""
