"""``pyvmm parse``: what it prints and what it exits with."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import ktap_logs
import pytest

from pyvmm.cli import main
from pyvmm.ktap import parse

GOOD = "KTAP version 1\n1..2\nok 1 a\nok 2 b # SKIP no device\n"
SPLAT = "[    1.000000] BUG: Bad page state in process a\n"


def log(tmp_path: Path, text: str) -> str:
    path = tmp_path / "console.log"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [
        (GOOD, [], 0),
        (ktap_logs.KUNIT, [], 1),
        (ktap_logs.CRASHED, [], 1),
        ("", [], 1),
        ("Linux version 6.12\nall is well\n", [], 1),
        ("KTAP version 1\n1..1\nok 1 a # SKIP\n", [], 1),
        ("KTAP version 1\n1..0\n", [], 1),
        ("KTAP version 1\n1..3\nok 1 a\nok 2 b\n", [], 1),
        ("KTAP version 1\n1..2\nok 1 a\nok 1 b\n", [], 0),
        ("KTAP version 1\n1..2\nok 1 a\nok 1 b\n", ["--strict"], 1),
        (GOOD, ["--strict"], 0),
        (GOOD + SPLAT, [], 0),
        (GOOD + SPLAT, ["--strict"], 1),
        (GOOD + SPLAT, ["--strict", "--allow-splat", "Bad page"], 0),
    ],
)
def test_exit_codes(tmp_path: Path, text: str, options: list[str], code: int) -> None:
    assert main(["parse", log(tmp_path, text), *options]) == code
    assert main(["parse", log(tmp_path, text), "--json", *options]) == code


def test_the_bad_tests_are_listed_with_what_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["parse", log(tmp_path, ktap_logs.KUNIT + SPLAT)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fail     list_ops / list_ops_splice"
    assert lines[-2] == "splat    BUG: BUG: Bad page state in process a"
    assert lines[-1] == "6 tests: 4 pass, 1 fail, 1 skip"
    assert "         |     Expected count == 3, but" in lines
    assert not any("hash_ops" in line for line in lines)
    main(["parse", log(tmp_path, ktap_logs.KUNIT), "--all"])
    assert "pass     hash_ops / hash_ops_empty" in capsys.readouterr().out.splitlines()


def test_nothing_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["parse", log(tmp_path, "hello\n")])
    assert capsys.readouterr().out == "no test results found\n"
    main(["parse", log(tmp_path, "KTAP version 1\n1..1\nok 1 a # SKIP\n")])
    assert capsys.readouterr().out == "1 test: 1 skip; nothing ran\n"


def test_what_a_guest_printed_is_not_obeyed_by_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["parse", log(tmp_path, "KTAP version 1\n1..1\n# \x07bell\nnot ok 1 a\x9b2Jb\nBail out! \x07\n")])
    out = capsys.readouterr().out
    assert "\x07" not in out
    assert "\x9b" not in out


def test_json_and_ktap_hold_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log(tmp_path, ktap_logs.KSELFTEST + SPLAT)
    main(["parse", path, "--json"])
    data = json.loads(capsys.readouterr().out)
    assert (data["status"], data["plan"], data["counts"]["total"], len(data["tests"])) == ("fail", 5, 8, 5)
    assert data["tests"][0]["children"][1]["status"] == "fail"
    assert data["splats"][0]["kind"] == "BUG"
    main(["parse", path, "--ktap"])
    assert parse(capsys.readouterr().out).counts() == data["counts"]


def test_junit_is_written_for_a_failed_and_for_an_empty_log(tmp_path: Path) -> None:
    junit = tmp_path / "out.xml"
    assert main(["parse", log(tmp_path, ktap_logs.KUNIT), "--junit", str(junit)]) == 1
    names = [
        case.get("name")
        for case in ElementTree.parse(junit).iter("testcase")
        if case.find("failure") is not None
    ]
    assert names == ["tests", "list_ops_splice"]
    assert main(["parse", log(tmp_path, ""), "--junit", str(junit)]) == 1
    assert ElementTree.parse(junit).getroot().get("failures") == "1"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["parse"], ["parse", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
        assert main(arguments) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["/no/such/file"],
        ["/"],
        ["FILE", "--junit", "/no/such/folder/x.xml"],
        ["FILE", "--json", "--ktap"],
        ["FILE", "--allow-splat", "("],
        ["FILE", "--jnuit", "x"],
    ],
)
def test_bad_usage_is_one_line_and_a_hint(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = log(tmp_path, GOOD)
    assert main(["parse", *(path if word == "FILE" else word for word in arguments)]) == 125
    first, hint = capsys.readouterr().err.splitlines()
    assert first.startswith("pyvmm: ")
    assert hint.startswith("hint: ")


def test_it_reaches_no_machine() -> None:
    script = (
        "import sys; from pyvmm.cli import main; main(['parse', '/dev/null']);"
        "print([name for name in sys.modules if name.startswith(('pyvmm.machine', 'pyvmm.kvm', 'pyvmm.api'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
