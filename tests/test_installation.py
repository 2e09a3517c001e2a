"""What is installed: every package, under names that nothing of a user's takes away."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("models", "clients", "strategies", "analysis", "simulations")
MODULES = sorted(
    ".".join(("pudica", *path.relative_to(ROOT).parent.parts))
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("__init__.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_every_package_is_installed_from_its_folder(name: str) -> None:
    package = importlib.import_module(name)
    wanted = ROOT.joinpath(*name.split(".")[1:])
    assert Path(str(package.__file__)).parent.resolve() == wanted.resolve()


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder in which a user has named things as we have, and as others do."""
    wrong = "raise RuntimeError('a file of the user was imported')"
    for name in ("models.py", "analysis.py", "utils.py", "experiment.py", "app.py", "config.py"):
        (tmp_path / name).write_text(wrong)
    for name in ("clients", "strategies", "simulations", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(wrong)
    return tmp_path


def python(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "PUDICA_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_no_file_of_a_user_breaks_an_import(hostile: Path) -> None:
    """They lie in the working directory, on ``PYTHONPATH``, and beside the script."""
    lines = "\n".join(f"import {name}" for name in MODULES)
    (hostile / "script.py").write_text(f"{lines}\nimport pudica.analysis as pa\npa.load\n")
    python(hostile, "script.py")


@pytest.mark.slow
def test_a_run_with_a_model_of_ones_own_called_models(hostile: Path) -> None:
    """The organiser's process builds it as the workers do."""
    (hostile / "models.py").write_text(
        "from torch import nn\n"
        "def network(num_classes, channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))\n"
    )
    settings = {
        "participants": [{"model": "custom:./models.py:network", "name": "Own"}],
        "themis.epochs": 1,
        "training.epochs": 1,
        "themis.examiner": None,
        "themis.release.draws": 1,
    }
    call = f"""
from pudica.simulations import run
done = run("themis-digits", set={settings}, engine="ray", out="runs")
print((done.directory / "main" / "leaderboard.csv").read_text())
"""
    assert "Own" in python(hostile, "-c", call)
