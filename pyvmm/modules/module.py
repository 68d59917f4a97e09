"""One kernel module: its file, its contents unpacked, and what it says of itself in its ``.modinfo`` section
(Linux include/linux/module.h, MODULE_INFO: "name=value" texts, each with a zero after it)."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable

from pyvmm.errors import HostError, ImageError

_FILE = re.compile(r"(?P<name>.+)\.ko(?P<compression>\.(?:gz|xz|zst|bz2))?")
_ELF = b"\x7fELF"
#: A module is seldom a hundredth of this.
_LARGEST = 512 << 20


def canonical(name: str) -> str:
    """The name as the kernel has it: '-' and '_' are the same."""
    return name.replace("-", "_")


def name_of(path: str) -> str:
    """The module's name by that of its file; "" if it is no module's."""
    match = _FILE.fullmatch(os.path.basename(path))
    return canonical(match["name"]) if match else ""


class Module:
    """The module in the file ``path``, compressed or not."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = name_of(path)
        self._data: bytes | None = None

    def __repr__(self) -> str:
        return f"<Module {self.name}>"

    def data(self) -> bytes:
        """Its contents, unpacked, as finit_module(2) takes them.

        :raises ImageError: the file cannot be read, or is no module
        :raises HostError: it is compressed by what this Python cannot unpack
        """
        if self._data is None:
            self._data = self._read()
        return self._data

    def _read(self) -> bytes:
        match = _FILE.fullmatch(os.path.basename(self.path))
        compression = (match["compression"] or "") if match else ""
        try:
            with open(self.path, "rb") as file:
                data = file.read(_LARGEST)
            if compression:
                data = _unpacker(compression)(data)
        except OSError as error:
            raise ImageError(
                f"the module {self.path} cannot be read: {error.strerror or error}", ""
            ) from None
        except (EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            raise ImageError(
                f"the module {self.path} cannot be unpacked: {error}", "was it copied whole?"
            ) from None
        if not data.startswith(_ELF):
            raise ImageError(f"{self.path} is no kernel module", "was it copied whole?")
        return data

    def information(self, name: str) -> list[str]:
        """The values of ``name`` in its .modinfo, as ``depends`` or ``vermagic``; errors as :meth:`data`."""
        values = re.findall(
            rb"\0" + re.escape(name.encode()) + rb"=([^\0]*)\0", self.data().replace(b"\0", b"\0\0")
        )
        return [value.decode("utf-8", "replace") for value in values]

    def release(self) -> str:
        """The release of the kernel that it was built for, the first word of its vermagic; "" if it does not say."""
        words = " ".join(self.information("vermagic")[:1]).split()
        return words[0] if words else ""

    def depends(self) -> list[str]:
        """The modules that have to be loaded before it."""
        return [canonical(name) for text in self.information("depends") for name in text.split(",") if name]

    def soft_depends(self) -> list[str]:
        """The modules that had better be loaded before it ("softdep=pre: a b post: c")."""
        found: list[str] = []
        for text in self.information("softdep"):
            before = re.search(r"\bpre:((?:\s+(?!post:)[^\s:]+)*)", text)
            found += before[1].split() if before else []
        return [canonical(name) for name in found]


def _unpacker(compression: str) -> Callable[[bytes], bytes]:
    if compression == ".zst":
        return _zstd
    unpackers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress,
    }  # fmt: skip
    return unpackers[compression]


def _zstd(data: bytes) -> bytes:
    from loader.decompress import library
    from loader.errors import LoaderError

    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        zstd = library(name, "backports.zstd")
    except LoaderError as error:
        if program := shutil.which("zstd"):
            return _unpacked_by(program, data)
        raise HostError(f"a module is compressed by zstd: {error.message}", error.hint) from None
    try:
        unpacked: bytes = zstd.decompress(data)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None
    return unpacked


def _unpacked_by(program: str, data: bytes) -> bytes:
    """What the zstd ``program`` makes of ``data``; ValueError if that is damaged."""
    import subprocess

    done = subprocess.run([program, "-dcq"], input=data, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.decode("utf-8", "replace").strip())
    return done.stdout
