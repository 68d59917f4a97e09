"""The errors of device tree blobs."""

from __future__ import annotations

from loader.errors import LoaderError


class DtbError(LoaderError):
    """Something is wrong with a device tree blob."""


class DtbTooBig(DtbError):
    """The blob is larger than the 2 MiB that Linux maps of it."""


class SeekDtbEnd(DtbError):
    """The size of the blob cannot be found out. (unused)"""


class SeekDtbStart(DtbError):
    """The start of the blob cannot be reached. (unused)"""


class ReadDtbImage(DtbError):
    """The blob cannot be read from the file into memory."""


class DtbOutsideRam(ReadDtbImage):
    """The address given for the blob is not RAM. (ours)"""


class InvalidDtbMagic(DtbError):
    """The blob does not start with d0 0d fe ed. (ours)"""


class InvalidDtbSize(DtbError):
    """The blob's totalsize is smaller than its header, or larger than the blob. (ours)"""


class MisalignedDtb(DtbError):
    """The address given for the blob is not on an 8-byte boundary. (ours)"""
