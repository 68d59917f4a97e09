"""A directory of kernel modules: an installed one (``/lib/modules/VERSION``), a kernel's build tree, or any other.

What ``make modules_install`` and depmod leave is used where it is there: ``modules.dep`` (kmod, depmod.d(5)),
``modules.builtin``, ``modules.alias``.  Elsewhere the directory is walked, and each module tells what it depends on.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator

from pyvmm.errors import ImageError, UsageError
from pyvmm.modules.module import Module, canonical, name_of
from pyvmm.text import perhaps


class ModuleTree:
    """The modules below ``path``; ``version`` is that of their kernel, as ``uname -r`` says it ("": unknown).

    :raises ImageError: the directory cannot be read
    """

    def __init__(self, path: str, version: str = "") -> None:
        self.path = path
        self.version = version
        self._modules: dict[str, Module] = {}
        self._builtin: set[str] = set()
        self._depends: dict[str, list[str]] = {}  # by modules.dep
        if not os.path.isdir(path):
            raise ImageError(f"{path}: no such directory of modules", "give the one that has the *.ko files")
        self._read_builtin()
        self._read_dep()
        if not self._modules:
            self._walk()

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: str) -> bool:
        return canonical(name) in self._modules

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def builtin(self, name: str) -> bool:
        """Whether the kernel has it built in, as far as the tree says."""
        return canonical(name) in self._builtin

    def load_order(self, names: Iterable[str]) -> list[Module]:
        """The modules ``names``, and all that they depend on, in an order in which they can be loaded.

        Names are those of modules, or aliases.  One with a "?" before it is left out where there is no such module;
        those that are built in are left out too.

        :raises UsageError: there is no such module
        """
        order: dict[str, Module] = {}
        for name in names:
            wanted = canonical(name.removeprefix("?"))
            for resolved in self._resolve(wanted):
                self._add(resolved, order, [])
            if wanted not in order and not name.startswith("?") and not self._known(wanted):
                known = [*self._modules, *self._builtin]
                raise UsageError(
                    f"there is no module {wanted} in {self.path}{perhaps(wanted, known)}",
                    "the kernel was built without it, or its modules are elsewhere",
                )
        return list(order.values())

    def check_version(self, release: str) -> None:
        """Whether the modules are made for a kernel of that ``release``.

        :raises UsageError: they are not; the kernel would refuse them
        """
        for module in self._modules.values():
            magic = module.information("vermagic")
            made_for = magic[0].split()[0] if magic and magic[0].split() else ""
            if made_for and made_for != release:
                raise UsageError(
                    f"the modules in {self.path} are for Linux {made_for}, the kernel is {release}",
                    "give the modules that were built with this kernel",
                )
            return

    def _known(self, name: str) -> bool:
        return name in self._builtin or any(
            each in self._modules or each in self._builtin for each in self._resolve(name)
        )

    def _add(self, name: str, order: dict[str, Module], parents: list[str]) -> None:
        """``name`` after those it depends on, which the kernel has as modules."""
        module = self._modules.get(name)
        if module is None or name in order or name in parents:
            return
        depends = self._depends.get(name)
        if depends is None:
            depends = module.depends()
        for other in (*module.soft_depends(), *depends):
            self._add(other, order, [*parents, name])
        order[name] = module

    # -- what is there ----------------------------------------------------------------------------------------

    def _lines(self, name: str) -> list[str]:
        try:
            with open(os.path.join(self.path, name), encoding="utf-8", errors="replace") as file:
                return file.read().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise ImageError(f"{self.path}/{name} cannot be read: {error.strerror}", "") from None

    def _read_builtin(self) -> None:
        self._builtin = {name_of(line) for line in self._lines("modules.builtin")} - {""}

    def _read_dep(self) -> None:
        """modules.dep: ``path: paths of those it depends on, the nearest first``."""
        for line in self._lines("modules.dep"):
            path, _, depends = line.partition(":")
            name = name_of(path)
            place = os.path.join(self.path, path)
            if name and os.path.exists(place):
                self._modules[name] = Module(place)
                self._depends[name] = [name_of(each) for each in reversed(depends.split())]

    def _walk(self) -> None:
        for folder, folders, files in os.walk(self.path):
            folders[:] = sorted(each for each in folders if each not in (".git", "build", "source"))
            for file in sorted(files):
                name = name_of(file)
                if name:
                    self._modules.setdefault(name, Module(os.path.join(folder, file)))

    def _resolve(self, name: str) -> list[str]:
        """The modules that ``name`` means: itself, or those that have it as an alias."""
        if name in self._modules or name in self._builtin:
            return [name]
        found = []
        for line in self._lines("modules.alias"):
            words = line.split()
            if len(words) == 3 and words[0] == "alias" and fnmatch.fnmatchcase(name, canonical(words[1])):
                found.append(canonical(words[2]))
        return found
