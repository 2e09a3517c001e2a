"""The bundle of a run: what Flower carries to its nodes."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import tomli_w

import clients
import models
import strategies
from strategies.loading import SHIPPED

PACKAGES: tuple[ModuleType, ...] = (models, clients, strategies)
TRAVELLING = {".py", ".yaml", ".toml", ".json"}


def stage(app: Path, config: dict[str, str]) -> None:
    """Write the app's folder: our packages, wherever they are installed, and the experiment.

    The experiment is the configuration's default and not a ``--run-config``: Flower splits
    that at quotation marks.
    """
    for package in PACKAGES:
        _copy_sources(Path(str(package.__file__)).parent, app / package.__name__)
    _copy_sources(SHIPPED, app / "simulations" / "experiments")
    components = {"serverapp": "strategies.app:app", "clientapp": "clients.app:app"}
    pyproject = {
        "project": {"name": "pudica", "version": "0.0.0", "description": "One run of Pudica"},
        "tool": {
            "flwr": {"app": {"publisher": "pudica", "components": components, "config": config}}
        },
    }
    (app / "pyproject.toml").write_text(tomli_w.dumps(pyproject), encoding="utf-8")


def _copy_sources(source: Path, target: Path) -> None:
    """Copy what a bundle can carry; compiled and other files stay behind."""
    for file in source.rglob("*"):
        if file.suffix in TRAVELLING and file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
