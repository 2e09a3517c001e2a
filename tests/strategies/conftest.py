"""The fixture that runs a tiny competition in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from competition_helpers import ListeningGrid, tiny

from pudica.clients.app import app as client_app
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import app as server_app
from pudica.strategies.facemix import serving

Compete = Callable[..., ListeningGrid]


@pytest.fixture(autouse=True)
def _nobody_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine take its time: no request is computed before the others have come."""
    monkeypatch.setattr(serving, "WAIT_SECONDS", 60.0)


@pytest.fixture
def compete(tmp_path: Path) -> Compete:
    """Run a tiny competition in ``tmp_path / name`` and return the grid that listened."""

    def run(
        *overrides: str,
        name: str = "run",
        app: Any = client_app,
        kind: type[ListeningGrid] = ListeningGrid,
    ) -> ListeningGrid:
        experiment, directory = tiny(*overrides), tmp_path / name
        config = build_run_config(experiment, directory, "inprocess")
        grid = kind(app, len(experiment.participants), config)
        server_app(grid, build_server_context(config))
        return grid

    return run
