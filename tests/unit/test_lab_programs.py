"""The programs that go into a lab with a machine that needs them."""

from __future__ import annotations

import os

import pytest

from pyvmm.errors import HostError
from pyvmm.lab import programs

HERE = os.uname().machine
ELSEWHERE = "aarch64" if HERE == "x86_64" else "x86_64"


def test_this_hosts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise HostError("it is not installed")

    monkeypatch.setitem(programs.FINDERS, "virtiofsd", lambda: "/usr/libexec/virtiofsd")
    monkeypatch.setitem(programs.FINDERS, "qemu-storage-daemon", missing)
    found = programs.find(["", "virtiofsd", "qemu-storage-daemon", ""], HERE)
    assert (found.carry, found.env) == (["/usr/libexec/virtiofsd"], {})
    assert programs.find([""], HERE).carry == []


def test_another_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_unpacked", lambda name, debian: f"/cache/{name}-{debian}")
    found = programs.find({"virtiofsd", "qemu-storage-daemon"}, ELSEWHERE)
    debian = {"aarch64": "arm64", "x86_64": "amd64"}[ELSEWHERE]
    storage, fs = f"/cache/qemu-storage-daemon-{debian}", f"/cache/virtiofsd-{debian}"
    assert found.carry == [storage, fs]
    assert found.env["PATH"].startswith(f"{storage}/bin:{fs}/bin:/usr/local/sbin:")
    assert found.env["LD_LIBRARY_PATH"] == f"{storage}/lib:{fs}/lib"
    assert programs.find([""], ELSEWHERE).env == {}
