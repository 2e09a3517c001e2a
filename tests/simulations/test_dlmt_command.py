"""DLMT from the command line, as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import as_options
from click.testing import Result

from pudica.analysis import dlmt_breaks, dlmt_measures

Command = Callable[..., Result]

TINY = {"data.limit": "120", "dlmt.training.epochs": "2", "dlmt.model": "cnn-tiny"}


def run(pudica: Command, *options: str) -> Result:
    return pudica(
        "run", "dlmt-digits", "--engine", "inprocess", "--out", "out", *as_options(TINY), *options
    )


@pytest.mark.usefixtures("figures")
def test_a_run_ends_with_its_tables_its_figures_and_its_directory(pudica: Command) -> None:
    result = run(pudica)
    assert result.exit_code == 0
    directory = Path(result.stdout.splitlines()[-1])
    assert json.loads((directory / "run.json").read_text())["status"] == "done"
    for title in (
        "Accuracy on disguised test images",
        "What disguises cost and hide",
        "How much of the key attacks find (%), by how many images they see",
    ):
        assert title in result.stdout
    drawn = {path.name for path in (directory / "plots").iterdir()}
    assert drawn == {"training.png", "measures.png", "seen.png"}
    assert len(dlmt_measures(directory)) == len(dlmt_breaks(directory)) == 3
    assert "aggregate_train" not in result.stderr  # Flower's own lines


def test_privacy_promises_nothing(pudica: Command) -> None:
    directory = run(pudica, "--quiet").stdout.strip()
    result = pudica("privacy", directory)
    assert result.exit_code == 0
    assert "images disguised by MAT(256)" in result.stdout
    assert "models trained on images disguised by MAT(256)" in result.stdout
    assert result.stdout.count("holds for a training record: no finite ε") == 4
