"""The lab itself: files, streams, signals and real KVM in an emulated host, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pyvmm import cache
from pyvmm.lab import CommandNotStarted, Lab, image, is_available, newer, requirements, state
from pyvmm.lab.platforms import platform

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = [pytest.mark.boot, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A started lab, for many commands."""
    if not is_available():
        missing = ", ".join(name for name, present, _ in requirements() if not present)
        if os.environ.get("CI"):
            pytest.fail(f"CI must be able to run the lab: {missing} missing")
        pytest.skip(f"the lab needs {missing}")
    with Lab(report=lambda text: print(f"lab: {text}", file=sys.stderr)) as started:
        yield started


class Ran:
    """A command that ran in the lab: status, stdout, stderr."""

    def __init__(self, lab: Lab, argv: Sequence[str], stdin: bytes | None = None, **options: object) -> None:
        source = None
        if stdin is not None:
            source = os.memfd_create("stdin")
            os.write(source, stdin)
            os.lseek(source, 0, os.SEEK_SET)
        out, err = os.memfd_create("stdout"), os.memfd_create("stderr")
        self.status = lab.run(argv, stdin=source, stdout=out, stderr=err, **options)  # type: ignore[arg-type]
        self.stdout = os.pread(out, 1 << 24, 0)
        self.stderr = os.pread(err, 1 << 24, 0)
        for descriptor in (out, err, *([] if source is None else [source])):
            os.close(descriptor)


def start_cli(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    """``pyvmm lab ...`` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "pyvmm", "lab", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options,  # type: ignore[call-overload]
    )  # fmt: skip


def children(pid: int) -> list[int]:
    """The QEMU processes that ``pid`` started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def await_end(pids: Sequence[int]) -> bool:
    """Whether all these processes are gone within a few seconds."""
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_streams_stay_apart_and_the_status_comes_through(lab: Lab) -> None:
    ran = Ran(lab, ["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (ran.status, ran.stdout, ran.stderr) == (7, b"out\n", b"err\n")
    assert Ran(lab, ["true"]).status == 0
    assert Ran(lab, ["sh", "-c", "kill -KILL $$"]).status == 137


def test_a_megabyte_goes_in_and_comes_back_unchanged(lab: Lab) -> None:
    data = os.urandom(1 << 20)
    ran = Ran(lab, ["cat"], stdin=data)
    assert ran.status == 0
    assert hashlib.sha256(ran.stdout).digest() == hashlib.sha256(data).digest()


def test_kvm_is_real(lab: Lab, tmp_path: Path) -> None:
    program = tmp_path / "kvm.py"
    program.write_text(
        "import fcntl, os\nkvm = os.open('/dev/kvm', os.O_RDWR)\n"
        "print(fcntl.ioctl(kvm, 0xAE00), 'svm' in open('/proc/cpuinfo').read())\n"
    )
    assert Ran(lab, ["python3", str(program)]).stdout == b"12 True\n"


def test_the_project_is_there_with_its_dependency(lab: Lab) -> None:
    ran = Ran(lab, ["pyvmm", "--version"])
    assert (ran.status, ran.stderr) == (0, b"")
    assert ran.stdout.startswith(b"pyvmm ")
    ran = Ran(lab, ["python3", "-c", "import elftools, loader, pyvmm; print(pyvmm.__file__)"])
    assert ran.stdout.decode() == f"{ROOT}/pyvmm/__init__.py\n"
    assert Ran(lab, [sys.executable, "-c", "import pyvmm"]).status == 0, "this Python's own path"


def test_files_have_the_same_paths_there(
    lab: Lab, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "in").write_bytes(os.urandom(3_000_000))
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_text("deep\n")
    (tmp_path / "result").write_text("old")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "log"
    script = (
        "pwd; cat folder/deep/file; sha256sum < in; mkdir -p made/empty; cp in made/copy; echo new > result; "
        f"echo log > {elsewhere}"
    )
    out = ["made", "result", "absent", str(elsewhere)]
    ran = Ran(lab, ["sh", "-c", script], cwd=str(tmp_path), carry_in=["folder", "in"], carry_out=out)
    digest = hashlib.sha256((tmp_path / "in").read_bytes()).hexdigest()
    assert ran.stdout.decode().split() == [str(tmp_path), "deep", digest, "-"]
    assert (tmp_path / "made" / "copy").read_bytes() == (tmp_path / "in").read_bytes()
    assert (tmp_path / "made" / "empty").is_dir()
    assert (tmp_path / "result").read_text() == "new\n"
    assert elsewhere.read_text() == "log\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in", "made", "result"]


def test_every_lab_has_its_own_randomness_and_the_hosts_time(lab: Lab) -> None:
    script = ["python3", "-c", "import os, time; print(os.urandom(16).hex(), time.time())"]
    first = Ran(lab, script).stdout.split()
    with Lab() as other:
        second = Ran(other, script).stdout.split()
    assert first[0] != second[0]
    assert abs(float(second[1]) - time.time()) < 30


@pytest.mark.usefixtures("lab")
def test_what_is_not_there_to_be_carried_out_is_said(tmp_path: Path) -> None:
    process = start_cli("--out", str(tmp_path / "absent"), "--", "true")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.decode() == f"pyvmm: lab: {tmp_path}/absent was not there to be carried out\n"


def test_what_a_command_leaves_running_ends_with_it(lab: Lab) -> None:
    started = time.monotonic()
    assert Ran(lab, ["sh", "-c", "sleep 1000 & echo started"]).stdout == b"started\n"
    assert time.monotonic() - started < 20
    assert b"sleep" not in Ran(lab, ["ps"]).stdout


def test_a_command_that_is_not_there_gives_127(lab: Lab) -> None:
    with pytest.raises(CommandNotStarted, match="cannot run no-such-command") as caught:
        Ran(lab, ["no-such-command"])
    assert caught.value.status == 127


def test_a_timeout_ends_the_command_and_the_lab_goes_on(lab: Lab) -> None:
    started = time.monotonic()
    assert Ran(lab, ["sleep", "1000"], timeout=0.5).status == 124
    assert lab.timed_out
    assert time.monotonic() - started < 20
    assert Ran(lab, ["true"]).status == 0


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_command_and_nothing_stays(number: int) -> None:
    script = "trap 'echo caught; exit 3' INT TERM; echo ready; while :; do sleep 0.1; done"
    process = start_cli("--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    machines = children(process.pid)
    assert machines
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == (b"caught\n", 3)
    assert await_end(machines)


@pytest.mark.usefixtures("lab")
def test_a_killed_pyvmm_takes_the_lab_along() -> None:
    process = start_cli("--", "sh", "-c", "echo ready; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    machines = children(process.pid)
    assert machines
    process.kill()
    process.communicate(timeout=60)
    assert await_end(machines)


@pytest.mark.usefixtures("lab")
def test_an_exception_in_the_callers_code_leaves_no_process() -> None:
    with pytest.raises(KeyboardInterrupt), Lab() as other:
        machine = other.pid
        raise KeyboardInterrupt
    assert machine is not None
    assert await_end([machine])


@pytest.mark.usefixtures("lab")
def test_on_a_terminal_the_command_has_a_terminal() -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(
            sys.executable,
            [sys.executable, "-m", "pyvmm", "lab", "--", "sh", "-c", "tty; stty size; read x; echo [$x]"],
        )
    shown = b""
    deadline = time.monotonic() + 60
    sent = False
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        shown += data
        if b"24 80" in shown and not sent:
            os.write(terminal, b"typed\r")
            sent = True
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert b"/dev/pts/0" in shown
    assert b"[typed]" in shown


@pytest.mark.usefixtures("lab")
def test_a_lab_that_dies_is_an_error_that_says_so() -> None:
    process = start_cli("--", "sh", "-c", "echo b > /proc/sysrq-trigger; sleep 100")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 125
    lines = [line for line in err.decode().splitlines() if not line.startswith("lab console:")]
    assert lines[0].startswith("pyvmm: the lab ended unexpectedly")
    assert lines[1].startswith("hint: ")


def test_a_damaged_saved_state_is_replaced(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = image.find("x86_64")
    assert base is not None
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    folder = Path(cache.make("lab", "x86_64"))
    (folder / os.path.basename(base.directory)).symlink_to(base.directory)
    linked = image.find("x86_64")
    assert linked is not None
    machine = platform("x86_64")
    name = state.Configuration(machine, linked, newer.find(machine, print, print), 1, 768).name()
    (folder / name).mkdir()
    (folder / name / state.DEVICES).write_bytes(b"nonsense")
    (folder / name / state.MEMORY).write_bytes(b"")
    os.truncate(folder / name / state.MEMORY, 768 << 20)

    notes: list[str] = []
    with Lab(cpus=1, memory_mib=768, report=notes.append, verbose=True) as other:
        assert Ran(other, ["nproc"]).stdout == b"1\n"
    assert any(note.startswith("the saved state does not work") for note in notes)
    notes.clear()
    with Lab(cpus=1, memory_mib=768, report=notes.append, verbose=True) as other:
        assert Ran(other, ["nproc"]).stdout == b"1\n"
    assert not any("saved state" in note or "first time" in note for note in notes)
