"""``python -m pyvmm``: the same as the ``pyvmm`` command."""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout can be run by any Python
    sys.exit("pyvmm: Python 3.11 or newer is needed")

from pyvmm.cli import run

run()
