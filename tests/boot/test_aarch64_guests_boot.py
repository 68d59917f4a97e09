"""The tests of the small arm64 guests, run by pytest in the arm64 lab: pytest is carried in, and so is what it ran."""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT, cannot
from lab_boot import AARCH64, lab, only

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

platform = only(AARCH64)

TESTS = ROOT / "tests" / "kvm" / "test_aarch64_guests.py"
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
OPTIONS = ("-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "/", "--color=no", "--no-header", "-rA")

RUN = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
#: Runs pytest with its arguments, and says which files of the directory in its first one were loaded for that.
LOADED = """\
import json, sys
import pytest
pytest.main(sys.argv[2:])
files = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
print(json.dumps([file for file in files if file.startswith(sys.argv[1] + "/") and file.endswith(".py")]))
"""


def carry_pytest(folder: Path) -> None:
    """Put pytest into ``folder``, as far as it is used, with bytecode that is not compared with its source there."""
    packages = Path(pytest.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", LOADED, packages, TESTS, *OPTIONS, f"--junitxml={folder}.here"],
        capture_output=True, text=True, check=True, env={**os.environ, **ALONE},
    )  # fmt: skip
    for file in json.loads(done.stdout.splitlines()[-1]):
        place = folder / Path(file).relative_to(packages)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(Path(file).read_bytes())
        py_compile.compile(
            str(place), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )


def test_guests(lab, tmp_path):
    if lab is None:
        pytest.skip("this host is an arm64 one with KVM: tests/kvm has run them")
    built = subprocess.run(
        [ROOT / "scripts" / "build-guests", "--arch", "aarch64"], capture_output=True, text=True, check=False
    )
    if built.returncode:
        cannot(f"the test guests could not be built: {built.stderr.strip()}")
    guests = ROOT / "kernels" / "build" / "aarch64"
    site, report, output = tmp_path / "site", tmp_path / "report.xml", tmp_path / "output"
    carry_pytest(site)
    env = {**ALONE, "PYTHONPATH": f"{ROOT}:{site}", "PYVMM_TEST_GUESTS": str(guests)}
    with output.open("wb") as out:
        code = lab.run(
            [sys.executable, "-c", RUN, str(TESTS), *OPTIONS, f"--junitxml={report}"], stdin=None,
            stdout=out.fileno(), stderr=out.fileno(), env=env, timeout=300,
            carry_in=[str(site), str(guests), str(ROOT / "tests" / "conftest.py")], carry_out=[str(report)],
        )  # fmt: skip
    said = output.read_text(errors="replace")
    print(said)
    assert code == 0, said
    cases = [case.get("name") for case in ElementTree.parse(report).iter("testcase")]
    here = [case.get("name") for case in ElementTree.parse(f"{site}.here").iter("testcase")]
    assert sorted(cases) == sorted(here), "what this host skips has run there"
    assert not list(ElementTree.parse(report).iter("skipped")), said
