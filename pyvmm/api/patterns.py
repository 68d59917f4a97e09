"""What is looked for on a console: patterns over bytes, which of them comes first, and what was found."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyvmm.errors import UsageError

#: What to give ``fail_on``: the lines that kernels die or complain with.
PANICS: tuple[bytes, ...] = (
    rb"Kernel panic - not syncing[^\r\n]*",
    rb"BUG: [^\r\n]*",
    rb"Oops(?:: |\b - )[^\r\n]*",
    rb"Internal error: [^\r\n]*",
    rb"general protection fault[^\r\n]*",
)

Pattern = str | bytes | re.Pattern[bytes]


class Match:
    """What was found: ``index`` of the pattern in the list, ``match`` as of :mod:`re`, ``before`` the bytes between the
    last match and this one, ``after`` the matched bytes, ``text`` the same as text."""

    __slots__ = ("after", "before", "index", "match")

    def __init__(self, index: int, match: re.Match[bytes], before: bytes) -> None:
        self.index = index
        self.match = match
        self.before = before
        self.after = match[0]

    @property
    def text(self) -> str:
        """The matched text, undecodable bytes replaced."""
        return self.after.decode("utf-8", "replace")

    def group(self, group: int | str = 0) -> str:
        """A group of the pattern as text, "" if it took no part."""
        return (self.match[group] or b"").decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<Match {self.index}: {self.after!r}>"


def compiled(patterns: Pattern | Sequence[Pattern]) -> list[re.Pattern[bytes]]:
    """``patterns`` as regular expressions over bytes; UsageError for one that is none."""
    if isinstance(patterns, str | bytes | re.Pattern):
        patterns = [patterns]
    found = []
    for pattern in patterns:
        if isinstance(pattern, re.Pattern):
            if not isinstance(pattern.pattern, bytes):
                raise UsageError(
                    f"the pattern {pattern.pattern!r} is for text", "compile it from bytes: rb'...'"
                )
            found.append(pattern)
            continue
        try:
            found.append(re.compile(pattern.encode() if isinstance(pattern, str) else pattern))
        except re.error as error:
            raise UsageError(
                f"{pattern!r} is no regular expression: {error}",
                "for a text as it stands there is expect_exact()",
            ) from None
    return found


def first(
    patterns: list[re.Pattern[bytes]], data: bytearray, begin: int
) -> tuple[int, re.Match[bytes]] | None:
    """The pattern whose match begins first, of equals the first in the list; the match owns its bytes."""
    text = bytes(memoryview(data)[begin:])
    best: tuple[int, re.Match[bytes]] | None = None
    for index, pattern in enumerate(patterns):
        match = pattern.search(text)
        if match is not None and (best is None or match.start() < best[1].start()):
            best = index, match
    return best


def shown(text: str | bytes) -> str:
    """A text or pattern in a message."""
    return repr(text if isinstance(text, str) else text.decode("utf-8", "replace"))
