"""A system that another package brings: nothing of ours is changed for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pudica.clients.runtime.systems import systems
from pudica.simulations.cli import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_system"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example is installed as pip would."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "pudica_poll").symlink_to(EXAMPLE / "pudica_poll")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    metadata = folder / "pudica_poll-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pudica-poll\nVersion: 0.1.0\n")
    points = project["entry-points"]["pudica.systems"].items()
    lines = ["[pudica.systems]", *(f"{name} = {value}" for name, value in points)]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


# Several commands in one process, for importing takes longer than they do; RUN is the run that is
# there.
CALL = """
import json, sys
from pathlib import Path
from pudica.simulations.cli import main

for command in json.loads(sys.argv[1]):
    print("$", *command, flush=True)
    sys.argv[1:] = [str(next(Path("runs").iterdir())) if w == "RUN" else w for w in command]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def pudica(site: Path, *commands: tuple[str, ...], code: int = 0) -> str:
    return python(site, CALL, json.dumps(commands), code=code)


def python(site: Path, *arguments: str, code: int = 0) -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "PUDICA_CACHE": str(site / "cache")}
    command = [sys.executable, "-c", *arguments]
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


RUN = ("run", "poll-digits", "--engine")


@pytest.mark.slow
def test_the_command_line_knows_it(site: Path) -> None:
    run = (*RUN, "inprocess", "--out", "runs")
    said = pudica(site, ("list",), run, ("show", "RUN"), ("plot", "RUN"))
    _, listed, ran, shown, plotted = said.split("$ ")
    assert "poll-digits" in listed
    for text in (ran, shown):
        assert "Poll" in text
        assert "node-2" in text
    assert "poll.png" in plotted


def test_its_settings_are_listed_as_any(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    systems.cache_clear()
    try:
        said = CliRunner().invoke(app, ["settings", "poll", "poll"]).stdout
        schema = json.loads(CliRunner().invoke(app, ["settings", "poll", "--json-schema"]).stdout)
    finally:
        systems.cache_clear()
    assert "  poll.epsilon\n      number above 0; in ε of one image; default: 1.0\n" in said
    assert "The privacy of an answer" in said
    assert schema["$defs"]["PollConfig"]["properties"]["nodes"]["x-unit"] == "nodes"


@pytest.mark.slow
def test_workers_know_it(site: Path) -> None:
    call = """
from pudica.simulations import run
print(run("poll-digits", engine="ray", out="on-ray").tables()["Poll"])
"""
    assert "node-2" in python(site, call)


@pytest.mark.slow
def test_its_settings_are_validated_as_any(site: Path) -> None:
    said = pudica(site, ("run", "poll-digits", "--set", "poll.epsilon=0"), code=2)
    assert "poll.epsilon = 0: must be above 0" in said


@pytest.mark.slow
def test_without_the_package_it_is_unknown(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "poll.yaml"
    other.write_text("system: poll\n")
    assert "unknown system 'poll'" in pudica(tmp_path, ("run", str(other)), code=2)
