"""Files that a run writes at its end: checked before it, and written whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pyvmm import output_file
from pyvmm.errors import UsageError


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    before = path.stat().st_ino
    output_file.write("--result", str(path), b"new")
    assert path.read_text() == "new"
    assert path.stat().st_ino != before
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    for failure, raised in ((OSError(28, "No space left on device"), UsageError), (KeyboardInterrupt(),) * 2):

        def fail(fd: int, data: bytes, failure: BaseException = failure) -> int:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fail)
            kind = raised if isinstance(raised, type) else type(raised)
            with pytest.raises(kind) as caught:
                output_file.write("--result", str(path), b"new")
        if kind is UsageError:
            assert caught.value.args[0] == f"cannot write --result {path}: No space left on device"
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["file"]


def test_a_link_leads_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to("folder/file")
    for text in ("first", "second"):
        output_file.check("-o", str(link))
        output_file.write("-o", str(link), text.encode())
        assert link.is_symlink()
        assert (tmp_path / "folder/file").read_text() == text
    link.unlink()
    link.symlink_to("absent/file")
    with pytest.raises(UsageError, match="there is no directory .*absent"):
        output_file.check("-o", str(link))


def test_a_pipe_is_written_in_place_and_its_reader_waited_for_or_not(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    output_file.check("--json", str(pipe))
    with pytest.raises(UsageError, match="cannot write --result"):
        output_file.write("--result", str(pipe), b"x", wait=False)
    data = os.urandom(300_000)  # more than a pipe holds
    for wait in (True, False):
        got: list[bytes] = []
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK) if not wait else -1
        thread = threading.Thread(target=lambda found=got: found.append(pipe.read_bytes()))
        thread.start()
        output_file.write("--json", str(pipe), data, wait=wait)
        if reader >= 0:
            os.close(reader)
        thread.join(20)
        assert got == [data]
    assert os.listdir(tmp_path) == ["pipe"]


def test_what_cannot_be_written_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, words in ((tmp_path, "is a directory"), (tmp_path / "no" / "file", "there is no directory")):
        with pytest.raises(UsageError, match=f"--json .*: {words}"):
            output_file.check("--json", str(path))
    (tmp_path / "file").write_text("old")
    for denied in (tmp_path, tmp_path / "file"):  # a file is replaced, for which its directory is written to
        monkeypatch.setattr(os, "access", lambda path, mode, denied=denied: Path(path) != denied)
        with pytest.raises(UsageError, match="not writable"):
            output_file.check("--json", str(tmp_path / "file"))
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/null")
    output_file.check("--json", "/dev/null")
    monkeypatch.undo()
    output_file.check("--json", str(tmp_path / "another"))
