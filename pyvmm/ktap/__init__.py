"""KTAP, the kernel's Test Anything Protocol: what kselftest and KUnit print, read from a console's log and written.

The format is Documentation/dev-tools/ktap.rst of the kernel, with TAP 13 and 14 (testanything.org) as far as the
kernel's tests use them.  ``lines`` says what one line is, ``parser`` makes tests of lines, ``result`` is what
comes out, ``writer`` makes lines of tests.

>>> found = parse("KTAP version 1\\n1..2\\nok 1 adds\\nnot ok 2 divides # by zero\\n")
>>> found.status, found.counts()["pass"], found.tests[1].reason
('fail', 1, 'by zero')
"""

from __future__ import annotations

from pyvmm.ktap.parser import parse
from pyvmm.ktap.result import BAD, STATUSES, Ktap, Test, counts, overall
from pyvmm.ktap.writer import write

__all__ = ["BAD", "STATUSES", "Ktap", "Test", "counts", "overall", "parse", "write"]
