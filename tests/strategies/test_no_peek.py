"""Split learning with a penalty on the front: it is in the gradient, and refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from node_files import node_file
from split_helpers import Interrupted, edges, forget_nodes, model_of, run, same, tiny, whole
from torch.nn.functional import cross_entropy

import pudica.clients.app
from pudica.clients import protocol
from pudica.clients.runtime.node import NodeConfig
from pudica.clients.shields.no_peek import distance_correlation
from pudica.models.cut import Cutter
from pudica.models.errors import RequestError
from pudica.strategies.loading import load_experiment

LEARNS = ("average", "handoff", "private")


def no_peek(weight: float) -> str:
    return f"split.shield={{name: no-peek, weight: {weight}}}"


@pytest.mark.parametrize("front", LEARNS)
def test_a_step_is_on_the_loss_with_the_penalty(tmp_path: Path, front: str) -> None:
    """One device, one batch, plain SGD: the step is that of autograd on the whole model."""
    experiment = tiny(
        *("split.devices=1", f"split.front={front}", no_peek(2.0), "split.epochs=1"),
        *("split.batch_size=64", "data.limit=32", "split.optimizer={learning_rate: 0.05}"),
    )
    run(experiment, tmp_path / "run")
    (device,) = edges(experiment, tmp_path / "run")
    model = whole(experiment).train()
    layers, back = Cutter(model).cut("2")
    x, y = device.train.batch(device._positions(0, 0))
    z = layers(x)
    (cross_entropy(back(z), y) + 2 * distance_correlation(x, z)).backward()
    found = model_of(tmp_path / "run") | device.front.layers.state_dict()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() - 0.05 * parameter.grad
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("front", ["average", "private"])
def test_activations_of_a_trained_front_depend_less_on_their_images(
    tmp_path: Path, front: str
) -> None:
    found = {}
    for weight in (0.0, 5.0):
        experiment = tiny(
            *(f"split.front={front}", no_peek(weight), "data.limit=400", "split.epochs=10"),
            "split.optimizer={learning_rate: 0.05}",
        )
        place = tmp_path / str(weight) / "run"
        run(experiment, place)
        device = edges(experiment, place)[0]
        x, _ = device.images("test").batch(slice(0, 100))
        with device._evaluating(), torch.no_grad():
            found[weight] = float(distance_correlation(x, device._activate(x)))
    assert found[5.0] < found[0.0] - 0.05


def test_a_weight_of_0_is_no_shield(tmp_path: Path) -> None:
    run(tiny(no_peek(0)), tmp_path / "weightless" / "run")
    run(tiny(), tmp_path / "plain" / "run")
    assert same(model_of(tmp_path / "weightless" / "run"), model_of(tmp_path / "plain" / "run"))


@pytest.mark.parametrize("front", LEARNS)
def test_restarts_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, front: str
) -> None:
    """With two batches to a message; a fresh process for each, and a run that was killed."""
    monkeypatch.setattr("pudica.strategies.core.recorder.CHECKPOINT_SECONDS", 0.0)
    experiment = tiny(f"split.front={front}", no_peek(3), "split.batches_per_message=2")
    run(experiment, tmp_path / "lasting" / "run")
    with pytest.raises(Interrupted):
        run(experiment, tmp_path / "killed" / "run", stop=(protocol.SMASH, 5))
    pudica.clients.app._nodes.clear()
    run(experiment, tmp_path / "killed" / "run")
    monkeypatch.setattr("pudica.strategies.core.session.LASTING", ())
    forget_nodes(monkeypatch)
    run(experiment, tmp_path / "forgetful" / "run")
    lasting = model_of(tmp_path / "lasting" / "run")
    for name in ("killed", "forgetful"):
        assert same(model_of(tmp_path / name / "run"), lasting)


# --------------------------------------------------------- where it would have no effect


def test_an_experiment_whose_front_does_not_learn_is_refused() -> None:
    with pytest.raises(RequestError, match=r"'no-peek' adds to the loss .* allowed: average"):
        tiny("split.front=frozen", no_peek(1))
    experiment = tiny("split.cut=input", no_peek(1))
    with pytest.raises(RequestError, match=r"split: shield: 'no-peek' .*'input' it has no weights"):
        experiment.check_models(experiment.load_data())


def test_facemix_refuses_it() -> None:
    message = "shield: 'no-peek' adds to the loss of a front; it is for split learning"
    with pytest.raises(RequestError, match=message):
        load_experiment("facemix-digits", ["facemix.cases={}", "facemix.shield={name: no-peek}"])


def test_a_node_that_insists_on_it_takes_no_frozen_front(tmp_path: Path) -> None:
    own = {"systems": ["split"], "shield": {"name": "no-peek", "weight": 2.0}}
    path = tmp_path / "node.yaml"
    assert NodeConfig.read(node_file(path, **own)).allowed_fronts == ("private",)
    with pytest.raises(RequestError, match="fronts: 'frozen' learns nothing"):
        NodeConfig.read(node_file(path, **own, fronts=["frozen", "average"]))
