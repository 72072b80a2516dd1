"""The arrows of the design, and its rules of style, as tests."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ray_ltdd"
FILES = sorted(PACKAGE.rglob("*.py"))

# a room may import itself and what stands after it here
LEVELS = [
    {"errors", "settings", "seeding", "openmp", "allocator"},
    {"storage", "yaml_files", "kernels"},
    {"artifacts", "compute", "sharding", "placement"},
    {"executor"},
    {"data", "models"},
    {"statistics"},
    {"stages"},
    {"config", "workbench"},
    {"tasks"},
    {"pipeline", "results", "search"},
    {"reporting", "doctor"},
    {"sweep_view", "run_notes"},
    {"runs"},
    {"cluster"},
    {"cli_sweep", "cli_report"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", [path for path in FILES if room(path) != "__init__"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_go_one_way(path):
    own = room(path)
    for name in imported(path):
        if name.startswith("ray_ltdd."):
            other = name.split(".")[1]
            assert other == own or LEVEL[other] < LEVEL[own], f"{own} imports {other}"


def test_ray_is_imported_below_cluster_only():
    outside = [path for path in FILES if room(path) != "cluster"]
    assert outside and not [path for path in outside if any(name == "ray" or name.startswith("ray.") for name in imported(path))]


def test_files_are_short():
    assert {str(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 450} == {}


def test_every_public_function_is_annotated_and_documented():
    missing = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and _is_public(node, path):
                arguments = [a for a in [*node.args.args, *node.args.kwonlyargs] if a.arg not in ("self", "cls")]
                if not ast.get_docstring(node) or node.returns is None or any(a.annotation is None for a in arguments):
                    missing.append(f"{path.name}:{node.name}")
    assert missing == []


def _is_public(node: ast.FunctionDef, path: Path) -> bool:
    # functions inside functions are an implementation's own
    tree = ast.parse(path.read_text())
    top = {n.lineno for n in tree.body if isinstance(n, ast.FunctionDef)}
    methods = {
        m.lineno for c in tree.body if isinstance(c, ast.ClassDef) and not c.name.startswith("_") for m in c.body if isinstance(m, ast.FunctionDef)
    }
    return node.lineno in top | methods
