"""The lab's base image: modules in order, what packages leave out, and when an image is not used again."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm import cache
from pyvmm.errors import HostError, UsageError
from pyvmm.lab import image, modules, packages, platforms, rootfs


def put(folder: Path, name: str, depends: str) -> None:
    """A file that looks like a kernel module to us, packed if its name says so."""
    data = b"\x7fELF junk\0name=x\0depends=" + depends.encode() + b"\0vermagic=6.1.0-1-x SMP\0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(lzma.compress(data) if name.endswith(".xz") else data)


def package(built: Path, deb: Path) -> str:
    """The files in ``built`` as a package."""
    (built / "DEBIAN").mkdir(parents=True)
    (built / "DEBIAN" / "control").write_text(
        "Package: linux\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b>\nDescription: test\n"
    )
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", built, deb], check=True, capture_output=True)
    return str(deb)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here")
def test_the_kernel_and_its_modules_come_out_of_packages(tmp_path: Path) -> None:
    one, two, installed = tmp_path / "one", tmp_path / "two", tmp_path / "installed"
    put(one / "lib/modules/6.1.0-1-x/kernel/arch", "kvm-amd.ko.xz", "kvm,ccp")
    (one / "lib/modules/6.1.0-1-x/modules.builtin").write_text("kernel/drivers/ccp.ko\n")
    (one / "boot").mkdir()
    (one / "boot/vmlinuz-6.1.0-1-x").write_bytes(b"kernel")
    put(two / "usr/lib/modules/6.1.0-1-x/kernel/virt", "kvm.ko", "irqbypass")
    put(two / "usr/lib/modules/6.1.0-1-x/kernel/virt", "irqbypass.ko", "")
    put(two / "usr/lib/modules/6.1.0-1-x/kernel/net", "tun.ko", "")
    debs = [package(one, tmp_path / "one.deb"), package(two, tmp_path / "two.deb")]
    modules.unpack(debs, str(installed), str(tmp_path / "vmlinuz"))
    assert (tmp_path / "vmlinuz").read_bytes() == b"kernel"
    order = image._drivers(str(installed), ["kvm_amd", "?tun", "?absent", "kvm"])
    assert [module.name for module in order] == ["irqbypass", "kvm", "kvm_amd", "tun"]
    assert order[2].data().startswith(b"\x7fELF")
    with pytest.raises(HostError, match="holds no kernel"):
        modules.unpack(debs[1:], str(installed), str(tmp_path / "vmlinuz"))


def test_a_missing_module_that_is_needed_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "lib/modules/6.1.0-1-x", "kvm.ko", "")
    with pytest.raises(HostError, match="no module kvm_amd"):
        image._drivers(str(tmp_path), ["kvm_amd"])


def test_the_kernel_is_that_of_the_first_meta_package_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "linux-image-virtual": ["linux-image-6.8.0-1-generic", "linux-modules-6.8.0-1-generic"],
        "linux-image-6.8.0-1-generic": ["kmod", "linux-modules-6.8.0-1-generic"],
    }
    monkeypatch.setattr(packages, "direct_dependencies", known.get)
    found = modules.kernel_packages(platforms.platform("x86_64"))
    assert found == ["linux-image-6.8.0-1-generic", "linux-modules-6.8.0-1-generic"]
    known.clear()
    with pytest.raises(HostError, match="knows no kernel package"):
        modules.kernel_packages(platforms.platform("x86_64"))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("bin/busybox", "usr/bin/busybox"),
        ("lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
        ("lib", "usr/lib"),
        ("usr/lib/x", "usr/lib/x"),
        ("library/x", "library/x"),
        ("etc/x", "etc/x"),
    ],
)
def test_everything_goes_below_usr(name: str, place: str) -> None:
    assert rootfs._place(name) == place


@pytest.mark.parametrize(
    ("name", "pruned"),
    [
        ("usr/share/doc/x/copyright", True),
        ("usr/lib/python3.11/test/support.py", True),
        ("usr/lib/python3.11/idlelib", True),
        ("usr/lib/python3.11/os.py", False),
        ("usr/lib/python3.11/unittest/case.py", False),
        ("usr/lib/python3.11/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so", False),
        ("usr/lib/python3.11/lib-dynload/_testcapi.cpython-311-x86_64-linux-gnu.so", True),
        ("usr/share/zoneinfo/UTC", False),
    ],
)
def test_what_the_lab_never_reads_is_left_out(name: str, pruned: bool) -> None:
    assert bool(rootfs._PRUNED.match(name)) is pruned


def a_base(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / image.KERNEL).write_bytes(b"kernel")
    (folder / image.ARCHIVE).write_bytes(b"archive")
    description = {"identity": "i", "kernel_size": 6, "archive_size": 7}
    (folder / image.DESCRIPTION).write_text(json.dumps(description))


def test_a_damaged_base_image_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    folder = Path(cache.path("lab", "x86_64", f"base-{image.recipe('x86_64')}"))
    assert image.find("x86_64") is None
    a_base(folder)
    os.utime(folder, (1, 1))
    found = image.find("x86_64")
    assert found is not None
    assert (found.identity, found.archive) == ("i", str(folder / image.ARCHIVE))
    assert folder.stat().st_mtime > 1, "use is not noted"
    (folder / image.ARCHIVE).write_bytes(b"cut")
    assert image.find("x86_64") is None
    (folder / image.DESCRIPTION).write_text("{")
    assert image.find("x86_64") is None


def test_an_unknown_architecture_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="no lab for architecture 'vax'") as caught:
        platforms.platform("vax")
    assert "x86_64" in caught.value.hint


def test_the_agent_needs_nothing_that_is_not_in_the_image() -> None:
    import pyvmm.lab

    folder = Path(pyvmm.lab.__file__).parent
    allowed = {f"pyvmm.lab.{name.removesuffix('.py').replace('/', '.')}" for name in image._OWN} | {
        "pyvmm.lab"
    }
    for name in image._OWN:
        for line in (folder / name).read_text().splitlines():
            if line.startswith(("from pyvmm", "import pyvmm")):
                assert line.split()[1] in allowed, f"{name}: {line}"
    assert {f"agent/{path.name}" for path in (folder / "agent").glob("*.py")} <= set(image._OWN)


def test_a_recipe_is_an_architectures_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what changes for one does not have the image of the other built anew."""
    before = {name: image.recipe(name) for name in platforms.PLATFORMS}
    assert len(set(before.values())) == len(before)
    monkeypatch.setattr(platforms.platform("aarch64"), "modules", ("virtio_blk",))
    assert image.recipe("aarch64") != before["aarch64"]
    assert image.recipe("x86_64") == before["x86_64"]


def a_python(root: Path, program: str) -> Path:
    """A root with a Python library and an executable that this host cannot run."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin" / program).write_bytes(b"\x7fELF for another machine")
    library = root / "usr/lib" / program
    library.mkdir(parents=True)
    (library / "module.py").write_text("answer = 42\n")
    loader = root / "usr/lib/ld-linux-other.so.1"
    loader.write_bytes(b"\x7fELF for another machine")
    loader.chmod(0o755)
    return library


def test_bytecode_for_another_architecture_is_made_by_the_hosts_own_python(tmp_path: Path) -> None:
    program = "python{}.{}".format(*sys.version_info)
    library = a_python(tmp_path, program)
    assert rootfs.add_python(str(tmp_path)) == program
    compiled = library / "__pycache__" / f"module.{sys.implementation.cache_tag}.pyc"
    assert compiled.read_bytes()[4:8] == b"\1\0\0\0", "PEP 552: a hash that is not checked"
    assert os.readlink(tmp_path / "usr/bin/python3") == program


def test_without_such_a_python_there_is_no_bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    library = a_python(tmp_path, "python3.99")
    assert rootfs.add_python(str(tmp_path)) == "python3.99"
    assert not (library / "__pycache__").exists()
