"""Attacks from the command line: on releases of split learning, and from other packages."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import Result

from pudica.analysis.attacks import attacks, registry
from pudica.analysis.frontiers import attack_cells
from pudica.models import plugins
from pudica.simulations import run

Command = Callable[..., Result]

DOCUMENT = Path(__file__).parents[2] / "docs" / "threat-models.md"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a run of two epochs."""
    settings = {"data.limit": 600, "split.epochs": 2}
    return run("split-digits", set=settings, engine="inprocess", out=tmp_path / "runs").directory


def test_the_command_shows_how_far_attacks_come(pudica: Command, directory: Path) -> None:
    result = pudica("attack", directory, "--images", "60", "--epochs", "1")
    assert result.exit_code == 0, result.stderr
    assert "How far attacks come (%)" in result.stdout
    for picture in ("main-inversion.png", "main-matching.png"):
        assert picture in result.stdout
    table = attack_cells(directory)
    for kind in ("inversion", "matching", "labels"):
        assert list(table["releases"][table["attack"] == kind]) == [1, 2]
    assert (table["low"] <= table["success"]).all()
    assert (table["success"] <= table["high"]).all()
    assert "matching" in pudica("show", directory).stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--case", "other"), "no case 'other' in which something leaves the nodes; allowed: main"),
        (("--kind", "magic"), "unknown attack 'magic'"),
        (("--kind", "separation"), "it needs a FacemixView; allowed: inversion, matching"),
    ],
)
def test_what_does_not_fit_is_explained(
    pudica: Command, directory: Path, words: tuple[str, ...], why: str
) -> None:
    result = pudica("attack", directory, *words)
    assert result.exit_code == 2
    assert why in result.stderr


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"engine": "deployment"}, "with real nodes, whose images are not here"),
        ({"system": "poll"}, "attacks are for runs of"),
        ({"code": "0" * 32}, "another version of Pudica wrote it"),
    ],
)
def test_runs_that_cannot_be_attacked(
    pudica: Command, directory: Path, change: dict[str, str], why: str
) -> None:
    file, metrics = directory / "run.json", directory / "metrics.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    if "code" in change:
        metrics.write_text(metrics.read_text().replace('"value": 0.', '"value": 0.0'))
    result = pudica("attack", directory, "--images", "20")
    assert result.exit_code == 2
    assert why in result.stderr


def test_a_case_in_progress_is_not_attacked(pudica: Command, directory: Path) -> None:
    (directory / "main" / "model.safetensors").unlink()
    assert "no case is done yet" in pudica("attack", directory).stderr
    named = pudica("attack", directory, "--case", "main")
    assert "case 'main' is not done yet" in named.stderr


def test_an_attack_of_another_package_gets_its_rows(
    pudica: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documents' example, as a package would bring it, beside one that can't be loaded."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    package = ModuleType("my_package")
    exec(code, package.__dict__)
    monkeypatch.setitem(sys.modules, "my_package", package)
    points = [
        EntryPoint("brightness", "my_package:ATTACK", registry.GROUP),
        EntryPoint("gone", "no_such_module:ATTACK", registry.GROUP),
    ]
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: points if group == registry.GROUP else []
    )
    attacks.cache_clear()
    try:
        assert {"matching", "brightness"} < {*attacks()}
        result = pudica("attack", directory, "--kind", "brightness", "--images", "50")
    finally:
        attacks.cache_clear()
    assert result.exit_code == 0, result.stderr
    table = attack_cells(directory).set_index("attack")
    assert table.loc["brightness", "chance"] == pytest.approx(2)
    assert 0 <= table.loc["brightness", "success"] <= 100
