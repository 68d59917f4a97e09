"""``git bisect run pyvmm test ...`` on a small repository whose "kernels" are test guests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [
    pytest.mark.usefixtures("kvm"),
    pytest.mark.skipif(shutil.which("git") is None, reason="there is no git"),
]

#: What each commit's kernel is: a good guest, a bad one, or no kernel at all (None: none was built).
HISTORY = ["hello", "hello", "hello", "text", None, "panic", "panic", "panic"]
FIRST_BAD = 5


class Repository:
    def __init__(self, path):
        self.path = path
        self.commits: list[str] = []
        path.mkdir()
        self.git("init", "-q")

    def git(self, *arguments: str, check: bool = True) -> str:
        own = {
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "PYTHONPATH": str(ROOT),
            **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }  # fmt: skip
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=250,
            env={**os.environ, **own},
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def commit(self, number: int, guests, kernel: str | None) -> None:
        image = self.path / "bzImage"
        image.unlink(missing_ok=True)
        if kernel == "text":
            image.write_text("a build that went wrong\n" * 50)
        elif kernel is not None:
            shutil.copy(guests / f"{kernel}.elf", image)
        (self.path / "number").write_text(f"{number}\n")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", f"commit {number}")
        self.commits.append(self.git("rev-parse", "HEAD").strip())


@pytest.fixture
def repository(guests, tmp_path):
    made = Repository(tmp_path / "repository")
    for number, kernel in enumerate(HISTORY):
        made.commit(number, guests, kernel)
    return made


@pytest.mark.parametrize("by_file", [False, True], ids=["command line", "test file"])
def test_the_first_bad_commit_is_found_past_untestable_ones(repository, tmp_path, by_file):
    test = [sys.executable, "-m", "pyvmm", "test"]
    if by_file:
        path = tmp_path / "t.toml"
        path.write_text(
            f'[[kernel]]\npath = "{repository.path}/bzImage"\n[[case]]\nname = "boots"\nexpect = "hello"\n'
        )
        test.append(str(path))
    else:
        test += ["--kernel", "bzImage", "--expect", "hello"]
    repository.git("bisect", "start", repository.commits[-1], repository.commits[0])
    said = repository.git("bisect", "run", *test, "--timeout", "60", check=False)
    # Those that cannot be tested stand between the last good and the first bad one: git names all of them.
    suspects = said.partition("The first bad commit could be any of:")[2]
    assert suspects, said
    assert [commit for commit in repository.commits if commit in suspects] == repository.commits[
        3 : FIRST_BAD + 1
    ]
    assert "git bisect skip" in repository.git("bisect", "log")


def test_without_untestable_ones_it_is_that_one(guests, tmp_path):
    repository = Repository(tmp_path / "repository")
    for number, kernel in enumerate(["hello", "hello", "text", "hello", "status", "status", "status"]):
        repository.commit(number, guests, kernel)
    repository.git("bisect", "start", repository.commits[-1], repository.commits[0])
    said = repository.git(
        "bisect", "run", sys.executable, "-m", "pyvmm", "test", "bzImage", "--expect", "hello"
    )
    assert f"{repository.commits[4]} is the first bad commit" in said
