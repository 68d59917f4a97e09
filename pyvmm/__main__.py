"""``python -m pyvmm``: the same as the ``pyvmm`` command."""

from __future__ import annotations

import sys

from pyvmm.cli import main

sys.exit(main())
