"""The cache directory: where it is, who may write, and that what is in it is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm import cache
from pyvmm.errors import HostError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("chosen", "base", "expected"),
    [
        ("/a/b", "/x", "/a/b"),
        ("", "/x", "/x/pyvmm"),
        ("", "relative", "/home/me/.cache/pyvmm"),
        ("", "", "/home/me/.cache/pyvmm"),
        ("~/c", "", "/home/me/c"),
    ],
)
def test_where_it_is(chosen: str, base: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", chosen)
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.directory() == expected
    assert not os.path.exists(expected)


def test_a_place_that_cannot_be_made_is_an_error_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(HostError, match="cannot make the cache directory") as caught:
        cache.make("lab")
    assert "PYVMM_CACHE" in caught.value.hint


def test_a_second_process_waits_for_the_lock() -> None:
    other = (
        "from pyvmm import cache\n"
        "with cache.lock('x', waiting=lambda: print('waiting', flush=True)):\n"
        "    print('in')\n"
    )
    with cache.lock("x"):
        process = subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        assert process.poll() is None
    out, _ = process.communicate(timeout=30)
    assert out == "in\n"


def test_a_workspace_vanishes_and_takes_stale_ones_along() -> None:
    with cache.lock("x") as folder:
        stale = Path(folder, "tmp-4711")
        stale.mkdir()
        (stale / "left").write_text("")
        with cache.workspace(folder) as work:
            assert not stale.exists()
            Path(work, "file").write_text("")
        assert os.listdir(folder) == [".lock"]


def test_publishing_replaces_a_directory_whole() -> None:
    with cache.lock("x") as folder:
        final = Path(folder, "final")
        final.mkdir()
        (final / "old").write_text("")
        with cache.workspace(folder) as work:
            made = Path(work, "made")
            made.mkdir()
            (made / "new").write_text("")
            cache.publish(str(made), str(final))
        assert os.listdir(final) == ["new"]


def test_the_least_recently_used_go_first() -> None:
    with cache.lock("x") as folder:
        for age, name in enumerate(["state-new", "state-mid", "state-old", "state-current", "other"]):
            Path(folder, name).mkdir()
            os.utime(Path(folder, name), (1_000_000 - age, 1_000_000 - age))
        cache.keep(folder, "state-", 3, os.path.join(folder, "state-current"))
        assert sorted(os.listdir(folder)) == [".lock", "other", "state-current", "state-mid", "state-new"]
