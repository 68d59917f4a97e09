"""How a lab is brought up: from its saved state, or what happens when there is none or it does not work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm import cache
from pyvmm.lab import image, qemu, starter, state
from pyvmm.lab.image import Base
from pyvmm.lab.platforms import platform
from pyvmm.lab.qemu import LabError
from pyvmm.lab.starter import Starter


class Machine:
    """Stands for QEMU."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


class World:
    """Fakes for everything that would start a process; ``log`` holds what was started, ``broken`` what fails."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.broken: Callable[[str], bool] = lambda kind: False
        self.reports: list[str] = []

    def start(self, kind: str) -> Machine:
        self.log.append(kind)
        return Machine(kind)

    def greeted(self, machine: Machine, timeout: float) -> tuple[Machine, object]:
        if self.broken(machine.kind):
            machine.stop()
            raise LabError(f"{machine.kind} does not answer")
        return machine, object()

    def save(self, machine: Machine, work: str) -> None:
        if self.broken("save"):
            raise LabError("cannot save")
        Path(work, state.DEVICES).write_bytes(b"state")

    def run(self, **options: bool) -> str:
        """Start a lab; what kind of start it came from."""
        made = Starter(platform("x86_64"), 2, 1024, self.reports.append, self.reports.append)
        machine, _ = made.start(**{"cold": False, "rebuild": False, **options})
        assert isinstance(machine, Machine)
        assert not machine.stopped
        return machine.kind


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    program = tmp_path / "qemu"
    program.touch()
    base = object.__new__(Base)
    base.directory, base.kernel, base.archive, base.identity = "/b", "/b/k", "/b/a", "identity"
    monkeypatch.setattr(qemu, "find", lambda platform: str(program))
    monkeypatch.setattr(image, "find", lambda architecture: base)
    monkeypatch.setattr(starter, "_greeted", world.greeted)
    monkeypatch.setattr(starter, "_warm_up", lambda client: None)
    monkeypatch.setattr(state, "save", world.save)
    monkeypatch.setattr(state.Configuration, "start_cold", lambda self: world.start("cold"))
    monkeypatch.setattr(state.Configuration, "start_to_save", lambda self, work: world.start("to save"))
    monkeypatch.setattr(state.Configuration, "start_saved", lambda self, saved: world.start("saved"))
    return world


def test_the_first_start_saves_and_later_ones_use_that(world: World) -> None:
    assert world.run() == "saved"
    assert world.log == ["to save", "saved"]
    assert world.run() == "saved"
    assert world.log == ["to save", "saved", "saved"]


def test_a_state_that_went_bad_is_made_anew(world: World) -> None:
    world.run()
    failures = iter([True, False, False])
    world.broken = lambda kind: kind == "saved" and next(failures)
    world.log.clear()
    assert world.run() == "saved"
    assert world.log == ["saved", "to save", "saved"]


def test_where_saved_states_never_work_labs_boot_cold_and_do_not_try_again(world: World) -> None:
    world.broken = lambda kind: kind == "saved"
    assert world.run() == "cold"
    assert world.log == ["to save", "saved", "cold"]
    world.log.clear()
    assert world.run() == "cold"
    assert world.log == ["cold"]


def test_where_nothing_can_be_saved_labs_boot_cold(world: World) -> None:
    world.broken = lambda kind: kind == "save"
    assert world.run() == "cold"
    assert world.log == ["to save", "cold"]
    folder = cache.path("lab", "x86_64")
    assert os.listdir(folder) == [".lock"]


def test_cold_touches_no_saved_state(world: World) -> None:
    assert world.run(cold=True) == "cold"
    assert world.log == ["cold"]


def test_a_rebuild_saves_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    built = []
    base = image.find("x86_64")
    monkeypatch.setattr(image, "build", lambda architecture, folder, report: built.append(folder) or base)
    world.log.clear()
    assert world.run(rebuild=True) == "saved"
    assert world.log == ["to save", "saved"]
    assert built == [cache.path("lab", "x86_64")]


def test_a_lab_that_does_not_boot_is_an_error(world: World) -> None:
    world.broken = lambda kind: True
    with pytest.raises(LabError, match="cold does not answer"):
        world.run()
