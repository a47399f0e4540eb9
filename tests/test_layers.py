"""Imports go one way. The walker reads every import by ast, those inside functions included.

draw, interpret, compress, models, nn, formats -> dsl, compiler -> planning, backends -> ir
"""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

PACKAGE = "tncompiler"

# A layer may import itself and every layer of a lower rank. planning and backends share a rank, so
# neither may import the other. "front" is `import tncompiler` itself, which reaches everything.
RANKS = {
    "ir": 0,
    "planning": 1,
    "backends": 1,
    "compiler": 2,  # every module at the top of the package: dsl, einsum, compiler, module, explain
    "drop_in": 3,
    "formats": 4,
    "nn": 5,
    "compress": 6,
    "models": 6,
    "interpret": 7,
    "draw": 8,
    "front": 9,
    "cli": 10,
}
OWN_LAYER = {"cli": "cli", "__main__": "cli", "__init__": "front"}


class Allowance(NamedTuple):
    """An arrow that may run back, inside functions only."""

    source: str  # layer that imports
    target: str  # layer that is imported
    why: str


ALLOWANCES = (
    Allowance("compiler", "draw", "methods such as f.draw() load the drawing code on use"),
    Allowance("ir", "draw", "notebooks show expressions as pictures"),
    Allowance("planning", "draw", "notebooks show plans as tables"),
    Allowance("formats", "draw", "notebooks show formats as pictures"),
    Allowance("planning", "compiler", "plan.reuse(expr) lowers expr as tnc.plan does"),
)


class Limit(NamedTuple):
    """Who may not import an outside package. There is no allowance for these."""

    package: str
    forbidden: frozenset[str]  # layers


EVERYWHERE = frozenset(RANKS)
LIMITS = (
    Limit("torch", frozenset({"ir"})),
    Limit("triton", frozenset({"ir"})),
    Limit("cotengra", EVERYWHERE - {"planning"}),
    Limit("cotengrust", EVERYWHERE - {"planning"}),
)


class Import(NamedTuple):
    where: str  # file:line
    source: str  # dotted name of the importing module
    target: str  # dotted name of what it imports
    in_function: bool


# Reading imports --------------------------------------------------------------------------------


def read_imports(root: Path) -> Iterator[Import]:
    """Every import of every module of root/tncompiler, relative ones made absolute."""
    paths = sorted((root / PACKAGE).rglob("*.py"))
    modules = {module_name(root, path): path for path in paths}
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for node, in_function in walk_statements(tree):
            for target in import_targets(node, package_of(module, path), set(modules)):
                where = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
                yield Import(where, module, target, in_function)


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str, path: Path) -> str:
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def walk_statements(tree: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, with whether it lies inside a function."""
    stack = [(tree, False)]
    while stack:
        node, in_function = stack.pop()
        yield node, in_function
        inside = in_function or isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        stack.extend((child, inside) for child in ast.iter_child_nodes(node))


def import_targets(node: ast.AST, package: str, modules: set[str]) -> Iterator[str]:
    """The dotted names that a node imports: import, from … import, import_module("…")."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = absolute_base(node, package)
        for alias in node.names:  # `from package import x`: x is a module, or a name in package
            name = f"{base}.{alias.name}"
            yield name if name in modules else base
    elif isinstance(node, ast.Call) and called_name(node) in ("import_module", "__import__"):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            level = len(first.value) - len(first.value.lstrip("."))
            yield climb(package, level, first.value[level:])


def absolute_base(node: ast.ImportFrom, package: str) -> str:
    return climb(package, node.level, node.module or "")


def climb(package: str, level: int, name: str) -> str:
    """The absolute name of a relative one: one dot is the package itself."""
    if level == 0:
        return name
    parts = package.split(".")
    kept = parts[: len(parts) - level + 1]
    return ".".join([*kept, name] if name else kept)


def called_name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


# Judging them -----------------------------------------------------------------------------------


def layer_of(module: str) -> str:
    """The layer of a module. `unknown_packages` sees to it that no package lacks a rank."""
    parts = module.split(".")
    if len(parts) == 1:
        return "front"
    if parts[1] in OWN_LAYER:
        return OWN_LAYER[parts[1]]
    return parts[1] if parts[1] in RANKS else "compiler"


def judge(item: Import) -> str | None:
    """What is wrong with an import, or None."""
    source = layer_of(item.source)
    top = item.target.partition(".")[0]
    if top != PACKAGE:
        return judge_outside(item, source, top)
    target = layer_of(item.target)
    if source in (target, "front") or RANKS[target] < RANKS[source]:
        return None
    if item.in_function and any((source, target) == allowed[:2] for allowed in ALLOWANCES):
        return None
    return f"{item.where}: {item.source} ({source}) imports {item.target} ({target})"


def judge_outside(item: Import, source: str, package: str) -> str | None:
    for limit in LIMITS:
        if package == limit.package and source in limit.forbidden:
            return f"{item.where}: {item.source} ({source}) imports {item.target}"
    return None


def find_faults(root: Path) -> list[str]:
    return [fault for item in read_imports(root) if (fault := judge(item))]


def unknown_packages(root: Path) -> list[str]:
    """Sub-packages that have no rank: they would pass as top-level modules unseen."""
    package = root / PACKAGE
    found = (path.relative_to(package).parts[0] for path in package.glob("*/**/*.py"))
    return sorted(set(found) - set(RANKS))


def test_imports_go_one_way() -> None:
    faults = find_faults(ROOT)
    assert not faults, "imports that run back:\n  " + "\n  ".join(faults)


def test_every_package_has_a_rank() -> None:
    assert unknown_packages(ROOT) == []


def test_the_walker_reads_this_package() -> None:
    assert any(layer_of(item.source) == "ir" for item in read_imports(ROOT))


# The walker can fail ----------------------------------------------------------------------------


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write a small package; every directory on the way gets an __init__.py."""
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (path.parent, root / PACKAGE):
            (folder / "__init__.py").touch()
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return root


BACKWARD = {
    "absolute": ("ir/a.py", "import tncompiler.planning"),
    "from": ("ir/a.py", "from tncompiler.backends import numpy"),
    "from the front": ("ir/a.py", "from tncompiler import dsl"),
    "the front itself": ("formats/a.py", "import tncompiler as tnc"),
    "relative": ("ir/a.py", "from ..planning import b"),
    "relative in a package": ("ir/passes/__init__.py", "from ...planning import b"),
    "relative without a module": ("ir/a.py", "from .. import dsl"),
    "in a function": ("backends/a.py", "def f():\n    from tncompiler import dsl"),
    "in a method": ("backends/a.py", "class C:\n    def f(self):\n        import tncompiler.draw"),
    "under TYPE_CHECKING": ("ir/a.py", "if TYPE_CHECKING:\n    import tncompiler.dsl"),
    "by name": ("ir/a.py", 'import importlib\nimportlib.import_module("tncompiler.backends")'),
    "by relative name": ("ir/a.py", 'import_module("..backends", __package__)'),
    "sideways": ("backends/a.py", "from tncompiler.planning import b"),
    "formats to nn": ("formats/a.py", "import tncompiler.nn"),
    "draw to cli": ("draw/a.py", "import tncompiler.cli"),
    "allowed in functions only": ("compiler.py", "import tncompiler.draw"),
    "torch in ir": ("ir/a.py", "def f():\n    import torch.nn"),
    "triton in ir": ("ir/a.py", "from triton import language"),
    "cotengra in ir": ("ir/a.py", "import cotengra"),
    "cotengra in a backend": ("backends/a.py", "import cotengra as ctg"),
    "cotengra at the front": ("__init__.py", "import cotengra"),
}
FORWARD = {
    "down": ("compiler.py", "from tncompiler.planning import b\nfrom .ir import a"),
    "same layer": ("ir/passes/a.py", "from ..a import x\nfrom . import b"),
    "same rank at the top": ("compiler.py", "from tncompiler import dsl"),
    "dsl to ir": ("dsl.py", "from tncompiler.ir import a"),
    "drawing on use": ("module.py", "def draw(self):\n    import tncompiler.draw"),
    "the front, lazily": ("__init__.py", "def __getattr__(name):\n    from . import nn"),
    "cli to the front": ("cli.py", "import tncompiler as tnc"),
    "cotengra in planning": ("planning/a.py", "import cotengra"),
    "torch in a backend": ("backends/a.py", "import torch"),
    "a name like ours": ("ir/a.py", "import tncompiler_extra, torchvision"),
}
SURROUNDINGS = {
    "dsl.py": "",
    "cli.py": "",
    "ir/a.py": "",
    "ir/passes/b.py": "",
    "planning/b.py": "",
    "backends/numpy.py": "",
    "formats/b.py": "",
    "nn/b.py": "",
    "draw/b.py": "",
}


@pytest.mark.parametrize("case", BACKWARD)
def test_walker_catches(case: str, tmp_path: Path) -> None:
    name, text = BACKWARD[case]
    faults = find_faults(plant(tmp_path, {**SURROUNDINGS, name: text}))
    assert len(faults) == 1
    assert faults[0].startswith(f"{PACKAGE}/{name}:")


@pytest.mark.parametrize("case", FORWARD)
def test_walker_accepts(case: str, tmp_path: Path) -> None:
    name, text = FORWARD[case]
    assert find_faults(plant(tmp_path, {**SURROUNDINGS, name: text})) == []


def test_unknown_package_is_caught(tmp_path: Path) -> None:
    assert unknown_packages(plant(tmp_path, {"novel/a.py": ""})) == ["novel"]
