"""The house rules hold for whatever files exist: who may import whom, sizes, and what never appears."""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "engram"
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [path.relative_to(PACKAGE).as_posix() for path in FILES]

# A part may import parts with a smaller number, and itself. "plots" draws arrays and knows nothing of results, so that
# results can draw themselves; "runs" keeps results and spreads work without knowing what it is about, so that tracing
# and evaluation resume in the same way; "showing" shows any value in a few lines, and
# "given" checks what callers hand in; "kinds" is data for any model, "mini" is data beside models.
LAYERS = {
    "_version": 0,
    "errors": 0,
    "showing": 1,
    "progress": 1,
    "storage": 1,
    "intervals": 1,
    "settings": 2,
    "given": 2,
    "facts": 3,
    "kinds": 4,
    "plots": 4,
    "runs": 4,
    "models": 4,
    "mini": 5,
    "locate": 6,
    "stats": 6,
    "editing": 7,
    "datasets": 8,
    "evaluation": 9,
    "web": 10,
    "cli": 11,
    "__main__": 12,
}

HEAVY = {"torch", "transformers", "sklearn", "scipy", "pandas", "matplotlib", "nltk", "gradio", "ray", "peft"}
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"print", "eval", "exec", "compile"}
FORBIDDEN_METHODS = {("torch", "load"), ("torch", "save")}
MAX_FILE, MAX_FUNCTION = 400, 60


def part_of(path: Path) -> str:
    """The part of the house that a file belongs to: "models" for models/lm.py, "cli" for cli.py and cli_draw.py."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if first.startswith("cli") else first


def module_of(path: Path) -> list[str]:
    """The dotted name of the package that a file's relative imports start from."""
    return ["engram", *path.relative_to(PACKAGE).parent.parts]


def imported_modules(node: ast.Import | ast.ImportFrom, path: Path) -> Iterator[str]:
    """The full dotted names that one import statement of a file refers to."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = module_of(path)[: len(module_of(path)) - node.level + 1] if node.level else []
    start = ".".join([*base, *([node.module] if node.module else [])])
    if start == "engram":
        yield from (f"engram.{alias.name}" for alias in node.names)
    else:
        yield start


def imports_of(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(imported module, line, whether inside a function) for every import of a file, type checking included."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from ((name, child.lineno, inside) for name in imported_modules(child, path))
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def wrong_imports(path: Path) -> list[str]:
    """A sentence for every import of a file that goes against the direction of the house."""
    part, wrong = part_of(path), []
    for name, line, _ in imports_of(path):
        if name.split(".")[0] != "engram":
            continue
        target = "cli" if name.startswith("engram.cli") else name.partition(".")[2].split(".")[0]
        if target == part:
            continue
        if target not in LAYERS:
            wrong.append(f"line {line}: {name} is no part of the house (import from the part, not from engram itself)")
        elif LAYERS[target] >= LAYERS[part]:
            wrong.append(f"line {line}: {part} may not import {target}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_one_way(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return
    assert part_of(path) in LAYERS, f"{part_of(path)} has no place in LAYERS: give it one"
    assert wrong_imports(path) == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno}
    assert {name: lines for name, lines in long.items() if lines > MAX_FUNCTION} == {}


def forbidden(node: ast.AST) -> str | None:
    """What a node does that the library never does, or None."""
    match node:
        case ast.Global(names=names):
            return f"global {', '.join(names)}"
        case ast.Import(names=names) if {n.name.split(".")[0] for n in names} & PICKLING:
            return "imports a pickling module"
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] in PICKLING:
            return f"imports from {module}"
        case ast.ImportFrom(module="__future__", names=[ast.alias(name="annotations")]):
            return "hides shapes from the checker (from __future__ import annotations)"
        case ast.ImportFrom(names=[ast.alias(name="*")]):
            return "star import"
        case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
            return f"calls {name}"
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)) if (owner, name) in FORBIDDEN_METHODS:
            return f"calls {owner}.{name}, which pickles"
        case ast.keyword(arg="allow_pickle" | "trust_remote_code", value=ast.Constant(value=True)):
            return f"{node.arg}=True"
        case _:
            return None


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_nothing_is_printed_global_pickled_or_evaluated(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [(getattr(node, "lineno", 0), what) for node in ast.walk(tree) if (what := forbidden(node))]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "def f():\n    global x",
        "import pickle",
        "from pickle import loads",
        "from os import *",
        "from __future__ import annotations",
        "eval('1')",
        "import torch\ntorch.load('x')",
        "load(trust_remote_code=True)",
    ],
)
def test_forbidden_things_are_recognised(source: str) -> None:
    assert any(forbidden(node) for node in ast.walk(ast.parse(source)))


def test_what_is_allowed_is_not_reported() -> None:
    source = "model.eval()\nconsole.print(1)\nsafetensors.torch.load(x)\nload(trust_remote_code=trusted)"
    assert not any(forbidden(node) for node in ast.walk(ast.parse(source)))


@pytest.mark.parametrize(
    ("file", "source", "fine"),
    [
        ("facts.py", "from engram.errors import EngramError", True),
        ("facts.py", "from .errors import EngramError", True),
        ("facts.py", "from engram.models.lm import LM", False),
        ("models/lm.py", "from .hooks import record", True),
        ("models/lm.py", "from ..locate import tracing", False),
        ("models/lm.py", "from .. import editing", False),
        ("models/lm.py", "from engram import LM", False),
        ("models/lm.py", "import engram.mini", False),
        ("models/lm.py", "def f():\n    from engram.editing import Edit", False),
        ("locate/tracing.py", "from engram.stats import covariance", False),
        ("locate/tracing.py", "from engram import plots", True),
        ("plots/lines.py", "from engram.locate import CausalTrace", False),
        ("runs/store.py", "from engram.evaluation import evaluate", False),
        ("datasets/mini.py", "from engram.mini import records", True),
        ("cli_draw.py", "from engram import plots", True),
    ],
)
def test_wrong_imports_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, source: str, fine: bool
) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert (wrong_imports(path) == []) is fine


def test_all_is_importable_and_complete() -> None:
    engram = importlib.import_module("engram")
    names: list[str] = engram.__all__
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(engram, name)] == []
    own = {name for name, value in vars(engram).items() if getattr(value, "__module__", "").startswith("engram.")}
    assert {name for name in own if not name.startswith("_")} <= set(names)


def test_import_stays_light() -> None:
    code = f"import sys, engram; print(sorted({HEAVY!r} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout.strip() == "[]", result.stderr
