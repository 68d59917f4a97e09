"""Text for the user: what guests and files say, made fit for a terminal, and the name that was meant."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Characters of a name that are compared: the time it takes grows with the square of their number.
LONGEST_NAME = 100


def printable(text: str) -> str:
    """``text`` on one line, with everything that is not printable escaped.

    What a guest printed or a file is called may hold escape sequences, which a terminal would obey.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def printable_lines(text: str) -> str:
    """``text`` as :func:`printable` makes it, but for its line ends and tabs, which stay."""
    return "\n".join("\t".join(map(printable, line.rstrip("\r").split("\t"))) for line in text.split("\n"))


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """That one of ``known`` which resembles ``name`` most; "" if none does to the degree of ``cutoff`` (0 to 1)."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name[:LONGEST_NAME], list(known), 1, cutoff)), "")


def perhaps(name: str, known: Iterable[str]) -> str:
    """The end of a message about the unknown ``name``: "; perhaps you mean 'X'", or "" if none is near."""
    found = nearest(name, known)
    return f"; perhaps you mean {found!r}" if found else ""
