"""THEMIS whole, in process: what is computed, what is said, what stays private."""

from __future__ import annotations

import itertools
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from competition_helpers import ListeningGrid, rows_of, tiny
from flwr.app import Message, RecordDict
from node_files import node_file
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import pudica.clients.app
from pudica import models
from pudica.clients import protocol
from pudica.clients.themis.assigned import AssignedParticipant as Participant
from pudica.clients.themis.assigned import Measured
from pudica.clients.themis.participant import epoch_order
from pudica.models import GeneratorTraining, NoiseGenerator
from pudica.models.errors import RequestError
from pudica.models.randomness import derive, torch_generator
from pudica.simulations.deployment.authority import create_node_key
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import app as server_app
from pudica.strategies.core import joining
from pudica.strategies.core.reliable_grid import TooFewParticipants

Compete = Callable[..., ListeningGrid]

# Enough data and steps for the generator to learn something, in two seconds.
LEARNING = [
    "data.limit=600",
    "training.epochs=6",
    "themis.epochs=8",
    "themis.learning_rate=0.05",
    "themis.validate_every=8",
    "themis.release.draws=1",
    "themis.release.compare=false",
]


def metrics(directory: Path) -> pd.DataFrame:
    return pd.read_json(directory / "metrics.jsonl", lines=True)


def trained(directory: Path, case: str = "main") -> np.ndarray:
    with np.load(directory / case / "generator.npz") as kept:
        return np.array(kept["trained"])


def untrained(directory: Path, case: str = "main") -> np.ndarray:
    with np.load(directory / case / "generator.npz") as kept:
        return np.array(kept["untrained"])


def participants(directory: Path) -> list[Participant]:
    """Return the participants of a run that was made in this process."""
    places = sorted((directory / "vault" / directory.name).iterdir())
    return [pudica.clients.app._nodes[place] for place in places]


# ------------------------------------------------------------------------- mathematics


def plain_loop(directory: Path, update: str, epochs: int, weight: float) -> np.ndarray:
    """Train a generator on the run's frozen models with a plain loop, and return μ and ρ."""
    everyone = participants(directory)
    models = [participant.model("honest") for participant in everyone]
    images = everyone[0].data.train
    generator = NoiseGenerator(torch.from_numpy(untrained(directory)), 1.0)
    optimizer = torch.optim.Adam([generator.mu, generator.rho], lr=0.01)
    seed = derive(0, "schedule", "main")
    for epoch in range(epochs):
        order = epoch_order(len(images), seed, epoch)
        for step in range(-(-len(order) // 64)):
            x, y = images.batch(order[64 * step : 64 * (step + 1)])
            groups = [models] if update == "joint" else [[model] for model in models]
            for number, group in enumerate(groups):
                visitor = 0 if update == "joint" else number + 1
                e = torch.randn(
                    x.shape, generator=torch_generator(seed, "noise", epoch, step, visitor)
                )
                losses = [cross_entropy(model(generator(x, e)), y) for model in group]
                loss = generator.penalty() + weight / len(group) * torch.stack(losses).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return generator.pack()


@pytest.mark.parametrize("update", ["joint", "sequential"])
def test_training_over_messages_equals_a_plain_loop_on_equation_two(
    compete: Compete, tmp_path: Path, update: str
) -> None:
    compete(f"themis.update={update}", "themis.clip=null")
    central = plain_loop(tmp_path / "run", update, epochs=2, weight=5.0)
    moved = np.abs(central - untrained(tmp_path / "run")).max()
    assert moved > 0.02
    assert np.abs(trained(tmp_path / "run") - central).max() < 1e-5 * moved


def test_several_batches_in_one_joint_message_are_one_step_on_their_mean(
    compete: Compete, tmp_path: Path
) -> None:
    compete("themis.epochs=1", "themis.steps_per_visit=3", "themis.clip=null")
    directory = tmp_path / "run"
    images = participants(directory)[0].data.train
    assert len(images) <= 192
    seed = derive(0, "schedule", "main")
    training = GeneratorTraining(NoiseGenerator(torch.from_numpy(untrained(directory)), 1.0), 0.01)
    order = epoch_order(len(images), seed, 0)
    gradients = []
    for participant in participants(directory):
        parts, count = [], 0
        for step in range(3):
            x, y = images.batch(order[64 * step : 64 * (step + 1)])
            e = torch.randn(x.shape, generator=torch_generator(seed, "noise", 0, step, 0))
            model = participant.model("honest")
            part, _ = training.generator.task_gradient(model, x, y, e, participant.compute)
            parts.append(part * len(y))
            count += len(y)
        gradients.append(sum(parts) / count)
    training.step(5.0 * torch.stack(gradients).mean(0))
    np.testing.assert_allclose(trained(directory), training.generator.pack(), atol=1e-6)


def test_averaging_one_participant_is_the_same_as_visiting_it(
    compete: Compete, tmp_path: Path
) -> None:
    one = ["participants=[{model: mlp}]", "themis.steps_per_visit=2"]
    compete(*one, "themis.update=averaged", name="averaged")
    compete(*one, "themis.update=sequential", name="sequential")
    assert np.array_equal(trained(tmp_path / "averaged"), trained(tmp_path / "sequential"))


def test_training_the_generator_recovers_accuracy(compete: Compete, tmp_path: Path) -> None:
    compete(*LEARNING, "themis.release.compare=true")
    accuracy = metrics(tmp_path / "run").query("metric == 'accuracy' and stage == 'evaluation'")
    mean = accuracy.groupby("release")["value"].mean()
    assert mean["trained"] > mean["untrained"] + 0.1
    assert mean["plain"] > mean["trained"]


# ----------------------------------------------------------------------------- privacy


def every_array(message: Message) -> list[np.ndarray]:
    return list(protocol.arrays_of(message.content).values()) if message.has_content() else []


def numbers_in(arrays: list[np.ndarray]) -> set[bytes]:
    """Return all values as bytes of float32, to look for private ones among them."""
    return {bytes(v) for a in arrays for v in a.astype(np.float32).reshape(-1, 1).view("V4")}


@pytest.mark.parametrize("update", ["joint", "sequential", "averaged"])
def test_no_message_carries_a_weight(compete: Compete, tmp_path: Path, update: str) -> None:
    grid = compete(f"themis.update={update}", "themis.cases={a: {}, b: {cheaters: [MLP]}}")
    arrays = [a for message in grid.requests + grid.replies for a in every_array(message)]
    said = numbers_in(arrays)
    files = sorted((tmp_path / "run" / "vault").rglob("*.safetensors"))
    assert len(files) >= 8
    for file in files:
        for key, tensor in load_file(file).items():
            if tensor.is_floating_point() and tensor.numel() >= 8 and "noise" not in key:
                secret = numbers_in([tensor.numpy()])
                # Round numbers such as 0 and 1 (batch norm) mean nothing.
                telling = {s for s in secret if np.frombuffer(s, np.float32)[0] % 0.25}
                assert len(telling & said) < 0.01 * max(len(telling), 100), (file, key)


def test_no_message_carries_a_test_label_and_only_predictions_come_back(
    compete: Compete, tmp_path: Path
) -> None:
    grid = compete()
    labels = tiny().load_data().test.labels
    for message in grid.requests:
        for array in every_array(message):
            assert array.dtype == np.float32
            assert array.shape[-3:] == (1, 8, 8)
    kinds = {
        message.metadata.message_type: [array.shape for array in every_array(message)]
        for message in grid.replies
    }
    assert kinds == {
        protocol.HELLO: [],
        protocol.JOIN: [],
        protocol.LOCAL: [(1,), (1,)],
        protocol.GRADIENT: [(1, 8, 8), (1, 8, 8)],
        protocol.NOISY: [],
        protocol.DENSITY: [],
        protocol.PREDICT: [labels.shape],
    }


def test_no_message_tells_the_seed_of_the_run_or_of_the_test_noise(
    compete: Compete, tmp_path: Path
) -> None:
    grid = compete("seed=987654321")
    secret = derive(987654321, "test-noise")
    for message in grid.requests:
        words = json.dumps(protocol.words_of(message.content))
        assert "987654321" not in words
        assert str(secret) not in words


def test_the_test_noise_can_be_drawn_where_no_seed_leads(compete: Compete, tmp_path: Path) -> None:
    first = compete("themis.release.secret=true", "themis.release.compare=false", name="a")
    second = compete("themis.release.secret=true", "themis.release.compare=false", name="b")
    released = [
        [every_array(m)[0] for m in grid.requests if m.metadata.message_type == protocol.PREDICT]
        for grid in (first, second)
    ]
    assert len(released[0]) == len(released[1]) > 0
    assert not np.array_equal(released[0][0], released[1][0])


def test_without_comparison_plain_images_are_neither_released_nor_kept(
    compete: Compete, tmp_path: Path
) -> None:
    grid = compete("themis.release.compare=false")
    test = tiny().load_data().test
    plain = {row.tobytes() for row in test.batch(np.arange(len(test)))[0].numpy()}
    released = [
        image.tobytes()
        for message in grid.requests
        if message.metadata.message_type == protocol.PREDICT
        for image in every_array(message)[0]
    ]
    assert len(released) > 0
    assert not plain & set(released)
    with np.load(tmp_path / "run" / "main" / "samples.npz") as samples:
        assert list(samples) == ["trained M=1"]
    board = pd.read_csv(tmp_path / "run" / "main" / "leaderboard.csv")
    assert list(board) == ["rank", "model", "trained_accuracy", "trained_std"]


def test_vaults_and_checkpoints_are_for_their_owner_only(compete: Compete, tmp_path: Path) -> None:
    compete("themis.examiner={model: softmax, training: {epochs: 1}}")
    directory = tmp_path / "run"
    nodes = list((directory / "vault" / "run").iterdir())
    assert len(nodes) == 3
    private = [f for f in directory.rglob("*") if f.suffix == ".safetensors"]
    assert len(private) == 3 * 2 + 2
    for file in private:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for node in nodes:
        assert stat.S_IMODE(node.stat().st_mode) == 0o700


# -------------------------------------------------------------------- who does what


def asked(grid: ListeningGrid, kind: str, run: Path) -> dict[int, list[str]]:
    """Return the names that were asked, in order, by epoch."""
    names = ["Softmax", "MLP", "CNN-tiny"]
    result: dict[int, list[str]] = {}
    for message in grid.requests:
        if message.metadata.message_type == kind:
            epoch = int(protocol.words_of(message.content)["epoch"])
            result.setdefault(epoch, []).append(names[message.metadata.dst_node_id - 2])
    return result


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("listed", ["Softmax", "MLP", "CNN-tiny"]),
        ("alphabetical", ["CNN-tiny", "MLP", "Softmax"]),
        ("reverse", ["Softmax", "MLP", "CNN-tiny"]),
        ("[MLP, CNN-tiny, Softmax]", ["MLP", "CNN-tiny", "Softmax"]),
    ],
)
def test_participants_are_visited_in_the_order_asked_for(
    compete: Compete, tmp_path: Path, order: str, expected: list[str]
) -> None:
    grid = compete("themis.update=sequential", f"themis.order={order}")
    visits = asked(grid, protocol.VISIT, tmp_path)
    assert set(visits) == {0, 1}
    for names in visits.values():
        assert names == expected * (len(names) // 3)


def test_random_order_changes_from_epoch_to_epoch_and_is_reproducible(
    compete: Compete, tmp_path: Path
) -> None:
    settings = ["themis.update=sequential", "themis.order=random", "themis.epochs=6"]
    visits = [asked(compete(*settings, name=name), protocol.VISIT, tmp_path) for name in ("a", "b")]
    assert visits[0] == visits[1]
    orders = {tuple(names[:3]) for names in visits[0].values()}
    assert len(orders) > 1


def test_so_many_participants_miss_each_epoch(compete: Compete, tmp_path: Path) -> None:
    grid = compete("themis.dropouts=1", "themis.epochs=6")
    present = [frozenset(names) for names in asked(grid, protocol.GRADIENT, tmp_path).values()]
    assert {len(names) for names in present} == {2}
    assert len(set(present)) > 1


def test_bystanders_and_latecomers_are_ranked_without_having_trained_before(
    compete: Compete, tmp_path: Path
) -> None:
    grid = compete("themis.bystanders=[MLP]", "themis.late={Softmax: 1}")
    epochs = asked(grid, protocol.GRADIENT, tmp_path)
    assert set(epochs[0]) == {"CNN-tiny"}
    assert set(epochs[1]) == {"CNN-tiny", "Softmax"}
    board = pd.read_csv(tmp_path / "run" / "main" / "leaderboard.csv")
    assert set(board["model"]) == {"Softmax", "MLP", "CNN-tiny"}


def test_a_cheater_competes_with_its_cheating_model_only_where_it_cheats(
    compete: Compete, tmp_path: Path
) -> None:
    compete("themis.cases={fair: {}, cheating: {cheaters: [MLP]}}")
    boards = {
        case: set(pd.read_csv(tmp_path / "run" / case / "leaderboard.csv")["model"])
        for case in ("fair", "cheating")
    }
    assert boards["fair"] == {"Softmax", "MLP", "CNN-tiny"}
    assert boards["cheating"] == {"Softmax", "MLP (cheating)", "CNN-tiny"}


# ---------------------------------------------------------------------- hostile, broken


@pytest.fixture(scope="module")
def absent() -> dict[str, np.ndarray]:
    """By update, what is trained without the MLP, once a test has made it."""
    return {}


@pytest.mark.parametrize("update", ["joint", "sequential", "averaged"])
@pytest.mark.parametrize("attack", ["nan", "wrong-shape", "wrong-key", "empty"])
def test_a_reply_that_makes_no_sense_counts_as_none(
    compete: Compete, tmp_path: Path, absent: dict[str, np.ndarray], update: str, attack: str
) -> None:
    common = ["themis.epochs=1", f"themis.update={update}"]
    compete(*common, f"themis.hostile={{MLP: {attack}}}", name="hostile")
    if update not in absent:
        compete(*common, "themis.bystanders=[MLP]", name="absent")
        absent[update] = trained(tmp_path / "absent")
    assert np.array_equal(trained(tmp_path / "hostile"), absent[update])
    frame = metrics(tmp_path / "hostile").query("metric == 'dropouts'")
    assert set(frame["node"]) == {"MLP"}
    assert "dropout: MLP" in (tmp_path / "hostile" / "events.log").read_text()


def test_a_node_out_of_gpu_memory_drops_out_and_says_so(
    compete: Compete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = Participant.gradient

    def short(self: Participant, *arguments: Any) -> Any:
        if self.assignment.participant.name == "MLP":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return gradient(self, *arguments)

    monkeypatch.setattr(Participant, "gradient", short)
    compete("themis.epochs=1", name="short")
    log = (tmp_path / "short" / "events.log").read_text()
    assert "dropout: MLP: RuntimeError: out of GPU memory: CUDA out of memory. Tried" in log
    assert set(metrics(tmp_path / "short").query("metric == 'dropouts'")["node"]) == {"MLP"}


FIVE = (
    "participants=[{model: softmax}, {model: mlp}, {model: cnn-tiny},"
    " {model: softmax, name: S2}, {model: mlp, name: M2}]"
)
DEFENCES = {
    "clip": ["themis.clip=1.5"],
    "median": ["themis.clip=null", "themis.aggregate=median"],
    "trimmed-mean": ["themis.clip=null", "themis.aggregate=trimmed-mean"],
    "krum": ["themis.clip=null", "themis.aggregate=krum"],
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["huge", "sign-flip"])
@pytest.mark.parametrize("defence", DEFENCES)
def test_one_attacker_of_five_does_not_keep_the_generator_from_learning(
    compete: Compete, tmp_path: Path, attack: str, defence: str
) -> None:
    # Honest participants alone gain 0.23 here.
    compete(FIVE, *LEARNING, *DEFENCES[defence], f"themis.hostile={{S2: {attack}}}")
    assert recovery(tmp_path / "run") > 0.08


@pytest.mark.slow
def test_without_defence_one_attacker_of_five_does(compete: Compete, tmp_path: Path) -> None:
    compete(FIVE, *LEARNING, "themis.clip=null", "themis.hostile={S2: sign-flip}")
    assert recovery(tmp_path / "run") < -0.1


def recovery(directory: Path) -> float:
    """Return how much validation accuracy the honest gain while the generator trains."""
    frame = metrics(directory).query("metric == 'validation_accuracy' and stage == 'generator'")
    mean = frame.query("node != 'S2'").groupby("round")["value"].mean()
    return float(mean.iloc[-1] - mean.iloc[0])


def test_a_participant_without_a_model_is_out_and_the_others_compete(
    compete: Compete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Participant.train_local

    def train_local(self: Participant, *request: Any) -> Measured:
        if self.assignment.participant.name == "MLP":
            raise RuntimeError("out of GPU memory")
        return honest(self, *request)

    monkeypatch.setattr(Participant, "train_local", train_local)
    compete()
    board = pd.read_csv(tmp_path / "run" / "main" / "leaderboard.csv")
    assert set(board["model"]) == {"Softmax", "CNN-tiny"}
    assert "out of GPU memory" in (tmp_path / "run" / "events.log").read_text()

    with pytest.raises(TooFewParticipants, match="needs 3"):
        compete("themis.min_participants=3", name="needs-three")
    status = json.loads((tmp_path / "needs-three" / "run.json").read_text())
    assert status["status"] == "failed"
    assert "needs 3" in status["reason"]


@pytest.mark.parametrize("others", [{1}, {0, 1, 2}])
def test_a_node_with_other_code_is_left_out(
    compete: Compete, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, others: set[int]
) -> None:
    honest = joining._greeting

    def greeting(node: str, content: RecordDict) -> tuple[int, str]:
        partition, code = honest(node, content)
        return partition, "other" if partition in others else code

    monkeypatch.setattr(joining, "_greeting", greeting)
    if len(others) == 3:
        with pytest.raises(TooFewParticipants, match="runs other code"):
            compete()
    else:
        compete()
        board = pd.read_csv(tmp_path / "run" / "main" / "leaderboard.csv")
        assert set(board["model"]) == {"Softmax", "CNN-tiny"}
        assert "MLP: it runs other code" in (tmp_path / "run" / "events.log").read_text()


@pytest.mark.parametrize("nonsense", ["short", "letters", "objects", "absent"])
def test_predictions_that_make_no_sense_score_nothing(
    compete: Compete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonsense: str
) -> None:
    honest = protocol.reply

    def reply(metrics: dict[str, int | float], **arrays: np.ndarray) -> RecordDict:
        content = honest(metrics, **arrays)
        if "predictions" in arrays and next(turn) % 3 == 1:
            sent = content.array_records["arrays"]["predictions"]
            if nonsense == "short":
                return honest(metrics, predictions=arrays["predictions"][:-1])
            if nonsense == "absent":
                return honest(metrics)
            sent.dtype = {"letters": "garbage", "objects": "object"}[nonsense]
        return content

    turn = itertools.count()
    monkeypatch.setattr(protocol, "reply", reply)
    compete("themis.epochs=0")
    board = pd.read_csv(tmp_path / "run" / "main" / "leaderboard.csv").set_index("model")
    assert board.loc["MLP", "trained_accuracy"] == 0
    assert board.loc["Softmax", "trained_accuracy"] > 0


def test_a_competition_whose_participants_are_all_gone_is_not_done(
    compete: Compete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as gone:

        def predict(*_: object) -> np.ndarray:
            raise RuntimeError("gone")

        gone.setattr(Participant, "predict", predict)
        with pytest.raises(TooFewParticipants, match="gone"):
            compete()
    compete()  # they are back: the same run goes on
    compete(name="undisturbed")
    boards = [
        (tmp_path / n / "main" / "leaderboard.csv").read_text() for n in ("run", "undisturbed")
    ]
    assert boards[0] == boards[1]


def test_a_participant_that_never_says_it_is_finished_is_not_asked_for_ever(
    compete: Compete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Participant.train_local

    def train_local(self: Participant, *request: Any) -> Measured:
        numbers, arrays = honest(self, *request)
        return {**numbers, "finished": 0}, arrays

    monkeypatch.setattr(Participant, "train_local", train_local)
    grid = compete()
    asked_for = [m for m in grid.requests if m.metadata.message_type == protocol.LOCAL]
    assert len(asked_for) == 3 * 2


def test_epochs_in_one_message_are_those_in_many(compete: Compete, tmp_path: Path) -> None:
    compete()
    grid = compete("themis.epochs_per_message=2", name="together")
    asked_for = [m for m in grid.requests if m.metadata.message_type == protocol.LOCAL]
    assert len(asked_for) == 3
    assert rows_of(tmp_path / "together") == rows_of(tmp_path / "run")


def test_weights_that_are_brought_are_not_trained_on(compete: Compete, tmp_path: Path) -> None:
    model = models.build("softmax", num_classes=10, channels=1, image_size=8, seed=7)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    brought = f"participants.0.weights={tmp_path / 'own.safetensors'}"
    grid = compete(brought, name="brought")
    asked_for = [m for m in grid.requests if m.metadata.message_type == protocol.LOCAL]
    assert len(asked_for) == 2 * 2 + 1
    rows = [json.loads(row) for row in rows_of(tmp_path / "brought")]
    told = next(row["value"] for row in rows if row["metric"] == "validation_accuracy")
    images = tiny().load_data().validation
    assert told == models.accuracy(model, images, models.Compute(models.ComputeConfig()))


def test_weights_of_another_model_are_refused_before_anything_starts(tmp_path: Path) -> None:
    other = models.build("mlp", num_classes=10, channels=1, image_size=8)
    save_file(other.state_dict(), tmp_path / "mlp.safetensors")
    for file, why in (("mlp.safetensors", "is of another model"), ("none", "there is no file")):
        with pytest.raises(RequestError, match=rf"participants\.0 \(Softmax\): weights: .*{why}"):
            tiny(f"participants.0.weights={tmp_path / file}").check()


def as_images(folder: Path, rows: range) -> None:
    digits = load_digits()
    for row in rows:
        file = folder / str(digits.target[row]) / f"{row:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[row] * 15).astype(np.uint8)).save(file)


@pytest.mark.parametrize("first", [0, 1])
def test_participants_need_the_public_part_alone_and_the_same(tmp_path: Path, first: int) -> None:
    as_images(tmp_path / "organiser" / "train", range(200))
    as_images(tmp_path / "organiser" / "test", range(200, 260))
    as_images(tmp_path / "participant" / "train", range(first, 200 + first))
    own = {"data": {"name": "image-folder", "path": "participant"}}
    wanted = tiny("data.name=image-folder", f"data.path={tmp_path / 'organiser'}", "data.limit=")
    config = build_run_config(wanted, tmp_path / "run", "inprocess")
    grid = InProcessGrid(pudica.clients.app.app, 3, config)
    create_node_key(tmp_path / "node.key", tmp_path / "node.pub", "node")
    for number, context in enumerate(grid._contexts.values()):
        file = tmp_path / f"node{number}.yaml"
        context.node_config["node"] = str(node_file(file, **own, name=f"node {number}"))
    if first:
        with pytest.raises(RuntimeError, match="holds other data than the organiser"):
            server_app(grid, build_server_context(config))
    else:
        server_app(grid, build_server_context(config))
        assert len(pd.read_csv(tmp_path / "run" / "main" / "leaderboard.csv")) == 3


def test_a_vault_left_by_another_run_of_the_same_name_is_not_used(
    compete: Compete, tmp_path: Path
) -> None:
    compete("seed=1", "training.epochs=1", name="old/run")
    (tmp_path / "new" / "run").mkdir(parents=True)
    (tmp_path / "old" / "run" / "vault").rename(tmp_path / "new" / "run" / "vault")
    compete(name="new/run")
    compete(name="fresh")
    assert rows_of(tmp_path / "new" / "run") == rows_of(tmp_path / "fresh")


# --------------------------------------------------------------------------- the record


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    compete: Compete, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        compete(f"seed={seed}", name=name)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    assert rows_of(tmp_path / "a") != rows_of(tmp_path / "c")


def test_noise_of_an_image_does_not_depend_on_the_size_of_messages(
    compete: Compete, tmp_path: Path
) -> None:
    for name, size in (("a", 1000), ("b", 7)):
        compete(f"themis.release.images_per_message={size}", name=name)
    frames = [metrics(tmp_path / name).query("stage == 'evaluation'") for name in "ab"]
    assert frames[0]["value"].tolist() == frames[1]["value"].tolist()


def test_partitions_give_each_participant_its_own_training_images(
    compete: Compete, tmp_path: Path
) -> None:
    compete("data.partition={scheme: iid}")
    sizes = [len(participant.own_train) for participant in participants(tmp_path / "run")]
    whole = participants(tmp_path / "run")[0].data.train
    assert sum(sizes) == len(whole)
    assert min(sizes) >= len(whole) // 3 - 1


def test_what_was_sent_is_counted(compete: Compete, tmp_path: Path) -> None:
    grid = compete()
    counted = json.loads((tmp_path / "run" / "run.json").read_text())["exchanges"]
    assert set(counted) == {m.metadata.message_type for m in grid.requests}
    assert counted[protocol.GRADIENT]["bytes_sent"] > 0
    for kind, total in counted.items():
        requests = [m for m in grid.requests if m.metadata.message_type == kind]
        replies = [m for m in grid.replies if m.metadata.message_type == kind]
        assert total["count"] == len(requests)
        assert total["bytes_sent"] == sum(protocol.payload_bytes(m.content) for m in requests)
        assert total["bytes_received"] == sum(protocol.payload_bytes(m.content) for m in replies)
