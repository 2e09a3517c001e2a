"""THEMIS as a strategy in somebody's own Flower app: own modules, own data, no YAML."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, Strategy
from torch import nn
from torch.utils.data import TensorDataset

from pudica.clients import Participant, protocol
from pudica.clients.data import DataError
from pudica.clients.runtime.vault import MemoryVault
from pudica.models.errors import RequestError
from pudica.models.training import TrainingConfig
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_server_context
from pudica.strategies import ReliableGrid, Themis, TooFewParticipants

SHAPE, CLASSES = (1, 4, 4), 3
NAMES = ("zoe", "adam", "mia")
ROUNDS = 3


def examples(count: int, seed: int = 0) -> TensorDataset:
    """Classes that differ in which rows are bright."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    x = 0.3 * torch.randn((count, *SHAPE), generator=generator)
    x[torch.arange(count), 0, y] += 1
    return TensorDataset(x, y)


TRAIN, VALIDATION, TEST = examples(40), examples(21, 1), examples(30, 2)


def network(seed: int, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, classes))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    x, y = TRAIN.tensors
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


MODELS = [network(seed) for seed in range(len(NAMES))]


def participant(context: Context) -> Participant:
    place = int(context.node_config["partition-id"])
    return Participant(MODELS[place], TRAIN, VALIDATION, name=NAMES[place])


class Recording(InProcessGrid):
    """Remembers who was asked what; stops after so many replies of a kind, if told to."""

    def __init__(self, app: ClientApp, nodes: int = len(NAMES)) -> None:
        super().__init__(app, nodes, {})
        build_server_context({})
        self.asked: list[tuple[int, str]] = []
        self.stop_after: int | None = None

    def _answer(self, message: Message) -> Message:
        self.asked.append((message.metadata.dst_node_id - 2, message.metadata.message_type))
        if self.stop_after is not None and len(self.asked) > self.stop_after:
            raise KeyboardInterrupt
        return super()._answer(message)


def grid(factory: Callable[[Context], Any] = participant, nodes: int = len(NAMES)) -> Recording:
    return Recording(Participant.app(factory), nodes)


def train(on: Any = None, rounds: int = ROUNDS, **settings: Any) -> tuple[Themis, Any]:
    strategy = Themis(**{"min_nodes": 3, "batch_size": 16, **settings})
    return strategy, strategy.start(on or grid(), num_rounds=rounds)


def values(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {key: arrays[key].numpy() for key in arrays}


def same(a: ArrayRecord, b: ArrayRecord) -> bool:
    return all(np.array_equal(values(a)[key], values(b)[key]) for key in ("mu", "rho"))


def test_a_reliable_grid_is_used_as_it_is_set() -> None:
    given = ReliableGrid(grid(), timeout=7.0, is_removed=lambda _: False)
    strategy = Themis(min_nodes=3, patience=5.0)
    strategy.join(given, timeout=30)
    used = strategy.cohort.grid
    assert (used.timeout, used.patience, used.is_removed) == (7.0, 5.0, given.is_removed)
    assert used.observer is strategy.recorder
    assert given.patience is None
    strategy.cohort.reject(NAMES[0], "late")
    assert given.dropouts == {NAMES[0]: 1}


def test_nodes_of_another_grid_join_anew() -> None:
    strategy, result = train(rounds=1)
    other = grid()
    strategy.leaderboard(ReliableGrid(other), result.arrays, *TEST.tensors, draws=1)
    kinds = [kind for _, kind in other.asked]
    assert kinds.count(protocol.JOIN) == len(NAMES)
    assert kinds[-1] == protocol.PREDICT
    strategy.start(other, result.arrays, num_rounds=1)
    assert [kind for _, kind in other.asked].count(protocol.JOIN) == len(NAMES)


@pytest.mark.parametrize("update", ["joint", "sequential", "averaged"])
def test_own_modules_and_data_train_the_noise(update: str) -> None:
    strategy, result = train(update=update)
    before = Themis.untrained(SHAPE, 1.0)
    assert not same(before, result.arrays)
    frame = result.frame()
    measured = frame[frame.metric == "validation_accuracy"]
    assert set(measured.node) == set(NAMES)
    assert sorted(measured["round"].unique()) == list(range(ROUNDS + 1))
    assert set(result.train_metrics_clientapp) == set(range(1, ROUNDS + 1))
    assert 0 <= result.evaluate_metrics_clientapp[ROUNDS]["accuracy"] <= 1
    board = strategy.leaderboard(strategy.cohort.grid, result.arrays, *TEST.tensors, draws=2)
    assert sorted(board.model) == sorted(NAMES)
    assert board.plain_accuracy.min() > 80


def test_training_may_end_at_any_moment_and_is_measured_where_it_ended() -> None:
    """The end comes between any two looks at it; the last epoch is always measured, once."""
    ended = set()
    for looks in range(14):
        strategy = Themis(min_nodes=3, batch_size=16, validate_every=100)
        counted = iter(range(10**6))
        strategy.is_closed = lambda left=looks, seen=counted: next(seen) >= left  # type: ignore[misc]
        frame = strategy.start(grid(), num_rounds=4).frame()
        measured = frame[frame.metric == "validation_accuracy"]
        ended.add(strategy.round)
        assert sorted(measured["round"]) == sorted(
            3 * [0] + 3 * [strategy.round] * (strategy.round > 0)
        )
        assert frame[frame.metric == "mean_sigma"]["round"].max() == strategy.round
    assert ended == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("update", ["joint", "sequential", "averaged"])
def test_flowers_own_start_leads_to_the_same_arrays(update: str) -> None:
    """There a round is one exchange: three batches an epoch, each of three if one after another."""
    exchanges = ROUNDS * 3 * (3 if update == "sequential" else 1)
    settings = {"min_nodes": 3, "batch_size": 16, "update": update}
    _, ours = train(update=update)
    theirs = Strategy.start(
        Themis(**settings), grid(), Themis.untrained(SHAPE, 1.0), num_rounds=exchanges
    )
    assert same(ours.arrays, theirs.arrays)


@pytest.mark.parametrize("update", ["joint", "sequential", "averaged"])
def test_a_record_is_resumed_to_the_same_result(tmp_path: Path, update: str) -> None:
    settings = {"update": update, "order": "random", "dropouts": 1, "min_nodes": 1}
    _, whole = train(**settings)
    asked = grid()
    train(asked, **settings)
    for number, stop in enumerate((10, len(asked.asked) // 2, len(asked.asked) - 2)):
        stopped = grid()
        stopped.stop_after = stop
        record = tmp_path / f"{update}-{number}"
        with pytest.raises(KeyboardInterrupt):
            train(stopped, **settings, record=record)
        _, resumed = train(**settings, record=record)
        assert same(whole.arrays, resumed.arrays)
        assert resumed.rows == whole.rows
        assert json.loads((record / "run.json").read_text())["status"] == "done"


def test_without_a_record_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    train()
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    train(record=tmp_path / "run", rounds=1)
    with pytest.raises(RequestError, match="already holds the run of another experiment"):
        train(record=tmp_path / "run", rounds=1, M=0.5)
    for damaged in ("a: [", "a: !include b.yaml", "3"):
        (tmp_path / "run" / "experiment.yaml").write_text(damaged)
        with pytest.raises(RequestError, match="already holds the run of another experiment"):
            train(record=tmp_path / "run", rounds=1)


def test_flowers_differential_privacy_wraps_it() -> None:
    """It clips replies and adds noise to the arrays, which the next exchange starts from."""

    def wrapped(noise_multiplier: float) -> ArrayRecord:
        strategy = DifferentialPrivacyServerSideFixedClipping(
            Themis(min_nodes=3, batch_size=16), noise_multiplier, 10.0, len(NAMES)
        )
        return strategy.start(grid(), Themis.untrained(SHAPE, 1.0), num_rounds=4).arrays

    quiet, noisy = wrapped(1e-12), wrapped(1.0)
    assert not same(quiet, noisy)
    assert np.abs(values(noisy)["mu"] - values(quiet)["mu"]).max() > 0.1


def test_a_subclass_may_override_one_hook() -> None:
    class Halved(Themis):
        """Moves half as far."""

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            before = values(self.arrays())
            arrays, metrics = super().aggregate_train(server_round, replies)
            after = values(arrays)
            half = {k: Array((before[k] + after[k]) / 2) for k in before}
            return ArrayRecord(half), metrics

    strategy = Halved(min_nodes=3, batch_size=16)
    halved = strategy.start(grid(), num_rounds=1).arrays
    _, full = train(rounds=1)
    begun = values(Themis.untrained(SHAPE, 1.0))["mu"]
    moved, whole = (np.abs(values(a)["mu"] - begun).mean() for a in (halved, full.arrays))
    assert 0.3 < moved / whole < 0.7


def test_a_participant_that_raises_drops_out_and_the_rest_go_on() -> None:
    class Broken(nn.Module):
        """Works while it is tried, and then no more."""

        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 1:
                raise ValueError("no more")
            return x.flatten(1)[:, :CLASSES]

    def factory(context: Context) -> Participant:
        place = int(context.node_config["partition-id"])
        model = Broken() if place == 1 else MODELS[place]
        return Participant(model, TRAIN, VALIDATION, name=NAMES[place])

    _, result = train(grid(factory), min_nodes=2)
    frame = result.frame()
    assert set(frame[frame.metric == "dropouts"].node) == {"adam"}
    with pytest.raises(TooFewParticipants, match="adam: ValueError: no more"):
        train(grid(factory), min_nodes=3)


def test_hostile_replies_are_clipped_or_left_out() -> None:
    _, result = train(hostile={"mia": "nan"}, min_nodes=2)
    assert all(np.isfinite(each).all() for each in values(result.arrays).values())
    _, flipped = train(hostile={"mia": "sign-flip"})
    frame = flipped.frame()
    assert frame[frame.metric == "clipped"].value.sum() > 0


def test_an_untrained_model_is_trained_by_a_schedule_or_a_function() -> None:
    def by(training: Any) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))

        def factory(context: Context) -> Participant:
            return Participant(model, TRAIN, VALIDATION, training=training)

        strategy, result = train(grid(factory, 1), min_nodes=1, rounds=0)
        board = strategy.leaderboard(strategy.cohort.grid, result.arrays, *TEST.tensors, draws=1)
        return float(board.plain_accuracy[0])

    def own(model: nn.Module, dataset: TensorDataset) -> None:
        assert dataset is TRAIN
        model.load_state_dict({"1.weight": torch.zeros(CLASSES, 16), "1.bias": torch.ones(CLASSES)})

    assert by(TrainingConfig(epochs=5, learning_rate=0.1)) > 80
    assert by(own) == pytest.approx(100 / 3, abs=1)


# ------------------------------------------------------------------------------- bad input


def test_too_few_nodes_are_waited_for_and_named() -> None:
    with pytest.raises(TooFewParticipants, match=r"4 nodes are needed, 3 were there after 0\.3 s"):
        Themis(min_nodes=4).start(grid(), num_rounds=1, timeout=0.3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros((1, 4, 4)), "sigma": np.zeros((1, 4, 4))}, "wanted are .*mu.*rho"),
        ({"mu": np.zeros((1, 5, 5)), "rho": np.zeros((1, 5, 5))}, r"\(1, 5, 5\).*\(1, 4, 4\)"),
        ({"mu": np.zeros((1, 4, 4)), "rho": np.zeros((1, 4, 5))}, "must have the same"),
    ],
)
def test_initial_arrays_that_do_not_fit_are_named(
    arrays: dict[str, np.ndarray], message: str
) -> None:
    record = ArrayRecord({key: Array(value.astype(np.float32)) for key, value in arrays.items()})
    with pytest.raises(RequestError, match=message):
        Themis().start(grid(), record, num_rounds=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"M": 0}, "Themis: M = 0: must be above 0"),
        ({"updates": "joint"}, "unknown argument 'updates'.*update"),
        ({"update": "both"}, "update.*joint"),
        ({"stages": {}}, "unknown argument 'stages'"),
        ({"min_nodes": 0}, "min_nodes: must be 1 or more"),
    ],
)
def test_settings_that_do_not_hold_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Themis(**settings)


def other(**changes: Any) -> Callable[[Context], Any]:
    """Return a factory whose second node differs."""

    def factory(context: Context) -> Any:
        place = int(context.node_config["partition-id"])
        usual = {"model": MODELS[place], "train": TRAIN, "validation": VALIDATION}
        own = {**usual, "name": NAMES[place], **(changes if place == 1 else {})}
        if "raises" in own:
            raise own["raises"]
        return own["instead"] if "instead" in own else Participant(**own)

    return factory


def narrow() -> TensorDataset:
    x, y = TRAIN.tensors
    return TensorDataset(x[:, :, :3], y)


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (other(name="zoe"), "another node is called zoe"),
        (other(model=network(9, 5)), "5 classes"),
        (other(raises=OSError("no such disk")), "OSError: no such disk"),
        (other(instead=MODELS[0]), "returned a Sequential; it must return a Participant"),
        (other(model=nn.Flatten()), "1 is"),
        (other(train=[]), "train: holds no examples"),
        (other(train=[torch.zeros(SHAPE)]), "must yield pairs"),
        (other(train=narrow()), "images of 1x3x4"),
    ],
)
def test_who_does_not_fit_is_left_out_and_named(
    factory: Callable[[Context], Any], why: str, tmp_path: Path
) -> None:
    if why == "1 is":
        pytest.skip("a module that flattens 16 pixels tells 16 classes apart: its classes differ")
    train(grid(factory), min_nodes=2, rounds=1, record=tmp_path / "run")
    assert why in (tmp_path / "run" / "events.log").read_text()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Identity(), "must map images of 2x1x4x4 to logits of 2xclasses"),
        (nn.Linear(3, 3), "fails on images of 2x"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), "tells 1 classes apart, but a label is 1"),
    ],
)
def test_a_module_whose_output_is_no_logits_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Participant(model, TRAIN, VALIDATION)


def test_training_that_can_not_be_called_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(RequestError, match="training: must be a TrainingConfig, or a function"):
        Participant(model, TRAIN, VALIDATION, training=3)  # type: ignore[arg-type]


def test_a_simulation_with_too_few_nodes_does_not_wait_for_hours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pudica.strategies.core.joining.COMPLETE_SECONDS", 0.3)
    with pytest.raises(TooFewParticipants, match=r"9 nodes are needed, \d were there after 0\.3 s"):
        Themis(min_nodes=9).start(grid(), num_rounds=1)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (3, "must be a map-style data set"),
        ([], "holds no examples"),
        ([torch.zeros(SHAPE)], "must yield pairs"),
        ([(np.zeros(SHAPE), 1)], "images must be float tensors.*ToImage"),
        ([(torch.zeros(SHAPE, dtype=torch.uint8), 1)], "images must be float tensors"),
        ([(torch.zeros(SHAPE), "cat")], "labels must be whole numbers"),
    ],
)
def test_a_data_set_that_yields_no_pairs_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Participant(MODELS[0], dataset, VALIDATION)


# ------------------------------------------------------- runs that are stopped, or are others'


def test_who_holds_another_training_set_is_left_out(tmp_path: Path) -> None:
    """Others in number, or in kind: each image counts at its place."""
    x, y = TRAIN.tensors
    for number, train_set in enumerate((TensorDataset(x[:24], y[:24]), TensorDataset(-x, y)), 1):
        record = tmp_path / str(number)
        _, result = train(grid(other(train=train_set)), min_nodes=2, rounds=1, record=record)
        assert "adam: its public training set" in (record / "events.log").read_text()
        assert set(result.frame().query("metric == 'validation_accuracy'").node) == {"zoe", "mia"}


def test_a_run_goes_on_with_fewer_participants_than_began_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"update": "sequential", "min_nodes": 1, "record": tmp_path / "run"}
    stopped = grid()
    stopped.stop_after = 3 * 2 + 3 + 5  # in the first epoch, once there were checkpoints
    monkeypatch.setattr("pudica.strategies.core.recorder.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, **settings)
    few = grid()
    few.partition = dict(list(few.partition.items())[:1])
    _, result = train(few, **settings)
    assert set(result.frame().query("round == 3 and metric == 'validation_accuracy'").node) == {
        "zoe"
    }


def test_nodes_know_a_run_that_was_stopped_before_its_first_checkpoint(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        stopped = grid()
        stopped.stop_after = 7
        strategy = Themis(min_nodes=3, batch_size=16, record=tmp_path / "run")
        with pytest.raises(KeyboardInterrupt):
            strategy.start(stopped, num_rounds=1)
        names.append(strategy.recorder.name)
    assert names[0] == names[1]


def test_a_resumed_result_has_the_metrics_of_all_rounds(tmp_path: Path) -> None:
    train(rounds=1, record=tmp_path / "run")
    _, resumed = train(rounds=2, record=tmp_path / "run")
    _, whole = train(rounds=2)
    assert resumed.train_metrics_clientapp == whole.train_metrics_clientapp
    assert resumed.evaluate_metrics_clientapp == whole.evaluate_metrics_clientapp


def test_flowers_own_start_takes_no_record(tmp_path: Path) -> None:
    strategy = Themis(min_nodes=3, record=tmp_path / "run")
    with pytest.raises(RequestError, match="record: only the strategy's own start can resume"):
        Strategy.start(strategy, grid(), Themis.untrained(SHAPE, 1.0), num_rounds=1)


def test_a_model_that_is_trained_otherwise_is_trained_anew() -> None:
    """What a node has kept of a run is of the model and training that it was kept of."""
    vault = MemoryVault()

    def weight(value: float) -> float:
        def fit(model: nn.Module, _: TensorDataset) -> None:
            model.load_state_dict({k: v * 0 + value for k, v in model.state_dict().items()})

        fit.__qualname__ = f"fit-{value}"
        own = Participant(network(0), TRAIN, VALIDATION, training=fit)
        own.bind(vault)
        return float(own.model("honest")[1].weight[0, 0])

    assert [weight(1.0), weight(2.0)] == [1.0, 2.0]


def test_an_epoch_that_nobody_takes_part_in_is_said() -> None:
    with pytest.raises(TooFewParticipants, match="nobody trains the noise in epoch 0"):
        train(update="sequential", bystanders=list(NAMES))
