"""The agent in the lab: what it does when a lab started from a saved state is greeted."""

from __future__ import annotations

import os
import time

import pytest

from pyvmm.lab.agent.__main__ import set_timers_anew


def test_every_processor_has_its_timer_set_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them in turn, without waiting; afterwards the agent may run on all of them as before."""
    before = os.sched_getaffinity(0)
    visited: list[set[int]] = []
    really = os.sched_setaffinity

    def note(who: int, processors: set[int]) -> None:
        visited.append(set(processors))
        really(who, processors)

    monkeypatch.setattr(os, "sched_setaffinity", note)
    started = time.monotonic()
    set_timers_anew()
    assert time.monotonic() - started < 5
    assert visited == [*({each} for each in sorted(before)), before]
    assert os.sched_getaffinity(0) == before
