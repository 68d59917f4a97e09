"""``python -m pyvmm``: the same as the ``pyvmm`` command."""

from __future__ import annotations

from pyvmm.cli import run

run()
