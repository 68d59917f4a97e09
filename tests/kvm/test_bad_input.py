"""Whatever is wrong with what a user gives: one line that says what and why, a hint, exit code 125, no traceback."""

from __future__ import annotations

import gzip
import os
import re
import stat

import pytest
from conftest import run_pyvmm

ELF_ARM64 = bytes.fromhex(
    "7f454c460201010000000000000000000200b7000100000000004000000000004000000000000000"
) + bytes(200)
ARM64_IMAGE = bytes(56) + b"ARM\x64" + bytes(4096)


def refused(*arguments, **keywords) -> str:
    """Run ``pyvmm boot``, which must refuse; returns what it said."""
    done = run_pyvmm("boot", *arguments, timeout=30, **keywords)
    assert done.returncode == 125, done
    lines = done.stderr.splitlines()
    assert lines and lines[0].startswith("pyvmm: "), done
    assert len(lines) == 2 and lines[1].startswith("hint: "), done
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def image(tmp_path):
    def make(data: bytes, name: str = "image"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return make


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\0", "not a kernel"),
        (b"hello, I am a text\n" * 20, "text"),
        (os.urandom(4096).replace(b"\x7fELF", b"xELF"), "not a kernel"),
        (ELF_ARM64, "aarch64"),
        (ARM64_IMAGE, "aarch64|arm64"),
        (gzip.compress(b"x" * 1000), "unpacked"),
        (b"070701" + b"0" * 200, "cpio"),
        (b"MZ" + bytes(600), "not a kernel|PE|EFI"),
    ],
)
def test_not_a_kernel_for_this_machine(image, data, words):
    assert re.search(words, refused(image(data)))


def test_missing_file(tmp_path):
    assert "no such file" in refused(tmp_path / "nothing").lower()


def test_directory(tmp_path):
    assert "directory" in refused(tmp_path)


def test_no_arguments():
    assert "kernel" in refused()


def test_truncated_elf(guests, image):
    data = (guests / "hello.elf").read_bytes()
    assert refused(image(data[:300]))


def test_truncated_everywhere(guests, image):
    """Cut at any place, the file is refused or boots; nothing else may happen."""
    data = (guests / "four.elf").read_bytes()
    for size in (1, 4, 63, 64, 65, 120, 500, 1000, 4096):
        path = image(data[:size])
        done = run_pyvmm("boot", path, "--timeout", "5", "--no-input", timeout=30)
        assert done.returncode in (125, 122, 124, 0), done
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", ["0", "1M", "4097k", "600G", "lots", "-5M", ""])
def test_memory(guests, size):
    refused(guests / "hello.elf", f"--memory={size}")


@pytest.mark.parametrize(
    "option",
    [
        ["--protocol", "multiboot"],
        ["--protocol", "linux32"],
        ["--timeout", "soon"],
        ["--timeout", "0"],
        ["--expect", ""],
        ["--cpus", "0"],
        ["--cpus", "many"],
        ["--poison", "300"],
        ["--no-such-option"],
        ["--verify", "--initrd", "x"],
        ["--verify", "--expect", "x"],
        ["--result", "/nonexistent/r.json"],
        ["--console-log", "/nonexistent/log"],
        ["--initrd", "/nonexistent/initrd"],
        ["--cmdline", "x" * 3000],
        ["--cmdline", "two\nlines"],
        ["another argument"],
    ],
)
def test_options(guests, option):
    refused(guests / "hello.elf", *option)


def test_initrd_that_does_not_fit(guests, tmp_path):
    path = tmp_path / "initrd"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert "memory" in refused(guests / "hello.elf", "--initrd", path, "--memory", "64M")


def test_empty_initrd(guests, image):
    assert "empty" in refused(guests / "hello.elf", "--initrd", image(b"", "initrd"))


def test_fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "pipe" in refused(tmp_path / "fifo")


@pytest.mark.parametrize("option", ["--console-log", "--result"])
@pytest.mark.parametrize("over", ["kernel", "initrd"])
def test_output_over_input(guests, tmp_path, option, over):
    files = {"kernel": tmp_path / "kernel.elf", "initrd": tmp_path / "initrd"}
    files["kernel"].write_bytes((guests / "four.elf").read_bytes())
    files["initrd"].write_bytes(b"initrd")
    before = files[over].read_bytes()
    refused(files["kernel"], "--initrd", files["initrd"], option, files[over])
    assert files[over].read_bytes() == before


def test_console_log_to_a_pipe_that_nobody_reads(guests, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "nobody reads" in refused(guests / "four.elf", "--console-log", tmp_path / "fifo")


def test_escape_sequences_are_not_passed_on(tmp_path):
    name = tmp_path / "a\x1b[31mb"
    assert "\x1b" not in refused(name)


def test_expected_text_that_is_no_utf_8(guests):
    done = run_pyvmm("boot", guests / "four.elf", "--expect", b"\xff".decode("utf-8", "surrogateescape"))
    assert done.returncode == 121, done


def test_result_file_has_the_error(tmp_path):
    result = tmp_path / "r.json"
    refused(tmp_path / "nothing", "--result", result)
    text = result.read_text()
    assert '"outcome": "error"' in text
    assert '"exit_code": 125' in text


def test_no_kvm(guests):
    """Without /dev/kvm (in a mount namespace that hides it) the hint says what to do."""
    import subprocess
    import sys

    from conftest import ROOT

    script = 'mount -t tmpfs tmpfs /dev 2>/dev/null || exit 77; exec "$0" -m pyvmm boot "$1"'
    done = subprocess.run(
        ["unshare", "-m", "/bin/sh", "-c", script, sys.executable, str(guests / "hello.elf")],
        capture_output=True, text=True, check=False, timeout=30, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode in (1, 77) and "unshare" in done.stderr + str(done.returncode == 77):
        pytest.skip("this host allows no mount namespaces")
    assert done.returncode == 125
    assert "/dev/kvm" in done.stderr
    assert "hint: " in done.stderr


def test_usage_of_the_command_itself():
    assert run_pyvmm("no-such-verb").returncode == 125
    done = run_pyvmm("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert b"doctor" in done.stdout
    assert run_pyvmm("boot", "--help").returncode == 0


def test_unwritable_result_leaves_no_temporary_file(guests, tmp_path):
    (tmp_path / "r.json").mkdir()
    refused(guests / "hello.elf", "--result", tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert stat.S_ISDIR((tmp_path / "r.json").stat().st_mode)
