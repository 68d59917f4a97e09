"""The files that a run writes: reports, each whole or not at all, and the directory for consoles."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from pyvmm import output_file
from pyvmm.errors import UsageError
from pyvmm.testing.result import RunReport

#: Option of pyvmm test, and the module in pyvmm.testing.reports that makes it.
REPORTS = {"junit": "junit", "json": "json_report", "ktap": "ktap_report", "html": "html"}


def check(paths: Mapping[str, str | None]) -> None:
    """UsageError now, not after the run, where a report (option: path, None for none) cannot be written."""
    seen: dict[str, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        output_file.check(f"--{option}", path)
        where = os.path.realpath(path)
        if where in seen and (os.path.isfile(where) or not os.path.exists(where)):
            raise UsageError(f"--{option} {path} is the file of --{seen[where]} too", "choose another place")
        seen[where] = option


def make_log_dir(path: str) -> None:
    """Make the directory unless it is there.  UsageError."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--log-dir {path}: {error.strerror}", "choose a writable place") from None
    if not os.access(path, os.W_OK):
        raise UsageError(f"--log-dir {path}: not writable", "choose a writable place")


def write(paths: Mapping[str, str | None], report: RunReport) -> None:
    """Write every report that can be written, and then complain of the first that cannot: UsageError."""
    errors: list[UsageError] = []
    for option, path in paths.items():
        if path is None:
            continue
        module = __import__(f"pyvmm.testing.reports.{REPORTS[option]}", fromlist=["write"])
        make: Callable[[RunReport], str] = module.write
        try:
            output_file.write(f"--{option}", path, make(report).encode("utf-8", "replace"))
        except UsageError as error:
            errors.append(error)
    if errors:
        raise errors[0]
