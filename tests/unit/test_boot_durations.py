"""What is told of the time that the boots of each architecture took."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from conftest import BOOTS, ROOT, boot_architecture, boot_durations

ARM = SimpleNamespace(arch="aarch64")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"callspec": SimpleNamespace(params={"platform": ARM})}, "aarch64"),  # by turns; before it is set up
        ({"callspec": SimpleNamespace(params={"size": 1}), "funcargs": {"platform": ARM}}, "aarch64"),
        ({"funcargs": {"platform": ARM}}, "aarch64"),  # the only one of its file
        ({"funcargs": None}, "x86_64"),
        ({}, "x86_64"),
    ],
)
def test_the_architecture_is_that_of_the_platform(item: dict[str, object], expected: str) -> None:
    assert boot_architecture(SimpleNamespace(path=BOOTS / "test_any.py", **item)) == expected
    assert boot_architecture(SimpleNamespace(path=ROOT / "tests" / "unit" / "test_any.py", **item)) is None


def test_all_phases_count_and_tests_that_ran() -> None:
    def phases(
        name: str, architecture: str | None, *durations: float, outcome: str = "passed"
    ) -> list[object]:
        return [
            SimpleNamespace(nodeid=name, boots_on=architecture, when=when, duration=duration, outcome=outcome)
            for when, duration in zip(("setup", "call", "teardown"), durations, strict=False)
        ]

    reports = [
        *phases("one", "x86_64", 10, 20, 1),
        *phases("two", "x86_64", 0, 5, 0, outcome="failed"),
        *phases("skipped", "x86_64", 1, outcome="skipped"),
        *phases("three", "aarch64", 3, 4, 0.6),
        *phases("unit", None, 100, 100, 100),
        SimpleNamespace(message="a warning, which is no report"),
    ]
    assert boot_durations(reports) == ["boots on aarch64: 1 tests, 8 s", "boots on x86_64: 2 tests, 37 s"]
    assert boot_durations([]) == []
