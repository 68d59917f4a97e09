"""``@pytest.mark.vm``: what its keywords are, and what several of them on one test say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from pyvmm.text import perhaps

#: What :class:`pyvmm.Machine` takes and a marker can say.
MACHINE_KEYWORDS = (
    "kernel", "cmdline", "initrd", "memory", "cpus", "timeout", "devices", "options", "lab", "agent", "root", "rodirs",
    "rwdirs", "modules", "drivers", "expect_timeout",
)  # fmt: skip
KEYWORDS = (*MACHINE_KEYWORDS, "allow_splat")
#: What only a call of ``vmm`` can say: the log has a place of its own by default, and no marker has a function.
CALL_KEYWORDS = ("log", "on_console")


def settings(marks: Iterable[pytest.Mark]) -> dict[str, Any]:
    """What the markers of a test say, the nearest to it first, as :meth:`pytest.Item.iter_markers` gives them.

    A keyword of a nearer one counts; ``allow_splat`` of all count together.  The test fails (``pytest.fail``) if a
    keyword is unknown.
    """
    found: dict[str, Any] = {}
    allowed: list[Any] = []
    for mark in marks:
        if mark.args:
            pytest.fail(f"the marker vm takes keywords only, not {mark.args[0]!r}", pytrace=False)
        check(mark.kwargs, "the marker vm")
        allowed += listed(mark.kwargs.get("allow_splat", ()))
        found = {**mark.kwargs, **found}
    if allowed:
        found["allow_splat"] = allowed
    return found


def check(keywords: Mapping[str, object], who: str, known: Sequence[str] = KEYWORDS) -> None:
    """Fail the test if one of ``keywords`` is unknown; with the name that may have been meant."""
    for keyword in keywords:
        if keyword not in known:
            pytest.fail(
                f"{who} has no {keyword!r}{perhaps(keyword, known)}\nhint: it has {', '.join(known)}",
                pytrace=False,
            )


def listed(patterns: Any) -> list[Any]:
    """Patterns as a list; a text alone is one of them."""
    return [patterns] if isinstance(patterns, str) or hasattr(patterns, "search") else list(patterns)
