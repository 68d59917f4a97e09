"""A guest's root and shares: what their texts mean, the devices and drivers they need, and what is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pyvmm.api.guest import Guest
from pyvmm.api.root import FILE_SYSTEMS, Root, Share, file_system
from pyvmm.errors import UsageError
from pyvmm.machine.attachments import attachment


class TestRoot:
    def test_the_initramfs(self) -> None:
        for root in (Root(), Root("initramfs", writable=True)):
            assert (root.kind, root.path, root.is_host) == ("initramfs", "", False)
            assert (root.devices(), root.drivers(), root.spec()) == ([], (), None)

    def test_a_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "root").mkdir()
        monkeypatch.chdir(tmp_path)
        for root in (Root(str(tmp_path / "root")), Root("root")):
            assert (root.kind, root.path) == ("directory", str(tmp_path / "root"))
        assert root.devices() == [f"share={tmp_path}/root:pyvmmroot,ro"]
        assert root.drivers() == ("virtiofs", "overlay")
        spec = root.spec()
        assert spec is not None
        assert (spec.type, spec.source, spec.read_only, spec.overlay) == ("virtiofs", "pyvmmroot", True, True)

    def test_a_directory_to_be_written_to(self, tmp_path: Path) -> None:
        root = Root(str(tmp_path), writable=True)
        assert root.devices() == [f"share={tmp_path}:pyvmmroot"]
        assert root.drivers() == ("virtiofs",)
        spec = root.spec()
        assert spec is not None and not spec.read_only and not spec.overlay

    def test_the_hosts(self, tmp_path: Path) -> None:
        assert Root("/").is_host and not Root(str(tmp_path)).is_host
        assert Root("//./").path in ("/", "//")

    def test_a_disk(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(4096))
        assert Root(str(disk)).devices() == [f"disk={disk},overlay"]
        assert Root(str(disk), writable=True).devices() == [f"disk={disk}"]
        assert Root(str(disk)).drivers() == ("virtio_blk",)
        spec = Root(str(disk)).spec()
        assert spec is not None and (spec.type, spec.source, spec.overlay) == ("block", "/dev/vda", False)

    def test_a_comma_in_its_name(self, tmp_path: Path) -> None:
        """The device that comes out of the text is for the file of that name."""
        (tmp_path / "a,b").write_bytes(b"")
        (option,) = Root(str(tmp_path / "a,b")).devices()
        assert attachment("disk").parse(option.removeprefix("disk=")).files() == [str(tmp_path / "a,b")]
        (tmp_path / "c,d").mkdir()
        (option,) = Root(str(tmp_path / "c,d")).devices()
        assert attachment("share").parse(option.removeprefix("share=")).files() == [str(tmp_path / "c,d")]

    @pytest.mark.parametrize(
        ("text", "said"),
        [("", "empty"), ("/no/such", "No such file"), ("/dev/null", "no directory and no disk")],
    )
    def test_refusals(self, text: str, said: str) -> None:
        with pytest.raises(UsageError, match=said) as caught:
            Root(text)
        assert caught.value.hint and text in caught.value.message

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_disk_that_may_not_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(bytes(10))
        (tmp_path / "disk").chmod(0)
        with pytest.raises(UsageError, match="Permission denied"):
            Root(str(tmp_path / "disk")).drivers()


class TestFileSystem:
    @pytest.mark.parametrize(("offset", "magic", "driver"), FILE_SYSTEMS)
    def test_by_its_magic(self, offset: int, magic: bytes, driver: str, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(offset) + magic + bytes(100))
        assert file_system(str(disk)) == driver
        assert Root(str(disk)).drivers() == ("virtio_blk", f"?{driver}")
        disk.write_bytes(bytes(offset) + magic[:-1])
        assert file_system(str(disk)) is None

    @pytest.mark.parametrize(
        ("maker", "driver"),
        [("mkfs.ext4 -q", "ext4"), ("mkfs.ext2 -q", "ext4"), ("mkfs.xfs -q", "xfs"), ("mkfs.btrfs -q", "btrfs"),
         ("mkfs.vfat", "vfat"), ("mkfs.vfat -F 32", "vfat")],
    )  # fmt: skip
    def test_of_its_maker(self, maker: str, driver: str, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        with disk.open("wb") as file:
            file.truncate(512 << 20)
        try:
            subprocess.run([*maker.split(), disk], check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip(f"{maker} is not installed")
        assert file_system(str(disk)) == driver


class TestShare:
    def test_one_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        share = Share(str(tmp_path), 3, writable=False)
        assert (share.host, share.guest, share.tag) == (str(tmp_path), str(tmp_path), "pyvmm3")
        assert share.device() == f"share={tmp_path}:pyvmm3,ro"
        monkeypatch.chdir(tmp_path)
        assert (Share(".", 0, writable=True).host, Share(".", 0, writable=True).guest) == (str(tmp_path),) * 2
        assert Share(".", 0, writable=True).device() == f"share={tmp_path}:pyvmm0"

    def test_another_place(self, tmp_path: Path) -> None:
        share = Share(f"{tmp_path}:/mnt", 0, writable=True)
        assert (share.host, share.guest) == (str(tmp_path), "/mnt")

    def test_a_colon_in_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "a:b").mkdir()
        share = Share(f"{tmp_path}/a:b:/mnt", 0, writable=False)
        assert (share.host, share.guest) == (f"{tmp_path}/a:b", "/mnt")
        device = attachment("share").parse(share.device().removeprefix("share="))
        assert device.files() == [f"{tmp_path}/a:b"]

    @pytest.mark.parametrize(
        "text", ["", ":", ":/mnt", "/tmp:", "/no/such", "/no/such:/mnt", "/dev/null:/mnt"]
    )
    def test_refusals(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            Share(text, 0, writable=False)
        assert "HOST:GUEST" in caught.value.hint


class TestGuest:
    def test_devices_and_writes(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(bytes(10))
        guest = Guest("kernel", root=str(tmp_path / "disk"), rodirs=[str(tmp_path)], rwdirs=["/tmp:/mnt"])
        assert guest.devices() == [
            f"disk={tmp_path}/disk,overlay", f"share={tmp_path}:pyvmm0,ro", "share=/tmp:pyvmm1",
        ]  # fmt: skip
        assert guest.writes
        assert not Guest("kernel", root="/", rodirs=[str(tmp_path)]).writes
        assert not Guest("kernel", root=Root(writable=True)).writes
        assert Guest("kernel", root=Root(str(tmp_path), writable=True)).writes

    def test_drivers_without_modules(self, guests: Path) -> None:
        """A kernel without modules may have everything built in, but not what was asked for by name."""
        kernel = str(guests / "hello.elf")
        assert Guest(kernel).initramfs().startswith(b"070701")
        with pytest.raises(UsageError, match="dummy cannot be loaded") as caught:
            Guest(kernel, drivers=["dummy"]).initramfs()
        assert "--modules" in caught.value.hint

    def test_a_path_that_cannot_be_passed_on(self, guests: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            Guest(str(guests / "hello.elf"), rodirs=[f"{tmp_path}:/a\nb"]).initramfs()
