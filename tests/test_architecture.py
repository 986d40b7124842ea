"""The house rules that can be read off the source: who imports whom, and how long things are.

Imports are read from the syntax tree, so that lazy ones inside functions and those for type
checkers count as well.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "plant_dist"
# docs/architecture.md. A room is a folder or a top-level module.
FLOORS = {
    "cli": 6, "exchange": 6, "options": 6, "planning": 6, "trained": 6, "watch": 6, "__main__": 6,
    "stages": 5, "train": 4,
    "mig": 3, "models": 3, "labels": 3, "objectives": 3, "shortlist": 3, "metrics": 3,
    "baselines": 3, "evidence": 3,
    "data": 2, "runtime": 1,
    "errors": 0, "logs": 0, "drawing": 0, "artifacts": 0, "config": 0, "__init__": 0,
}  # fmt: skip
# The classifier joins the label rows to the encoder; no other room of the middle calls another.
ALLOWED = {("models", "labels")}
MIDDLE = 3
LONGEST_MODULE, LONGEST_FUNCTION = 400, 80


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        return room_of(self.name)


def room_of(name: str) -> str:
    """`package.room.module` -> room; the package itself is `__init__`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def read_modules(package: Path) -> dict[str, Module]:
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return modules


def imports_of(module: Module, modules: dict[str, Module], tree: ast.AST | None = None) -> set[str]:
    """The package's modules that a module imports anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(tree or module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno}: import by the full name"
            # `from a.b import c` names a module a.b.c, or something in a.b.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one for one in inner if one in modules} or {str(node.module)}
    top = module.name.split(".")[0]
    return {name for name in found if name.split(".")[0] == top}


def wrong_arrows(modules: dict[str, Module]) -> list[str]:
    wrong = []
    for module in modules.values():
        for target in imports_of(module, modules):
            here, there = module.room, room_of(target)
            if here == there:
                continue
            beside = FLOORS[here] == FLOORS[there] == MIDDLE and (here, there) not in ALLOWED
            if FLOORS[there] > FLOORS[here] or beside:
                wrong.append(f"{module.name} imports {target}")
    return sorted(wrong)


def circle(modules: dict[str, Module]) -> list[str]:
    """One import circle among modules, as it would run; empty where there is none."""
    graph = {}
    for module in modules.values():
        running = ast.Module([*_run_at_import(module.tree.body)], [])
        graph[module.name] = imports_of(module, modules, running) - {module.name}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not for_types and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


def functions(module: Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


MODULES = read_modules(PACKAGE)


def test_every_room_has_a_floor() -> None:
    assert {module.room for module in MODULES.values()} <= FLOORS.keys()


def test_imports_go_down_only() -> None:
    assert len(MODULES) > 80
    assert wrong_arrows(MODULES) == []


def test_no_import_circle() -> None:
    assert circle(MODULES) == []


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
def test_a_module_is_short_and_says_what_it_holds(module: Module) -> None:
    lines = module.path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_MODULE
    if lines:
        assert ast.get_docstring(module.tree), "open with a paragraph: what it holds"
    for name, length in functions(module):
        assert length <= LONGEST_FUNCTION, name


def test_no_drawer_for_everything() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "misc", "common"}
    # These would shadow packages that everyone imports.
    assert not {module.room for module in MODULES.values()} & {"datasets", "training", "logging"}


def test_no_star_import_and_no_pickle() -> None:
    for module in MODULES.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), module.name
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not named & {"pickle", "dill", "joblib", "cloudpickle"}, module.name


# The tests of the tests: each rule must be able to fail.


def made_up(folder: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, text in files.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_modules(folder / "house")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data/batches.py", "import house.train.loop\n"),
        ("data/batches.py", "from house.train import loop\n"),
        ("data/batches.py", "def late():\n    from house.train.loop import Task\n"),
        (
            "data/batches.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.train.loop\n",
        ),
        ("errors.py", "class A:\n    def f(self):\n        import house.train.loop\n"),
        ("metrics/bands.py", "from house.models import decoder\n"),
        ("labels/table.py", "from house.models.decoder import x\n"),
    ],
)
def test_an_upward_or_sideways_arrow_is_found(tmp_path: Path, name: str, text: str) -> None:
    files = {"train/loop.py": "", "models/decoder.py": "", name: text}
    modules = made_up(tmp_path, files)
    assert len(wrong_arrows(modules)) == 1
    assert wrong_arrows(modules)[0].startswith(f"house.{name[:-3].replace('/', '.')} imports house")


def test_downward_arrows_and_the_stated_exception_pass(tmp_path: Path) -> None:
    files = {
        "train/loop.py": "import house.models.classifier\nfrom house import errors\n",
        "models/classifier.py": "from house.labels.table import T\nimport house.models.decoder\n",
        "models/decoder.py": "",
        "labels/table.py": "import house.errors\n",
        "errors.py": "",
    }
    assert wrong_arrows(made_up(tmp_path, files)) == []


def test_a_circle_is_found_and_a_lazy_import_breaks_it(tmp_path: Path) -> None:
    files = {"train/a.py": "import house.train.b\n", "train/b.py": "import house.train.a\n"}
    assert set(circle(made_up(tmp_path, files))) == {"house.train.a", "house.train.b"}
    files["train/b.py"] = "def late():\n    import house.train.a\n"
    assert circle(made_up(tmp_path, files)) == []
