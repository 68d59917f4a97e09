"""Exit codes: the table of the README, row by row."""

from __future__ import annotations

import pytest

from pyvmm.machine.outcome import End, Outcome, exit_code, guest_exit_code


@pytest.mark.parametrize(
    ("end", "absent", "code"),
    [
        (End(Outcome.SHUTDOWN), False, 0),
        (End(Outcome.SHUTDOWN), True, 121),
        (End(Outcome.RESET), False, 0),
        (End(Outcome.RESET), True, 121),
        (End(Outcome.EXPECTED), False, 0),
        (End(Outcome.EXIT, status=0), False, 0),
        (End(Outcome.EXIT, status=0), True, 121),
        (End(Outcome.EXIT, status=7), True, 7),
        (End(Outcome.PANIC), True, 120),
        (End(Outcome.TRIPLE_FAULT), True, 122),
        (End(Outcome.INTERNAL_ERROR), False, 122),
        (End(Outcome.TIMEOUT), True, 124),
        (End(Outcome.ERROR), False, 125),
        (End(Outcome.INTERRUPTED, status=2), False, 130),
        (End(Outcome.INTERRUPTED, status=15), True, 143),
    ],
)
def test_exit_code(end, absent, code):
    assert exit_code(end, absent=absent) == code


def test_a_guest_status_is_passed_on_unless_it_collides():
    ours = {120, 121, 122, 123, 124, 125}
    for status in range(256):
        expected = 119 if status in ours or status >= 128 else status
        assert guest_exit_code(status) == expected


def test_every_outcome_has_words():
    for outcome in Outcome:
        assert outcome.describe()
