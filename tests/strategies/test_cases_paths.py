"""Files that settings name mean the same from any directory, in cases too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pudica.clients.assignments import parse_assignment
from pudica.models.errors import RequestError
from pudica.strategies.loading import load_experiment

SPLIT = """
system: split
data: {name: image-folder, path: images}
split:
  model: custom:net.py:build
  weights: begun.safetensors
  pretraining: {data: {name: mnist, root: sets}}
  cases:
    other: {weights: other.safetensors, model: "custom:./net.py:other"}
    pretrained: {weights: pretrained, batch_size: 8}
"""


def test_files_are_named_absolutely_wherever_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "split.yaml").write_text(SPLIT)
    monkeypatch.chdir(tmp_path)
    sent = load_experiment("split.yaml", []).model_dump_json(by_alias=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    experiment = load_experiment(sent, [])
    assert experiment.data.path == tmp_path / "images"
    settings = json.loads(sent)["split"]
    assert settings["pretraining"]["data"]["root"] == str(tmp_path / "sets")
    cases = experiment.split.each_case()  # type: ignore[attr-defined]
    assert cases["other"].weights == str(tmp_path / "other.safetensors")
    assert cases["other"].model == f"custom:{tmp_path / 'net.py'}:other"
    assert cases["pretrained"].weights == "pretrained"
    assert cases["pretrained"].model == f"custom:{tmp_path / 'net.py'}:build"


def test_a_key_of_a_case_is_named_absolutely_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ["dlmt.key=~/a.key", "dlmt.shield=MAT(4)", "dlmt.cases={b: {key: b.key}, c: {}}"]
    cases = load_experiment("dlmt-digits", changes).dlmt.each_case()  # type: ignore[attr-defined]
    assert cases["b"].key == str(tmp_path / "b.key")
    assert cases["c"].key == str(Path.home() / "a.key")


def test_a_key_that_is_empty_is_refused() -> None:
    with pytest.raises(RequestError, match=r"dlmt\.key = ''"):
        load_experiment("dlmt-digits", ["dlmt.shield=MAT(4)", "dlmt.key=''"])


def test_files_that_an_organiser_names_stay_as_they_are_on_a_node() -> None:
    given = {
        "system": "themis",
        "run": "r",
        "partition": 0,
        "partitions": 1,
        "data_seed": 0,
        "data": {"name": "image-folder", "path": "~root/x"},
        "compute": {},
        "training": {},
        "participant": {"model": "custom:~root/net.py:f"},
        "training_seed": 0,
    }
    assignment = parse_assignment(json.dumps(given))
    assert str(assignment.data.path) == "~root/x"
    assert assignment.participant.model == "custom:~root/net.py:f"
