"""Kernel modules: where they are found, what they need, and which kernel they are for."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.errors import HostError, ImageError, UsageError
from pyvmm.modules import Module, ModuleTree, find, given

RELEASE = "6.1.0-9-test"


def put(folder: Path, name: str, *depends: str, release: str = RELEASE, softdep: str = "") -> Path:
    """A file as a module, with the .modinfo of one; packed if the name says so."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soft = f"softdep=pre: {softdep}\0" if softdep else ""
    text = f"\0depends={','.join(depends)}\0{soft}vermagic={release} SMP mod_unload \0".encode()
    data = b"\x7fELF" + bytes(12) + text
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def names(modules: list[Module]) -> list[str]:
    return [module.name for module in modules]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file taken for a kernel of RELEASE."""
    monkeypatch.setattr(sys.modules["pyvmm.modules.find"], "release_of", lambda _path: RELEASE)
    path = tmp_path / "boot" / "vmlinuz"
    path.parent.mkdir()
    path.write_bytes(b"kernel")
    return path


def test_dependencies_come_first_and_once(tmp_path: Path) -> None:
    put(tmp_path, "low.ko")
    put(tmp_path, "mid-dle.ko.gz", "low")
    put(tmp_path, "a/top.ko", "mid-dle", "low", softdep="crc absent")
    put(tmp_path, "crc.ko")
    tree = ModuleTree(str(tmp_path), RELEASE)
    assert names(tree.load_order(["top", "mid_dle"])) == ["crc", "low", "mid_dle", "top"]


def test_a_missing_dependency_is_named_with_the_module_that_needs_it(tmp_path: Path) -> None:
    put(tmp_path, "virtio_net.ko", "failover")
    put(tmp_path, "fail.ko")
    with pytest.raises(UsageError, match="virtio_net needs failover") as raised:
        ModuleTree(str(tmp_path)).load_order(["virtio_net"])
    assert raised.value.hint


def test_a_dependency_by_modules_dep_may_be_missing_too(tmp_path: Path) -> None:
    put(tmp_path, "kernel/a.ko")
    (tmp_path / "modules.dep").write_text("kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n")
    with pytest.raises(UsageError, match="a needs b"):
        ModuleTree(str(tmp_path)).load_order(["a"])


def test_a_dependency_that_is_built_in_is_not_missing(tmp_path: Path) -> None:
    put(tmp_path, "virtio_net.ko", "failover")
    (tmp_path / "modules.builtin").write_text("kernel/net/core/failover.ko\n")
    assert names(ModuleTree(str(tmp_path)).load_order(["virtio_net", "failover"])) == ["virtio_net"]


def test_optional_modules_are_left_out_if_they_or_what_they_need_are_missing(tmp_path: Path) -> None:
    put(tmp_path, "low.ko")
    put(tmp_path, "ext4.ko", "low", "jbd2")
    put(tmp_path, "top.ko", softdep="ext4")
    tree = ModuleTree(str(tmp_path))
    assert tree.load_order(["?ext4", "?nothing"]) == []
    assert names(tree.load_order(["top"])) == ["top"]
    with pytest.raises(UsageError, match="no module nothing"):
        tree.load_order(["nothing"])


def test_each_module_that_would_be_loaded_has_to_be_for_the_kernel(tmp_path: Path) -> None:
    put(tmp_path, "a.ko")
    put(tmp_path, "b.ko", "c")
    put(tmp_path, "c.ko", release="5.10.0")
    tree = ModuleTree(str(tmp_path), RELEASE)
    assert names(tree.load_order(["a"])) == ["a"]
    with pytest.raises(UsageError, match=rf"c\.ko is for Linux 5\.10\.0, the kernel is {RELEASE}"):
        tree.load_order(["b"])


def test_a_place_with_modules_for_another_kernel_is_passed_over(tmp_path: Path, kernel: Path) -> None:
    (kernel.parent / "Module.symvers").touch()  # a build tree, of something else
    put(kernel.parent / "drivers", "a.ko", release="5.10.0")
    right = kernel.parent / "modules" / RELEASE
    assert find(str(kernel)) is None
    put(right, "a.ko")
    (kernel.parent / "lib" / "modules" / RELEASE).mkdir(parents=True)  # with nothing in it
    tree = find(str(kernel))
    assert tree is not None
    assert tree.path == str(right)


def test_a_place_that_was_given_is_not_passed_over(tmp_path: Path, kernel: Path) -> None:
    put(tmp_path / "given", "a.ko", release="5.10.0")
    with pytest.raises(UsageError, match=r"5\.10\.0"):
        find(str(kernel), modules=str(tmp_path / "given"))


def test_a_root_has_the_modules_of_the_kernel_or_none(tmp_path: Path) -> None:
    put(tmp_path, f"lib/modules/{RELEASE}/kernel/a.ko")
    put(tmp_path, "lib/modules/5.10.0/kernel/b.ko", release="5.10.0")
    assert "b" in given(str(tmp_path), "5.10.0")
    assert "a" in given(str(tmp_path / "lib/modules"), RELEASE)
    assert "a" in given(str(tmp_path / "lib/modules" / RELEASE))
    with pytest.raises(UsageError, match=r"has the modules of Linux 5\.10\.0, 6\.1"):
        given(str(tmp_path), "6.6.6")
    with pytest.raises(UsageError, match="several"):
        given(str(tmp_path))
    shutil.rmtree(tmp_path / "lib/modules/5.10.0")
    assert given(str(tmp_path)).version == RELEASE


def test_a_built_tree_is_no_root(tmp_path: Path) -> None:
    put(tmp_path, "drivers/net/a.ko")
    (tmp_path / "drivers" / "modules.order").touch()
    (tmp_path / "lib").mkdir()
    assert names(list(given(str(tmp_path), RELEASE))) == ["a"]


def test_the_whole_system_is_never_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(_path: str) -> None:
        raise AssertionError("walked")

    tree = sys.modules["pyvmm.modules.tree"]
    monkeypatch.setattr(tree.os, "walk", walk)
    with pytest.raises(UsageError, match="no modules in it|has the modules of"):
        given("/", "0.0.0-none")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here")
def test_the_modules_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyvmm.lab.kernel_modules import modules_of

    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    built = tmp_path / "built"
    put(built, f"lib/modules/{RELEASE}/kernel/a.ko")
    (built / f"lib/modules/{RELEASE}/modules.builtin").write_text("kernel/b.ko\n")
    (built / "DEBIAN").mkdir()
    (built / "DEBIAN" / "control").write_text(
        "Package: linux-image-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b>\nDescription: test\n"
    )
    deb = str(tmp_path / "linux.deb")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", built, deb], check=True, capture_output=True)
    for _ in range(2):
        tree = modules_of(None, deb)
        assert tree is not None
        assert tree.version == RELEASE
        assert tree.builtin("b")
        assert names(tree.load_order(["a", "b"])) == ["a"]
    with pytest.raises(UsageError, match="No such file"):
        modules_of(None, str(tmp_path / "absent.deb"))


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not here")
def test_the_zstd_program_unpacks_what_this_python_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = put(tmp_path / "plain", "a.ko").read_bytes()
    packed = tmp_path / "a.ko.zst"
    subprocess.run(["zstd", "-q", "-o", packed], input=plain, check=True)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    assert Module(str(packed)).data() == plain
    packed.write_bytes(packed.read_bytes()[:-3])
    with pytest.raises(ImageError, match="cannot be unpacked"):
        Module(str(packed)).data()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="compressed by zstd"):
        Module(str(packed)).data()
