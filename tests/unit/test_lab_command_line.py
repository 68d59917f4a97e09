"""``pyvmm lab`` where it cannot start: one line, a hint, 125, and nothing started."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyvmm.cli.lab  # noqa: F401  bound to the real things before a test has any replaced
from pyvmm import lab
from pyvmm.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command to run"),
        (["--"], "no command to run"),
        (["--arch", "vax", "--", "true"], "no lab for architecture 'vax'"),
        (["--cpus", "x", "--", "true"], "--cpus x"),
        (["--cpus", "0", "--", "true"], "cannot have 0 processors"),
        (["--memory", "100M", "--", "true"], "100 MiB are too few"),
        (["--memory", "lots", "--", "true"], "'lots' is not a size"),
        (["--timeout", "-1", "--", "true"], "--timeout -1"),
        (["--frobnicate", "--", "true"], "frobnicate"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", *arguments]) == 125
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0]
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2


def test_without_qemu_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))  # holds no QEMU, and without apt gets none
    assert main(["lab", "--", "true"]) == 125
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pyvmm: the lab needs qemu-system-x86_64, which is not in PATH",
        "hint: install it: apt-get install qemu-system-x86 (or this system's package of QEMU)",
    ]


def test_the_requirements_are_those_of_building_until_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    names = [name for name, _, _ in lab.requirements("x86_64")]
    assert [name for name, _, _ in lab.requirements("aarch64")] == ["qemu-system-aarch64", *names[1:]]
    assert names == ["qemu-system-x86_64", "apt-get", "apt-cache", "dpkg-deb", "apt package lists"]
    assert all(hint for _, present, hint in lab.requirements("x86_64") if not present)
    assert not lab.is_available()
    monkeypatch.setattr(lab.image, "find", lambda arch: object())
    assert [name for name, _, _ in lab.requirements("x86_64")] == ["qemu-system-x86_64"]
