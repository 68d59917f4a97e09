"""Where control sockets stand: modes, owners, what is in the way, and who is found by ``pyvmm ps``."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from pyvmm.cli.ps import duration
from pyvmm.control import client, sockets
from pyvmm.control.sockets import Listener
from pyvmm.errors import HostError, UsageError


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "pyvmm"


def dead_socket(path: Path) -> None:
    """A socket whose process is gone."""
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))


def test_mode_is_0600_from_the_first_moment(tmp_path: Path) -> None:
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                seen.append(stat.S_IMODE(os.lstat(tmp_path / "a.sock").st_mode))
            except FileNotFoundError:
                pass

    former = os.umask(0)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(50):
            Listener(str(tmp_path / "a.sock")).close()
    finally:
        done.set()
        watcher.join()
        assert os.umask(former) == 0, "the umask is as it was"
    assert set(seen) <= {0o600}


def test_a_dead_machines_socket_is_replaced(tmp_path: Path) -> None:
    dead_socket(tmp_path / "a.sock")
    listener = Listener(str(tmp_path / "a.sock"))
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(listener.path)
    listener.close()
    listener.close()
    assert os.listdir(tmp_path) == []


def test_a_live_one_is_left_alone(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "a.sock"))
    with pytest.raises(UsageError, match="a running machine") as caught:
        Listener(listener.path)
    assert "another name" in caught.value.hint
    assert not sockets.is_dead(listener.path) and not sockets.remove_dead(listener.path)
    listener.close()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "fifo"])
def test_what_is_no_socket_is_never_removed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        dead_socket(tmp_path / "b.sock")
        path.symlink_to(tmp_path / "b.sock")
    else:
        os.mkfifo(path)
    with pytest.raises(UsageError, match="is no socket"):
        Listener(str(path))
    assert not sockets.remove_dead(str(path))
    assert os.path.lexists(path)


def test_what_took_its_place_is_not_removed_at_the_end(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "a.sock"))
    os.unlink(listener.path)
    Path(listener.path).write_text("somebody else's")
    listener.close()
    assert Path(listener.path).read_text() == "somebody else's"


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file") as caught:
        Listener(str(tmp_path / "none" / "a.sock"))
    assert caught.value.hint
    with pytest.raises(UsageError, match="has 1.. bytes"):
        Listener(str(tmp_path / ("x" * 108)))


def test_one_of_two_that_start_at_once_gets_it(tmp_path: Path) -> None:
    for _ in range(20):
        dead_socket(tmp_path / "a.sock")
        made: list[Listener] = []
        refused: list[UsageError] = []

        def start(made: list[Listener] = made, refused: list[UsageError] = refused) -> None:
            try:
                made.append(Listener(str(tmp_path / "a.sock")))
            except UsageError as error:
                refused.append(error)

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(made), len(refused)) == (1, 3)
        made[0].close()


def test_runtime_directory_is_the_users_alone(runtime: Path) -> None:
    assert client.names() == [] and not runtime.exists(), "asking makes nothing"
    assert sockets.path_of("box", make=True) == str(runtime / "box.sock")
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    runtime.chmod(0o750)
    with pytest.raises(HostError, match="only you may use"):
        sockets.path_of("box")
    runtime.rmdir()
    runtime.write_text("")
    with pytest.raises(HostError, match="only you may use"):
        sockets.path_of("box", make=True)


def test_runtime_directory_of_another_user(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.mkdir(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(HostError, match="only you may use"):
        sockets.runtime_directory()


def test_runtime_directory_without_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    uid = os.geteuid()
    assert sockets.runtime_directory() in (f"/run/user/{uid}/pyvmm", f"/tmp/pyvmm-{uid}")


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "-x", "a b", "a\n", "ä", "x" * 65])
def test_bad_names(name: str, runtime: Path) -> None:
    with pytest.raises(UsageError, match="no name for a machine"):
        sockets.path_of(name)


def test_machines_that_are_gone_are_cleaned_away(runtime: Path) -> None:
    runtime.mkdir(0o700)
    dead_socket(runtime / "gone.sock")
    (runtime / "note.txt").write_text("")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(runtime / "silent.sock"))
        silent.listen()
        found = client.machines()
    assert [(each["name"], each["state"], each["pid"]) for each in found] == [
        ("silent", "unknown", os.getpid())
    ]
    assert sorted(os.listdir(runtime)) == ["note.txt", "silent.sock"]


def test_locate(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.mkdir(0o700)
    dead_socket(runtime / "builder.sock")
    assert client.locate("./some.sock") == "./some.sock"
    assert client.locate("builder") == str(runtime / "builder.sock")
    with pytest.raises(UsageError, match="no machine 'bulder'") as caught:
        client.locate("bulder")
    assert caught.value.hint == "is 'builder' meant?"
    monkeypatch.chdir(tmp_path)
    dead_socket(tmp_path / "here.sock")
    assert client.locate("here.sock") == "here.sock"
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    with pytest.raises(UsageError, match="no machine 'nowhere'"):
        client.locate("nowhere")


def test_nobody_there(tmp_path: Path) -> None:
    for name in ("none", "dead"):
        if name == "dead":
            dead_socket(tmp_path / name)
        with pytest.raises(client.Gone, match="no machine listens"):
            client.Client(str(tmp_path / name))
    (tmp_path / "file").write_text("")
    with pytest.raises(client.Gone):
        client.Client(str(tmp_path / "file"))


def test_what_is_no_machine(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        other.listen()
        with client.Client(str(tmp_path / "other")) as asking:
            connection, _ = other.accept()
            connection.sendall(b"220 mail.example.org\n")
            with pytest.raises(HostError, match="no machine of pyvmm"):
                asking.call("status")
            connection.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (59.94, "59.9s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90061, "1d01h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
