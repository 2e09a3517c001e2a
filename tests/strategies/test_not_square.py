"""Pictures that are higher than wide go through every system as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pudica import analysis
from pudica.simulations.engines import inprocess
from pudica.strategies.loading import load_experiment

SIZE = "data.image_size=[12, 10]"
RUNS = {
    "themis-digits": [
        "participants=[{model: softmax}, {model: cnn-tiny}]",
        "training.epochs=1",
        "themis.epochs=1",
        "themis.release.draws=1",
        "themis.examiner={model: softmax, training: {epochs: 1}}",
    ],
    "split-digits": ["split.cases={}", "split.model=cnn-tiny", "split.cut='2'", "split.epochs=1"],
    "dlmt-digits": [
        "dlmt.cases={}",
        "dlmt.shield=MAT(960)+MMT(10)",
        "dlmt.model=mlp",
        "dlmt.training={epochs: 1}",
    ],
    "facemix-digits": [
        "data.attributes=['label=3', 'label:5-9']",
        "facemix.cases={}",
        "facemix.model=cnn-tiny",
        "facemix.pre='1'",
        "facemix.post='4'",
        "facemix.training={epochs: 1, batch_size: 32}",
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_every_system_takes_them(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(name, ["data.limit=96", SIZE, *RUNS[name]])
    assert experiment.check().shape == (1, 12, 10)
    inprocess.run(experiment, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"
    assert len(analysis.load(tmp_path / "run"))
    assert all(figure.stat().st_size for figure in analysis.plot(tmp_path / "run"))
