"""``pyvmm mkinitramfs``: what is in it, byte for byte the same, and what is said if it cannot be made."""

from __future__ import annotations

import gzip
import os
import pty
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_pyvmm
from test_modules import put

from pyvmm import programs
from pyvmm.busybox import applets
from pyvmm.cli import main
from pyvmm.errors import UsageError
from pyvmm.programs import requirements

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not here")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
NAMES = ["[", "[[", "cat", "insmod", "sh", "zcat"]


class Packed:
    """An unpacked archive: by path, the mode and the contents."""

    def __init__(self, data: bytes) -> None:
        self.modes: dict[str, int] = {}
        self.data: dict[str, bytes] = {}
        at = 0
        while True:
            assert data[at : at + 6] == b"070701"
            fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
            name = data[at + 110 : at + 110 + fields[11] - 1].decode()
            at = -(-(at + 110 + fields[11]) // 4) * 4
            if name == "TRAILER!!!":
                break
            self.modes[name] = fields[1]
            self.data[name] = data[at : at + fields[6]]
            at = -(-(at + fields[6]) // 4) * 4

    def unpack(self, folder: Path) -> None:
        """Into a directory, as far as a test needs it."""
        for name, mode in self.modes.items():
            path = folder / name
            if stat.S_ISDIR(mode):
                path.mkdir(parents=True, exist_ok=True)
            elif stat.S_ISLNK(mode):
                path.symlink_to(os.fsdecode(self.data[name]))
            elif stat.S_ISREG(mode):
                path.write_bytes(self.data[name])
                path.chmod(mode & 0o777)


def make(*arguments: object) -> Packed:
    """What pyvmm mkinitramfs makes of them, without a complaint."""
    done = run_pyvmm("mkinitramfs", "-o", "-", *arguments)
    assert done.returncode == 0, done
    return Packed(done.stdout)


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A file that looks like a static busybox."""
    path = tmp_path / "my-busybox"
    program = compile_static(tmp_path)
    path.write_bytes(program + b"BusyBox v1.36\0\0" + "".join(f"{name}\0" for name in NAMES).encode() + b"\0")
    return path


def compile_static(folder: Path) -> bytes:
    """The smallest ELF file: a header of nothing."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00\x01\x00\x00\x00" + bytes(24)
    return head + bytes(4) + b"\x40\x00\x38\x00\x00\x00\x40\x00\x00\x00\x00\x00"


def test_busybox_with_its_applets_and_an_init(busybox: Path) -> None:
    packed = make("--busybox", busybox)
    assert packed.data["bin/busybox"] == busybox.read_bytes()
    assert {name for name in packed.modes if packed.data[name] == b"busybox"} == {
        f"bin/{name}" for name in NAMES
    }
    assert packed.modes["init"] == stat.S_IFREG | 0o755
    assert stat.S_ISCHR(packed.modes["dev/console"])
    assert packed.data["sbin"] == b"bin"


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not here")
def test_the_applets_are_those_that_busybox_lists() -> None:
    path = shutil.which("busybox")
    assert path is not None
    listed = subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert applets(Path(path).read_bytes()) == sorted(listed)


def test_a_file_of_an_applets_name_takes_its_place(busybox: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    packed = make("--busybox", busybox, "--file", f"{tmp_path}/mine:/usr/bin/cat")
    assert packed.data["bin/cat"] == b"mine"
    assert "usr/bin/cat" not in packed.modes


def tree(folder: Path, names: list[str], umask: int, time: int) -> None:
    """The same files, made otherwise."""
    before = os.umask(umask)
    try:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/none\n{name}\n" if name == "run" else name)
            path.chmod((0o777 if name == "run" else 0o666) & ~umask)
            os.utime(path, (time, time))
        (folder / "link").symlink_to("run")
    finally:
        os.umask(before)


@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
def test_the_same_files_give_the_same_bytes(tmp_path: Path, busybox: Path, compress: str) -> None:
    put(tmp_path, "ko/low.ko")
    put(tmp_path, "ko/top.ko", "low")
    outputs = []
    names = ["run", "z", "a/b", "a/c", "m"]
    for number, (order, umask) in enumerate([(names, 0o022), (names[::-1], 0o002)]):
        folder, output = tmp_path / f"tree{number}", tmp_path / f"out{number}"
        tree(folder, order, umask, 1_000_000_000 * (number + 1))
        options = [["--file", f"{folder}/{name}:/files/{name}"] for name in order] + [
            ["--dir", f"{folder}:/d"]
        ]
        argv = [sys.executable, "-m", "pyvmm", "mkinitramfs", "-o", output, "--busybox", busybox, "--no-libs"]
        argv += ["--modules", tmp_path / "ko", "--module", "top", "--compress", compress]
        done = subprocess.run(
            [str(each) for each in (*argv, *(word for option in options for word in option))],
            umask=umask, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(number)}, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0
        os.utime(busybox)
        outputs.append(output.read_bytes())
        assert stat.S_IMODE(output.stat().st_mode) == 0o666 & ~umask
    assert outputs[0] == outputs[1]
    if compress == "gzip":
        packed = Packed(gzip.decompress(outputs[0]))
        assert packed.data["d/link"] == b"run"
        assert packed.modes["d/run"] & 0o777 == 0o755
    assert not list(tmp_path.glob("*.tmp"))


def test_zstd_is_zstd(tmp_path: Path) -> None:
    zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    (tmp_path / "a").write_text("x" * 5000)
    done = run_pyvmm("mkinitramfs", "-o", "-", "--init", tmp_path / "a", "--compress", "zstd")
    assert Packed(zstd.decompress(done.stdout)).data["init"] == b"x" * 5000


def test_modules_are_listed_in_the_order_of_loading(tmp_path: Path, busybox: Path) -> None:
    put(tmp_path, "ko/low.ko.gz")
    put(tmp_path, "ko/top.ko", "low")
    packed = make("--busybox", busybox, "--modules", tmp_path / "ko", "--module", "top", "--module", "low")
    assert packed.data["modules/order"] == b"low.ko\ntop.ko\n"
    assert packed.data["modules/low.ko"].startswith(b"\x7fELF")


def test_the_agent_loads_them_itself(tmp_path: Path) -> None:
    if not (ROOT / "pyvmm" / "data" / "agent-x86_64").exists():
        pytest.skip("the agent was not built")
    for name in ("virtio_mmio", "virtio_console", "dummy"):
        put(tmp_path, f"{name}.ko")
    packed = make("--agent", "--modules", tmp_path, "--module", "dummy")
    listed = packed.data["pyvmm/modules"].decode().split()
    assert listed == [f"/pyvmm/modules.d/{name}.ko" for name in ("virtio_mmio", "virtio_console", "dummy")]


def build(source: str, output: Path, *options: object) -> Path:
    """Compile C; the path."""
    output.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["gcc", "-x", "c", "-", *map(str, options), "-o", str(output)], input=source, text=True, check=True
    )
    return output


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program with a library that it finds from where it lies itself, which needs another."""
    lib = tmp_path / "host/lib"
    build("int low(void) { return 40; }", lib / "liblow.so", "-shared", "-fPIC")
    build(
        "int low(void); int mid(void) { return low() + 2; }", lib / "libmid.so", "-shared", "-fPIC", f"-L{lib}",
        "-Wl,-rpath,$ORIGIN", "-llow",
    )  # fmt: skip
    return build(
        '#include <stdio.h>\nint mid(void); int main(void) { printf("%d\\n", mid()); return 0; }',
        tmp_path / "host/bin/program", f"-L{lib}", "-Wl,-rpath,$ORIGIN/../lib", "-lmid", f"-Wl,-rpath-link,{lib}",
    )  # fmt: skip


@needs_gcc
@needs_root
@pytest.mark.parametrize("merged", [False, True])
def test_programs_bring_all_that_they_need(tmp_path: Path, program: Path, merged: bool) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexec /opt/x/program\n")
    script.chmod(0o755)
    files = ["--file", f"{program}:/opt/x/", "--file", f"{script}:/script"]
    if merged:  # a directory of its own where /lib is a link
        skeleton = tmp_path / "skeleton"
        (skeleton / "usr/lib").mkdir(parents=True)
        (skeleton / "lib").symlink_to("usr/lib")
        files += ["--dir", f"{skeleton}:/"]
    packed = make(*files)
    assert "opt/lib/libmid.so" in packed.modes
    assert any(name.startswith("usr/lib/") for name in packed.modes) == merged
    packed.unpack(tmp_path / "root")
    (tmp_path / "root" / "proc").mkdir()  # $ORIGIN is what /proc/self/exe says
    enter = 'mount -t proc proc "$0/proc" && exec chroot "$0" /script'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", enter, tmp_path / "root"], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("42\n", 0), done


@needs_gcc
def test_a_library_that_is_missing_is_named(tmp_path: Path, program: Path) -> None:
    library = program.parent.parent / "lib" / "liblow.so"
    kept = library.rename(tmp_path / "kept")
    done = run_pyvmm("mkinitramfs", "-o", tmp_path / "out", "--file", f"{program}:/p")
    assert (done.returncode, done.stderr.count("\n")) == (125, 2), done
    assert "libmid.so needs liblow.so" in done.stderr
    assert "--no-libs" in done.stderr
    assert not (tmp_path / "out").exists()
    assert "lib/liblow.so" in make("--file", f"{program}:/bin/p", "--file", f"{kept}:/lib/liblow.so").modes
    assert set(make("--file", f"{program}:/p", "--no-libs").modes) == {"p"}


@needs_gcc
def test_the_rpath_of_a_program_is_for_its_libraries_too(tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    build("int low(void) { return 1; }", lib / "liblow.so", "-shared", "-fPIC")
    build(
        "int low(void); int mid(void) { return low(); }",
        lib / "libmid.so",
        "-shared",
        "-fPIC",
        f"-L{lib}",
        "-llow",
    )
    source = "int mid(void); int main(void) { return mid(); }"
    options = [f"-L{lib}", "-lmid", f"-Wl,-rpath-link,{lib}", f"-Wl,-rpath,{lib}"]
    old = build(source, tmp_path / "old", *options, "-Wl,--disable-new-dtags")
    assert f"{lib}/liblow.so" in requirements(str(old), "/old")
    new = build(source, tmp_path / "new", *options, "-Wl,--enable-new-dtags")
    with pytest.raises(UsageError, match=r"libmid\.so needs liblow\.so"):
        requirements(str(new), "/new")


@needs_gcc
def test_libraries_for_another_machine_are_passed_over(program: Path, tmp_path: Path) -> None:
    lib = program.parent.parent / "lib"
    data = bytearray((lib / "libmid.so").read_bytes())
    data[18:20] = b"\xb7\0"  # EM_AARCH64
    build(
        "int mid(void); int main(void) { return mid(); }", tmp_path / "p", f"-L{lib}", "-lmid",
        f"-Wl,-rpath,{tmp_path}/other:{lib}", f"-Wl,-rpath-link,{lib}",
    )  # fmt: skip
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "libmid.so").write_bytes(data)
    found = requirements(str(tmp_path / "p"), "/p")
    assert f"{lib}/libmid.so" in found
    assert f"{tmp_path}/other/libmid.so" not in found


@needs_gcc
def test_a_library_by_ld_so_conf_goes_where_the_guest_finds_it(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more.conf").write_text(f"{program.parent.parent}/lib  # here\n")
    (tmp_path / "ld.so.conf").write_text("include *.conf\n")
    plain = build(
        "int mid(void); int main(void) { return mid(); }", tmp_path / "p", f"-L{program.parent.parent}/lib", "-lmid",
        f"-Wl,-rpath-link,{program.parent.parent}/lib",
    )  # fmt: skip
    with pytest.raises(UsageError):
        requirements(str(plain), "/p")
    monkeypatch.setattr(programs, "_CONFIGURATION", str(tmp_path / "ld.so.conf"))
    found = requirements(str(plain), "/p")
    loader = os.path.realpath(next(path for path in found if "ld-" in path))
    assert f"{os.path.dirname(loader)}/libmid.so" in found


@needs_gcc
def test_programs_in_a_directory_bring_libraries_unless_it_has_its_own_loader(
    tmp_path: Path, program: Path
) -> None:
    folder = program.parent
    packed = make("--dir", f"{folder}:/tests")
    loader = next(path for path in requirements(str(program), "/x") if "ld-" in path)
    assert loader[1:] in packed.modes
    (folder / loader[1:]).parent.mkdir(parents=True)
    (folder / loader[1:]).write_bytes(b"own")
    assert make("--dir", f"{folder}:/").data[loader[1:]] == b"own"
    assert "lib/libmid.so" not in make("--dir", f"{folder}:/").modes


def test_damaged_programs_are_said_to_be(tmp_path: Path) -> None:
    data = Path(os.path.realpath("/bin/sh")).read_bytes()
    for size in (5, 17, 70, 500, 900):
        (tmp_path / "cut").write_bytes(data[:size])
        done = run_pyvmm("mkinitramfs", "-o", tmp_path / "out", "--init", tmp_path / "cut")
        assert done.returncode == 125, (size, done)
        assert "internal" not in done.stderr, (size, done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to put"),
        (["--init", "absent"], "absent: No such file"),
        (["--init", "a", "--agent"], "both give /init"),
        (["--file", "a:/x", "--file", "b:/x"], "/x in the initramfs would be both a and b"),
        (["--file", "folder:/x"], "is a directory"),
        (["--file", "../a"], "not said where"),
        (["--file", "a:/../b"], "'..'"),
        (["--file", "/dev/null:/x"], "no regular file"),
        (["--dir", "folder"], "not said where"),
        (["--dir", "absent:/"], "absent: No such file"),
        (["--dir", "a:/"], "a: Not a directory"),
        (["--dir", ".:/"], "part of itself"),
        (["--busybox", "a"], "no busybox"),
        (["--busybox", "absent"], "no such file"),
        (["--module", "ext4"], "of which kernel"),
        (["--modules", "folder", "--module", "ext4"], "no modules in it"),
        (["--kernel", "a", "--module", "ext4"], "a"),
        (["--compress", "lzma"], "invalid choice"),
        (["--init", "script"], "needs /bin/absent"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_line_and_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(name).write_text(name)
    Path("script").write_text("#!/bin/absent\n")
    Path("folder").mkdir()
    assert main(["mkinitramfs", "-o", "out", *arguments]) == 125
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0]
    assert len(lines) == 2 and lines[1].startswith("hint: "), lines
    assert sorted(os.listdir()) == ["a", "b", "folder", "script"]


def test_a_terminal_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    terminal, other = pty.openpty()
    try:
        for output in ("-", os.ttyname(other)):
            done = subprocess.run(
                [sys.executable, "-m", "pyvmm", "mkinitramfs", "-o", output, "--init", tmp_path / "a"],
                stdout=other, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert done.returncode == 125
            assert b"terminal" in done.stderr
    finally:
        os.close(terminal)
        os.close(other)


def test_the_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100_000))
    output = tmp_path / "out"
    output.write_text("as it was")
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 50; trap "" XFSZ; exec "$@"', "sh", sys.executable, "-m", "pyvmm", "mkinitramfs",
         "-o", output, "--init", tmp_path / "a"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 125, done
    assert "cannot write" in done.stderr
    assert output.read_text() == "as it was"
    assert sorted(os.listdir(tmp_path)) == ["a", "out"]


def test_without_an_init_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    done = run_pyvmm("mkinitramfs", "-o", "-", "--file", f"{tmp_path}/a:/x")
    assert done.returncode == 0
    assert "no /init" in done.stderr
    assert Packed(done.stdout).data == {"x": b"a"}
