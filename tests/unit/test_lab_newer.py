"""Which QEMU the lab takes: this host's where it is good, one from backports where it is not and one can be had."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.lab import foreign, newer, packages
from pyvmm.lab.platforms import platform

PLATFORM = platform("x86_64")


def program(path: Path, version: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version} (Debian 1:{version})'\n")
    path.chmod(0o755)


@pytest.fixture
def said(monkeypatch, tmp_path) -> list[str]:
    """An empty cache, an empty PATH but for ``bin``; what was said."""
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("PYVMM_LAB_QEMU", raising=False)
    return []


@pytest.fixture
def backports(monkeypatch) -> list[str]:
    """Stands for Debian's archive: gives a QEMU 10; the calls are counted."""
    calls: list[str] = []

    def unpack(wanted, root, report):
        calls.append(wanted.qemu)
        report("fetching")
        program(Path(root) / "usr/bin" / wanted.qemu, "10.0.2")
        return "qemu 10.0.2"

    monkeypatch.setattr(newer, "_unpack", unpack)
    return calls


def find(said: list[str]) -> str:
    return newer.find(PLATFORM, said.append, said.append)


def test_a_good_one_of_the_host_is_taken(said, backports, tmp_path):
    program(tmp_path / "bin" / PLATFORM.qemu, "8.2.2")
    assert find(said) == str(tmp_path / "bin" / PLATFORM.qemu)
    assert backports == []


@pytest.mark.parametrize("version", ["7.2.22", ""])
def test_an_old_one_is_replaced_once(said, backports, tmp_path, version):
    program(tmp_path / "bin" / PLATFORM.qemu, version)
    first = find(said)
    assert first.startswith(str(tmp_path / "cache"))
    assert newer.version(first) == 10
    assert find(said) == first
    assert backports == [PLATFORM.qemu]
    assert said == ["fetching"]


def test_none_on_the_host(said, backports):
    assert newer.version(find(said)) == 10


def test_another_on_the_host_is_looked_at_again(said, backports, tmp_path):
    program(tmp_path / "bin" / PLATFORM.qemu, "7.2.22")
    find(said)
    program(tmp_path / "bin" / PLATFORM.qemu, "9.0.0 and more")
    assert find(said) == str(tmp_path / "bin" / PLATFORM.qemu)


def test_without_backports_the_hosts_own_is_taken_and_it_is_said_once(said, monkeypatch, tmp_path):
    def refuse(*_: object) -> str:
        raise HostError("no network", "")

    monkeypatch.setattr(newer, "_unpack", refuse)
    program(tmp_path / "bin" / PLATFORM.qemu, "7.2.22")
    for _ in range(2):
        assert find(said) == str(tmp_path / "bin" / PLATFORM.qemu)
    assert said == ["no newer QEMU than this host's: no network"]


def test_what_failed_is_tried_again_a_day_later(said, backports, monkeypatch, tmp_path):
    program(tmp_path / "bin" / PLATFORM.qemu, "7.2.22")
    with monkeypatch.context() as patch:
        patch.setattr(newer, "_unpack", lambda *_: (_ for _ in ()).throw(HostError("no network", "")))
        find(said)
    description = tmp_path / "cache/lab/qemu/x86_64/description.json"
    known = json.loads(description.read_text())
    known["failed"] = str(float(known["failed"]) - newer.PATIENCE - 1)
    description.write_text(json.dumps(known))
    assert newer.version(find(said)) == 10


def test_nowhere_at_all(said, monkeypatch):
    monkeypatch.setattr(foreign, "own_sources", list)
    with pytest.raises(HostError, match="the lab needs qemu-system-x86_64") as error:
        find(said)
    assert "apt-get install" in error.value.hint


def test_one_that_the_user_names(said, backports, monkeypatch, tmp_path):
    program(tmp_path / "mine", "7.0.0")
    monkeypatch.setenv("PYVMM_LAB_QEMU", str(tmp_path / "mine"))
    assert find(said) == str(tmp_path / "mine")
    monkeypatch.setenv("PYVMM_LAB_QEMU", str(tmp_path / "absent"))
    with pytest.raises(HostError, match="not a program"):
        find(said)


def test_one_that_the_user_names_is_not_taken_for_another_architecture(
    said, backports, monkeypatch, tmp_path
):
    own = tmp_path / "bin" / PLATFORM.qemu
    program(own, "9.0.0")
    program(tmp_path / "qemu-system-aarch64", "9.0.0")
    monkeypatch.setenv("PYVMM_LAB_QEMU", str(tmp_path / "qemu-system-aarch64"))
    assert find(said) == str(own)
    assert newer.find(platform("aarch64"), said.append, said.append) == str(tmp_path / "qemu-system-aarch64")


def test_a_release_without_backports(monkeypatch, tmp_path):
    monkeypatch.setattr(foreign, "own_sources", lambda: [("http://mirror.invalid/debian", "forky")])
    monkeypatch.setattr(packages, "fetch", lambda *_: pytest.fail("nothing is to be fetched"))
    with pytest.raises(HostError, match="no backports"):
        newer._unpack(PLATFORM, os.fspath(tmp_path / "root"), print)


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_what_is_fetched_is_of_this_hosts_own_architecture(monkeypatch, tmp_path, name):
    """Whatever it emulates; firmware only where a kernel cannot be started without."""
    selected: list[tuple[str, tuple[str, ...]]] = []
    wanted: list[str] = []

    @contextlib.contextmanager
    def select(architecture, releases=()):
        selected.append((architecture, releases))
        yield str(tmp_path)

    def candidates(names):
        wanted.extend(names)
        return [packages.Package(each, "10", "") for each in names]

    def fetch(_wanted, _store):
        program(tmp_path / "root/usr/bin" / f"qemu-system-{name}", "10.0.2")
        return []

    monkeypatch.setattr(foreign, "own_sources", lambda: [("http://mirror.invalid/debian", "bookworm")])
    monkeypatch.setattr(foreign, "own_architecture", lambda: "amd64")
    monkeypatch.setattr(foreign, "selected", select)
    monkeypatch.setattr(foreign, "with_lists", lambda _folder, action, _report: action())
    monkeypatch.setattr(packages, "candidates", candidates)
    monkeypatch.setattr(packages, "fetch", fetch)
    newer._unpack(platform(name), os.fspath(tmp_path / "root"), lambda _: None)
    assert selected == [("amd64", ("bookworm-backports",))]
    assert wanted[0] == platform(name).qemu_package
    assert ("seabios" in wanted) == (name == "x86_64")


def test_packages_of_this_hosts_architecture_come_by_its_own_apt(monkeypatch, tmp_path):
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    monkeypatch.setattr(foreign, "own_architecture", lambda: "amd64")
    monkeypatch.setattr(packages, "with_fresh_lists", lambda action, _report: action())
    monkeypatch.setattr(foreign, "with_lists", lambda _folder, action, _report: action())
    monkeypatch.setattr(foreign, "own_sources", lambda: [("http://mirror.invalid/debian", "bookworm")])
    assert foreign.using("amd64", lambda: os.environ.get("APT_CONFIG"), print) is None
    configuration = foreign.using("arm64", lambda: Path(os.environ["APT_CONFIG"]).read_text(), print)
    assert 'APT::Architecture "arm64";' in configuration
    assert "APT_CONFIG" not in os.environ
