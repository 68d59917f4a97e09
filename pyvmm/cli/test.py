"""``pyvmm test``: boot tests, kernels x machines x cases, from a test file or from the command line alone."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from pyvmm.cli import cases
from pyvmm.cli.arguments import whole_number

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import FrameType

    from pyvmm.testing.matrix import Matrix
    from pyvmm.testing.result import RunReport


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm test`` with these arguments; returns the exit code."""
    from pyvmm.testing import outputs

    options = cases.parse(arguments)
    matrix = cases.matrix(options)
    if options.list:
        for case in matrix.cases:
            print(case.id + (f"  (skipped: {case.skip_reason})" if case.skip_reason else ""))
        return 0
    jobs = None if options.jobs is None else max(1, whole_number(options.jobs, "-j"))
    retries = None if options.retries is None else whole_number(options.retries, "--retries")
    written = {option: getattr(options, option) for option in outputs.REPORTS}
    outputs.check(written)
    if options.log_dir is not None:
        outputs.make_log_dir(options.log_dir)
        for case in matrix.cases:
            case.log_dir = os.path.abspath(options.log_dir)
    report = _run(matrix, jobs, retries, options)
    report.environment["command"] = " ".join(["pyvmm test", *arguments])
    outputs.write(written, report)
    return _exit_code(report)


def _run(matrix: Matrix, jobs: int | None, retries: int | None, options: argparse.Namespace) -> RunReport:
    from pyvmm.testing import runner
    from pyvmm.testing.progress import progress

    cluster = None
    if options.cluster is not None:
        from pyvmm.testing.cluster import Cluster

        cluster = Cluster(options.cluster)
        jobs = jobs or cluster.jobs

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in old:  # once: a second one is not to keep the reports from being written
            signal.signal(each, signal.SIG_IGN)
        raise runner.Interrupted(signal.Signals(number).name)

    show = progress(sys.stdout, color=False if options.no_color else None)
    old: dict[int, Any] = {}
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            old[each] = signal.signal(each, interrupt)
    report = None
    try:
        report = runner.run(
            matrix, cluster, jobs=jobs or 1, retries=retries, on_event=show, fail_fast=options.fail_fast
        )
    finally:
        if cluster is not None:
            cluster.shutdown()
        show.finish(report)
        for number, handler in old.items():
            signal.signal(number, handler)
    return report


def _exit_code(report: RunReport) -> int:
    from pyvmm.testing.runner import INTERRUPTED

    if (reason := report.environment.get(INTERRUPTED)) is not None:
        return 128 + signal.Signals[reason].value
    return report.exit_code
