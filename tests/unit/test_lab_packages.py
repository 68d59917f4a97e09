"""Debian packages: the dependency walk, checksums, and clear errors where apt cannot help."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.lab import packages
from pyvmm.lab.packages import Package

DEPENDS = """\
app
  Depends: liba
 |Depends: <virtual-tool>
  Depends: real-tool
    provider-one
 |Depends: first
  Depends: second
  PreDepends: base
liba
  Depends: base
real-tool
  Depends: heavy
first
second
base
heavy
  Depends: heavier
heavier
"""

SHOW = """\
Package: app
Version: 1:2.0-1
SHA256: {sha}
Description: an app
 with: a colon in its text

Package: virtual-only
Version: 1
"""


class Apt:
    """Stands for apt: answers by program and first argument; notes what was asked."""

    def __init__(self, answers: dict[str, tuple[int, str, str]], deb: bytes = b"") -> None:
        self.answers = answers
        self.deb = deb
        self.asked: list[tuple[str, ...]] = []

    def __call__(
        self, program: str, *arguments: str, cwd: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        self.asked.append((program, *arguments))
        if "download" in arguments and cwd is not None and self.deb:
            Path(cwd, "app_1%3a2.0-1_amd64.deb").write_bytes(self.deb)
        verb = next(
            argument
            for argument in arguments
            if argument in ("depends", "show", "download", "pkgnames", "update")
        )
        code, out, err = self.answers.get(verb, (0, "", ""))
        return subprocess.CompletedProcess([program], code, out, err)


def test_the_walk_takes_first_alternatives_and_skips_what_only_the_unwanted_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "_apt", Apt({"depends": (0, DEPENDS, "")}))
    assert packages.dependencies(["app"], excluded=["heavy"]) == ["app", "base", "first", "liba", "real-tool"]
    assert "heavier" in packages.dependencies(["app"])


def test_an_unknown_package_says_so_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_apt", Apt({"depends": (100, "", "W: noise\nE: No packages found\n")}))
    with pytest.raises(HostError, match="No packages found") as caught:
        packages.dependencies(["app"])
    assert "apt-get update" in caught.value.hint


def test_a_package_without_a_source_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_apt", Apt({"show": (0, SHOW.format(sha="00"), "")}))
    (found,) = packages.candidates(["app"])
    assert (found.name, found.version, found.sha256) == ("app", "1:2.0-1", "00")
    with pytest.raises(HostError, match="no source for package virtual-only"):
        packages.candidates(["app", "virtual-only"])


def test_what_is_there_is_not_fetched_again_unless_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deb = b"not really a package"
    apt = Apt({}, deb)
    monkeypatch.setattr(packages, "_apt", apt)
    package = Package("app", "1:2.0-1", hashlib.sha256(deb).hexdigest())
    (path,) = packages.fetch([package], str(tmp_path))
    assert Path(path).read_bytes() == deb
    assert len(apt.asked) == 1
    assert packages.fetch([package], str(tmp_path)) == [path]
    assert len(apt.asked) == 1
    Path(path).write_bytes(b"damaged")
    packages.fetch([package], str(tmp_path))
    assert Path(path).read_bytes() == deb
    assert len(apt.asked) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == [Path(path).name]


def test_a_failed_download_gives_apts_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = Apt({"download": (100, "", "E: Failed to fetch something  404  Not Found\n")})
    monkeypatch.setattr(packages, "_apt", apt)
    with pytest.raises(HostError, match="could not download app: E: Failed to fetch") as caught:
        packages.fetch([Package("app", "1", "00")], str(tmp_path))
    assert "apt-get update" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_apt_gets_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="apt-get not found") as caught:
        packages.with_fresh_lists(lambda: "", print)
    assert "Debian" in caught.value.hint


@pytest.mark.parametrize(("root", "lists"), [(True, True), (True, False), (False, True), (False, False)])
def test_old_lists_are_read_again_by_root_only(
    root: bool, lists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = Apt({})
    monkeypatch.setattr(packages, "_apt", apt)
    monkeypatch.setattr(packages, "tools", lambda: [(packages.LISTS_NAME, lists, "hint")])
    monkeypatch.setattr(packages.os, "geteuid", lambda: 0 if root else 1000)

    def action() -> str:
        if ("apt-get", "update") not in apt.asked:
            raise HostError("404 Not Found", packages.UPDATE_HINT)
        return "fetched"

    if root:
        assert packages.with_fresh_lists(action, print) == "fetched"
    else:
        with pytest.raises(HostError) as caught:
            packages.with_fresh_lists(action, print)
        assert "apt-get update" in caught.value.hint
        assert apt.asked == []


def test_what_fresh_lists_do_not_mend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    apt = Apt({})
    monkeypatch.setattr(packages, "_apt", apt)
    monkeypatch.setattr(packages, "tools", list)
    monkeypatch.setattr(packages.os, "geteuid", lambda: 0)

    def action() -> str:
        raise HostError("no such package")

    with pytest.raises(HostError, match="no such package"):
        packages.with_fresh_lists(action, print)
    assert apt.asked == [("apt-get", "update")]


def test_a_file_that_is_no_package_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.deb"
    broken.write_bytes(b"nonsense")
    with pytest.raises(HostError, match="cannot be unpacked"):
        list(packages.members(str(broken)))
