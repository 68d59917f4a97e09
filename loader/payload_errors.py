"""The errors of compressed kernels: what is wrong with a payload, or what is missing here to unpack it."""

from __future__ import annotations

from loader.errors import LoaderError


class PayloadError(LoaderError):
    """Something is wrong with a compressed kernel."""


class PayloadNotFound(PayloadError):
    """The file holds no compressed kernel, or does not say where."""


class UnknownCompression(PayloadError):
    """A payload in a compression, or with an option of one, that is not known here."""


class CompressionUnavailable(PayloadError):
    """The library for this compression is not installed; the hint says how to get it."""


class PayloadTruncated(PayloadError):
    """The compressed data ends before the kernel does."""


class PayloadCorrupt(PayloadError):
    """The compressed data is damaged."""


class PayloadTooLarge(PayloadError):
    """Unpacked, the payload is larger than it may be or than it says."""


class PayloadSizeMismatch(PayloadError):
    """Unpacked, the payload is smaller than it says."""


class PayloadTimeout(PayloadError):
    """Unpacking took longer than it may."""


class InvalidZboot(PayloadError):
    """The header of an EFI zboot image makes no sense."""
