"""``pyvmm doctor``: what this host can do, what is missing, how to mend it."""

from __future__ import annotations

import os
import platform
import sys

from pyvmm import arch as architectures
from pyvmm.cli.arguments import Parser
from pyvmm.errors import HostError, PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from pyvmm.kvm import System

OK, MISSING, NOTE = "ok", "missing", "note"


class Check:
    """One thing looked at: ``state`` is ok, missing (something will not work) or note (works without it)."""

    __slots__ = ("detail", "group", "hint", "name", "state")

    def __init__(self, group: str, name: str, state: str, detail: str, hint: str = "") -> None:
        self.group = group
        self.name = name
        self.state = state
        self.detail = detail
        self.hint = hint

    def as_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {slot: getattr(self, slot) for slot in ("group", "name", "state", "detail", "hint")}


class Findings:
    """All checks and what follows from them: what this host can boot a stock kernel with."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.kvm_kind: str | None = None
        self.kvm_ok = False
        self.lab_ok = False

    def add(self, group: str, name: str, state: str, detail: str, hint: str = "") -> None:
        """Note one thing."""
        self.checks.append(Check(group, name, state, detail, hint))

    @property
    def verdict(self) -> str:
        """One sentence: where stock kernels boot."""
        if self.kvm_ok and self.kvm_kind == "hardware":
            return "stock kernels boot here directly: pyvmm boot bzImage --verify"
        small = "small test guests run here, " if self.kvm_ok else ""
        if self.lab_ok:
            return f"{small}stock kernels boot in the lab: pyvmm boot bzImage --verify --lab"
        return f"{small}stock kernels do not boot on this host; see the hints above"

    @property
    def exit_code(self) -> int:
        """0 where stock kernels boot, directly or in the lab; else 1."""
        return 0 if self.lab_ok or (self.kvm_ok and self.kvm_kind == "hardware") else 1


def examine() -> Findings:
    """Look at this host.  Raises nothing: whatever is wrong becomes a check with a hint."""
    findings = Findings()
    _host(findings)
    _kvm(findings)
    _userspace(findings)
    _lab(findings)
    return findings


def _host(findings: Findings) -> None:
    version = platform.python_version()
    findings.add("host", "python", OK, f"{version} ({sys.executable})")
    findings.add("host", "kernel", OK, f"{platform.system()} {platform.release()} {platform.machine()}")


def _kvm(findings: Findings) -> None:
    from pyvmm.kvm import System

    try:
        arch = architectures.host()
    except HostError as error:
        findings.add("kvm", "architecture", MISSING, error.message, error.hint)
        return
    try:
        system = System()
    except PyvmmError as error:
        findings.add("kvm", "/dev/kvm", MISSING, error.message, error.hint)
        return
    with system:
        findings.add("kvm", "/dev/kvm", OK, f"API version {system.api_version()}")
        findings.kvm_ok = _capabilities(findings, system, arch)
        try:
            probe = arch.probe(system)
        except PyvmmError as error:
            findings.add("kvm", "virtualisation", MISSING, error.message, error.hint)
            findings.kvm_ok = False
            return
    findings.kvm_kind = probe.kind
    if probe.kind == "hardware":
        findings.add("kvm", "virtualisation", OK, f"hardware ({probe.detail})")
    else:
        findings.add(
            "kvm", "virtualisation", NOTE, f"software ({probe.detail}): stock kernels do not run on it",
            "use a host with VT-x or AMD-V (nested virtualisation enabled, in a VM), or pyvmm boot --lab",
        )  # fmt: skip


def _capabilities(findings: Findings, system: System, arch: ModuleType) -> bool:
    """Check each capability; returns whether all that are required are there."""
    from pyvmm.kvm.uapi import cap_name

    complete = True
    for capability, required, purpose in arch.CAPABILITIES:
        value = system.check_extension(capability)
        if value:
            findings.add("kvm", cap_name(capability), OK, purpose)
        elif required:
            complete = False
            findings.add("kvm", cap_name(capability), MISSING, purpose, "a newer host kernel is needed")
        else:
            findings.add(
                "kvm", cap_name(capability), NOTE, f"absent: {purpose}", "works without, more slowly"
            )
    return complete


def _userspace(findings: Findings) -> None:
    from pyvmm.initramfs import verify_initramfs

    try:
        size = len(verify_initramfs(os.uname().machine))
    except PyvmmError as error:
        findings.add("verify", "init", MISSING, error.message, error.hint)
    else:
        findings.add("verify", "init", OK, f"pyvmm's own init, an initramfs of {size} bytes")


def _lab(findings: Findings) -> None:
    from pyvmm import lab

    complete = True
    for name, present, hint in lab.requirements():
        complete = complete and present
        findings.add(
            "lab", name, OK if present else MISSING, "" if present else "not found", "" if present else hint
        )
    findings.lab_ok = complete


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm doctor``; 0 where stock kernels boot, directly or in the lab, else 1."""
    parser = Parser("pyvmm doctor", "Say what this host can do, what is missing and how to mend it.")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options = parser.parse_args(list(arguments))
    findings = examine()
    if options.json:
        import json

        report = {
            "checks": [check.as_dict() for check in findings.checks],
            "kvm": findings.kvm_kind,
            "lab": findings.lab_ok,
            "verdict": findings.verdict,
            "exit_code": findings.exit_code,
        }
        print(json.dumps(report, indent=2))
        return findings.exit_code
    group = ""
    for check in findings.checks:
        if check.group != group:
            group = check.group
            print(f"{group}:")
        print(f"  {check.state:8} {check.name}{': ' if check.detail else ''}{check.detail}")
        if check.hint:
            print(f"           hint: {check.hint}")
    print(findings.verdict)
    return findings.exit_code
