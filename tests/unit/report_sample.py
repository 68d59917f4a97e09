"""A run with a case of each status, as the reports are given it."""

from __future__ import annotations

import ktap_logs

from pyvmm import ktap, splats
from pyvmm.testing.result import CaseResult, RunReport

STARTED = 1_795_590_000.0

WARNING = """\
[    1.000000] ------------[ cut here ]------------\r
[    1.000001] WARNING: CPU: 0 PID: 77 at net/core/dev.c:123 dev_close+0x12/0x40\r
hello from <b>a program</b> & \x1b[31mits\x1b[0m \x07 bell\r
[    1.000002] Call Trace:\r
[    1.000003]  <TASK>\r
[    1.000004]  do_one_initcall+0x5b/0x300\r
[    1.000005]  </TASK>\r
[    1.000006] ---[ end trace 0000000000000000 ]---\r
"""

TIMELINE = [
    (0.004, "machine built"),
    (0.012, "first run of the vCPU"),
    (0.410, "first output"),
    (1.320, "agent ready"),
    (1.350, "command started"),
    (3.900, "command ended"),
    (4.050, "guest powered off"),
]
EXITS = {
    "total": 5321,
    "by_device": {"serial": 3210, "virtio-blk": 1200, "virtio-console": 640, "cmos": 180, "pci-hole": 91},
}


def case(kernel: str, name: str, status: str, **more: object) -> CaseResult:
    """A result of ``status`` on the machine "small"."""
    codes = {"pass": 0, "skip": 0, "error": 125, "timeout": 124}
    result = CaseResult(
        id=f"{kernel}/small/{name}",
        kernel=kernel,
        machine="small",
        case=name,
        status=status,  # type: ignore[arg-type]
        exit_code=codes.get(status, 1),
        started=STARTED,
        elapsed=4.1,
        outcome="command ended",
        timeline=list(TIMELINE),
        exits=EXITS,
        worker="host/4711",
    )
    for key, value in more.items():
        setattr(result, key, value)
    return result


def report() -> RunReport:
    """Two kernels, four cases, all statuses."""
    quiet = "".join(f"[    0.{n:06}] clocksource: line {n}\r\n" for n in range(0, 400000, 20000))
    console = quiet + WARNING + "[    1.500000] reboot: Power down\r\n"
    found = [splat.as_dict() for splat in splats.find(console.encode())]
    allowed = [splat.as_dict() for splat in splats.find(console.encode(), ["dev_close"])]
    kunit = [test.as_dict() for test in ktap.parse(ktap_logs.KUNIT).tests]
    kselftest = [test.as_dict() for test in ktap.parse(ktap_logs.KSELFTEST).tests]
    results = [
        case("linux-6.12", "uname", "pass", console=quiet, guest_status=0, stdout="Linux 6.12.0\n"),
        case(
            "linux-6.12",
            "kunit",
            "fail",
            console=ktap_logs.KUNIT,
            subtests=kunit,
            reason="1 of 6 subtests failed",
        ),
        case("linux-6.12", "net", "pass", console=console, splats=allowed, guest_status=0),
        case(
            "linux-6.12",
            "boot",
            "skip",
            outcome="",
            reason="needs two vCPUs",
            timeline=[],
            exits={},
            elapsed=0.0,
        ),
        case(
            "patched",
            "uname",
            "pass",
            console=quiet,
            guest_status=0,
            attempts=2,
            attempt_reasons=["no READY in 10 s"],
        ),
        case(
            "patched",
            "net",
            "fail",
            console=console,
            splats=found,
            guest_status=0,
            exit_code=120,
            outcome="splat",
            reason="WARNING: CPU: 0 PID: 77 at net/core/dev.c:123 dev_close+0x12/0x40",
            console_log="logs/patched-small-net.log",
            stderr="ip: SIOCSIFFLAGS <failed>\n",
        ),
        case(
            "patched",
            "kselftest",
            "timeout",
            console=quiet,
            subtests=kselftest,
            elapsed=61.2,
            reason="60 s were not enough",
        ),
        case(
            "patched",
            "boot",
            "error",
            outcome="",
            reason="there is no /dev/kvm",
            timeline=[],
            exits={},
            elapsed=0.02,
        ),
    ]
    return RunReport(
        "net-next: <smoke> & more",
        STARTED,
        75.3,
        results,
        {"host": "builder", "pyvmm": "0.1.0", "python": "3.11.9", "command": "pyvmm test --junit out.xml"},
    )
