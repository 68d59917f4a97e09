"""What the driver declares for arm64, against a cross compiler's view of arm64's <linux/kvm.h>.

Nothing compiled here can run, so the compiler puts its answers into a section of the object file, and they are read
from there.  The structures that all architectures share are asked about once more: they must be the same on arm64.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from test_kvm_uapi import AGGREGATES, c_expression, fields, guard, is_flexible

from pyvmm.kvm import arm64, ioctls, uapi, uapi_arm64, uapi_run, uapi_x86
from pyvmm.kvm.uapi import Cap

PREFIX = "aarch64-linux-gnu-"
ABSENT = 0xDEAD_BEEF_DEAD_BEEF
SECTION = ".answers"
MODULES = (uapi, uapi_run, uapi_arm64)
#: Ours alone: what C has no name for.
UNNAMED = {"kvm_regs.__padding"}


def _registers() -> dict[str, int]:
    """The registers by the macros of the header."""
    core = "(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG({}))"
    return {
        core.format("regs.regs[0]"): arm64.X[0],
        core.format("regs.regs[30]"): arm64.X[30],
        core.format("regs.sp"): arm64.SP_EL0,
        core.format("regs.pc"): arm64.PC,
        core.format("regs.pstate"): arm64.PSTATE,
        core.format("sp_el1"): arm64.SP_EL1,
        core.format("elr_el1"): arm64.ELR_EL1,
        core.format("spsr[KVM_SPSR_EL1]"): arm64.SPSR_EL1,
        "ARM64_SYS_REG(3, 0, 0, 0, 5)": arm64.MPIDR_EL1,
        "ARM64_SYS_REG(3, 0, 0, 7, 0)": arm64.ID_AA64MMFR0_EL1,
        "ARM64_SYS_REG(3, 0, 1, 0, 0)": arm64.SCTLR_EL1,
        "ARM64_SYS_REG(3, 0, 2, 0, 0)": arm64.TTBR0_EL1,
        "ARM64_SYS_REG(3, 0, 2, 0, 1)": arm64.TTBR1_EL1,
        "ARM64_SYS_REG(3, 0, 2, 0, 2)": arm64.TCR_EL1,
        "ARM64_SYS_REG(3, 0, 5, 2, 0)": arm64.ESR_EL1,
        "ARM64_SYS_REG(3, 0, 6, 0, 0)": arm64.FAR_EL1,
        "ARM64_SYS_REG(3, 0, 10, 2, 0)": arm64.MAIR_EL1,
        "ARM64_SYS_REG(3, 0, 12, 0, 0)": arm64.VBAR_EL1,
    }


def expected() -> dict[str, int]:
    """What the driver believes: key -> number, the keys as in test_kvm_uapi."""
    x86 = {value for value in vars(uapi_x86).values() if isinstance(value, type)}
    values = {
        f"constant {name}": value
        for module in MODULES
        for name, value in vars(module).items()
        if name.startswith("KVM") and isinstance(value, int)
    }
    values |= {f"constant KVM_CAP_{name}": value for name, value in vars(Cap).items() if name.isupper()}
    values |= {f"constant {name}": int(value) for name, value in arm64.TABLE.items()}
    values |= {
        f"constant {name}": int(value)
        for name, value in ioctls.TABLE.items()
        if value.struct is None or value.struct not in x86
    }
    structs = {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, AGGREGATES) and name.startswith("kvm_")
    }
    for name, kind in structs.items():
        values[f"size {name}"] = ctypes.sizeof(kind)
        for path, offset, size, member in fields(kind):
            if f"{name}.{path}" in UNNAMED:
                continue
            values[f"offset {name}.{path}"] = offset
            if is_flexible(member):
                values[f"element {name}.{path}"] = ctypes.sizeof(member._type_)
            else:
                values[f"size {name}.{path}"] = size
    nisv = uapi_arm64.run_arm_nisv
    for field in ("esr_iss", "fault_ipa"):
        values[f"offset kvm_run.arm_nisv.{field}"] = uapi_run.kvm_run.io.offset + getattr(nisv, field).offset
    values |= {f"constant {macro}": value for macro, value in _registers().items()}
    return values


def program(keys: list[str]) -> str:
    # SZ_64K is the kernel's own <linux/sizes.h>, which the header forgets that others do not have.
    lines = [
        "#include <stddef.h>",
        "#include <linux/kvm.h>",
        "#include <asm/kvm.h>",
        "#define SZ_64K 0x10000",
    ]
    lines += [f'const unsigned long long answers[] __attribute__((section("{SECTION}"), used)) = {{']
    for key in keys:
        macro = guard(key)
        expression = f"(unsigned long long)({c_expression(key)}),"
        if macro and macro.isidentifier():
            expression = f"\n#ifdef {macro}\n{expression}\n#else\n{ABSENT}ULL,\n#endif"
        lines.append(expression)
    return "\n".join([*lines, "};", ""])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the cross compiler says, by key."""
    if shutil.which(f"{PREFIX}gcc") is None:
        if "CI" in os.environ:
            pytest.fail(f"{PREFIX}gcc is not installed")
        pytest.skip(f"{PREFIX}gcc is not installed (gcc-aarch64-linux-gnu)")
    folder: Path = tmp_path_factory.mktemp("uapi-arm64")
    source, built, raw = folder / "uapi.c", folder / "uapi.o", folder / "answers"
    keys = list(expected())
    source.write_text(program(keys))
    command = [f"{PREFIX}gcc", "-Wall", "-Werror", "-c", "-o", str(built), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "linux/kvm.h: No such file" in done.stderr:
        pytest.skip("arm64's <linux/kvm.h> is not installed (linux-libc-dev-arm64-cross)")
    assert done.returncode == 0, done.stderr
    subprocess.run([f"{PREFIX}objcopy", "-O", "binary", "-j", SECTION, str(built), str(raw)], check=True)
    numbers = struct.unpack(f"<{len(keys)}Q", raw.read_bytes())
    return dict(zip(keys, numbers, strict=True))


def test_everything_declared_matches_arm64_s_header(answers: dict[str, int]) -> None:
    wrong = {
        key: (hex(value), hex(answers[key]))
        for key, value in expected().items()
        if answers[key] not in (ABSENT, value)
    }
    assert not wrong, f"(ours, the compiler's): {wrong}"


def test_nothing_of_arm64_is_unknown_to_the_header(answers: dict[str, int]) -> None:
    """Its <linux/kvm.h> leaves out capabilities of x86; what is arm64's must be there."""
    ours = {f"constant {name}" for name in (*vars(uapi_arm64), *arm64.TABLE, *_registers())}
    ours |= {f"constant KVM_CAP_{number}" for number in vars(Cap) if number.startswith("ARM_")}
    assert not {key for key, value in answers.items() if value == ABSENT} & ours
    asked = [key for key in answers if "ARM" in key or "kvm_vcpu_init" in key or "kvm_regs" in key]
    assert len(asked) > 60


def test_lines_and_registers_by_hand() -> None:
    """Numbers from the manual and the documentation, worked out apart from the code."""
    assert arm64.PC == 0x6030_0000_0010_0040  # (31 + 1) * 8 bytes in, in words
    assert arm64.PSTATE == 0x6030_0000_0010_0042
    assert arm64.MPIDR_EL1 == 0x6030_0000_0013_C005
    assert uapi_arm64.spi_line(1) == 1 << 24 | 33
    assert int(arm64.KVM_ARM_VCPU_INIT) == 0x4020_AEAE
