"""Shared directories: the option, virtiofsd's command lines, and virtiofsd itself with FUSE requests from here."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import cannot
from fuse_guest import Guest
from virtio_driver import Driver

from pyvmm.devices.virtio import features, virtiofsd
from pyvmm.devices.virtio.fs import Fs
from pyvmm.errors import HostError, UsageError
from pyvmm.machine.attachments.base import Host
from pyvmm.machine.attachments.share import Share

# --- the option -----------------------------------------------------------------------------------------


def test_the_option_and_the_table_say_the_same() -> None:
    made = Share.parse("/srv/a:b:data,ro,sandbox=chroot")
    assert (made.path, made.tag, made.ro, made.sandbox) == ("/srv/a:b", "data", True, "chroot")
    assert made.to_table() == {"path": "/srv/a:b", "tag": "data", "ro": True, "sandbox": "chroot"}
    assert Share.from_table(made.to_table()).to_table() == made.to_table()
    assert Share.parse("path=x,tag=y").to_table() == Share.parse("x:y").to_table()
    assert Share.parse("/a,,b:t,,u").to_table() == {"path": "/a,b", "tag": "t,u"}
    assert made.files()[0] == "/srv/a:b" and made.changed_files() == []
    assert Share.parse("x:y").changed_files() == ["x"]
    assert made.shared_memory


@pytest.mark.parametrize("text", ["", "dir", "dir:", ":tag", "ro"])
def test_not_of_the_form(text: str) -> None:
    with pytest.raises(UsageError, match="is not of the form DIR:TAG") as caught:
        Share.parse(text)
    assert "--share" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DIR:" + "t" * 37, "has 37 bytes, not 1 to 36"),
        ("DIR:" + "ä" * 19, "has 38 bytes"),
        ("DIR/none:tag", "no such directory"),
        ("DIR/file:tag", "not a directory"),
        ("DIR:tag,sandbox=jail", "choose one of|sandbox=jail: unknown"),
        ("DIR:tag,rw", "share has no 'rw'"),
    ],
)
def test_what_makes_no_sense(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=message):
        Share.parse(text.replace("DIR", str(tmp_path))).check()


def test_a_missing_virtiofsd_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtiofsd, "PLACES", ("/nowhere/virtiofsd",))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="virtiofsd is not installed") as caught:
        Share.parse(f"{tmp_path}:tag").check()
    assert "apt install virtiofsd" in caught.value.hint
    assert "apt install qemu-system-common" in caught.value.hint
    program = tmp_path / "virtiofsd"
    program.touch(0o755)
    assert virtiofsd.find() == str(program), "PATH comes first"


# --- command lines --------------------------------------------------------------------------------------

OLD, NEW, NEWEST = "-o source=PATH", "--shared-dir <shared-dir>", "--shared-dir <shared-dir> --readonly"


def test_both_programs_are_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtiofsd, "root_is_initial", lambda: False)
    assert virtiofsd.command("v", OLD, 9, "/d,e", False, None, True) == [
        "v", "-f", "--fd=9", "-o", r"source=/d\,e", "-o", "sandbox=namespace",
    ]  # fmt: skip
    assert virtiofsd.command("v", NEW, 9, "/d,e", False, None, True) == [
        "v", "--fd=9", "--shared-dir=/d,e", "--sandbox=namespace",
    ]  # fmt: skip
    assert virtiofsd.command("v", NEWEST, 9, "/d", True, "none", False)[-2:] == [
        "--sandbox=none",
        "--readonly",
    ]


def test_what_has_no_read_only_mode_gets_a_read_only_view() -> None:
    for usage in (OLD, NEW):
        line = virtiofsd.command("v", usage, 9, "/d", True, "chroot", True)
        assert line[:3] == [sys.executable, "-I", "-S"]
        assert line[3].endswith("read_only.py") and line[4:6] == ["/d", "v"]
    with pytest.raises(HostError, match="too old to share read-only for a user"):
        virtiofsd.command("v", NEW, 9, "/d", True, None, False)


def test_the_initial_ramfs_has_no_namespace_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtiofsd, "root_is_initial", lambda: True)
    assert "sandbox=chroot" in virtiofsd.command("v", OLD, 9, "/d", False, None, True)
    assert "sandbox=namespace" in virtiofsd.command("v", OLD, 9, "/d", False, "namespace", True)


def test_sandboxes_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="always has a sandbox"):
        virtiofsd.command("v", OLD, 9, "/d", False, "none", True)
    with pytest.raises(UsageError, match="cannot chroot"):
        virtiofsd.command("v", NEW, 9, "/d", False, "chroot", False)


def test_a_user_without_subordinate_ids_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtiofsd, "_has_subordinate_ids", lambda: False)
    monkeypatch.setattr(os, "getgroups", lambda: [100])
    with pytest.raises(HostError, match="newuidmap") as caught:
        virtiofsd.command("v", OLD, 9, "/d", False, None, False)
    assert "apt install uidmap" in caught.value.hint
    monkeypatch.setattr(os, "getgroups", list)
    line = virtiofsd.command("v", OLD, 9, "/d", False, None, False)
    assert line[1:5] == ["--user", "--map-root-user", "--", "v"] and line[-1] == "--rlimit-nofile=0"


# --- the program ----------------------------------------------------------------------------------------

EROFS = 30


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file, for a virtiofsd that can run here."""
    try:
        virtiofsd.find()
    except HostError as error:
        cannot(f"{error.message}: {error.hint}")
    if os.geteuid() != 0:
        pytest.skip("how virtiofsd runs for users is tested by root")
    folder = tmp_path / "shared, all"
    folder.mkdir()
    (folder / "hello").write_text("from the host")
    yield folder


def create(share: Path, options: str = "") -> Fs:
    text = str(share).replace(",", ",,")
    made = Share.parse(f"{text}:data{options}")
    made.check()
    device = made.create(Host("share0", None, None, [], print))  # type: ignore[arg-type]
    assert isinstance(device, Fs)
    return device


@pytest.mark.parametrize("options", ["", ",sandbox=chroot"])
def test_a_shared_directory_both_ways(share: Path, options: str) -> None:
    device = create(share, options)
    with Driver(device, shared=True) as driver:
        assert device.DEVICE_ID == features.FS
        assert driver.config(0, 40) == b"data".ljust(36, b"\0") + struct.pack("<I", 1)
        guest = Guest(driver)
        assert guest.read(b"hello") == b"from the host"
        assert guest.mkdir(b"made") == 0
        assert (share / "made").is_dir()
        (share / "hello").write_text("changed")
        assert guest.read(b"hello") == b"changed"


def test_a_read_only_share_refuses_writes_and_only_there(share: Path) -> None:
    with Driver(create(share, ",ro"), shared=True) as driver:
        guest = Guest(driver)
        assert guest.read(b"hello") == b"from the host"
        assert guest.mkdir(b"made") == EROFS
        (share / "here").mkdir()
    assert sorted(path.name for path in share.iterdir()) == ["hello", "here"]
    assert str(share) not in Path("/proc/self/mountinfo").read_text()


def test_a_virtiofsd_that_dies_marks_the_device(share: Path) -> None:
    device = create(share)
    with Driver(device, shared=True) as driver:
        Guest(driver)
        daemon = device._daemon
        assert daemon is not None
        os.kill(daemon.pid, 9)
        daemon._process.wait()
        driver.wait(0, 0.1)
        for _ in range(100):
            if driver.needs_reset:
                break
            driver.wait(0, 0.1)
        (note,) = driver.notes
        assert note.startswith("share0: virtiofsd closed the connection; it ended by signal 9")


def test_a_virtiofsd_that_does_not_start_says_why(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        virtiofsd, "command", lambda *_: ["sh", "-c", "echo unshare: Operation not permitted >&2; exit 1"]
    )
    with pytest.raises(
        HostError, match=r"share .*: virtiofsd .*status 1: unshare: Operation not permitted"
    ) as caught:
        create(share)
    assert "sandbox=chroot" in caught.value.hint


USER = """
import sys
sys.path[:0] = sys.argv[1:3]
from virtio_driver import Driver
from fuse_guest import Guest
from pyvmm.devices.virtio import virtiofsd
from pyvmm.devices.virtio.fs import Fs
with Driver(Fs("share0", "tag", virtiofsd.start(sys.argv[3], read_only=sys.argv[4] == "ro")), shared=True) as driver:
    guest = Guest(driver)
    print(guest.read(b"hello"), guest.mkdir(b"made"))
"""


def test_a_user_namespace_is_root_enough(share: Path) -> None:
    """With no groups to drop, a namespace of one user does; the files the guest's root makes are the user's."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    setpriv = shutil.which("setpriv")
    if python is None or setpriv is None:
        pytest.skip("there is no python3 or setpriv for everybody")
    if "--shared-dir" in virtiofsd._usage(virtiofsd.find()):
        pytest.skip("this virtiofsd makes its own namespace")
    for parent in (share, *list(share.parents)[:-2]):
        parent.chmod(0o755)
    os.chown(share, 65534, 65534)
    user = [setpriv, "--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set=-all"]
    if subprocess.run(
        [*user, "unshare", "--user", "--map-root-user", "true"], capture_output=True, check=False
    ).returncode:
        pytest.skip("users can make no user namespaces here")
    root = Path(virtiofsd.__file__).parents[3]
    probe = [*user, python, "-c", "import sys; assert sys.version_info >= (3, 11)"]
    if subprocess.run(probe, capture_output=True, check=False, cwd="/").returncode:
        pytest.skip("no user can run Python 3.11 here")
    done = subprocess.run(
        [*user, python, "-c", USER, root, root / "tests" / "unit", share, "rw"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "b'from the host' 0\n", done.stderr
    assert (share / "made").stat().st_uid == 65534
