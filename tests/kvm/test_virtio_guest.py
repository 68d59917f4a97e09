"""A virtio device on KVM, driven by a small guest: what makes an exit and what does not."""

from __future__ import annotations

import json

import pytest
from conftest import run_pyvmm

pytestmark = pytest.mark.usefixtures("kvm")

#: Register writes of kernels/x86_64/virtio.inc that only the VMM can answer, and its requests.
SETUP_WRITES = 13
REQUESTS = 5


def result_of(guests, tmp_path, *options):
    result = tmp_path / "r.json"
    done = run_pyvmm("boot", guests / "virtio.elf", "--timeout", "20", "--result", result, *options)
    return done, json.loads(result.read_text())


def test_requests_make_no_exit(guests, tmp_path):
    """Reads of registers, kicks and acknowledgements stay in the kernel: only the set-up is seen."""
    done, result = result_of(guests, tmp_path, "--rng")
    assert done.returncode == 0, done
    assert b"all requests were answered" in done.stdout
    assert result["devices"] == {"rng0": {"requests": REQUESTS, "bytes": REQUESTS * 64}}
    assert result["exits"]["by_device"]["rng0"] == SETUP_WRITES, result["exits"]
    assert result["exits"]["unhandled"] == {}


def test_every_device_has_its_page_and_its_name(guests, tmp_path):
    done, result = result_of(guests, tmp_path, "--rng", "--rng", "--rng")
    assert done.returncode == 0, done
    assert list(result["devices"]) == ["rng0", "rng1", "rng2"]
    assert result["devices"]["rng0"]["requests"] == REQUESTS
    assert result["devices"]["rng1"]["requests"] == 0
    assert "rng1" not in result["exits"]["by_device"]


def test_without_a_device_there_is_none(guests, tmp_path):
    done, result = result_of(guests, tmp_path)
    assert done.returncode == 1, done
    assert result["devices"] == {}
    assert result["exits"]["unhandled"] == {"read 0xd0000000": 1}


def test_more_devices_than_there_is_room_for(guests):
    done = run_pyvmm("boot", guests / "virtio.elf", *["--rng"] * 18)
    assert done.returncode == 125
    assert "no room for more than 17 virtio devices" in done.stderr and "hint: " in done.stderr
