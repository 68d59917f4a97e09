"""Commands under stock kernels by the agent: ``Machine.run`` and ``pyvmm run``, with the host's own system or a disk as
the root, and what is said of a kernel that panics, hangs, complains or has no driver."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import errno
import json
import os
import subprocess
import time
import warnings
from collections.abc import Callable

import pytest
from guest_initrd import busybox
from lab_boot import ATTEMPTS, X86_64, kernel, needs_lab, no_lab_stays, platform

import pyvmm
import pyvmm.cli
from pyvmm import initramfs, splats
from pyvmm.agent import CannotRun, agent_entries

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]
x86_64 = pytest.mark.parametrize("platform", [X86_64], indirect=True, scope="module", ids=["x86_64"])

#: Seconds for a guest to start, and for a command in it; the lab is slow.
PATIENCE = 150.0


@pytest.fixture(scope="module")
def in_lab(platform) -> bool:
    """Whether the machines have to be in the lab."""
    return needs_lab(platform)


@pytest.fixture
def attempt(in_lab, platform) -> Callable[[Callable[[], None]], None]:
    """``attempt(test)`` runs ``test``; in the lab, again if the emulator may have lost the guest."""

    def attempt(test: Callable[[], None]) -> None:
        for number in range(ATTEMPTS):
            try:
                return test()
            except pyvmm.GuestError as error:
                if not (in_lab and platform.loses_guests) or number == ATTEMPTS - 1:
                    raise
                warnings.warn(f"booted again, the emulator may have lost the guest: {error}", stacklevel=2)
        raise AssertionError

    return attempt


@pytest.fixture
def run(in_lab, kernel, platform, capfd) -> Callable[..., tuple[int, str, str]]:
    """``run(*options, command=[...])`` is ``pyvmm run`` in this process, which keeps the lab: exit code and output."""

    def run(*options: object, command: list[str], retry: tuple[int, ...] = (122,)) -> tuple[int, str, str]:
        place = ["--lab"] if in_lab else []
        for _ in range(ATTEMPTS if in_lab and platform.loses_guests else 1):
            code = pyvmm.cli.main(["run", "-k", str(kernel), *place, *map(str, options), "--", *command])
            out, error = capfd.readouterr()
            if code not in retry:
                break
        return code, out, error

    return run


@pytest.fixture
def machine(in_lab, kernel, platform) -> Callable[..., pyvmm.Machine]:
    """A machine with the stock kernel, to be started."""

    def machine(**arguments) -> pyvmm.Machine:
        return pyvmm.Machine(
            kernel, cmdline=platform.quiet, memory="512M", lab=in_lab, expect_timeout=PATIENCE, **arguments
        )

    return machine


def test_the_hosts_own_system(machine, attempt, platform, tmp_path):
    """All that a command has, and what of the host's files it can change."""
    read, write = tmp_path / "read", tmp_path / "write"
    read.mkdir()
    write.mkdir()
    (read / "file").write_text("of the host\n")
    (write / "grows").write_text("first\n")

    def once() -> None:
        with machine(
            root="/", rodirs=[f"{read}:/mnt/read", "/:/mnt/host"], rwdirs=[f"{write}:/mnt/write"]
        ) as vm:
            vm.wait_ready()
            streams(vm, platform)
            failures(vm)
            files(vm)
            assert splats.find(vm.console.log) == [], vm.console.text
            if platform is X86_64:
                complaints(vm)
            end = vm.shut_down(PATIENCE)
            assert end.outcome == "shutdown", end
            assert "pyvmm-agent:" not in vm.console.text

    attempt(once)
    assert (read / "file").read_text() == "of the host\n"
    assert os.listdir(read) == ["file"]
    assert (write / "grows").read_text() == "first\nsecond\n"
    assert (write / "new" / "file").read_bytes() == b"\0\xff of the guest"


def streams(vm: pyvmm.Machine, platform) -> None:
    done = vm.run("uname -r -m; echo problem >&2; exit 3", timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (3, b"problem\n")
    assert done.text.startswith("6.1.") and done.text.endswith(platform.arch)
    data = os.urandom(1 << 20)
    begun = time.monotonic()
    done = vm.run(["cat"], input=data, timeout=PATIENCE)
    print(f"a mebibyte there and back: {time.monotonic() - begun:.1f} s")
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")
    data = data[:100_000]
    done = vm.run("cat >&2", input=data, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr == data) == (0, b"", True)
    done = vm.run('id -u; pwd; echo "$WORD"', env={"WORD": "two words"}, cwd="/usr/bin", timeout=PATIENCE)
    assert done.stdout in (b"0\n/usr/bin\ntwo words\n", b"0\n/bin\ntwo words\n")


def failures(vm: pyvmm.Machine) -> None:
    assert vm.run("kill -TERM $$", timeout=PATIENCE).returncode == -15
    for program, cwd, number in (
        ("/no/such", None, errno.ENOENT), ("/etc/passwd", None, errno.EACCES), ("true", "/no/such", errno.ENOENT),
    ):  # fmt: skip
        with pytest.raises(CannotRun) as caught:
            vm.run([program], cwd=cwd)
        assert caught.value.errno == number
        assert program in caught.value.message
    with pytest.raises(pyvmm.CommandFailed) as failed:
        vm.run("echo why >&2; exit 9", check=True)
    assert failed.value.returncode == 9 and "why" in failed.value.message
    with pytest.raises(pyvmm.CommandTimeout) as late:
        vm.run("echo begun; sleep 1234", timeout=3)
    assert late.value.stdout == b"begun\n"
    # Killed with what it had started: nothing has that argument any more.
    left = vm.run(
        "sleep 0.5; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 123[4]'", timeout=PATIENCE
    )
    assert left.text == "0", left


def files(vm: pyvmm.Machine) -> None:
    # The root is the host's, changed in the guest only: the same files, seen by a share, stay.
    before = vm.run(["cat", "/etc/passwd"], check=True).stdout
    assert b"root:" in before
    vm.run("echo changed > /etc/passwd; echo new > /etc/pyvmm-new; rm /etc/group", check=True)
    assert vm.run(["cat", "/etc/passwd", "/etc/pyvmm-new"]).text == "changed\nnew"
    host = vm.run("cd /mnt/host/etc; cat passwd; ls -d group pyvmm-new")
    assert (host.stdout, host.returncode != 0) == (before + b"group\n", True), host
    assert vm.run(["cat", "/mnt/read/file"]).text == "of the host"
    for command in ("echo x > /mnt/read/file", "echo x > /mnt/read/new", "rm -f /mnt/read/file"):
        refused = vm.run(command)
        assert refused.returncode != 0 and b"Read-only file system" in refused.stderr, refused
    script = "cd /mnt/write; echo second >> grows; mkdir new; cat > new/file"
    vm.run(script, input=b"\0\xff of the guest", check=True, timeout=PATIENCE)


def complaints(vm: pyvmm.Machine) -> None:
    """What a kernel prints when it is asked to is no splat, its warnings are."""
    vm.run("echo 8 > /proc/sys/kernel/printk; echo 1 > /proc/sys/kernel/sysrq", check=True)
    for key in "wlm":
        vm.run(f"echo {key} > /proc/sysrq-trigger", check=True)
    vm.console.expect("Mem-Info:")
    assert splats.find(vm.console.log) == [], vm.console.text
    vm.run("echo '<4>WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2' > /dev/kmsg; echo '<4>done here' > /dev/kmsg")
    vm.console.expect("done here")
    (found,) = splats.find(vm.console.log)
    assert (found.kind, "x.c:1" in found.line) == ("WARNING", True)


@x86_64
def test_a_disk_as_the_root(run, platform, tmp_path):
    """It is written in order though the kernel complained, which fails a command that did not."""
    tree, image, result = tmp_path / "tree", tmp_path / "root.ext4", tmp_path / "result.json"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin" / "sh").write_bytes(busybox())
    (tree / "bin" / "sh").chmod(0o755)
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, image, "16M"], check=True, capture_output=True)
    script = "echo '<4>WARNING: CPU: 0 PID: 1 at x.c:1 f' > /dev/kmsg; echo kept > /file; echo out"
    code, out, error = run(
        "--root", image, "--rw", "--result", result, "--timeout", PATIENCE,
        command=["/bin/sh", "-c", script],
    )  # fmt: skip
    assert (code, out) == (120, "out\n"), error
    assert "the kernel complained: " in error and "x.c:1" in error and "--allow-splat" in error
    about = json.loads(result.read_text())
    assert (about["exit_code"], about["guest_status"]) == (120, 0)
    subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)
    state = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" not in state, "it was not unmounted"
    kept = subprocess.run(["debugfs", "-R", "cat /file", image], capture_output=True, text=True, check=True)
    assert kept.stdout == "kept\n"


@x86_64
def test_a_panic_meanwhile(run, platform, tmp_path):
    code, out, error = run(
        "--timeout", PATIENCE, command=["echo before; sleep 1; echo c > /proc/sysrq-trigger; sleep 1000"]
    )
    assert (code, out) == (120, "before\n"), error
    assert "pyvmm: the command did not end: the guest's kernel panicked" in error
    assert "  " in error and "sysrq triggered crash" in error


@x86_64
def test_the_time_is_up(run, platform):
    begun = time.monotonic()
    code, out, error = run("--timeout", 30, command=["echo before; sleep 1000"])
    assert (code, out) == (124, "before\n"), error
    assert "the time was up after 30 s (--timeout)" in error
    assert 30 <= time.monotonic() - begun < 60


@x86_64
def test_a_driver_is_missing(machine, platform):
    """A kernel that has its drivers as modules, which it was not given, says so, and does not wait for long."""
    with machine(agent=True, initrd=initramfs.archive(agent_entries(platform.arch))) as vm:
        with pytest.raises(pyvmm.GuestError) as caught:
            vm.run("true")
        assert "there is no virtio port named org.pyvmm.agent" in caught.value.console_tail
        assert "CONFIG_VIRTIO_CONSOLE" in caught.value.console_tail
        assert vm.wait(PATIENCE).outcome == "shutdown"
