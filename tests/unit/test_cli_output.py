"""Output that is not taken, and options that are misspelt: one line and a hint, and an exit code that says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.cli import main
from pyvmm.cli.boot import parser
from pyvmm.errors import UsageError


def run(*arguments: str, stdout: int, buffered: bool = True) -> subprocess.CompletedProcess[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    if not buffered:
        environment["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "-m", "pyvmm", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=environment, timeout=60)


@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_is_not_called_a_bug_nor_a_panic(buffered: bool) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = run("--help", stdout=full, buffered=buffered)
    finally:
        os.close(full)
    assert done.returncode == 125
    first, hint = done.stderr.decode().splitlines()
    assert first == "pyvmm: No space left on device"
    assert hint.startswith("hint: free some space")


def test_a_reader_that_went_away_before_the_last_of_the_output_is_said_in_one_line() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("--help", stdout=writer)
    finally:
        os.close(writer)
    assert done.returncode == 125
    assert done.stderr.decode().startswith("pyvmm: nobody reads the output any more\nhint: ")
    assert b"Exception" not in done.stderr


def test_output_that_was_closed_from_the_start_is_dropped() -> None:
    command = f"{sys.executable} -m pyvmm --help >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--memroy", "--memory"),
        ("--mahcine=x", "--machine"),
        ("--dsk", "--disk"),
        ("--dump-dtp", "--dump-dtb"),
    ],
)
def test_a_misspelt_option_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    words = ["vmlinux", typed]
    with pytest.raises(UsageError) as caught:
        parser(words).parse_args(words)
    assert caught.value.message == f"unrecognized arguments: {typed}; perhaps you mean {meant}"


@pytest.mark.parametrize("typed", ["--zzzzzz", "extra"])
def test_nothing_is_guessed_where_nothing_is_near(typed: str) -> None:
    words = ["vmlinux", typed]
    with pytest.raises(UsageError) as caught:
        parser(words).parse_args(words)
    assert caught.value.message == f"unrecognized arguments: {typed}"


@pytest.mark.parametrize("words", [["{}", "--lab"], ["vmlinux", "--initrd", "{}", "--lab"]])
def test_a_directory_as_a_kernel_is_not_carried_into_the_lab(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmlinux").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("pyvmm.lab.foreground.run_in_foreground", lambda *_, **__: 0)
    assert main(["boot", *(word.format("folder") for word in words)]) == 125
    assert capsys.readouterr().err.startswith("pyvmm: folder: a directory, not a file\nhint: ")


def test_a_misspelt_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tset"]) == 125
    assert capsys.readouterr().err.startswith(
        "pyvmm: there is no verb 'tset'; perhaps you mean 'test'\nhint: "
    )


def test_help_about_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["help", "run"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: pyvmm run ")
