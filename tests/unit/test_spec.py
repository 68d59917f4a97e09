"""What a user asked for, checked."""

from __future__ import annotations

import pytest

from pyvmm.errors import UsageError
from pyvmm.machine.spec import MachineSpec, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("1G", 1 << 30),
        ("64k", 64 << 10),
        ("1GiB", 1 << 30),
        ("256", 256 << 20),
        (" 2 mb ", 2 << 20),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1G", "1.5G", "lots", "0x10M", "1E"])
def test_not_a_size(text):
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "multiboot"},
        {"timeout": 0.0},
        {"timeout": -1.0},
        {"timeout": float("nan")},
        {"expect": [""]},
        {"poison": 256},
        {"cpus": 0},
    ],
)
def test_values_that_make_no_sense(wrong):
    with pytest.raises(UsageError) as caught:
        MachineSpec("bzImage", **wrong)
    assert caught.value.hint
