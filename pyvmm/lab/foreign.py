"""apt for another architecture: package lists of its own in pyvmm's cache, this host's left as they are.

The mirror and the releases are those that this host's own apt uses, the keys those of Debian's archive keyring; apt
verifies the lists by their signature and each package by the SHA-256 in them.  Needs no root.  See apt.conf(5):
``APT::Architecture``, ``Dir::State::Lists``, and APT_CONFIG, the environment variable.
"""

from __future__ import annotations

import contextlib
import glob
import os
import subprocess

from pyvmm import cache
from pyvmm.errors import HostError
from pyvmm.lab import packages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    Result = TypeVar("Result")

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_CONFIGURATION = """\
APT::Architecture "{architecture}";
APT::Architectures "{architecture}";
APT::Update::Post-Invoke-Success "";
Acquire::Languages "none";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::Lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    return subprocess.run(
        [program, "-q", *options, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={**os.environ, "LC_ALL": "C"}, check=False,
    )  # fmt: skip


def own_sources() -> list[tuple[str, str]]:
    """The Debian archives that this host's apt knows, as (URI, release), without those that are not Debian's.

    :raises HostError: there is none
    """
    try:
        done = _run(
            "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages",
            "Origin: Debian", "Component: main",
        )  # fmt: skip
    except FileNotFoundError:
        raise HostError("apt-get not found on this host", packages.INSTALL_HINT) from None
    pairs = [line.split() for line in done.stdout.splitlines()]
    found = list(dict.fromkeys((pair[0], pair[1]) for pair in pairs if len(pair) == 2))
    if not found:
        raise HostError("apt has no package lists of Debian", packages.UPDATE_HINT)
    return found


def sources(releases: tuple[str, ...]) -> list[tuple[str, str]]:
    """Where to look, as (URI, release): this host's own archives, or ``releases`` of its mirror if given."""
    own = own_sources()
    if not releases:
        return own
    mirror = next((uri for uri, release in own if "-" not in release), own[0][0])
    return [(mirror, release) for release in releases]


def own_architecture() -> str:
    """This host's architecture as dpkg calls it; empty where there is no dpkg."""
    try:
        done = subprocess.run(
            ["dpkg", "--print-architecture"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def using(architecture: str, action: Callable[[], Result], report: Callable[[str], None]) -> Result:
    """Do ``action``, which uses :mod:`pyvmm.lab.packages`, with the packages of Debian's ``architecture``.

    :raises HostError: a tool or all package lists are missing, or ``action`` failed
    """
    if architecture == own_architecture():
        return packages.with_fresh_lists(action, report)
    with selected(architecture) as folder:
        return with_lists(folder, action, report)


@contextlib.contextmanager
def selected(architecture: str, releases: tuple[str, ...] = ()) -> Iterator[str]:
    """Have :mod:`pyvmm.lab.packages` use Debian's ``architecture`` meanwhile; gives the folder of its state.

    One process does it at a time, and no thread beside: it goes by the environment.
    """
    name = "-".join((architecture, *releases))
    with cache.lock("apt", name) as folder:
        trusted = f" [signed-by={KEYRING}]" if os.path.exists(KEYRING) else ""
        lines = [f"deb{trusted} {uri} {release} main\n" for uri, release in sources(releases)]
        for part in ("lists/partial", "cache/archives/partial"):
            os.makedirs(os.path.join(folder, part), exist_ok=True)
        for file, text in (
            ("sources.list", "".join(lines)),
            ("status", ""),
            ("apt.conf", _CONFIGURATION.format(architecture=architecture, folder=folder)),
        ):
            with open(os.path.join(folder, file), "w") as stream:
                stream.write(text)
        before = os.environ.get("APT_CONFIG")
        os.environ["APT_CONFIG"] = os.path.join(folder, "apt.conf")
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["APT_CONFIG"]
            else:
                os.environ["APT_CONFIG"] = before


def with_lists(folder: str, action: Callable[[], Result], report: Callable[[str], None]) -> Result:
    """Do ``action`` with the lists in ``folder``; fetched first if there are none, and anew if it fails.

    :raises HostError: ``action`` failed, or there are no lists
    """

    def update() -> None:
        report(f"reading package lists, into {folder}")
        done = _run("apt-get", "-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=30", "update")
        if done.returncode and not glob.glob(f"{glob.escape(folder)}/lists/*Packages*"):
            complaints = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            raise HostError(
                f"apt could not read package lists: {complaints[0] if complaints else 'no reason given'}",
                "is the network there?",
            )

    if not glob.glob(f"{glob.escape(folder)}/lists/*Packages*"):
        update()
        return action()
    try:
        return action()
    except HostError:
        update()
    return action()
