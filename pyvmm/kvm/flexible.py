"""Buffers for the structures that end in an array of as many entries as the caller likes."""

from __future__ import annotations

from ctypes import sizeof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import Structure
    from typing import Any, TypeVar

    Header = TypeVar("Header", bound=Structure)


def flexible(header: type[Header], entry: Any, count: int) -> tuple[bytearray, Header, Any]:
    """A zeroed buffer for a ``header`` and ``count`` entries after it, and both as views of that buffer."""
    buffer = bytearray(sizeof(header) + count * sizeof(entry))
    return buffer, header.from_buffer(buffer), (entry * count).from_buffer(buffer, sizeof(header))
