"""``pyvmm test`` with commands under a stock kernel: their streams, statuses and test results."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import json

import pytest
from conftest import run_pyvmm
from lab_boot import ATTEMPTS, X86_64, kernel, needs_lab, only

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

platform = only(X86_64)

CASES = """\
root = "/"
cmdline = "loglevel=5"
timeout = 150

[[kernel]]
name = "stock"
path = "{kernel}"

[[case]]
name = "streams"
command = "uname -r; echo $WORD >&2; exit 3"
status = 3
env = {{ WORD = "from the case" }}

[[case]]
name = "results"
command = "printf 'TAP version 13\\\\n1..2\\\\nok 1 one\\\\nnot ok 2 two\\\\n'"
ktap = true

[[case]]
name = "splat"
command = "echo '<4>WARNING: CPU: 0 PID: 1 at x.c:1 f' > /dev/kmsg"
"""


def test_commands_under_a_stock_kernel(kernel, platform, tmp_path):
    place = ["--lab"] if needs_lab(platform) else []
    (tmp_path / "t.toml").write_text(CASES.format(kernel=kernel))
    report = tmp_path / "r.json"
    for _ in range(ATTEMPTS if place else 1):  # the lab's emulator loses a guest now and then
        done = run_pyvmm("test", tmp_path / "t.toml", *place, "--json", report, timeout=400)
        found = json.loads(report.read_text())["results"]
        if all(each["outcome"] != "triple-fault" for each in found):
            break
    assert done.returncode == 1, done
    streams, results, splat = found
    assert streams["status"] == "pass", streams
    assert streams["stdout"].startswith("6.1.")
    assert (streams["stderr"], streams["guest_status"]) == ("from the case\n", 3)
    assert (results["status"], results["reason"]) == ("fail", "1 of 2 tests failed: two")
    assert [test["status"] for test in results["subtests"]] == ["pass", "fail"]
    assert (splat["status"], splat["exit_code"]) == ("fail", 120), splat
    assert "x.c:1" in splat["reason"]
