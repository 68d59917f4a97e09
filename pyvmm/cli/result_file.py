"""The file of ``pyvmm boot --result``: how the run ended, as JSON."""

from __future__ import annotations

import json
import os
import stat

from pyvmm.errors import UsageError


def check(path: str) -> None:
    """UsageError now, not after the run, where the file cannot be written."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise UsageError(f"--result {path}: is a directory", "name a file")
    if not os.path.isdir(folder):
        raise UsageError(f"--result {path}: there is no directory {folder}", "make the directory first")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"--result {path}: not writable", "choose a writable place")


def write(path: str, result: dict[str, object]) -> None:
    """Write ``result`` as JSON: a file whole or not at all, anything else (a link, a pipe, a device) in place."""
    data = (json.dumps(result, indent=2) + "\n").encode()
    try:
        try:
            in_place = not stat.S_ISREG(os.lstat(path).st_mode)
        except FileNotFoundError:
            in_place = False
        if in_place:
            _write(path, os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY, data)
            return
        temporary = f"{path}.{os.urandom(6).hex()}.tmp"
        try:
            _write(temporary, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, data)
            os.replace(temporary, path)
        except OSError:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise UsageError(
            f"cannot write the result file {path}: {error.strerror}", "choose a writable place"
        ) from None


def _write(path: str, flags: int, data: bytes) -> None:
    """All of ``data`` to ``path``."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o666)
    try:
        os.set_blocking(fd, True)  # O_NONBLOCK is for opening a pipe that nobody reads
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


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
