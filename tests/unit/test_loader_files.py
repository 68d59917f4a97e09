"""Opening input files: what is refused and how that is said, and reads that cope with what the system does."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from loader_images import as_file, bzimage, kernel

import loader
from loader import errors, files
from loader.detect import Format


def refused(path, error, *words):
    """Opening ``path`` raises just ``error``, in one line with these words, and with a hint."""
    with pytest.raises(errors.LoaderError) as caught:
        loader.open_kernel(path)
    assert type(caught.value) is error
    assert "\n" not in caught.value.message
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message
    return caught.value


@pytest.fixture(autouse=True)
def no_descriptor_left_open():
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


def test_missing(tmp_path):
    refused(tmp_path / "none", errors.FileMissing, "none: no such file")


def test_name_no_file_can_have():
    refused("a\0b", errors.FileMissing, r"'a\x00b'")


def test_directory(tmp_path):
    refused(tmp_path, errors.FileIsDirectory, "a directory, not a file")


def test_empty(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    refused(path, errors.FileEmpty, "the file is empty")


def test_no_permission(tmp_path, monkeypatch):
    def denied(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "vmlinuz"
    path.write_bytes(b"kernel")
    monkeypatch.setattr(files.os, "open", denied)
    refused(path, errors.FilePermission, "vmlinuz: no permission to read it")


def test_component_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "kernel", errors.FileUnreadable, "Not a directory")


def test_fifo_without_a_writer_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", errors.FileNotRegular, "a pipe", "reads at offsets")


def test_character_device():
    refused("/dev/zero", errors.FileNotRegular, "a character device")


def test_socket(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        refused(tmp_path / "s", errors.FileNotRegular, "a socket")


def test_unknown_kind_of_file(monkeypatch):
    monkeypatch.setattr(files.stat, "S_IFMT", lambda mode: 0)
    refused("/dev/null", errors.FileNotRegular, "no regular file")


def test_newline_in_the_name_stays_on_one_line(tmp_path):
    error = refused(tmp_path / "a\nb", errors.FileMissing)
    assert r"a\nb" in error.message


def test_text_is_not_a_kernel(tmp_path):
    path = tmp_path / "notes"
    path.write_text("not a kernel\n")
    refused(path, errors.NotAKernel, "a text file, not a kernel")


def test_compressed_file_is_not_a_kernel_and_the_hint_names_the_initrd(tmp_path):
    path = tmp_path / "bzImage"
    path.write_bytes(b"\x1f\x8b\x08" + bytes(20))
    assert "initrd" in refused(path, errors.NotAKernel, "a gzip-compressed file").hint


def test_kernel_for_another_machine(tmp_path):
    path = tmp_path / "vmlinux"
    path.write_bytes(bytes(kernel(machine=183)))
    with pytest.raises(
        errors.WrongMachine, match="an ELF file for aarch64, and the machine is x86_64"
    ) as caught:
        loader.open_kernel(path, machine="x86_64")
    assert "x86_64" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "format", "machine"),
    [
        (bzimage(), Format.BZIMAGE, "x86_64"),
        (bzimage(xloadflags=0), Format.BZIMAGE, "i386"),
        (bytes(kernel()), Format.ELF, "x86_64"),
    ],
)
def test_kernel_file(tmp_path, content, format, machine):
    path = tmp_path / "a name that says nothing"
    path.write_bytes(content)
    with loader.open_kernel(path, machine="x86_64") as file:
        assert (file.format, file.machine, file.size) == (format, machine, len(content))
        assert file.path == str(path)
        assert machine in file.description
        assert os.pread(file.fileno(), 4, 0) == content[:4]
    file.close()  # a second time does no harm


def test_identify_path(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "kernel").write_bytes(bzimage())
    assert loader.identify_path(tmp_path).format is Format.DIRECTORY
    assert loader.identify_path(tmp_path / "empty").format is Format.EMPTY
    assert loader.identify_path(tmp_path / "kernel").format is Format.BZIMAGE


def test_short_reads_are_continued(monkeypatch):
    """The system may give less than it was asked for: here, three bytes at a time."""
    calls = []
    real_pread, real_preadv = os.pread, os.preadv

    def pread(fd, size, offset):
        calls.append("pread")
        return real_pread(fd, min(size, 3), offset)

    def preadv(fd, buffers, offset):
        calls.append("preadv")
        return real_preadv(fd, [buffers[0][:3]], offset)

    with as_file(bytes(range(100))) as file:
        monkeypatch.setattr(files.os, "pread", pread)
        monkeypatch.setattr(files.os, "preadv", preadv)
        assert file.read(10, 20) == bytes(range(10, 30))
        buffer = bytearray(50)
        file.read_into(memoryview(buffer), 50)
        assert buffer == bytes(range(50, 100))
    assert (calls.count("pread"), calls.count("preadv")) == (7, 17)


def test_read_stops_at_the_end_of_the_file():
    with as_file(b"12345") as file:
        assert file.read(3, 10) == b"45"
        assert file.read(5, 10) == b""
        assert file.read(1 << 70, 10) == b""


def test_a_file_cut_while_it_is_read():
    with as_file(bytes(100)) as file:
        os.ftruncate(file.fd, 40)
        with pytest.raises(errors.FileChanged, match="ends at 0x28, and had 0x64 bytes"):
            file.read_into(memoryview(bytearray(100)), 0)


def test_read_error(monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    with as_file(bytes(100)) as file:
        monkeypatch.setattr(files.os, "pread", broken)
        monkeypatch.setattr(files.os, "preadv", broken)
        with pytest.raises(errors.FileUnreadable, match="reading at 0x7: Input/output error"):
            file.read(7, 10)
        with pytest.raises(errors.FileUnreadable, match="reading at 0x8: Input/output error"):
            file.read_into(memoryview(bytearray(5)), 8)


def test_a_head_cut_while_it_is_read():
    with as_file(bytes(100)) as file:
        os.ftruncate(file.fd, 40)
        assert file.read(30, 50) == bytes(10)


def test_descriptor_is_closed_when_reading_the_head_fails(tmp_path, monkeypatch):
    path = tmp_path / "kernel"
    path.write_bytes(bzimage())

    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "pread", broken)
    with pytest.raises(errors.FileUnreadable):
        loader.open_kernel(path)
