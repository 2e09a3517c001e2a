"""Notebooks: progress is one output, errors are short, a stopped run goes on, the examples run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# What ``simulations.progress`` shows, without a run.
PROGRESS = """
import json, time
from pathlib import Path
from pudica.models.files import write_atomically
from pudica.simulations.progress import watch

with watch(Path()):
    away = {"ann <b>x</b>": {"state": "away", "since": time.time()}}
    write_atomically(Path("nodes.json"), json.dumps(away).encode())
    for done in range(9):
        report = {"stage": "training <i>", "done": done, "total": 8, "unit": "epoch"}
        write_atomically(Path("progress.json"), json.dumps(report).encode())
        time.sleep(0.1)
"""
ERROR = """
from pudica.models.errors import RequestError

def refuse():
    raise RequestError("seed: -1; allowed: \\x1b[2Jat least 0")

refuse()
"""
SETTINGS = {
    "data.limit": 300,
    "participants": [{"model": "softmax"}, {"model": "mlp"}],
    "training.epochs": 20,
    "themis.epochs": 1,
    "themis.release.draws": 1,
    "themis.examiner": None,
}


@pytest.fixture(autouse=True)
def _nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """Keep Jupyter from reading the user's settings, and from writing into their home."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))


def execute(notebook: Any, folder: Path, **options: Any) -> Any:
    where = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=300, resources=where, **options).execute()


def collect(cells: list[Any], mime: str) -> list[str]:
    """Return what the cells show of a type."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return [output.data[mime] for output in outputs if mime in output.get("data", ())]


def test_progress_is_one_output_and_an_error_one_line(tmp_path: Path) -> None:
    cells = [new_code_cell(code) for code in (PROGRESS, ERROR)]
    execute(new_notebook(cells=cells), tmp_path, allow_errors=True)
    (bars,), (error,) = (cell.outputs for cell in cells)
    shown = bars.data["text/html"]
    assert re.search(r"training &lt;i&gt; .*8/8", shown)
    assert "ann &lt;b&gt;x&lt;/b&gt;: away for" in shown
    assert "<b>" not in shown
    assert error.traceback == [r"RequestError: seed: -1; allowed: \x1b[2Jat least 0"]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager, client = start_new_kernel(cwd=str(tmp_path))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = kernel
    interrupted = []

    def interrupt(message: dict[str, Any]) -> None:
        if message["msg_type"] == "update_display_data" and not interrupted:
            interrupted.append(message["content"]["data"]["text/plain"])
            manager.interrupt_kernel()

    def call(code: str, hook: Callable = lambda message: None) -> dict[str, Any]:
        return client.execute_interactive(code, output_hook=hook, timeout=120)["content"]

    first = f"run('themis-digits', set={SETTINGS!r}, engine='inprocess')"
    stopped = call(f"from pudica.simulations import run\n{first}", interrupt)
    assert "local training" in interrupted[0]
    assert stopped["ename"] == "KeyboardInterrupt"
    said, resume = stopped["evalue"].split("; resume with: ")
    assert said == "stopped"
    same = f"""
resumed = {resume}
whole = {first}
assert resumed.directory != whole.directory
assert resumed.frame().drop(columns="run").equals(whole.frame().drop(columns="run"))
"""
    assert call(same)["status"] == "ok"


def test_there_are_examples() -> None:
    assert EXAMPLES == ["laboratory.ipynb", "own_flower_app.ipynb", "shields.ipynb"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_committed_without_outputs(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == {"kernelspec": KERNEL}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    notebook = execute(nbformat.read(FOLDER / name, as_version=4), tmp_path)
    assert any("<table" in html for html in collect(notebook.cells, "text/html"))
    assert collect(notebook.cells, "image/png")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    streams = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Traceback" not in streams
    assert "Warning" not in streams
    runs = list(tmp_path.glob("results/*/run.json"))
    bars = [html for html in collect(notebook.cells, "text/html") if html.startswith("<pre")]
    assert len(bars) == len(runs) == (3 if name == "laboratory.ipynb" else 0)
