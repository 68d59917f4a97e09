"""What the tests that boot stock kernels share: the kernels, the lab session, and how a boot ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from conftest import ROOT, cannot, run_pyvmm

from pyvmm.errors import HostError
from pyvmm.lab import Lab


def fetch(name: str) -> Path:
    done = subprocess.run(
        [ROOT / "scripts" / "fetch-kernels", name], capture_output=True, text=True, check=False
    )
    if done.returncode:
        cannot(f"the kernel {name} could not be fetched: {done.stderr.strip()}")
    return Path(done.stdout.split()[-1])


class Boot:
    """How a boot ended: exit code, console (text), result file."""

    def __init__(self, code: int, console: str, error: str, result: dict) -> None:
        self.code = code
        self.console = console
        self.error = error
        self.result = result

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- console\n{self.console}\n--- standard error\n{self.error}\n{self.result}"


def session(arch: str) -> Iterator[Lab | None]:
    """A lab session of that architecture, or None where this host is one itself, with real KVM."""
    doctor = json.loads(run_pyvmm("doctor", "--json").stdout)
    if doctor["kvm"] == "hardware" and os.uname().machine == arch:
        yield None
        return
    if not doctor["lab"]:
        cannot("there is neither hardware KVM nor what the lab needs: " + doctor["verdict"])
    with Lab(arch) as started:
        yield started


#: How often a boot is tried in the lab before its loss is the project's (see lost_by_the_emulator).
ATTEMPTS = 4


def lost_by_the_emulator(done: Boot, arguments: tuple) -> bool:
    """Whether this may be QEMU's mistake: now and then, once in some 300,000 exits, it enters the guest at the RIP of
    the lab's own kernel, in __svm_vcpu_run of kvm_amd.  That ends in a triple fault, a panic at an address where a
    guest without modules has no code, silence, or a lab that does not answer."""
    outcome = done.result.get("outcome")
    silent = outcome == "timeout" and not any("pyvmm_end=hang" in str(argument) for argument in arguments)
    elsewhere = outcome == "panic" and "0xffffffffc0" in done.console
    return silent or elsewhere or outcome == "triple-fault" or not done.result


def booter(lab: Lab | None, tmp_path: Path) -> Callable[..., Boot]:
    """Run ``pyvmm boot`` where KVM is real; in the lab, again if the emulator lost the guest, and say so."""

    def run(*arguments: object, stdin: bytes = b"", carry: tuple = ()) -> Boot:
        for _ in range(ATTEMPTS):
            done = once(*arguments, stdin=stdin, carry=carry)
            if lab is None or not lost_by_the_emulator(done, arguments):
                break
            reason = (done.result.get("report") or ["no report"])[0]
            warnings.warn(f"booted again, the emulator lost the guest: {reason}", stacklevel=2)
        return done

    def once(*arguments: object, stdin: bytes = b"", carry: tuple = ()) -> Boot:
        result = tmp_path / "result.json"
        command = ["boot", *map(str, arguments), "--result", str(result)]
        (tmp_path / "stdin").write_bytes(stdin)
        result.unlink(missing_ok=True)
        with (
            (tmp_path / "out").open("wb") as out,
            (tmp_path / "err").open("wb") as err,
            (tmp_path / "stdin").open("rb") as source,
        ):
            if lab is None:
                code = subprocess.run(
                    [sys.executable, "-m", "pyvmm", *command], stdin=source, stdout=out, stderr=err, check=False,
                    env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=200,
                ).returncode  # fmt: skip
            else:
                try:
                    code = lab.run(
                        ["pyvmm", *command], stdin=source.fileno(), stdout=out.fileno(), stderr=err.fileno(),
                        carry_in=[str(path) for path in carry], carry_out=[str(result)], timeout=200,
                    )  # fmt: skip
                except HostError as error:  # the lab itself went; the next run starts another
                    err.write(error.message.encode())
                    code = -1
        return Boot(
            code, (tmp_path / "out").read_text(errors="replace"), (tmp_path / "err").read_text(errors="replace"),
            json.loads(result.read_text()) if result.exists() else {},
        )  # fmt: skip

    return run
