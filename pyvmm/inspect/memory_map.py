"""The memory map, drawn: RAM from its start, what stands in it, and how large, to scale where that is possible.

Ranges that overlap (a kernel and the room it unpacks into) are cut at each other's ends.  Each piece has a row;
the rest of the rows go to the large ones, in proportion to their size.
"""

from __future__ import annotations

from itertools import pairwise

from pyvmm.inspect.report import Placement, Range, size_text

#: What fills the scale of each kind, for terminals that know the characters and for others.
_MARKS = {
    "kernel": ("█", "#"),
    "runtime": ("▒", "+"),
    "initrd": ("░", "."),
    "boot": ("▪", "*"),
    "device": ("▓", "x"),
    "hole": ("▓", "x"),
    "free": (" ", " "),
    "gap": ("~", "~"),
}
_KINDS = ("kernel", "runtime", "boot", "hole", "device", "initrd")  # the first that covers a piece marks it

WIDTH = 100
EXTRA_ROWS = 16  # shared out by size
_SCALE = 4
_PIECES_MAX = 160


class _Piece:
    """A stretch of address space in which the same ranges lie."""

    __slots__ = ("end", "kind", "name", "start")

    def __init__(self, start: int, end: int, kind: str, name: str) -> None:
        self.start = start
        self.end = end
        self.kind = kind
        self.name = name


def draw(placement: Placement, *, unicode: bool, width: int = WIDTH) -> list[str]:
    """The map as lines of at most ``width`` characters; ASCII alone unless ``unicode``."""
    pieces = _pieces(placement)
    rows = _rows(pieces)
    column = 1 if not unicode else 0
    top, middle, bottom, side = ("+-+", "+-+", "+-+", "|") if not unicode else ("┌─┐", "├─┤", "└─┘", "│")
    ends = [f"{piece.end:#012x}" for piece in pieces[-1:]]
    margin = max(map(len, ends), default=0) + 2
    inner = width - margin - 2
    lines = [_rule("", top, margin, inner)]
    was_outside = False
    for piece, count in zip(pieces, rows, strict=True):
        outside = piece.kind in ("gap", "device")
        if lines and outside != was_outside:
            lines.append(_rule("", middle, margin, inner))
        mark = _MARKS[piece.kind][column]
        size = size_text(piece.end - piece.start)
        text = f" {mark * _SCALE}  {piece.name}"[: inner - len(size) - 2]
        lines.append(
            f"{f'{piece.start:#012x}':{margin}}{side}{text.ljust(inner - len(size) - 1)}{size} {side}"
        )
        for _ in range(count - 1):
            lines.append(f"{'':{margin}}{side}{f' {mark * _SCALE}'.ljust(inner)}{side}")
        was_outside = outside
    lines.append(_rule("".join(ends), bottom, margin, inner))
    return lines


def _rule(label: str, corners: str, margin: int, inner: int) -> str:
    return f"{label:{margin}}{corners[0]}{corners[1] * inner}{corners[2]}"


def _pieces(placement: Placement) -> list[_Piece]:
    """The address space from the first byte to the last that something is at, cut where anything begins or ends."""
    ranges = placement.ranges[:_PIECES_MAX]
    edges = {0}
    for start, end in placement.ram:
        edges.update((start, end))
    for found in ranges:
        edges.update((found.start, found.end))
    ordered = sorted(edges)
    pieces: list[_Piece] = []
    for start, end in pairwise(ordered):
        kind, name = _what(placement, ranges, start, end)
        if pieces and (pieces[-1].kind, pieces[-1].name) == (kind, name):
            pieces[-1].end = end
        else:
            pieces.append(_Piece(start, end, kind, name))
    return pieces


def _what(placement: Placement, ranges: list[Range], start: int, end: int) -> tuple[str, str]:
    here = [found for found in ranges if found.start <= start and end <= found.end]
    here.sort(key=lambda found: _KINDS.index(found.kind))
    if here:
        return here[0].kind, "; ".join(found.name for found in here)
    if any(low <= start and end <= high for low, high in placement.ram):
        return "free", "free"
    return "gap", "no RAM"


def _rows(pieces: list[_Piece]) -> list[int]:
    """Rows for each piece: one, and more for the large ones; gaps in the address space have no scale."""
    sizes = [0 if piece.kind in ("gap", "device") else piece.end - piece.start for piece in pieces]
    total = sum(sizes) or 1
    return [1 + round(EXTRA_ROWS * size / total) for size in sizes]


def legend(placement: Placement, *, unicode: bool) -> str:
    """What the marks of the map mean: those that are in it."""
    words = {
        "kernel": "kernel",
        "runtime": "its memory",
        "boot": "boot structures",
        "initrd": "room for an initrd",
        "device": "devices, ROM",
        "hole": "devices, ROM",
    }
    column = 0 if unicode else 1
    used = {piece.kind for piece in _pieces(placement)}
    shown = {text: _MARKS[kind][column] for kind, text in words.items() if kind in used}
    return "   ".join(f"{mark * 2} {text}" for text, mark in shown.items())
