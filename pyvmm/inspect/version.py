"""The version of a Linux kernel that has no header to say it: its banner, found by reading the file once.

Linux init/version-timestamp.c: linux_banner, "Linux version 6.1.0 (builder) (compiler) #1 SMP ...".
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from loader.files import ImageFile

_BANNER = re.compile(rb"Linux version (\d[ -~]*)")
_BUILD = re.compile(r"#\d")
_CHUNK = 1 << 20
_LENGTH_MAX = 512
#: No kernel has its banner later; a sparse file may go on for terabytes.
SEARCH_LIMIT = 256 << 20


def find_version(file: ImageFile) -> str:
    """What follows "Linux version " in the file's first SEARCH_LIMIT bytes; "" if it is not there.

    The banner with the build's number counts: kernels also hold one that lacks it.  Holds one chunk at a time.
    """
    incomplete = ""
    end = min(file.size, SEARCH_LIMIT)
    offset = 0
    while offset < end:
        # Chunks overlap by the longest banner, so that none is cut.
        data = file.read(offset, min(_CHUNK + _LENGTH_MAX, end - offset))
        if not data:
            break
        for match in _BANNER.finditer(data, 0, _CHUNK + _LENGTH_MAX):
            text = match[1][:_LENGTH_MAX].decode("ascii").rstrip()
            if _BUILD.search(text):
                return text
            incomplete = incomplete or text
        offset += _CHUNK
    return incomplete
