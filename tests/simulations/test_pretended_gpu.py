"""Nothing is computed from a GPU's tensors and the CPU's together, where there is no GPU to try."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pretended_gpu import pretended_gpu

from pudica.analysis.attacks import Effort, FacemixView, attacks
from pudica.analysis.runs import open_run
from pudica.models.compute import Compute, ComputeConfig
from pudica.simulations.attacking import attack
from pudica.simulations.engines import inprocess
from pudica.strategies.loading import load_experiment

SMALL = ["data.limit=160", "client.channels_last=true"]
BRIEF = "facemix.training={epochs: 1, batch_size: 32}"
RUNS = {
    "themis": ("themis-digits", ["themis.epochs=1"]),
    "split, averaged": ("split-digits", ["split.front=average", "split.epochs=1"]),
    "split, frozen": ("split-digits", ["split.front=frozen", "split.epochs=1"]),
    "dlmt, central": ("dlmt-digits", []),
    "dlmt, federated": ("dlmt-digits", ["dlmt.train=federated"]),
    "facemix": (
        "facemix-digits",
        [
            BRIEF,
            "facemix.cases={mixed: {}, vectors: {pre: '4'}, cloud: {place: cloud, shield: {name: "
            "noise, variance: 4}}, anonymised: {place: cloud, anonymiser: {}}}",
        ],
    ),
    "facemix, together": (
        "facemix-digits",
        [BRIEF, "facemix.cases={}", "facemix.train=split", "data.normalize=none"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_devices_do_not_meet(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what a node refuses would be said: it counts as absent."""
    experiment, settings = RUNS[name]
    place = tmp_path / "run"
    with pretended_gpu(monkeypatch):
        inprocess.run(load_experiment(experiment, [*SMALL, *settings]), place)
        assert json.loads((place / "run.json").read_text())["status"] == "done"
        told = place / "events.log"
        assert not told.exists() or "dropout" not in told.read_text()
        if name == "facemix":
            for kind, case in {"separation": "mixed", "attributes": "cloud"}.items():
                view = FacemixView.of(open_run(place), case)
                assert attacks()[kind].run(view, Effort(1, 8, 1, 0)).metrics
        if name == "split, averaged":
            attack(place, [], [], Effort(1, 40, 1, 0), None, print)


def test_what_is_pretended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu(monkeypatch):
        compute = Compute(ComputeConfig())
        layer = compute.move_model(torch.nn.Linear(3, 2))
        there, here = compute.move_batch(torch.ones(4, 3)), torch.ones(4, 2)
        assert layer(there).device.type == "cuda"
        for mixed in (
            lambda: layer(torch.ones(4, 3)),
            lambda: layer(there) + here,
            lambda: here[layer(there).argmax(0)],
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            layer(there).detach().numpy()
        torch.testing.assert_close(layer(there).cpu() + here, layer.cpu()(torch.ones(4, 3)) + 1)
