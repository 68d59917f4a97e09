"""The probe on the real /dev/kvm, held against what the host's modules say."""

from __future__ import annotations

import os
import sys

import pytest

from pyvmm.arch.x86_64.probe import PARTS, probe_kvm
from pyvmm.kvm import System

probe = sys.modules["pyvmm.arch.x86_64.probe"]  # the package has a function of that name
NAMES = [name for name, _ in PARTS]

HARDWARE = any(os.path.exists(f"/sys/module/{module}") for module in ("kvm_intel", "kvm_amd"))


@pytest.mark.usefixtures("kvm")
def test_the_verdict_is_that_of_the_hosts_modules() -> None:
    found = probe_kvm()
    assert found.kind == ("hardware" if HARDWARE else "software")
    assert bool(found.failed) == (found.kind == "software")
    assert all(name in found.detail for name in found.failed)


@pytest.mark.usefixtures("kvm")
def test_a_system_that_is_given_stays_open() -> None:
    with System() as system:
        first, second = probe_kvm(system), probe_kvm(system)
        assert first.kind == second.kind
        assert first.failed == second.failed
        assert system.api_version() == 12


@pytest.mark.usefixtures("kvm")
def test_nothing_is_left_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    probe_kvm()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("kvm")
@pytest.mark.parametrize("number", range(len(PARTS)))
def test_an_instruction_that_faults_is_named(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one that no processor has in its place: it finds no gate, and the machine shuts down."""
    broken = list(PARTS)
    broken[number] = (NAMES[number], b"\x0f\x0b")  # ud2
    monkeypatch.setattr(probe, "PARTS", tuple(broken))
    found = probe_kvm()
    assert found.kind == "software"
    assert found.failed[-1] == NAMES[number]  # and it is not tried any further


@pytest.mark.usefixtures("kvm")
def test_an_instruction_that_does_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PARTS", (("nothing", b"\xf4"), *PARTS))
    found = probe_kvm()
    assert "nothing" in found.failed
    assert "wrong result" in found.detail


def test_three_working_instructions_are_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_run_parts", lambda system: [])
    found = probe_kvm(object())  # type: ignore[arg-type]
    assert (found.kind, found.failed) == ("hardware", ())
    assert found.detail == "iretq, int3 and cmpxchg16b work"
