"""Nothing decides by the architecture but pyvmm/arch: elsewhere what differs stands in tables, or is asked of it.

The source's syntax trees are searched for conditions, comparisons and ``match`` patterns that name an architecture,
an ELF machine number, a constant that stands for some of them, or ``os.uname().machine``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

NAMES = {"x86_64", "i386", "amd64", "aarch64", "arm64"}

_FILES = "the format of that architecture's kernel files, which is read on any host"
_HERE = "whether this host is of it, whichever it is"
#: Where it is right to: file and function -> why.
ALLOWED = {
    "loader/detect.py elf_machine": "one ELF machine number is of two machines, of 32 and of 64 bits",
    "loader/elf.py load": _FILES,
    "loader/image.py ImageHeader.__init__": _FILES,
    "loader/image.py load": _FILES,
    "loader/machine_code.py routines": "it holds machine code of one architecture, and does without elsewhere",
    "loader/relocation.py read_table": _FILES,
    "pyvmm/inspect/elf.py _entry_points": _FILES,
    "pyvmm/inspect/elf.py _place": _FILES,
    "pyvmm/inspect/elf.py _relocation": _FILES,
    "pyvmm/inspect/image.py inspect": _FILES,
    "pyvmm/lab/foreign.py using": _HERE,
    "pyvmm/lab/kernels.py fetch": _HERE,
    "pyvmm/lab/programs.py find": _HERE,
    "pyvmm/pytest_plugin/machines.py Machines._in_lab": _HERE,
}


def constants(tree: ast.Module) -> set[str]:
    """The module's names for collections of architectures; tables, which are dictionaries, are not meant."""
    found: set[str] = set()
    for node in tree.body:
        collection = isinstance(getattr(node, "value", None), ast.Tuple | ast.Set | ast.List | ast.Constant)
        if isinstance(node, ast.Assign) and collection and names_one(node.value, found):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def names_one(node: ast.AST, known: set[str]) -> bool:
    """Whether an expression or a pattern names an architecture."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and each.value in NAMES:
            return True
        if isinstance(each, ast.Name) and (each.id.startswith("EM_") or each.id in known):
            return True
        if isinstance(each, ast.Attribute) and each.attr.startswith("EM_"):
            return True
        if isinstance(each, ast.Attribute) and ast.unparse(each) in ("os.uname().machine", "uname().machine"):
            return True
        if isinstance(each, ast.Call) and re.search(
            r"^platform\.machine$|\bown_architecture$", ast.unparse(each.func)
        ):
            return True
    return False


def decisions(source: str) -> Iterator[tuple[str, str]]:
    """The function and the text of each condition of ``source`` that names an architecture."""
    tree = ast.parse(source)
    known = constants(tree)

    def visit(node: ast.AST, scope: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope = f"{scope}.{node.name}".lstrip(".")
        parts: list[ast.AST] = []
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            parts = [node.test]
        elif isinstance(node, ast.Compare):
            parts = [node]
        elif isinstance(node, ast.match_case):
            parts = [node.pattern, *([node.guard] if node.guard else [])]
        elif isinstance(node, ast.Match):
            parts = [node.subject]
        elif isinstance(node, ast.comprehension):
            parts = list(node.ifs)
        for part in parts:
            if names_one(part, known):
                yield scope, ast.unparse(part)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, scope)

    return visit(tree, "")


def found() -> dict[str, str]:
    """What decides by the architecture outside pyvmm/arch: file and function -> the condition."""
    result = {}
    for package in ("pyvmm", "loader"):
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if Path("pyvmm/arch") in relative.parents:
                continue
            for scope, text in decisions(path.read_text()):
                result[f"{relative.as_posix()} {scope}".strip()] = text
    return result


def test_only_what_is_allowed_decides_by_the_architecture() -> None:
    unexpected = {place: text for place, text in found().items() if place not in ALLOWED}
    assert not unexpected, "put what differs into pyvmm/arch, or into a table"


def test_all_that_is_allowed_is_still_there() -> None:
    assert not ALLOWED.keys() - found().keys()


@pytest.mark.parametrize(
    "source",
    [
        "if arch == 'x86_64': pass",
        "if 'aarch64' in arch: pass",
        "a = 1 if name.startswith('arm64') else 2",
        "same = machine != 'amd64'",
        "match machine:\n case 'x86_64' | 'i386': pass",
        "match os.uname().machine:\n case other: pass",
        "if header.e_machine == EM_X86_64: pass",
        "if header.e_machine in (elf.EM_AARCH64,): pass",
        "here = os.uname().machine == arch",
        "_X86 = ('x86_64', 'i386')\n_MORE = (*_X86, 'riscv64')\nif machine in _MORE: pass",
        "a = [x for x in y if x.arch == 'x86_64']",
        "while arch == 'arm64': pass",
    ],
)
def test_decisions_are_seen(source: str) -> None:
    assert list(decisions(source))


@pytest.mark.parametrize(
    "source",
    [
        "TABLE = {'x86_64': 1}\nvalue = TABLE[arch]",
        "TABLE = {'x86_64': 1}\nif arch in TABLE: pass",
        "fetch('x86_64')",
        "if arch == other: pass",
    ],
)
def test_tables_are_no_decisions(source: str) -> None:
    assert not list(decisions(source))
