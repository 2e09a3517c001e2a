"""The command line, called in this process, and settings that make a run a matter of seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import TINY, as_options
from click.testing import Result
from typer.testing import CliRunner


@pytest.fixture
def figures() -> None:
    """Let ``pudica`` draw figures; drawing takes several times as long as a tiny run."""


@pytest.fixture
def pudica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[..., Result]:
    """Call the command line from an empty directory: ``pudica("run", …)``."""
    from pudica.simulations.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PUDICA_DATA", str(tmp_path / "data"))
    if "figures" not in request.fixturenames:
        monkeypatch.setattr("pudica.analysis.plot", lambda run: [])

    def call(*arguments: object, **environment: str) -> Result:
        env = {"COLUMNS": "100", **environment}
        result = CliRunner().invoke(app, [str(a) for a in arguments], env=env)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception  # a traceback, for the user
        return result

    return call


@pytest.fixture
def run_tiny(pudica: Callable[..., Result]) -> Callable[..., Result]:
    """Run a tiny competition in this process: ``run_tiny("--quiet", epochs=…)``."""

    def call(*options: object, **settings: str) -> Result:
        known = {key.replace(".", "_"): key for key in TINY}
        chosen = {**TINY, **{known.get(k, k): v for k, v in settings.items()}}
        arguments = ("--engine", "inprocess", *as_options(chosen), *options)
        return pudica("run", "themis-digits", *arguments)

    return call
