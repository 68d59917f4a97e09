"""The lines of a console that belong to its splats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Lines that may stand between two lines of one splat (a program printed meanwhile).
_BETWEEN = 200


def locate(lines: Sequence[str], splats: Sequence[dict[str, Any]]) -> list[list[int]]:
    """For each of ``splats`` the indices of its lines among ``lines``; none where it stands before this part of it.

    A splat's text is without time stamps, so a line of the console is one of its if it ends with it.
    """
    found: list[list[int]] = []
    start = 0
    for splat in splats:
        text = [line for line in str(splat.get("text", "")).split("\n") if line.strip()] or [
            str(splat.get("line", ""))
        ]
        indices = _match(lines, text, start)
        if indices:
            start = indices[-1] + 1
        found.append(indices)
    return found


def _match(lines: Sequence[str], text: Sequence[str], start: int) -> list[int]:
    first = next((index for index in range(start, len(lines)) if _is(lines[index], text[0])), None)
    if first is None:
        return []
    indices, position = [first], first + 1
    for wanted in text[1:]:
        for index in range(position, min(position + _BETWEEN, len(lines))):
            if _is(lines[index], wanted):
                indices.append(index)
                position = index + 1
                break
    return indices


def _is(line: str, wanted: str) -> bool:
    return bool(wanted) and line.rstrip().endswith(wanted)
