"""Bringing a lab up: the base image, then a saved state, each made where it is missing; or a cold boot."""

from __future__ import annotations

import os
import time

from pyvmm import cache
from pyvmm.lab import image, newer, state
from pyvmm.lab.client import Client
from pyvmm.lab.command import Command, Run
from pyvmm.lab.platforms import Platform
from pyvmm.lab.qemu import LabError, Qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

BOOT_TIMEOUT = 180.0
RESTORE_TIMEOUT = 30.0
_PASSED_ON = ("TERM", "COLORTERM", "NO_COLOR", "LANG", "LC_ALL")

#: Run once before a state is saved: KVM's and Python's first times are then behind every lab.
_WARM_UP = """
import argparse, ctypes, fcntl, json, mmap, os, select, selectors, signal, struct, subprocess, threading
kvm = os.open("/dev/kvm", os.O_RDWR)
assert fcntl.ioctl(kvm, 0xAE00) == 12
vm = fcntl.ioctl(kvm, 0xAE01)
try:
    fcntl.ioctl(vm, 0xAE60)
except OSError:  # on Arm there is no such default
    pass
mmap.mmap(fcntl.ioctl(vm, 0xAE41), fcntl.ioctl(kvm, 0xAE04))
"""


def environment() -> dict[str, str]:
    """The environment of every command in the lab."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    fixed = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "USER": "root",
        "SHELL": "/bin/sh",
        "PYVMM_LAB": "1",
    }
    return {"LANG": "C.UTF-8", **passed, **fixed}


class Starter:
    """How to start labs of one kind.  ``report`` is told what takes long, ``note`` how long things took."""

    def __init__(
        self, platform: Platform, cpus: int, memory_mib: int, report: Callable[[str], None], note: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._platform = platform
        self._cpus = cpus
        self._memory_mib = memory_mib
        self._report = report
        self._note = note

    def start(self, *, cold: bool, rebuild: bool) -> tuple[Qemu, Client]:
        """Start a lab, whose agent has been greeted.

        :raises HostError: something is missing on this host
        :raises LabError: the lab does not come up
        """
        program = newer.find(self._platform, self._report, self._note)
        base = self._base(rebuild)
        configuration = state.Configuration(self._platform, base, program, self._cpus, self._memory_mib)
        if cold:
            return _greeted(configuration.start_cold(), BOOT_TIMEOUT)
        return self._restore(configuration, rebuild)

    def _base(self, rebuild: bool) -> image.Base:
        architecture = self._platform.architecture
        base = None if rebuild else image.find(architecture)
        if base is not None:
            return base
        with cache.lock("lab", architecture, waiting=self._waiting) as folder:
            base = None if rebuild else image.find(architecture)
            if base is None:
                self._report("building the lab's base image (once)")
                started = time.monotonic()
                base = image.build(architecture, folder, self._note)
                self._note(f"built in {time.monotonic() - started:.1f} s")
        return base

    def _waiting(self) -> None:
        self._report("waiting for another process that prepares the lab")

    def _restore(self, configuration: state.Configuration, rebuild: bool) -> tuple[Qemu, Client]:
        """Start from the saved state; make it first where there is none or it does not work."""
        architecture = self._platform.architecture
        name = configuration.name()
        saved = None if rebuild else state.find(name, architecture)
        if saved is not None:
            if saved.unusable:
                return _greeted(configuration.start_cold(), BOOT_TIMEOUT)
            started = self._try(configuration, saved)
            if started is not None:
                return started
        with cache.lock("lab", architecture, waiting=self._waiting) as folder:
            now = None if rebuild else state.find(name, architecture)
            if now is None or (saved is not None and now.stamp == saved.stamp):
                try:
                    now = self._save(configuration, folder, name)
                except LabError as error:
                    self._note(f"no saved state: {error.message}")
                    now = None
        if now is not None:
            started = self._try(configuration, now)
            if started is not None:
                return started
            now.mark_unusable()
        return _greeted(configuration.start_cold(), BOOT_TIMEOUT)

    def _try(self, configuration: state.Configuration, saved: state.Saved) -> tuple[Qemu, Client] | None:
        """Start from ``saved``; None if that does not work."""
        try:
            return _greeted(configuration.start_saved(saved), RESTORE_TIMEOUT)
        except LabError as error:
            self._note(f"the saved state does not work: {error.message}")
            return None

    def _save(self, configuration: state.Configuration, folder: str, name: str) -> state.Saved:
        """Boot a lab and save its state in ``folder``, whose lock we hold."""
        self._report("starting the lab for the first time (once)")
        final = os.path.join(folder, name)
        with cache.workspace(folder) as work:
            made = os.path.join(work, name)
            os.mkdir(made)
            started = time.monotonic()
            machine, client = _greeted(configuration.start_to_save(made), BOOT_TIMEOUT)
            try:
                self._note(f"booted in {time.monotonic() - started:.2f} s")
                _warm_up(client)
                self._note(f"warm after {time.monotonic() - started:.2f} s")
                state.save(machine, made)
            finally:
                machine.stop()
            self._note(f"saved after {time.monotonic() - started:.2f} s")
            cache.publish(made, final)
        cache.keep(folder, "state-", state.KEPT, final)
        return state.Saved(final)


def _warm_up(client: Client) -> None:
    with open(os.devnull, "r+b") as nothing:
        null = nothing.fileno()
        argv = ["python3", "-c", _WARM_UP]
        command = Command(argv, environment(), "/", None, null, null, BOOT_TIMEOUT, False)
        status, _ = Run(client, command).serve()
    if status:
        raise LabError(f"KVM does not work in the lab (exit status {status})")


def _greeted(machine: Qemu, timeout: float) -> tuple[Qemu, Client]:
    client = Client(machine)
    try:
        client.greet(timeout)
    except BaseException:
        machine.stop()
        raise
    return machine, client
