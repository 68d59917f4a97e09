"""Files on the lab's wire: what arrives is what was sent, and nothing lands where it was not allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.lab import transfer as module
from pyvmm.lab.protocol import ProtocolError
from pyvmm.lab.transfer import DIRECTORY, FILE, LINK, Incoming, Outgoing, send_contents


def moved(transfer: Outgoing, here: Path, there: Path) -> list[list[object]]:
    """The transfer's entries with ``here`` replaced by ``there`` in their paths."""
    return [
        [kind, str(path).replace(str(here), str(there)), mode, extra]
        for kind, path, mode, extra in transfer.entries
    ]


def test_a_tree_arrives_as_it_was(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "deep" / "er").mkdir(parents=True)
    (here / "empty").mkdir()
    (here / "deep" / "er" / "data").write_bytes(bytes(range(256)) * 5000)
    (here / "nothing").write_bytes(b"")
    program = here / "program"
    program.write_bytes(b"#!/bin/sh\n")
    program.chmod(0o755)
    (here / "link").symlink_to("program")

    transfer = Outgoing()
    transfer.add_tree(str(here))
    incoming = Incoming(moved(transfer, here, there))
    for piece in transfer.contents():
        incoming.feed(piece)

    assert incoming.done
    assert (there / "deep" / "er" / "data").read_bytes() == bytes(range(256)) * 5000
    assert (there / "nothing").read_bytes() == b""
    assert (there / "empty").is_dir()
    assert (there / "program").stat().st_mode & 0o777 == 0o755
    assert os.readlink(there / "link") == "program"


def test_contents_may_be_cut_anywhere(tmp_path: Path) -> None:
    transfer = Outgoing()
    for name in "abc":
        transfer.add_bytes(f"/x/{name}", name.encode() * 10)
    data = b"".join(transfer.contents())
    assert len(data) == transfer.size == 30
    incoming = Incoming(moved(transfer, Path("/x"), tmp_path))
    for position in range(30):
        incoming.feed(data[position : position + 1])
    assert incoming.done
    assert [(tmp_path / name).read_text() for name in "abc"] == ["a" * 10, "b" * 10, "c" * 10]


def test_a_file_that_shrank_is_filled_up(tmp_path: Path) -> None:
    shrinking, after = tmp_path / "shrinking", tmp_path / "after"
    shrinking.write_bytes(b"12345678")
    after.write_bytes(b"after")
    transfer = Outgoing()
    transfer.add_file(str(shrinking))
    transfer.add_file(str(after))
    shrinking.write_bytes(b"123")
    assert b"".join(transfer.contents()) == b"123\0\0\0\0\0after"


def test_contents_go_by_a_mailbox_smaller_than_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAILBOX_SIZE", 1000)
    transfer = Outgoing()
    data = os.urandom(2500)
    transfer.add_bytes("/x", data)
    taken = []
    mailbox = os.memfd_create("mailbox")
    try:
        send_contents(transfer, mailbox, lambda count: taken.append(os.pread(mailbox, count, 0)))
    finally:
        os.close(mailbox)
    assert [len(piece) for piece in taken] == [1000, 1000, 500]
    assert b"".join(taken) == data


@pytest.mark.parametrize("path", ["relative", "/allowed/../etc/passwd", "/allowed/..", "/elsewhere", ""])
def test_paths_outside_are_refused(path: str) -> None:
    with pytest.raises(ProtocolError, match="names"):
        Incoming([[FILE, path, 0o644, 0]], allowed=lambda path: path.startswith("/allowed/"))


@pytest.mark.parametrize("entry", [["x", "/a", 0o644, 0], [FILE, "/a", 0o644, -1], [LINK, "/a", 0o777, 5]])
def test_malformed_entries_are_refused(entry: list[object]) -> None:
    with pytest.raises(ProtocolError):
        Incoming([entry])


def test_nothing_is_written_through_a_link_of_the_same_transfer(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    box = tmp_path / "box"
    entries: list[list[object]] = [
        [DIRECTORY, str(box), 0o755, 0],
        [LINK, str(box / "out"), 0o777, str(victim)],
        [FILE, str(box / "out" / "file"), 0o644, 4],
    ]
    with pytest.raises(OSError, match=r"exists|directory"):
        incoming = Incoming(entries, atomic=True)
        incoming.feed(b"evil")
    assert list(victim.iterdir()) == []


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    target = tmp_path / "target"
    target.symlink_to(victim)
    incoming = Incoming([[FILE, str(target), 0o644, 3]])
    incoming.feed(b"new")
    assert victim.read_text() == "precious"
    assert target.read_text() == "new"
    assert not target.is_symlink()


def test_an_atomic_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    incoming = Incoming([[FILE, str(target), 0o644, 10]], atomic=True)
    incoming.feed(b"half")
    assert target.read_text() == "old"
    incoming.abandon()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]

    incoming = Incoming([[FILE, str(target), 0o644, 3]], atomic=True)
    incoming.feed(b"new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_special_permissions_do_not_travel(tmp_path: Path) -> None:
    target = tmp_path / "program"
    Incoming([[FILE, str(target), 0o6755, 0]])
    assert target.stat().st_mode & 0o7777 == 0o755


def test_too_much_is_refused(tmp_path: Path) -> None:
    incoming = Incoming([[FILE, str(tmp_path / "a"), 0o644, 2]])
    with pytest.raises(ProtocolError, match="too many"):
        incoming.feed(b"123")
