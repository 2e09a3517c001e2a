"""Shields that other packages bring: nothing of ours is changed for them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch
from click.testing import Result
from node_files import node_file

from pudica.clients.runtime.node import NodeConfig
from pudica.clients.shields import (
    SHIELDS,
    ClipLaplace,
    Guarantee,
    Shield,
    find_shield,
    parse_config,
    registry,
)
from pudica.clients.shields.integers import ClipLaplaceConfig
from pudica.clients.shields.no_peek import NoPeek, NoPeekConfig
from pudica.models import plugins
from pudica.models.errors import RequestError
from pudica.simulations import run
from pudica.strategies.core.releases import NO_MECHANISM, in_the_clear
from pudica.strategies.loading import load_experiment

Command = Callable[..., Result]
DOCUMENT = Path(__file__).parents[2] / "docs" / "shields.md"


class MineConfig(ClipLaplaceConfig):
    name: Literal["mine"] = "mine"  # type: ignore[assignment]


class Mine(ClipLaplace):
    """A mechanism of one's own."""

    schema = MineConfig


class PeekConfig(NoPeekConfig):
    name: Literal["peek"] = "peek"  # type: ignore[assignment]


class Peek(NoPeek):
    schema = PeekConfig


class Nameless(Shield):
    def _protect(self, tensor: torch.Tensor, randomness: object) -> tuple[torch.Tensor, None]:
        return tensor, None


class Taken(NoPeek):
    """Has the name of the one it derives from."""


@pytest.fixture(autouse=True)
def remarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Install packages with the documents' example and those above; return what was logged."""
    (code,) = re.findall(r"```python\n(from typing.*?)```", DOCUMENT.read_text(), re.DOTALL)
    package = ModuleType("my_package")
    exec(code, package.__dict__)
    package.__dict__.update(Mine=Mine, Peek=Peek, Nameless=Nameless, Taken=Taken)
    monkeypatch.setitem(sys.modules, "my_package", package)
    names = ("Threshold", "Mine", "Peek", "Nameless", "Taken", "Shield.bind", "ThresholdConfig")
    points = [EntryPoint(name.lower(), f"my_package:{name}", registry.GROUP) for name in names]
    points.append(EntryPoint("gone", "no_such_module:Shield", registry.GROUP))
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: points if group == registry.GROUP else []
    )
    said: list[str] = []

    def log(_: int, text: str, *values: object) -> None:
        said.append(text % values)

    monkeypatch.setattr("flwr.common.logger.log", log)
    registry.load_shields.cache_clear()
    yield said
    registry.load_shields.cache_clear()


THRESHOLD = {"name": "threshold", "least": 0.3}


def test_an_experiment_runs_behind_it(pudica: Command, tmp_path: Path) -> None:
    settings = {"data.limit": 200, "split.epochs": 1, "split.shield": THRESHOLD}
    done = run("split-digits", set=settings, engine="inprocess", out=tmp_path).directory
    assert json.loads((done / "run.json").read_text())["status"] == "done"
    (smashed,) = {
        json.dumps(entry["shield"])
        for entry in json.loads((done / "releases.json").read_text())
        if entry["what"] == "smashed data"
    }
    assert json.loads(smashed) == THRESHOLD
    shown = pudica("privacy", done)
    assert shown.exit_code == 0, shown.stderr
    assert "smashed data: an obfuscation: large values pass" in shown.stdout


def test_settings_are_validated_by_its_schema() -> None:
    experiment = load_experiment("split-digits", ["split.shield={name: threshold}"])
    assert experiment.split.shield.model_dump() == {"name": "threshold", "least": 0.1}  # type: ignore[attr-defined]
    again = load_experiment(experiment.model_dump_json(), ["split.shield.least=0.7"])
    assert again.split.shield.least == 0.7  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="least = -1: must be at least 0"):
        load_experiment("split-digits", ["split.shield={name: threshold, least: -1}"])
    with pytest.raises(RequestError, match=r"unknown key 'most'. Allowed: least, name"):
        load_experiment("split-digits", ["split.shield={name: threshold, most: 1}"])
    with pytest.raises(RequestError, match=r"unknown shield 'treshold'. Did you mean 'threshold'"):
        load_experiment("split-digits", ["split.shield={name: treshold}"])
    with pytest.raises(RequestError, match="shield: 'peek' adds to the loss of the front"):
        load_experiment("split-digits", ["split.shield={name: peek}", "split.front=frozen"])
    with pytest.raises(ValueError, match=r"allowed: .*quantise, threshold, mine, peek"):
        parse_config({})


def test_a_mechanism_is_audited(pudica: Command) -> None:
    result = pudica(
        *("audit", "mine", "--set", "epsilon=3", "--shape", "8", "--batch", "1"),
        *("--samples", "2000"),
    )
    assert result.exit_code == 0, result.stderr
    assert "ε = 3 for one record" in result.stdout
    result = pudica("audit", "threshold")
    assert "shield 'threshold' has no noise with a guarantee" in result.stderr


def test_a_node_may_insist_on_it(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    node = NodeConfig.read(node_file(path, systems=["split"], shield=THRESHOLD))
    assert node.shield == THRESHOLD
    assert not node.guarantees
    with pytest.raises(RequestError, match="'threshold' has no epsilon; allowed: name, least"):
        NodeConfig.read(node_file(path, shield={**THRESHOLD, "epsilon": 1}))


def test_what_is_no_shield_is_left_out_and_logged(remarks: list[str]) -> None:
    assert [*registry.load_shields()] == [*SHIELDS, "threshold", "mine", "peek"]
    assert find_shield("no-peek") is NoPeek
    reasons = [remark.partition("unknown package: ")[2] for remark in remarks]
    assert reasons[0] == "its schema has no default for name; left out"
    assert reasons[1] == "there is a shield 'no-peek'; left out"
    assert reasons[2:4] == ["is no subclass of Shield; left out"] * 2
    assert "can't be loaded: ModuleNotFoundError" in reasons[4]


def test_only_mechanisms_are_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What claims a guarantee otherwise would count as nothing in a sum."""
    promised = Guarantee("record", 1.0)
    monkeypatch.setattr(find_shield("threshold"), "guarantee", lambda _: promised)
    release = replace(in_the_clear("main", (4,), 8), shield=THRESHOLD, randomness="secret")
    assert release.claimed == promised
    assert release.held == NO_MECHANISM


LIGHT = """
import sys
import pudica.clients.shields as shields
shields.parse_config({"name": "quantise"})
assert not shields.registry.load_shields.cache_info().currsize
heavy = {"torchvision", "flwr", "ray"} & {name.partition(".")[0] for name in sys.modules}
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_ours_need_neither_entry_points_nor_what_is_slow_to_import() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
