"""The file of ``pyvmm boot --result``: how the run ended, as JSON."""

from __future__ import annotations

import json

from pyvmm import output_file


def check(path: str) -> None:
    """UsageError now, not after the run, where the file cannot be written."""
    output_file.check("--result", path)


def write(path: str, result: dict[str, object]) -> None:
    """Write ``result`` as JSON: a file whole or not at all, anything else (a pipe, a device) in place.  UsageError."""
    data = (json.dumps(result, indent=2) + "\n").encode()
    output_file.write("--result", path, data, wait=False)  # a machine that has ended waits for no reader


def write_error(path: str, error: Exception) -> None:
    """A result file for a run that never started, so that whoever reads it finds the reason there."""
    message = getattr(error, "message", f"{type(error).__name__}: {error}")
    write(
        path,
        {
            "outcome": "error",
            "detail": message,
            "hint": getattr(error, "hint", ""),
            "exit_code": 125,
            "guest_status": None,
            "absent": [],
            "elapsed_s": None,
            "first_run_s": None,
            "exits": {"total": 0, "by_device": {}, "by_port": {}, "unhandled": {}, "coalesced_writes": 0},
            "devices": {},
            "memory": {"resident_kib": None, "guest_kib": None},
            "console_bytes": 0,
            "console_lost": {},
            "console_tail": "",
            "report": [],
        },
    )
