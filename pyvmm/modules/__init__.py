"""Kernel modules: where those of a kernel are, which a driver needs, and their contents ready to be loaded.

``find`` looks for a kernel's modules, ``tree`` knows one directory of them, ``module`` reads a single one.
"""

from __future__ import annotations

from pyvmm.modules.find import find, given, release_of
from pyvmm.modules.module import Module
from pyvmm.modules.tree import ModuleTree

__all__ = ["Module", "ModuleTree", "find", "given", "release_of"]
