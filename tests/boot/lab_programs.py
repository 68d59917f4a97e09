"""Programs that serve devices beside pyvmm, where it runs, for tests."""

from __future__ import annotations

from conftest import cannot
from lab_boot import Platform

from pyvmm.errors import HostError
from pyvmm.lab import programs


def find(name: str, platform: Platform) -> programs.Programs:
    """The program of that name for ``platform``; skips the test if it cannot be had."""
    try:
        if platform.is_here:
            programs.FINDERS[name]()
        return programs.find([name], platform.arch)
    except HostError as error:
        cannot(f"{error.message}: {error.hint}")
    raise AssertionError("skipped")
