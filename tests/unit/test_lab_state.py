"""Saved states: which lab a state belongs to, and what is kept of its memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm import cache
from pyvmm.lab import state
from pyvmm.lab.image import Base
from pyvmm.lab.platforms import platform


def a_configuration(
    tmp_path: Path, cpus: int = 2, memory: int = 1024, identity: str = "i"
) -> state.Configuration:
    base = object.__new__(Base)
    base.directory, base.kernel, base.archive, base.identity = "/b", "/b/kernel", "/b/archive", identity
    program = tmp_path / "qemu"
    if not program.exists():
        program.touch()
    return state.Configuration(platform("x86_64"), base, str(program), cpus, memory)


def test_a_state_belongs_to_one_configuration(tmp_path: Path) -> None:
    names = {
        a_configuration(tmp_path).name(),
        a_configuration(tmp_path, cpus=1).name(),
        a_configuration(tmp_path, memory=2048).name(),
        a_configuration(tmp_path, identity="j").name(),
    }
    assert len(names) == 4
    assert a_configuration(tmp_path).name() in names
    os.utime(tmp_path / "qemu", (1, 1))  # as if another version had been installed
    assert a_configuration(tmp_path).name() not in names


def test_zero_memory_takes_no_space(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    block = state._HOLE
    with memory.open("wb") as file:
        file.truncate(64 * block)
        os.pwrite(file.fileno(), bytes(8 * block), 8 * block)  # written, but zero
        os.pwrite(file.fileno(), b"data", 20 * block + 77)
        os.pwrite(file.fileno(), b"end", 64 * block - 3)
    before = memory.read_bytes()
    state._dig_holes(str(memory))
    assert memory.read_bytes() == before
    assert memory.stat().st_blocks * 512 <= 4 * block
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_a_state_that_did_not_work_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    assert state.find("state-x", "x86_64") is None
    folder = Path(cache.make("lab", "x86_64", "state-x"))
    assert state.find("state-x", "x86_64") is None, "a directory without a state in it"
    (folder / state.DEVICES).write_bytes(b"")
    saved = state.find("state-x", "x86_64")
    assert saved is not None
    assert not saved.unusable
    saved.mark_unusable()
    again = state.find("state-x", "x86_64")
    assert again is not None
    assert again.unusable


def test_commas_in_paths_survive_qemus_options() -> None:
    assert state._escaped("/a,b/c") == "/a,,b/c"
