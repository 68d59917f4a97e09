"""Fetching stock kernels: which package, verified when used again, and the release's own where there is no other."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from pyvmm.errors import HostError
from pyvmm.lab import foreign, kernels, packages
from pyvmm.lab.packages import Package

NAMES = [
    "linux-image-6.1.0-9-cloud-amd64",
    "linux-image-6.1.0-56-cloud-amd64",
    "linux-image-6.12.101+deb12-cloud-amd64",
    "linux-image-6.12.9+deb12-cloud-amd64",
    "linux-image-6.12-cloud-amd64",
    "linux-image-6.1.0-57-cloud-amd64-dbg",
    "linux-image-6.1.0-99-amd64",
]
FOREIGN = {
    "arm64": [
        "linux-image-6.1.0-56-cloud-arm64",
        "linux-image-6.1.0-56-arm64",
        "linux-image-6.1.0-56-rt-arm64",
        "linux-image-6.12.9+deb12-arm64",
        "linux-image-6.12.9+deb12-arm64-16k",
        "linux-image-6.12.9+deb12-cloud-arm64",
    ],
    "riscv64 trixie": None,
    "riscv64 forky": [
        "linux-image-7.2.12+deb14-riscv64",
        "linux-binary-7.2.12+deb14-riscv64",
        "linux-binary-7.2.12+deb14-riscv64-dbg",
    ],
}


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cache of its own and an apt that has everything; gives the packages that were fetched."""
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    monkeypatch.setattr(packages, "tools", list)
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    known = list(NAMES)
    monkeypatch.setattr(
        packages, "search", lambda pattern: [name for name in known if re.fullmatch(pattern, name)]
    )
    monkeypatch.setattr(packages, "direct_dependencies", lambda name: None)

    @contextlib.contextmanager
    def selected(architecture: str, releases: tuple[str, ...] = ()) -> Iterator[str]:
        names = FOREIGN[" ".join((architecture, *releases))]
        if names is None:
            raise HostError("the mirror does not have it", "")
        known[:] = names
        try:
            yield ""
        finally:
            known[:] = NAMES

    monkeypatch.setattr(foreign, "own_architecture", lambda: "amd64")
    monkeypatch.setattr(foreign, "selected", selected)
    monkeypatch.setattr(foreign, "with_lists", lambda folder, action, report: action())
    monkeypatch.setattr(packages, "candidates", lambda names: [Package(name, "1", "0") for name in names])
    asked: list[str] = []

    def fetch(wanted: list[Package], store: str) -> list[str]:
        asked.extend(package.name for package in wanted)
        return [package.name for package in wanted]

    def members(deb: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
        release = deb.removeprefix("linux-image-").removeprefix("linux-binary-")
        new = f"usr/lib/modules/{release}"
        yield tarfile.TarInfo("boot"), None
        yield tarfile.TarInfo(f"{new}/vmlinuz.sig"), io.BytesIO(b"no kernel")
        path = f"{new}/vmlinuz" if deb.startswith("linux-binary") else f"boot/vmlinuz-{release}"
        yield tarfile.TarInfo(path), io.BytesIO(f"kernel {release}".encode())

    monkeypatch.setattr(packages, "fetch", fetch)
    monkeypatch.setattr(packages, "members", members)
    return asked


def test_the_newest_of_a_series_is_fetched_once(
    fetched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert kernels.main([]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.parts[-3:] == ("kernels", "debian-6.1-cloud", "bzImage")
    assert path.read_text() == "kernel 6.1.0-56-cloud-amd64"
    description = json.loads(path.with_name("bzImage.json").read_text())
    assert description["package"] == "linux-image-6.1.0-56-cloud-amd64"
    assert description["release"] == "6.1.0-56-cloud-amd64"
    assert kernels.main(["debian-6.1-cloud", "debian-6.12-cloud"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert fetched == ["linux-image-6.1.0-56-cloud-amd64", "linux-image-6.12.101+deb12-cloud-amd64"]


def test_all_are_fetched_each_from_its_architecture(
    fetched: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        packages, "direct_dependencies", lambda name: ["linux-image-6.12.48+deb13-amd64", "kmod"]
    )
    assert kernels.main(["--all"]) == 0
    printed = capsys.readouterr()
    told = {Path(line).parts[-2]: Path(line) for line in printed.out.splitlines()}
    assert tuple(told) == kernels.KNOWN
    assert {name: path.read_text().removeprefix("kernel ") for name, path in told.items()} == {
        "debian-6.1-cloud": "6.1.0-56-cloud-amd64",
        "debian-6.12-cloud": "6.12.101+deb12-cloud-amd64",
        "debian-6.1": "6.1.0-99-amd64",
        "debian-6.12": "6.12.48+deb13-amd64",
        "debian-6.1-cloud-arm64": "6.1.0-56-cloud-arm64",
        "debian-6.12-cloud-arm64": "6.12.9+deb12-cloud-arm64",
        "debian-6.1-arm64": "6.1.0-56-arm64",
        "debian-6.12-arm64": "6.12.9+deb12-arm64",
        "debian-riscv64": "7.2.12+deb14-riscv64",
    }
    assert {path.name for path in told.values()} == {"bzImage", "Image"}
    assert printed.err == ""
    fetched.clear()
    assert kernels.main(["--all"]) == 0
    assert not fetched


def test_one_that_cannot_be_had_does_not_stop_the_others(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FOREIGN, "arm64", [])
    assert kernels.main(["debian-6.1-arm64", "debian-6.1"]) == 125
    printed = capsys.readouterr()
    assert printed.out.strip().endswith("/debian-6.1/bzImage")
    assert printed.err.splitlines()[0] == "fetch-kernels: apt knows no package for debian-6.1-arm64"


def test_a_kernel_that_no_release_has_is_an_error(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FOREIGN, "riscv64 forky", [])
    monkeypatch.setitem(FOREIGN, "riscv64 sid", None)
    assert kernels.main(["debian-riscv64"]) == 125
    assert capsys.readouterr().err.splitlines()[0] == "fetch-kernels: the mirror does not have it"


def test_a_damaged_kernel_is_fetched_again(fetched: list[str]) -> None:
    path = Path(kernels.fetch("debian-6.1-cloud"))
    path.write_text("damaged")
    assert kernels.find("debian-6.1-cloud") is None
    assert Path(kernels.fetch("debian-6.1-cloud")).read_text() == "kernel 6.1.0-56-cloud-amd64"
    assert len(fetched) == 2


def test_another_release_uses_its_own_kernel(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "search", lambda pattern: [])
    monkeypatch.setattr(
        packages, "direct_dependencies", lambda name: ["linux-image-6.12.48+deb13-cloud-amd64"]
    )
    path = kernels.fetch("debian-6.1-cloud")
    assert path.endswith("debian-6.1-cloud/bzImage")
    assert Path(path).read_text() == "kernel 6.12.48+deb13-cloud-amd64"
    assert "no debian-6.1-cloud" in capsys.readouterr().err
    assert kernels.fetch("debian-6.12-cloud").endswith("debian-6.12-cloud/bzImage")
    assert len(fetched) == 1


def test_errors_are_one_line_and_a_hint(
    fetched: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kernels.main(["debian-2.0-floppy"]) == 125
    assert kernels.main(["--frobnicate"]) == 125

    def offline(wanted: list[Package], store: str) -> list[str]:
        raise HostError("apt could not download it", "is the network there?")

    monkeypatch.setattr(packages, "fetch", offline)
    assert kernels.main([]) == 125
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[4:] == ["fetch-kernels: apt could not download it", "hint: is the network there?"]
