"""The initramfs writer, read back by GNU cpio; pyvmm's own initramfs too."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from pyvmm import initramfs
from pyvmm.errors import HostError, ImageError
from pyvmm.initramfs import archive, block_device, character_device, directory, file, host_file, symlink

needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not here")


def listing(data: bytes) -> list[str]:
    """The lines of ``cpio -itv``, with runs of spaces as one."""
    done = subprocess.run(
        ["cpio", "-itv", "--numeric-uid-gid", "--quiet"],
        input=data,
        capture_output=True,
        timeout=60,
        env={"TZ": "UTC", "LC_ALL": "C", "PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [" ".join(line.split()) for line in done.stdout.decode().splitlines()]


@needs_cpio
def test_cpio_lists_every_kind_of_entry() -> None:
    data = archive(
        (
            file("init", b"#!/bin/sh\n", 0o755),
            character_device("dev/console", 5, 1),
            block_device("dev/vda", 254, 0, 0o660),
            symlink("bin/sh", "busybox"),
            directory("tmp", 0o1777),
        )
    )
    assert listing(data) == [
        "drwxr-xr-x 2 0 0 0 Jan 1 1970 bin",
        "lrwxrwxrwx 1 0 0 7 Jan 1 1970 bin/sh -> busybox",
        "drwxr-xr-x 2 0 0 0 Jan 1 1970 dev",
        "crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
        "brw-rw---- 1 0 0 254, 0 Jan 1 1970 dev/vda",
        "-rwxr-xr-x 1 0 0 10 Jan 1 1970 init",
        "drwxrwxrwt 2 0 0 0 Jan 1 1970 tmp",
    ]


@needs_cpio
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 4096, 70001])
def test_cpio_unpacks_what_was_put_in(size: int, tmp_path: Path) -> None:
    contents = bytes(n * 7 % 251 for n in range(size))
    data = archive([file("a" * n, contents, 0o600 + n) for n in (1, 2, 3, 4, 5)])
    subprocess.run(["cpio", "-id", "--quiet"], input=data, cwd=tmp_path, check=True, timeout=60)
    for n in (1, 2, 3, 4, 5):
        unpacked = tmp_path / ("a" * n)
        assert unpacked.read_bytes() == contents
        assert stat.S_IMODE(unpacked.stat().st_mode) == 0o600 + n


def test_archives_can_follow_one_another() -> None:
    first, second = archive([file("one", b"1")]), archive([file("two", b"22")])
    assert paths(first + second) == ["one", "TRAILER!!!", "two", "TRAILER!!!"]


def test_the_same_entries_in_any_order_give_the_same_bytes() -> None:
    entries = [file("b", b"2"), file("a/x", b"1"), symlink("a.b", "b"), directory("c"), file("a/b/c", b"")]
    assert archive(entries) == archive(entries[::-1])


def test_directories_stand_before_what_is_in_them() -> None:
    """As the kernel does not make them; ``a.b`` sorts before ``a/x`` by bytes, but after ``a``."""
    names = paths(archive([file("a/x/y", b""), file("a.b", b""), file("a", b"")][:2]))
    assert names == ["a", "a/x", "a/x/y", "a.b", "TRAILER!!!"]


def paths(data: bytes) -> list[str]:
    """The names in an archive, by a reader of its own."""
    names = []
    at = 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + fields[11]]
        assert name.endswith(b"\0")
        names.append(name[:-1].decode())
        at = (at + 110 + fields[11] + 3 & ~3) + (fields[6] + 3 & ~3)
    return names


def test_inode_numbers_differ() -> None:
    """Two files of one number and device would be hard links of each other to some readers."""
    data = archive([file(name, b"") for name in "abc"])
    starts = [data.index(b"070701", at) for at in (0, 1, 113)]
    assert len({data[at + 6 : at + 14] for at in starts}) == 3


def test_host_files_are_copied_when_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_001)
    source.chmod(0o750)
    entries = [host_file("big", str(source)), host_file("small", str(source), 0o400)]
    expected = archive([file("big", b"x" * 3_000_001, 0o750), file("small", b"x" * 3_000_001, 0o400)])
    assert archive(entries) == expected
    with tempfile.TemporaryFile() as out:
        assert initramfs.write_archive(out.fileno(), entries) == len(expected)
        out.seek(0)
        assert out.read() == expected


def test_a_write_that_takes_less_than_it_is_given_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    entries = [file("f", bytes(10_001))]
    with tempfile.TemporaryFile() as out:
        initramfs.write_archive(out.fileno(), entries)
        out.seek(0)
        assert out.read() == archive(entries)


@pytest.mark.parametrize("path", ["", "/", ".", "a/../b", "..", "a\0b", "TRAILER!!!"])
def test_paths_that_cannot_be_are_refused(path: str) -> None:
    with pytest.raises(ImageError, match="cannot name an initramfs entry"):
        file(path, b"")


def test_paths_are_made_relative() -> None:
    assert paths(archive([file("/./a//b", b"")])) == ["a", "a/b", "TRAILER!!!"]


def test_two_entries_of_one_path_are_refused() -> None:
    with pytest.raises(ImageError, match="two initramfs entries are named 'a'"):
        archive([file("a", b""), directory("/a")])


def test_an_entry_below_a_file_or_link_is_refused() -> None:
    for above in (file("a", b""), symlink("a", "b")):
        with pytest.raises(ImageError, match="'a/x' lies in 'a', which is no directory"):
            archive([above, file("a/x", b"")])


def test_a_host_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="absent into an initramfs: No such file"):
        host_file("x", str(tmp_path / "absent"))
    entry = host_file("x", str(tmp_path))
    with pytest.raises(ImageError, match="Is a directory"):
        archive([entry])
    with tempfile.TemporaryFile() as out, pytest.raises(ImageError, match="Is a directory"):
        initramfs.write_archive(out.fileno(), [entry])


def test_a_file_too_large_for_the_format_is_refused(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    sparse.touch()
    os.truncate(sparse, 1 << 32)
    with tempfile.TemporaryFile() as out, pytest.raises(ImageError, match="less than 4 GiB"):
        initramfs.write_archive(out.fileno(), [host_file("x", str(sparse))])


def test_verify_initramfs_has_an_executable_init_and_a_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initramfs, "DATA_FOLDER", str(tmp_path))
    (tmp_path / "init-x86_64").write_bytes(b"\x7fELF")
    expected = archive([character_device("dev/console", 5, 1), file("init", b"\x7fELF", 0o755)])
    assert initramfs.verify_initramfs("x86_64") == expected


def test_verify_initramfs_says_how_to_build_a_missing_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initramfs, "DATA_FOLDER", str(tmp_path))
    with pytest.raises(HostError, match="init for riscv64 has not been built") as caught:
        initramfs.verify_initramfs("riscv64")
    assert "scripts/build-guests" in caught.value.hint
