"""Runs one target under atheris: ``fuzz.py TARGET [libFuzzer's options and corpus folders]``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["loader", "pyvmm"]):
    from targets import TARGETS

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
