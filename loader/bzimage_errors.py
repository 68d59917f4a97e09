"""The errors of bzImages."""

from __future__ import annotations

from loader.errors import LoaderError


class BzImageError(LoaderError):
    """Something is wrong with a bzImage."""


class SeekBzImageEnd(BzImageError):
    """The size of the image cannot be found out. (unused)"""


class SeekBzImageHeader(BzImageError):
    """The setup header cannot be reached. (unused)"""


class ReadBzImageHeader(BzImageError):
    """The setup header cannot be read, or the file ends inside it."""


class InvalidBzImage(BzImageError):
    """No "HdrS", a protocol before 2.00, a zImage, or a field that makes no sense."""


class BzImageUnderflow(BzImageError):
    """The file ends before its setup code does (``Underflow`` of the crate)."""


class BzImageTruncated(BzImageError):
    """The file ends before the protected-mode code or the payload that its header announces. (ours)"""


class SeekBzImageCompressedKernel(BzImageError):
    """The protected-mode code cannot be reached. (unused)"""


class ReadBzImageCompressedKernel(BzImageError):
    """The protected-mode code cannot be read."""
