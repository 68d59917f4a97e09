"""Every number, size and offset of the vhost interface, against the compiler's view of <linux/vhost.h>."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyvmm.devices.virtio import vhost_uapi as uapi

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def structs() -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(uapi).items()
        if isinstance(value, type) and issubclass(value, ctypes.Structure) and name.startswith("vhost_")
    }


def expected() -> dict[str, int]:
    """C expression -> what the driver believes."""
    values = {
        name: int(value)
        for name, value in vars(uapi).items()
        if name.startswith("VHOST_") and isinstance(value, int)
    }
    for name, struct in structs().items():
        values[f"sizeof(struct {name})"] = ctypes.sizeof(struct)
        for field, kind in struct._fields_:
            values[f"offsetof(struct {name}, {field})"] = getattr(struct, field).offset
            values[f"sizeof(((struct {name} *)0)->{field})"] = ctypes.sizeof(kind)
    return values


def test_everything_declared_matches_the_header(tmp_path: Path) -> None:
    lines = [f'printf("%s|%llu\\n", "{key}", (unsigned long long)({key}));' for key in expected()]
    source = tmp_path / "uapi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/vhost.h>\nint main(void) {\n"
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    built = subprocess.run(
        ["gcc", "-Wall", "-Werror", "-o", tmp_path / "uapi", source],
        capture_output=True,
        text=True,
        check=False,
    )
    if "linux/vhost.h: No such file" in built.stderr:
        pytest.skip("<linux/vhost.h> is not installed (linux-libc-dev)")
    assert built.returncode == 0, built.stderr
    output = subprocess.run([tmp_path / "uapi"], capture_output=True, text=True, check=True).stdout
    compiled = {key: int(value) for key, value in (line.split("|") for line in output.splitlines())}
    assert compiled == expected()
    assert len(compiled) > 50 and len(structs()) == 5


def test_requests_know_their_names() -> None:
    assert uapi.VHOST_VSOCK_SET_RUNNING.name == "VHOST_VSOCK_SET_RUNNING"
    requests = [value for value in vars(uapi).values() if isinstance(value, uapi.VhostIoctl)]
    assert len(requests) == 14 and all(getattr(uapi, request.name) == request for request in requests)
