"""Files by content: the store on a worker, and a case that is made ready for one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyvmm.errors import HostError, UsageError
from pyvmm.testing import content
from pyvmm.testing.case import CaseSpec
from pyvmm.testing.shipping import pack, unpack


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "content"


class TestStore:
    def test_written_once(self) -> None:
        digest = content.digest_of(b"data")
        path = content.put(digest, b"data")
        assert Path(path).read_bytes() == b"data" and stat.S_IMODE(os.stat(path).st_mode) == 0o400
        number = os.stat(path).st_ino
        assert content.put(digest, b"data") == path and os.stat(path).st_ino == number

    def test_damage_is_noticed(self, cache: Path) -> None:
        digest = content.digest_of(b"data")
        with pytest.raises(HostError, match="damaged"):
            content.put(digest, b"dat4")
        path = Path(content.put(digest, b"data"))
        path.chmod(0o600)
        path.write_bytes(b"dat4")
        content.put(digest, b"data")
        assert path.read_bytes() == b"data"
        with pytest.raises(HostError):
            content.put("../" + digest, b"data")
        assert [each.name for each in cache.iterdir() if len(each.name) == 64] == [digest]

    def test_the_oldest_goes(self, cache: Path) -> None:
        paths = []
        for number in range(4):
            data = bytes([number]) * 100
            paths.append(Path(content.put(content.digest_of(data), data, most=350)))
            os.utime(paths[-1], (number, number))
        assert [path.exists() for path in paths] == [False, True, True, True]


def spec(path: Path, **values) -> CaseSpec:
    return CaseSpec("kernel", "machine", "case", str(path), **values)


class TestCases:
    def test_files_become_contents_and_paths_again(self, tmp_path: Path) -> None:
        for name in ("kernel", "initrd", "disk,1.img", "tree"):
            (tmp_path / name).write_bytes(f"the {name}".encode())
        disk = str(tmp_path / "disk,1.img").replace(",", ",,")
        sent = pack(
            spec(tmp_path / "kernel", initrd=str(tmp_path / "initrd"), devices=[f"disk={disk},ro", "rng"],
                 options=["--dtb", str(tmp_path / "tree"), "--poison", "1"])
        )  # fmt: skip
        assert str(tmp_path) not in repr(sent.spec)
        assert sorted(sent.contents.values()) == [
            b"the disk,1.img",
            b"the initrd",
            b"the kernel",
            b"the tree",
        ]
        paths = {digest: content.put(digest, data) for digest, data in sent.contents.items()}
        there = unpack(sent.spec, paths)
        assert Path(there.path).read_bytes() == b"the kernel"
        assert Path(there.initrd).read_bytes() == b"the initrd"
        assert there.devices[1] == "rng" and there.options[2:] == ["--poison", "1"]
        assert Path(there.options[1]).read_bytes() == b"the tree"
        (disk_path,) = [
            word[5:] for word in there.devices[0].removeprefix("disk=").split(",") if word[:5] == "path="
        ]
        assert Path(disk_path).read_bytes() == b"the disk,1.img"

    def test_what_cannot_be_sent(self, tmp_path: Path) -> None:
        (tmp_path / "kernel").write_bytes(b"k")
        (tmp_path / "disk").write_bytes(b"d")
        for values in (
            {"devices": [f"disk={tmp_path}/disk"]}, {"devices": [f"share={tmp_path}:tag,ro"]},
            {"initrd": str(tmp_path / "none")}, {"command": "true", "rwdirs": [str(tmp_path)]},
            {"command": "true", "root": str(tmp_path)},
        ):  # fmt: skip
            with pytest.raises(UsageError) as caught:
                pack(spec(tmp_path / "kernel", **values))
            assert caught.value.hint
