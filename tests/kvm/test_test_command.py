"""``pyvmm test`` as a user types it, with the small guests: every verdict, the reports, and nothing that is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from conftest import ROOT, run_pyvmm

from pyvmm.testing.case import CaseSpec, Limits
from pyvmm.testing.processes import CaseOverdue, CaseProcesses
from pyvmm.testing.run_case import run_case

pytestmark = pytest.mark.usefixtures("kvm")


class Short(CaseSpec):
    """A case whose process is given up long before its own time is up."""

    limits = Limits(wall=3.0)


@pytest.fixture(name="test_file")
def test_file_fixture(guests, tmp_path):
    """Writes a test file of these kernels and cases; returns its path."""

    def write(kernels, cases, top="timeout = 30\n", name="t.toml"):
        text = top
        for kernel in kernels:
            text += f'[[kernel]]\nname = "{kernel}"\npath = "{guests}/{kernel}.elf"\n'
        for case, keys in cases.items():
            text += f'[[case]]\nname = "{case}"\n{keys}\n'
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def one(guests, name, *options, **keywords):
    return run_pyvmm("test", guests / f"{name}.elf", *options, **keywords)


def processes_with(word: str) -> dict[int, str]:
    """The processes with ``word`` in their command lines or environments, except this one."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            data = b""
            for name in ("cmdline", "environ"):
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    data += file.read()
            if word.encode() in data and int(pid) != os.getpid():
                found[int(pid)] = data.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


def none_left(word: str, seconds: float = 15) -> dict[int, str]:
    deadline = time.monotonic() + seconds
    while (left := processes_with(word)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


class TestOneCase:
    """The exit code of a single case is that of the guest's run."""

    @pytest.mark.parametrize(
        ("guest", "options", "code", "words"),
        [
            ("hello", ("--expect", "hello"), 0, "1 case: 1 passed"),
            ("hello", ("--status", "0"), 0, "1 case: 1 passed"),
            ("hello", ("--expect", "goodbye"), 121, "the console never showed 'goodbye'"),
            ("hello", ("--ktap-output",), 1, "no test results (KTAP)"),
            ("ktap", ("--ktap-output",), 1, "1 of 3 tests failed: arithmetic divides"),
            ("warning", ("--expect", "goes on"), 120, "splat: WARNING: CPU: 0 PID: 1 at lib/made_up.c:42"),
            ("warning", ("--expect", "goes on", "--allow-splat", "made_up.c:42"), 0, "1 case: 1 passed"),
            ("panic", ("--expect", "nothing"), 120, "kernel panic: test"),
            ("panic", ("--status", "0", "--allow-splat", "not syncing: test"), 0, "1 case: 1 passed"),
            ("triple", ("--expect", "x"), 122, "triple fault"),
            ("spin", ("--expect", "x", "--timeout", "1"), 124, "did not show 'x' within 1 s"),
            ("four", ("--status", "0"), 1, "nothing was printed"),
            ("status", ("--cmdline", "42 console=none", "--status", "0"), 42, "ended with status 42"),
            ("nowhere", ("--expect", "x"), 125, "no such file"),
        ],
    )
    def test_exit_code(self, guests, guest, options, code, words):
        done = one(guests, guest, *options)
        assert done.returncode == code, done
        assert words in done.stdout.decode(), done
        assert done.stderr == ""

    def test_a_file_that_is_no_kernel_is_untestable(self, tmp_path):
        (tmp_path / "text").write_text("this is no kernel\n" * 100)
        done = run_pyvmm("test", "--kernel", tmp_path / "text", "--expect", "x")
        assert done.returncode == 125, done
        assert b"1 not testable" in done.stdout

    def test_a_failure_shows_the_console(self, guests):
        done = one(guests, "hello", "--expect", "goodbye")
        assert b"    | hello from a guest of pyvmm" in done.stdout


class TestMatrix:
    def test_each_verdict_is_told_apart_and_reported(self, test_file, tmp_path):
        path = test_file(
            ["hello", "panic", "triple", "spin"],
            {"says": "expect = 'hello from a guest'", "not": "skip_reason = 'why'"},
        )
        reports = {name: tmp_path / f"report.{name}" for name in ("junit", "json", "ktap", "html")}
        options = [word for name, file in reports.items() for word in (f"--{name}", file)]
        done = run_pyvmm("test", path, "-j", "2", "--timeout", "2", "--log-dir", tmp_path / "logs", *options)
        assert done.returncode == 1, done
        assert b"8 cases: 1 passed, 2 failed, 1 timed out, 4 skipped" in done.stdout
        found = json.loads(reports["json"].read_text())
        results = {each["id"]: each for each in found["results"]}
        assert list(results) == [
            f"{k}/default/{c}" for k in ("hello", "panic", "triple", "spin") for c in ("says", "not")
        ]
        told = {
            id.split("/")[0]: (each["status"], each["outcome"], each["exit_code"])
            for id, each in results.items()
            if id.endswith("says")
        }
        assert told == {
            "hello": ("pass", told["hello"][1], 0),
            "panic": ("fail", "panic", 120),
            "triple": ("fail", "triple-fault", 122),
            "spin": ("timeout", "timeout", 124),
        }
        hello = results["hello/default/says"]
        assert hello["outcome"] in ("expected", "exit"), "it ends as soon as it has said hello"
        assert hello["console"].startswith("hello from a guest")
        assert Path(hello["console_log"]).read_text().startswith("hello from a guest")
        assert hello["exits"]["total"] > 0
        assert hello["timeline"][-1][1] == f"ended: {hello['outcome']}"
        cases = xml.parse(reports["junit"]).getroot().findall(".//testcase")
        assert len(cases) == 8
        assert "not ok 3 panic/default/says" in reports["ktap"].read_text()
        assert "panic/default/says" in reports["html"].read_text()

    def test_a_hundred_cases_none_lost_none_left_and_flat(self, test_file, tmp_path):
        path = test_file(["hello", "status"], {f"c{n}": "expect = 'hello'\ntimeout = 60" for n in range(50)})
        environment = {"TMPDIR": str(tmp_path / "tmp"), "PYVMM_TEST_MARK": str(tmp_path)}
        (tmp_path / "tmp").mkdir()
        peak = tmp_path / "peak"
        code = (
            "import sys; from pyvmm.cli import main; code = main(sys.argv[2:])\n"
            "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:'))\n"
            "open(sys.argv[1], 'w').write(peak)\n"
            "sys.exit(code)"
        )
        report = tmp_path / "r.json"
        arguments = ["test", path, "-j", "2", "--json", report]
        done = subprocess.run(
            [sys.executable, "-c", code, str(peak), *map(str, arguments)], capture_output=True, timeout=250,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        assert done.returncode == 1, done
        results = json.loads(report.read_text())["results"]
        assert len({each["id"] for each in results}) == len(results) == 100
        for each in results:
            wanted = "pass" if each["kernel"] == "hello" else "fail"
            assert each["status"] == wanted, each
        assert len({each["worker"] for each in results}) == 100, "each in a process of its own"
        lines = [line for line in done.stdout.decode().splitlines() if line.startswith(("PASS", "FAIL"))]
        assert len(lines) == 100
        assert int(peak.read_text()) < 30 << 10, "KiB; it is 17 MiB with one case"
        assert none_left(str(tmp_path)) == {}
        assert os.listdir(tmp_path / "tmp") == []

    def test_retries_are_reported(self, test_file, tmp_path):
        path = test_file(["panic"], {"c": "expect = 'x'"})
        done = run_pyvmm("test", path, "--retries", "2", "--json", tmp_path / "r.json")
        assert done.returncode == 120, done
        (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
        assert result["attempts"] == 3
        assert result["attempt_reasons"] == ["fail: kernel panic: test"] * 2
        assert done.stdout.count(b"RETRY panic/default/c") == 2

    def test_list(self, test_file):
        path = test_file(["hello", "panic"], {"a": "", "b": "skip_reason = 'why'"})
        done = run_pyvmm("test", path, "--list", "-k", "hello")
        assert (done.returncode, done.stdout) == (0, b"hello/default/a\nhello/default/b  (skipped: why)\n")

    def test_a_machine_that_runs_wild_is_ended_by_its_own_limit(self, guests, monkeypatch):
        """The runner's limit is beyond the case's: that the machine heeds its timeout is not relied on."""
        mark = f"wild-{os.getpid()}"
        monkeypatch.setenv("PYVMM_TEST_MARK", mark)
        spec = Short("spin", "m", "c", str(guests / "spin.elf"), timeout=300)
        with CaseProcesses(1) as executor:
            future = executor.submit(run_case, spec)
            while not any("boot" in line for line in processes_with(mark).values()):
                time.sleep(0.02)
            with pytest.raises(CaseOverdue):
                future.result()
            assert none_left(mark, 1) == {}


class TestInterrupted:
    def start(self, path, mark, *options):
        process = subprocess.Popen(
            [sys.executable, "-m", "pyvmm", "test", str(path), "-j", "2", *map(str, options)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYVMM_TEST_MARK": mark},
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while sum("boot" in line for line in processes_with(mark).values()) < 2:  # two machines
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        return process

    def test_killed_in_the_middle_nothing_is_left(self, test_file, tmp_path):
        mark = f"mark-{tmp_path.name}-{os.getpid()}"
        process = self.start(test_file(["spin"], {f"c{n}": "timeout = 250" for n in range(6)}), mark)
        assert len(processes_with(mark)) >= 5
        process.kill()
        process.communicate()
        assert none_left(mark, 5) == {}

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_ended_on_request_it_reports_what_is_known(self, test_file, tmp_path, number, code):
        mark = f"mark-{tmp_path.name}-{os.getpid()}"
        path = test_file(
            ["hello", "spin"], {"a": "timeout = 250", "b": "timeout = 250", "c": "timeout = 250"}
        )
        process = self.start(path, mark, "--json", tmp_path / "r.json")
        while sum("spin.elf" in line and "boot" in line for line in processes_with(mark).values()) < 2:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code, (out, err)
        assert err == b""
        assert f"interrupted by {number.name}".encode() in out
        results = json.loads((tmp_path / "r.json").read_text())["results"]
        assert [each["status"] for each in results] == ["pass"] * 3 + ["error"] * 2 + ["skip"]
        assert none_left(mark, 3) == {}
