"""Splats on a console that forgets its beginning, all of them found in order, and nothing twice."""

from __future__ import annotations

import pytest

from pyvmm.api import console as consoles
from pyvmm.api.complaints import Complaints
from pyvmm.api.console import Console
from pyvmm.errors import GuestError, UsageError
from pyvmm.splats import MOST_SPLATS

LEAK = b"[    1.000000] kmemleak: 1 new suspected memory leaks\n"
IRQ = b"[    2.000000] irq 9: nobody cared\n"


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setattr(consoles, "MOST_KEPT", 1000)
    return Console(lambda data: 0, GuestError, None)


def test_what_the_console_forgets_is_looked_through(console: Console) -> None:
    complaints = Complaints(["nobody"])
    complaints.watch(console)
    printed = b"quiet\n" * 150 + LEAK + b"quiet\n" * 150 + IRQ
    for start in range(0, len(printed), 7):
        console.feed(printed[start : start + 7])
    assert console.forgotten > 900, "the first is not in memory any more"
    found = complaints.all_of(console)
    assert [(each.kind, each.offset, each.allowed) for each in found] == [
        ("kmemleak", 900, False),
        ("irq", printed.index(IRQ), True),
    ]
    assert console.on_forget is None


def test_of_many_the_first_are_kept() -> None:
    complaints = Complaints()
    for _ in range(3):
        complaints.feed(LEAK * MOST_SPLATS)
    assert [each.offset for each in complaints.end()] == [len(LEAK) * n for n in range(MOST_SPLATS)]


def test_nothing_printed_is_no_complaint(console: Console) -> None:
    assert Complaints().end() == []
    assert Complaints().all_of(console) == []


def test_a_bad_pattern_is_told_at_once() -> None:
    with pytest.raises(UsageError, match="no regular expression"):
        Complaints(["("])
