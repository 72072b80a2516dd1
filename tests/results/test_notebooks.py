"""The notebooks in analysis/: stored without outputs and without logic, and run from top to bottom, on the shipped rows and on a user's folder."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from ray_ltdd.results.load import load_results

ANALYSIS = Path(__file__).parents[2] / "analysis"
NOTEBOOKS = sorted(ANALYSIS.glob("*.ipynb"))
# what each shows on the shipped data: figures at least; a sweep is not among it
N_FIGURES = {"01_results_vs_published": 2, "02_class_accuracy": 2, "03_sweep": 6, "04_gallery_and_statistics": 3, "05_cost_and_scaling": 2}
CALLS = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
LOGIC = (ast.Lambda, ast.IfExp, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp, ast.NamedExpr)


def test_there_are_five():
    assert [path.stem for path in NOTEBOOKS] == list(N_FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs_and_logic(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.nbformat == 4 and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    trees = [ast.parse("\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))) for cell in code]
    assert all(isinstance(node, CALLS) for tree in trees for node in tree.body)
    assert not [node for tree in trees for node in ast.walk(tree) if isinstance(node, LOGIC)]
    assert sum(cell.source.count("FOLDER = ") for cell in code) == 1


def test_the_shipped_rows_are_small_and_real():
    files = [path for path in (ANALYSIS / "data").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    rows = load_results(ANALYSIS / "data")
    readme = (ANALYSIS / "data" / "README.md").read_text()
    assert len(rows) and rows["created"].notna().all() and rows["device"].notna().all()
    # the runs of a sweep go by its name
    assert all(name in readme for name in rows["sweep"].fillna(rows["run"]))


def executed(path, folder=None):
    """Run a notebook from top to bottom, in analysis/, with FOLDER as stored or another; returns how many figures it has shown."""
    notebook = nbformat.read(path, as_version=4)
    if folder is not None:
        cell = next(cell for cell in notebook.cells if "FOLDER = " in cell.source)
        cell.source = "\n".join(f"FOLDER = Path({str(folder)!r})" if line.startswith("FOLDER = ") else line for line in cell.source.splitlines())
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ANALYSIS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"], outputs
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run_on_the_shipped_rows(path):
    assert executed(path) >= N_FIGURES[path.stem]


@pytest.mark.extended
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run_on_a_users_folder(path, tiny_run):
    of_one_run = path.stem in ("02_class_accuracy", "04_gallery_and_statistics")
    assert executed(path, tiny_run if of_one_run else tiny_run.parent) >= (2 if of_one_run else 0)
