"""Text from guests and files, made fit for a user's terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` on one line, with everything that is not printable escaped.

    What a guest printed or a file is called may hold escape sequences, which a terminal would obey.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
