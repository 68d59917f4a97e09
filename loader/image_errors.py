"""The errors of Images for arm64 and riscv64."""

from __future__ import annotations

from loader.errors import LoaderError


class PeError(LoaderError):
    """Something is wrong with an Image for arm64 or riscv64 (``Pe`` in the crate)."""


class SeekImageEnd(PeError):
    """The size of the Image cannot be found out. (unused)"""


class SeekImageHeader(PeError):
    """The header of the Image cannot be reached. (unused)"""


class ReadImageHeader(PeError):
    """The file ends inside the header of 64 bytes, or it cannot be read."""


class InvalidImageMagicNumber(PeError):
    """The header does not carry the magic number of an Image for the machine."""


class InvalidBaseAddrAlignment(PeError):
    """The base address is not on a 2 MiB boundary."""


class InvalidImage(PeError):
    """Base address and text_offset give no address."""


class PeReadKernelImage(PeError):
    """The image cannot be read from the file into memory (``ReadKernelImage`` of the crate)."""


class ImageOutsideRam(PeReadKernelImage):
    """The image, with the room its image_size reserves, does not lie in RAM. (ours)"""
