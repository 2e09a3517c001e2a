"""Where a model begins, and backs from class means: files, public data, budgets that are kept."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from competition_helpers import rows_of
from safetensors.torch import save_file
from split_helpers import Interrupted, asked, measured, model_of, run, tiny
from torch import nn

import pudica.clients.app
from pudica import analysis, models
from pudica.analysis.privacy import privacy, releases, verdict
from pudica.clients import protocol
from pudica.clients.runtime.odometer import Odometer
from pudica.clients.runtime.vault import Vault
from pudica.clients.split.edge import Edge
from pudica.models import Compute, Training
from pudica.models.errors import RequestError
from pudica.models.randomness import derive
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.core.reliable_grid import TooFewParticipants
from pudica.strategies.split.experiment import SplitExperiment
from pudica.strategies.split.model import fit_means

PUBLIC = [
    "split.front=frozen",
    "split.weights=pretrained",
    "split.pretraining={data: {name: digits, limit: 120}, training: {epochs: 4, batch_size: 16}}",
    "split.pretraining.training.learning_rate=0.05",
    "split.pretraining.training.augment=handwriting",
]
MEANS = [
    "split.front=frozen",
    "split.release=once",
    "split.fit=means",
    "split.cut='6'",
    "split.epochs=1",
    "split.batches_per_message=1000",
]


def as_begun(experiment: SplitExperiment) -> dict[str, torch.Tensor]:
    """Return the model's weights as they are drawn, where nothing else is said."""
    data = experiment.load_data()
    model = models.build(
        experiment.split.model,
        num_classes=data.num_classes,
        channels=data.shape[0],
        image_size=data.shape[1],
        seed=derive(experiment.seed, "weights"),
    )
    return model.state_dict()


def stays(experiment: SplitExperiment, directory: Path) -> dict[str, torch.Tensor]:
    """Return the weights with which the run began, of one in which nothing learns."""
    run(experiment, directory)
    return model_of(directory)


def resting(*overrides: str) -> SplitExperiment:
    """Return an experiment in which nothing learns."""
    return tiny("split.front=frozen", "split.release=once", "split.fit=none", *overrides)


# --------------------------------------------------------------------- weights of a file


def weights_file(path: Path, classes: int = 10, seed: int = 7) -> dict[str, torch.Tensor]:
    model = models.build("cnn-tiny", num_classes=classes, channels=1, image_size=8, seed=seed)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path)
    return tensors


def test_the_weights_of_a_file_are_the_start(tmp_path: Path) -> None:
    kept = weights_file(tmp_path / "own.safetensors")
    experiment = resting(f"split.weights={tmp_path / 'own.safetensors'}")
    found = stays(experiment, tmp_path / "run")
    drawn = as_begun(experiment)
    for name, value in kept.items():
        assert torch.equal(found[name], value)
        assert not torch.equal(found[name], drawn[name])


def test_a_layer_of_another_shape_starts_afresh(tmp_path: Path) -> None:
    kept = weights_file(tmp_path / "own.safetensors", classes=5)
    experiment = resting(f"split.weights={tmp_path / 'own.safetensors'}")
    found, drawn = stays(experiment, tmp_path / "run"), as_begun(experiment)
    last = {"7.weight", "7.bias"}
    for name, value in found.items():
        assert torch.equal(value, (drawn if name in last else kept)[name]), name


def test_a_case_may_start_from_a_file_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """Named from where the experiment was read, wherever the run takes place."""
    kept = weights_file(tmp_path / "own.safetensors")
    monkeypatch.chdir(tmp_path)
    experiment = resting("split.cases={drawn: {}, given: {weights: own.safetensors}}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(experiment, tmp_path / "run")
    given, drawn = (model_of(tmp_path / "run", case) for case in ("given", "drawn"))
    assert all(torch.equal(given[name], kept[name]) for name in kept)
    assert all(torch.equal(drawn[name], value) for name, value in as_begun(experiment).items())


def test_a_file_of_another_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "own.pt"
    torch.save({"0.weight": torch.zeros(3)}, path)
    for content in (path.read_bytes(), pickle.dumps({"a": 1}), b"", b"not at all"):
        path.write_bytes(content)
        with pytest.raises(RequestError) as caught:
            tiny(f"split.weights={path}").check()
        assert f"split: weights: {path} is not a safetensors file" in str(caught.value)
        assert "safetensors.torch.save_file(torch.load(FILE, weights_only=True)" in str(
            caught.value
        )


def test_a_file_with_nothing_that_fits_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    for tensors, first in (
        ({"module.0.weight": torch.zeros(8, 1, 3, 3)}, "'module.0.weight'"),
        ({"0.weight": torch.zeros(8, 3, 3, 3)}, "'0.weight'"),
        ({}, r"'\(none\)'"),
    ):
        save_file(tensors, path)
        told = f"holds nothing that fits the model: its first entry is {first}, the model's '0.wei"
        with pytest.raises(RequestError, match=told):
            tiny(f"split.weights={path}").check()


def test_what_is_wrong_with_a_cases_weights_names_the_case(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "own.safetensors")
    cases = f"split.cases={{good: {{}}, bad: {{weights: {tmp_path / 'own.safetensors'}}}}}"
    with pytest.raises(RequestError, match=r"split \(case 'bad'\): weights: "):
        tiny(cases).check()


# --------------------------------------------------------------------------- public data


def publicly_trained(experiment: SplitExperiment) -> dict[str, torch.Tensor]:
    """Return the best weights of plain training on the public data."""
    data, pretraining = experiment.load_public(), experiment.split.pretraining
    seed = derive(experiment.seed, "pretraining", "cnn-tiny")
    model = models.build("cnn-tiny", num_classes=10, channels=1, image_size=8, seed=seed)
    training = Training(model, pretraining.training, seed, Compute(experiment.client))
    while not training.finished:
        training.run_epoch(data.train, data.validation)
    return training.best


def test_training_on_public_data_gives_the_start(tmp_path: Path) -> None:
    experiment = resting(*PUBLIC)
    found = stays(experiment, tmp_path / "run")
    for name, value in publicly_trained(experiment).items():
        assert torch.equal(found[name], value), name
    rows = measured(tmp_path / "run", stage="pretraining", metric="accuracy")
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert {(row["node"], row["model"]) for row in rows} == {("cloud", "cnn-tiny")}


def test_the_public_images_are_drawn_by_a_seed_of_their_own() -> None:
    experiment = tiny(*PUBLIC)
    public, own = experiment.load_public(), experiment.load_data()
    assert not np.array_equal(np.sort(public.train.rows), np.sort(own.train.rows))
    again = tiny(*PUBLIC).load_public()
    assert np.array_equal(public.train.rows, again.train.rows)


def test_each_model_is_trained_once_for_all_cases_that_want_it(tmp_path: Path) -> None:
    cases = "split.cases={one: {}, two: {batch_size: 8}, mlp: {model: mlp, cut: '1'}, drawn: "
    experiment = resting(*PUBLIC, cases + "{weights: null}}")
    run(experiment, tmp_path / "run")
    rows = measured(tmp_path / "run", stage="pretraining", metric="loss")
    assert [(row["model"], row["round"]) for row in rows] == [
        (model, epoch) for model in ("cnn-tiny", "mlp") for epoch in (1, 2, 3, 4)
    ]
    one, two, drawn = (model_of(tmp_path / "run", case) for case in ("one", "two", "drawn"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(drawn[name], value) for name, value in as_begun(experiment).items())


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize(("how_many", "again"), [(1, [0, 1, 2, 3]), (3, [2, 3]), (4, [])])
def test_pretraining_that_was_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how_many: int, again: list[int]
) -> None:
    """Before an epoch was written down; between the last one and the end of the task."""
    experiment = tiny(*PUBLIC, "split.epochs=1")
    run(experiment, tmp_path / "whole" / "run")

    trained: list[int] = []

    def epoch(self: Training, *arguments: object) -> None:
        trained.append(self.epoch)
        original(self, *arguments)
        if len(trained) == how_many:
            raise Killed

    def finish(self: Recorder, task: str, **result: object) -> None:
        if task.startswith("pretraining/"):
            raise Killed
        finished(self, task, **result)

    original, finished = Training.run_epoch, Recorder.finish
    with monkeypatch.context() as patch:
        if how_many < 4:
            patch.setattr(Training, "run_epoch", epoch)
        else:
            patch.setattr(Recorder, "finish", finish)
        with pytest.raises(Killed):
            run(experiment, tmp_path / "killed" / "run")

    trained.clear()
    how_many = -1
    monkeypatch.setattr(Training, "run_epoch", epoch)
    run(experiment, tmp_path / "killed" / "run")
    assert trained == again
    killed, whole = tmp_path / "killed" / "run", tmp_path / "whole" / "run"
    assert rows_of(killed) == rows_of(whole)
    one, other = model_of(killed), model_of(whole)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("setting", "shape"), [("image_size: 9", "1x9x9"), ("channels: 3", "3x8x8")]
)
def test_public_images_of_another_shape_are_refused(setting: str, shape: str) -> None:
    public = f"split.pretraining={{data: {{name: digits, {setting}}}}}"
    with pytest.raises(RequestError) as caught:
        tiny("split.weights=pretrained", public).check()
    assert f"split.pretraining.data: images of {shape}, the devices' are 1x8x8" in str(caught.value)
    assert "set image_size and channels to the same" in str(caught.value)


# --------------------------------------------------------------------------- class means


def by_hand(x: np.ndarray, y: np.ndarray, asked_of: np.ndarray, classes: int) -> np.ndarray:
    """Return the nearest means' classes, the means' lengths without what noise adds to them."""
    scores = np.full((len(asked_of), classes), -np.inf)
    for label in range(classes):
        own = x[y == label].astype(np.float64)
        if not len(own):
            continue
        mean = own.mean(0)
        noise = sum((own[:, f] - mean[f]) @ (own[:, f] - mean[f]) for f in range(x.shape[1]))
        noise /= (len(own) - 1) * len(own)
        scores[:, label] = asked_of @ mean - (mean @ mean - noise) / 2
    return scores.argmax(1)


def test_means_are_those_of_what_was_released(tmp_path: Path) -> None:
    """With noise: what the devices sent, not what they have, decides."""
    experiment = tiny(
        *MEANS, "split.shield={name: clip-gaussian, epsilon: 5, clip: 3}", "data.limit=400"
    )
    grid = run(experiment, tmp_path / "run")
    replies = [protocol.arrays_of(r.content) for r in grid.replies if _is_smash(r)]
    x, y = (np.concatenate([r[key] for r in replies]) for key in ("smashed", "labels"))
    assert x.shape == (400, 64)
    assert x.dtype == np.int16
    x = x * edge_of(tmp_path / "run").front.shield.grid.step
    back = model_of(tmp_path / "run")
    asked_of = np.random.default_rng(0).normal(0, 2, (500, 64))
    logits = asked_of @ back["7.weight"].double().numpy().T + back["7.bias"].double().numpy()
    assert np.array_equal(logits.argmax(1), by_hand(x, y, asked_of, 10))


def edge_of(directory: Path) -> Edge:
    node = pudica.clients.app._nodes[directory / "vault" / directory.name / "node-0"]
    assert isinstance(node, Edge)
    return node


def _is_smash(message) -> bool:
    return bool(message.metadata.message_type == protocol.SMASH)


def test_noise_does_not_favour_the_classes_with_many_images() -> None:
    """Without the correction a rare class, whose mean is noisier, is never chosen."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(2, 40)
    labels = torch.tensor([0] * 4000 + [1] * 20)
    smashed = centres[labels] + torch.randn(len(labels), 40, generator=generator)
    back = nn.Sequential(nn.Flatten(), nn.Linear(40, 2))
    fit_means(back, smashed, labels)
    common, rare = back[1].bias.detach().tolist()
    # Of the squared length of a mean of 20 draws the variance is 4/20 + 2·40/20²; halved.
    deviation = math.sqrt(4 / 20 + 2 * 40 / 20**2) / 2
    assert abs(rare - common) < 4 * deviation
    lengths = back[1].weight.detach().square().sum(1) / 2
    assert float(lengths[1] - lengths[0]) > 0.5


def test_without_noise_means_classify_well(tmp_path: Path) -> None:
    run(tiny(*MEANS, *PUBLIC, "data.limit=600"), tmp_path / "run")
    (row,) = measured(
        tmp_path / "run", stage="test", node="cloud", release="plain", classified="edge"
    )
    assert row["value"] > 0.6


@pytest.mark.parametrize(
    ("setting", "promised"),
    [("normalize=none", True), ("normalize=training", False), ("shield=MAT(9)", False)],
)
def test_statistics_of_all_training_images_void_what_noise_promises(
    setting: str, promised: bool, tmp_path: Path
) -> None:
    """One image moves mean and spread, and with them what is released of every other image."""
    shield = "split.shield={name: clip-gaussian, epsilon: 3}"
    secret = (*MEANS, shield, "split.noise=secret", f"data.{setting}")
    if not promised:
        with pytest.raises(RequestError, match="normalised by statistics of all training images"):
            tiny(*secret).check()
        with pytest.raises(TooFewParticipants, match="nothing can be promised to images"):
            run(tiny(*secret), tmp_path / "refused")
    noise = "secret" if promised else "seeded"
    run(tiny(*secret, f"split.noise={noise}"), tmp_path / "run")
    found = verdict(tmp_path / "run")["main"]
    assert (found.epsilon is not None) == promised
    reason = "smashed data are normalised by statistics of training records, without noise"
    assert (reason in found.reasons) != promised
    assert str(found).startswith("ε = 3" if promised else "no finite ε")


def test_a_budget_is_not_given_for_images_normalised_by_each_other() -> None:
    shield = "split.shield={name: clip-gaussian, epsilon: null}"
    settings = (*MEANS, shield, "split.noise=secret", "split.budget={epsilon: 1}")
    tiny(*settings).check()
    with pytest.raises(RequestError, match=r"allowed: data.normalize: none"):
        tiny(*settings, "data.shield=MAT(9)").check()
    tiny(*settings, "data.shield=MAT(9)", "data.normalize=none").check()


def test_a_class_that_nobody_has_is_never_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    back = nn.Linear(4, 3)
    fit_means(back, torch.randn(6, 4, generator=generator), torch.tensor([0, 0, 2, 2, 2, 0]))
    chosen = back(10 * torch.randn(200, 4, generator=generator)).argmax(1)
    assert chosen.unique().tolist() == [0, 2]


def test_a_class_with_one_image_has_its_own_as_mean() -> None:
    back, x = nn.Linear(4, 2), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    fit_means(back, x, torch.tensor([0, 0, 1]))
    assert torch.equal(back.weight[1].detach(), x[2])
    torch.testing.assert_close(back.bias[1].detach(), -x[2].square().sum() / 2)


def test_means_of_a_deeper_back_are_refused() -> None:
    for cut in ("input", "2"):
        with pytest.raises(RequestError, match="needs a back that is a single linear layer"):
            tiny(*MEANS, f"split.cut='{cut}'").check()
    tiny(*MEANS).check()
    tiny(*MEANS, "split.cut='5'").check()


def test_means_need_activations_that_are_released_once() -> None:
    with pytest.raises(RequestError, match="fit: 'means' needs release: once"):
        tiny("split.front=frozen", "split.fit=means")


# ----------------------------------------------------------------------------- no release


def test_without_a_fit_nothing_of_the_training_images_leaves_a_device(tmp_path: Path) -> None:
    shield = "split.shield={name: clip-gaussian, epsilon: 1}"
    experiment = resting(shield, "split.classify=[edge]")
    grid = run(experiment, tmp_path / "run")
    assert len(asked(grid, protocol.SMASH)) == 2
    for reply in grid.replies:
        if _is_smash(reply):
            assert all(not array.size for array in protocol.arrays_of(reply.content).values())
    private = [entry for entry in releases(tmp_path / "run") if not entry.public]
    assert {entry.records for entry in private} <= {"test", "validation"}
    assert verdict(tmp_path / "run")["main"].epsilon == 0
    found = model_of(tmp_path / "run")
    assert all(torch.equal(found[name], value) for name, value in as_begun(experiment).items())
    assert measured(tmp_path / "run", stage="test")


# ------------------------------------------------------------------------------- a budget


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run like split-record-dp-mnist, on digits for both."""
    overrides = [
        *PUBLIC,
        "split.devices=3",
        "split.model=cnn-embedding",
        "split.cut=norm",
        "split.noise=secret",
        "split.release=once",
        "split.fit=means",
        "split.batches_per_message=1000",
        "split.epochs=1",
        "split.shield={name: clip-gaussian, epsilon: null, clip: 1.0}",
        "data={name: digits, limit: 150, image_size: 20, margin: 4}",
        "split.pretraining.data={name: digits, limit: 120, image_size: 20, margin: 4}",
        "split.cases={public only: {fit: none}, no noise: {}, eps=8: {budget: {epsilon: 8}}, "
        "eps=1: {budget: {epsilon: 1, delta: 1.0e-6}}}",
    ]
    directory = tmp_path_factory.mktemp("budget") / "run"
    run(tiny(*overrides), directory)
    return directory


def test_the_budget_is_spent_to_the_last_and_never_overdrawn(budgeted: Path) -> None:
    for case, epsilon, delta in (("eps=8", 8, 1e-5), ("eps=1", 1, 1e-6)):
        found = verdict(budgeted, delta)[case]
        assert found.unit == "record"
        assert epsilon - 1e-3 <= found.epsilon <= epsilon
        assert found.delta == delta
        assert verdict(budgeted, 10 * delta)[case].epsilon < epsilon


def test_the_other_cases_promise_what_they_keep(budgeted: Path) -> None:
    found = verdict(budgeted)
    assert list(found) == ["public only", "no noise", "eps=8", "eps=1"]
    assert found["public only"].epsilon == 0
    assert found["no noise"].epsilon is None
    assert "smashed data are released without noise" in found["no noise"].reasons
    assert all("seed" not in reason for reason in found["eps=8"].reasons)


def test_every_example_was_released_once_by_its_device_and_the_noise_is_secret(
    budgeted: Path,
) -> None:
    frame = privacy(budgeted)
    own = frame[(frame["records"] == "training") & (frame["what"] == "smashed data")]
    assert own["case"].tolist() == ["no noise", "eps=8", "eps=1"]
    assert own["count"].tolist() == [1, 1, 1]
    assert own["nodes"].tolist() == [3, 3, 3]
    assert own["randomness"].tolist() == ["none", "secret", "secret"]
    for number in range(3):
        vault = Vault(budgeted / "vault" / "run" / f"node-{number}")
        entries = [entry.release for entry in Odometer(vault).entries()]
        trained = [each for each in entries if each.part == "train"]
        assert [(each.case, each.what) for each in trained] == [
            ("eps=8", "activations"),
            ("eps=1", "activations"),
        ]
        assert {each.what for each in entries if each.part == "test"} == {"counts"}


def test_more_privacy_costs_accuracy(budgeted: Path) -> None:
    table = analysis.tables(budgeted)["Test accuracy"].set_index("case")
    assert table.loc["no noise", "plain_edge"] > 40
    assert table.loc["no noise", "plain_edge"] > table.loc["eps=1", "plain_edge"]
    assert table.loc["eps=8", "holds"].startswith("ε = 8 (δ = 1e-05)")


@pytest.mark.parametrize("cut", ["3", "4"])
def test_means_are_refused_where_something_is_computed_before_the_linear_layer(cut: str) -> None:
    with pytest.raises(RequestError, match="single linear layer"):
        tiny(*MEANS, f"split.cut='{cut}'").check()


def test_means_are_refused_before_a_normalisation_and_work_after_it() -> None:
    settings = ["data={name: digits, limit: 96, image_size: 20, margin: 4}"]
    settings += ["split.model=cnn-embedding"]
    with pytest.raises(RequestError, match="single linear layer"):
        tiny(*MEANS, *settings, "split.cut=features").check()
    tiny(*MEANS, *settings, "split.cut=norm").check()
    tiny(*MEANS, "split.model=softmax", "split.cut=input").check()


def test_public_data_without_validation_images_are_refused() -> None:
    public = "split.pretraining={data: {name: digits, split: '9:1'}, training: {epochs: 1}}"
    with pytest.raises(RequestError, match="leaves no validation images"):
        tiny("split.front=frozen", "split.weights=pretrained", public).check()


@pytest.mark.parametrize("disguise", [(), ("data.shield=MAT(9)",)])
def test_what_the_devices_hold_is_not_public(disguise: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="is what the devices hold, and not public"):
        tiny(*PUBLIC, *disguise).check()


def test_a_budget_is_kept_by_releasing_nothing(tmp_path: Path) -> None:
    shield = "split.shield={name: clip-gaussian, epsilon: null}"
    experiment = tiny(*MEANS, shield, "split.budget={epsilon: 1}", "split.fit=none")
    experiment.check()
    run(experiment, tmp_path / "run")
    assert verdict(tmp_path / "run")["main"].epsilon == 0


def test_a_run_that_has_no_ledger_yet_can_be_shown(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tiny(), tmp_path / "run", stop=(protocol.JOIN, 1))
    assert "Runs" in analysis.tables(tmp_path / "run")
    assert analysis.plot(tmp_path / "run") == []
