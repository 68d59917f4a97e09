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

        Names are those of modules, or aliases.  One with a "?" before it is left out where there is no such module, or
        it lacks one that it depends on; those that are built in are left out too.

        :raises UsageError: there is no such module, one that it depends on is missing, or is for another kernel
        """
        order: dict[str, Module] = {}
        for name in names:
            wanted = canonical(name.removeprefix("?"))
            resolved = self._resolve(wanted)
            if not resolved and not name.startswith("?"):
                raise UsageError(
                    f"there is no module {wanted} in {self.path}{perhaps(wanted, [*self._modules, *self._builtin])}",
                    "the kernel was built without it, or its modules are elsewhere",
                )
            for each in resolved:
                self._add(each, order, [], optional=name.startswith("?"))
        for module in order.values():
            self._check(module, self.version)
        return list(order.values())

    def check_version(self, release: str) -> None:
        """Whether the modules are made for a kernel of that ``release``, by one of them; :meth:`load_order` looks at
        each that it returns.

        :raises UsageError: they are not; the kernel would refuse them
        """
        for module in self._modules.values():
            self._check(module, release)
            return

    def _check(self, module: Module, release: str) -> None:
        made_for = module.release()
        if made_for and release and made_for != release:
            raise UsageError(
                f"the module {module.path} is for Linux {made_for}, the kernel is {release}",
                "give the modules that were built with this kernel",
            )

    def _add(self, name: str, order: dict[str, Module], parents: list[str], *, optional: bool) -> None:
        """``name`` after those it depends on; nothing if it is ``optional`` and cannot be loaded.

        :raises UsageError: one that it depends on is neither a module nor built in
        """
        module = self._modules.get(name)
        if module is None or name in order or name in parents:
            return
        inner = dict(order)
        try:
            for other in module.soft_depends():
                self._add(other, inner, [*parents, name], optional=True)
            depends = self._depends.get(name)
            for other in module.depends() if depends is None else depends:
                if other not in self._modules and other not in self._builtin:
                    raise UsageError(
                        f"the module {name} needs {other}, which is not in {self.path}{perhaps(other, self._modules)}",
                        "were the modules copied whole? make modules_install, or the kernel's package, has them all",
                    )
                self._add(other, inner, [*parents, name], optional=False)
        except UsageError:
            if optional:
                return
            raise
        order.update(inner)
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
        if os.path.realpath(self.path) == "/":  # all of the system, and /proc too
            return
        for folder, folders, files in os.walk(self.path):
            # In an installed tree, "build" and "source" lead to where it was built.
            passed = (".git", "build", "source") if folder == self.path else ()
            folders[:] = sorted(each for each in folders if each not in passed)
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
