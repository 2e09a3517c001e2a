"""FaceMix in a Flower app of somebody's own: torch modules, data sets, any grid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.serverapp.strategy import Strategy
from split_helpers import bytes_of, names_in
from torch import nn
from torch.utils.data import TensorDataset

from pudica.clients import InferenceEdge, protocol
from pudica.clients.data import DataError
from pudica.clients.runtime.role import OwnApp
from pudica.clients.shields import Mixing, NoPeek
from pudica.models.errors import RequestError
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_server_context
from pudica.strategies import FaceMix, TooFewParticipants

SHAPE, CLASSES, NAMES = (1, 4, 4), 3, ("ada", "bob")
ROUNDS = 2
SETTINGS: dict[str, Any] = {"min_nodes": 2, "batch_size": 16, "request": 16}
Stages = tuple[nn.Module, nn.Module, nn.Module]


def examples(count: int, seed: int = 0) -> TensorDataset:
    """Classes that differ in which rows are bright."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    x = 0.3 * torch.randn((count, *SHAPE), generator=generator)
    x[torch.arange(count), 0, y] += 1
    return TensorDataset(x, y)


def questions(dataset: TensorDataset) -> TensorDataset:
    """Two binary attributes: whether the first and whether the second row is bright."""
    x, y = dataset.tensors
    return TensorDataset(x, torch.stack([y == 0, y == 1], 1).long())


TRAIN = [examples(40, seed) for seed in (0, 1)]
IMAGES = [examples(count, 5) for count in (21, 32)]


def stages(logits: int = CLASSES) -> Stages:
    torch.manual_seed(0)
    pre = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
    main = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten())
    return pre, main, nn.Linear(64, logits)


def linear() -> Stages:
    """Return stages whose middle one is linear, so that mixing is undone exactly."""
    torch.manual_seed(1)
    main = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.Flatten())
    post = nn.Sequential(nn.ReLU(), nn.Linear(16, CLASSES))
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), main, post


class Recording(InProcessGrid):
    """Remembers messages and edges; stops before so many messages, if told to."""

    def __init__(self, factory: Callable[[Context], Any], nodes: int) -> None:
        self.edges: dict[int, Any] = {}

        def noting(context: Context) -> Any:
            place = int(context.node_config["partition-id"])
            self.edges[place] = factory(context)
            return self.edges[place]

        super().__init__(InferenceEdge.app(noting), nodes, {})
        build_server_context({})
        self.sent: list[Message] = []
        self.replies: list[Message] = []
        self.stop_after: int | None = None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Note what is sent, or stop."""
        if self.stop_after is not None and len(self.sent) >= self.stop_after:
            raise KeyboardInterrupt
        sent = list(messages)
        self.sent += sent
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Note the replies."""
        arrived = list(super().pull_messages(message_ids))
        self.replies += arrived
        return arrived


def grid(
    changes: Callable[[int], dict[str, Any]] = lambda _: {},
    nodes: int = 2,
    kind: type[InferenceEdge] = InferenceEdge,
) -> Recording:
    """Return a grid of edges; ``changes`` says how one differs from the usual."""

    def factory(context: Context) -> Any:
        place = int(context.node_config["partition-id"])
        pre, _, post = stages()
        usual = {"pre": pre, "post": post, "images": IMAGES[place], "train": TRAIN[place]}
        own = {**usual, "name": NAMES[place], "keys": "seeded", **changes(place)}
        if "raises" in own:
            raise own["raises"]
        return own["instead"] if "instead" in own else kind(**own)

    return Recording(factory, nodes)


def train(on: Any = None, rounds: int = ROUNDS, **settings: Any) -> tuple[FaceMix, Any]:
    strategy = FaceMix(*stages(), **{**SETTINGS, **settings})
    return strategy, strategy.start(on or grid(), num_rounds=rounds)


def same(a: ArrayRecord, b: ArrayRecord) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k].numpy(), b[k].numpy()) for k in a)


def arrays_of(parts: Stages) -> ArrayRecord:
    named = zip(("pre", "main", "post"), parts, strict=True)
    state = {f"{name}.{k}": v for name, stage in named for k, v in stage.state_dict().items()}
    return ArrayRecord({key: Array(value.numpy()) for key, value in state.items()})


# ------------------------------------------------------------------- training and serving


@pytest.mark.parametrize("owner", [False, True], ids=["split", "central"])
def test_own_modules_and_data_train_and_serve(owner: bool) -> None:
    images = {"train": TRAIN[0], "validation": examples(21, 3)} if owner else {}
    on = grid()
    strategy, result = train(on, 6, optimizer={"name": "adam", "learning_rate": 0.03}, **images)
    frame = result.frame()
    losses = frame[frame.metric == "loss"].value.tolist()
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 2
    assert owner == (len(frame[frame.stage == "validation"]) > 0)
    served = strategy.serve(on)
    rates = served.frame().query("metric == 'accuracy' and stage == 'test'")
    assert rates.value.min() > 0.9
    counted = {name: int(counts.sum()) for name, counts in served.counts.items()}
    assert counted == {"ada": 21, "bob": 32}


def test_binary_attributes_have_names_and_two_logits_each() -> None:
    names = ["first row", "second row"]
    pre, main, post = stages(4)

    def changes(place: int) -> dict[str, Any]:
        own = {"images": questions(IMAGES[place]), "train": questions(TRAIN[place])}
        return {**own, "attributes": names, "post": stages(4)[2]}

    on = grid(changes)
    strategy = FaceMix(pre, main, post, **SETTINGS, class_weights="balanced")
    strategy.start(on, num_rounds=1)
    assert strategy.attributes == names
    served = strategy.serve(on)
    assert set(served.frame().attribute.dropna()) == set(names)
    assert {counts.shape for counts in served.counts.values()} == {(2, 2, 2)}
    assert on.edges[0].predictions().shape == (21, 2)


@pytest.mark.parametrize(("parts", "group"), [(linear, 8), (stages, 1)])
def test_serving_is_inference_with_the_three_stages(
    parts: Callable[[], Stages], group: int
) -> None:
    """Images without labels, secret keys, and a mixing that the stages let one undo exactly."""
    heard: dict[int, int] = {}
    pre, main, post = parts()

    def changes(place: int) -> dict[str, Any]:
        own = {"images": IMAGES[place].tensors[0], "train": None, "keys": "secret"}
        return {**own, "pre": pre, "post": post, "mixing": Mixing(group=group)}

    def hear(rows: np.ndarray, predictions: np.ndarray) -> None:
        heard.update(zip(rows.tolist(), predictions.tolist(), strict=True))

    on = grid(lambda place: changes(place) | ({} if place else {"on_predictions": hear}))
    served = FaceMix(pre, main, post, mixing=Mixing(group=group), **SETTINGS).serve(on)
    assert served.counts == {}
    model = nn.Sequential(pre, main, post).eval()
    for place, images in enumerate(IMAGES):
        with torch.no_grad():
            wanted = model(images.tensors[0]).argmax(1).numpy()
        np.testing.assert_array_equal(on.edges[place].predictions(), wanted)
    assert heard == dict(enumerate(on.edges[0].predictions().tolist()))


def test_requests_of_several_edges_share_a_batch() -> None:
    served = FaceMix(*stages(), **SETTINGS, batch=64).serve(grid())
    found = dict(zip(served.frame().metric, served.frame().value, strict=True))
    assert found["rows"] == 24 + 32  # 21 images in groups of eight, and 32
    assert found["batches"] == 2


@pytest.mark.parametrize("images", [{}, {"train": TRAIN[0], "validation": examples(21, 3)}])
def test_flowers_own_start_leads_to_the_same_arrays(images: dict[str, Any]) -> None:
    """There a round is one exchange: three a batch, or one where the owner trains alone."""
    exchanges = ROUNDS * (1 if images else 3 * 3)
    _, ours = train(**images)
    strategy = FaceMix(*stages(), **SETTINGS, **images, epochs=ROUNDS)
    theirs = Strategy.start(strategy, grid(), arrays_of(stages()), num_rounds=exchanges)
    assert same(ours.arrays, theirs.arrays)
    assert not same(ours.arrays, arrays_of(stages()))


def test_an_optimiser_of_ones_own_is_the_same_by_name_or_by_factory() -> None:
    named = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}

    def factory(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 0.1, 0.9)

    results = [train(optimizer=each)[1].arrays for each in (named, factory)]
    assert same(*results)


def test_split_training_with_one_edge_is_central_training() -> None:
    """To the last bit, mixing included: keys are drawn of the same seed and place."""
    _, split = train(grid(lambda _: {"name": None, "seed": 3}, 1), min_nodes=1, seed=3)
    _, central = train(grid(lambda _: {"name": None}, 1), min_nodes=1, seed=3, train=TRAIN[0])
    assert same(split.arrays, central.arrays)


def test_training_goes_on_with_the_edges_of_another_grid() -> None:
    strategy, _ = train(rounds=1)
    other = grid(lambda place: {"name": ("cleo", "dan")[place], "train": examples(70, place)})
    result = strategy.start(other, num_rounds=2)
    assert list(result.train_metrics_clientapp) == [1, 2]
    batches = [m for m in other.sent if m.metadata.message_type == protocol.MIXTURES]
    assert len(batches) == 2 * 5  # 70 images in batches of 16, on each edge


def forget_processes(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let every message find a fresh process: nothing but the vault on the disk is remembered."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("pudica.clients.runtime.vault.current_memory", lambda: None)
    monkeypatch.setattr(OwnApp, "find", OwnApp._make)


def test_an_edge_in_a_fresh_process_for_each_message_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for _ in range(2):
        on = grid()
        strategy, result = train(on)
        strategy.serve(on)
        found.append((result.arrays, on.edges[0].predictions(), strategy.fresh))
        forget_processes(monkeypatch, tmp_path)
    (kept, predictions, remembers), (fresh, again, forgets) = found
    assert same(kept, fresh)
    np.testing.assert_array_equal(predictions, again)
    assert (remembers, forgets) == (False, True)
    assert list(tmp_path.rglob("*answers*"))


def test_secret_keys_outlive_a_process_and_go_with_the_last_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What crossed is remembered beyond the run: not again under other keys."""
    forget_processes(monkeypatch, tmp_path)
    pre, main, post = linear()
    on = grid(lambda _: {"keys": "secret", "pre": pre, "post": post})
    FaceMix(pre, main, post, **SETTINGS).serve(on)
    model = nn.Sequential(pre, main, post).eval()
    for place, images in enumerate(IMAGES):
        with torch.no_grad():
            wanted = model(images.tensors[0]).argmax(1).numpy()
        np.testing.assert_array_equal(on.edges[place].predictions(), wanted)
    assert not list(tmp_path.rglob("*mixing.key"))
    with pytest.raises(TooFewParticipants, match="32 of this node's images crossed under these"):
        FaceMix(pre, main, post, **SETTINGS).serve(on)


# ------------------------------------------------------------------------------ the record


@pytest.mark.parametrize("images", [{}, {"train": TRAIN[0], "validation": examples(21, 3)}])
def test_a_record_is_resumed_to_the_same_result(tmp_path: Path, images: dict[str, Any]) -> None:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("pudica.strategies.core.recorder.CHECKPOINT_SECONDS", 0.0)

    def whole(on: Recording, **settings: Any) -> tuple[Any, Any, np.ndarray]:
        strategy, result = train(on, **images, **settings)
        return result, strategy.serve(on), on.edges[0].predictions()

    undisturbed = grid()
    trained, served, predictions = whole(undisturbed)
    for number, stop in enumerate(range(5, len(undisturbed.sent), 9)):
        record = tmp_path / str(number)
        stopped = grid()
        stopped.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            whole(stopped, record=record)
        again, serving, found = whole(grid(), record=record)
        assert same(trained.arrays, again.arrays)
        training = [row for row in again.rows if row["stage"] in ("training", "validation")]
        assert training == trained.rows[: len(training)]
        assert len(training) >= ROUNDS
        for name, counts in served.counts.items():
            np.testing.assert_array_equal(counts, serving.counts[name])
        np.testing.assert_array_equal(found, predictions)
        assert json.loads((record / "run.json").read_text())["status"] == "done"
        rows = [json.loads(line) for line in (record / "metrics.jsonl").read_text().splitlines()]
        assert [r["stage"] for r in rows].count("serving") == 3
        assert [r["stage"] for r in rows].count("test") == len(
            [r for r in served.rows if r["stage"] == "test"]
        )
    monkeypatch.undo()


def test_without_a_record_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    on = grid()
    strategy, _ = train(on)
    strategy.serve(on)
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    train(record=tmp_path / "run", rounds=1)
    for change in ({"batch_size": 8}, {"mixing": {"group": 4}}, {"train": TRAIN[0]}):
        with pytest.raises(RequestError, match="already holds the run of another experiment"):
            train(record=tmp_path / "run", rounds=1, **change)
    with pytest.raises(RequestError, match="num_rounds: 3, and this run was begun for 1"):
        train(record=tmp_path / "run", rounds=3)


def test_a_record_is_read_like_an_experiments(tmp_path: Path) -> None:
    from pudica import analysis

    on = grid()
    strategy, _ = train(on, record=tmp_path / "run")
    served = strategy.serve(on)
    (row,) = analysis.facemix_accuracy(tmp_path / "run").to_dict("records")
    rates = served.frame().query("metric == 'accuracy' and attribute.isna()").value
    assert row["accuracy"] == pytest.approx(100 * rates.iloc[0])
    assert row["edge_parameters"] == 48 + 195
    assert row["published"] != row["published"]


def test_a_record_of_serving_alone_is_served_once(tmp_path: Path) -> None:
    on, strategy = grid(), FaceMix(*stages(), **SETTINGS, record=tmp_path / "run")
    first, again = strategy.serve(on), strategy.serve(on)
    assert [m.metadata.message_type for m in on.sent].count(protocol.ADOPT) == 2
    assert first.rows == again.rows
    assert {n: c.tolist() for n, c in first.counts.items()} == {
        n: c.tolist() for n, c in again.counts.items()
    }


# ----------------------------------------------------------------- subclasses and failures


def test_subclasses_may_override_one_hook() -> None:
    class Halved(FaceMix):
        """Keeps half of what the first stage was before each round."""

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            before = self.arrays()
            arrays, metrics = super().aggregate_train(server_round, replies)
            if arrays is None:
                return arrays, metrics
            zeros = {k: Array(np.zeros_like(arrays[k].numpy())) for k in ("post.bias",)}
            return ArrayRecord({**{k: before[k] for k in before}, **zeros}), metrics

    class Shy(InferenceEdge):
        """Says nothing of how often it was right."""

        def counts(self) -> np.ndarray:
            raise RuntimeError("not today")

    on = grid(kind=Shy)
    strategy = Halved(*stages(), **SETTINGS)
    arrays = strategy.start(on, num_rounds=1).arrays
    assert not arrays["post.bias"].numpy().any()
    assert strategy.serve(on, arrays).counts == {}


def test_an_edge_that_raises_drops_out_of_serving_and_stops_a_batch() -> None:
    class Broken(InferenceEdge):
        """Fails from its second request on, and in its second batch."""

        def _make_request(self, number: int) -> Any:
            if self.name == "ada" and number:
                raise OSError("no such disk")
            return super()._make_request(number)

    on = grid(kind=Broken)
    served = FaceMix(*stages(), **{**SETTINGS, "min_nodes": 1}).serve(on)
    assert set(served.counts) == {"bob"}
    with pytest.raises(TooFewParticipants, match="ada: OSError: no such disk"):
        FaceMix(*stages(), **SETTINGS).serve(grid(kind=Broken))

    class Silent(InferenceEdge):
        """Makes mixtures, and then no more."""

        def check_outputs(self, outputs: torch.Tensor, count: int) -> torch.Tensor:
            raise ValueError("not today")

    on, strategy = grid(kind=Silent), FaceMix(*stages(), **{**SETTINGS, "min_nodes": 1})
    with pytest.raises(TooFewParticipants, match="training: 0 participants answered"):
        strategy.start(on, num_rounds=1)
    with pytest.raises(RuntimeError, match="a batch was broken off"):  # and not silently lost
        strategy.start(on, num_rounds=1)


def test_a_cloud_that_computes_no_numbers_is_told_so(tmp_path: Path) -> None:
    class Nonsense(nn.Module):
        """Divides by zero."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) / 0

    pre, _, post = stages()
    strategy = FaceMix(pre, Nonsense(), post, **SETTINGS, record=tmp_path / "run")
    with pytest.raises(TooFewParticipants, match="outputs with NaN or infinity"):
        strategy.serve(grid())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


# -------------------------------------------------------------------------------- privacy

SAID = {
    protocol.HELLO: {"code", "partition"},
    protocol.JOIN: {
        *("attributes", "classes", "content", "group", "key", "lasting", "name", "names"),
        *("reports", "shape", "train", "validation", "test"),
    },
    protocol.ADOPT: {"requests"},
    protocol.INFER: {"done", "number", "mixtures"},
    protocol.COUNTS: {"counts"},
    protocol.MIXTURES: {"mixtures"},
    protocol.OUTPUTS: {"gradient", "loss", "num-examples"},
    protocol.ENDS: {"weights", "buffers"},
}


def test_nothing_private_is_in_any_message() -> None:
    """No label, no prediction, no image and no feature as it is."""
    on = grid(lambda _: {"keys": "secret"})
    strategy, _ = train(on)
    strategy.serve(on)
    for message in on.replies:
        assert names_in(message) <= SAID[message.metadata.message_type]
    payloads = b"".join(bytes_of(message) for message in [*on.sent, *on.replies])
    for place in (0, 1):
        rows = [*IMAGES[place].tensors[0], *TRAIN[place].tensors[0]]
        features = on.edges[place]._features(IMAGES[place].tensors[0])
        for private in (*rows, *features):
            assert private.detach().numpy().tobytes()[:24] not in payloads
        for found in (on.edges[place].predictions(), IMAGES[place].tensors[1].numpy()):
            assert found.astype(np.int64).tobytes() not in payloads
            assert found.astype(np.int32).tobytes() not in payloads


def test_secret_keys_are_fresh_and_seeded_ones_repeat() -> None:
    def sent(keys: str) -> list[bytes]:
        on = grid(lambda _: {"keys": keys})
        FaceMix(*stages(), **SETTINGS).serve(on)
        replies = [m for m in on.replies if m.metadata.message_type == protocol.INFER]
        arrays = [record for m in replies for record in m.content.array_records.values()]
        return [record["mixtures"].data for record in arrays]

    assert not set(sent("secret")) & set(sent("secret"))
    assert sent("seeded") == sent("seeded")


def test_the_same_images_do_not_cross_again_under_other_keys() -> None:
    """Neither for other stages, nor for a cloud that asks for smaller requests."""
    on = grid(lambda _: {"keys": "secret"})
    strategy = FaceMix(*stages(), **SETTINGS)
    strategy.serve(on)
    other = arrays_of(linear_like())
    with pytest.raises(TooFewParticipants, match="was served under other stages"):
        strategy.serve(on, other)
    with pytest.raises(TooFewParticipants, match=r"request: 4 images.*groups of 8"):
        FaceMix(*stages(), **{**SETTINGS, "request": 4}).serve(on)


def linear_like() -> Stages:
    parts = stages()
    with torch.no_grad():
        parts[2].weight.add_(1)  # type: ignore[operator]
    return parts


# ------------------------------------------------------------------------------- bad input


def test_too_few_nodes_are_waited_for_and_named() -> None:
    with pytest.raises(TooFewParticipants, match=r"3 nodes are needed, 2 were there after 0\.3 s"):
        FaceMix(*stages(), min_nodes=3).start(grid(), num_rounds=1, timeout=0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "FaceMix: batch_size = 0"),
        ({"requests": 8}, "unknown argument 'requests'.*request"),
        ({"place": "cloud"}, "unknown argument 'place'"),
        ({"wire": "bfloat16"}, "wire.*float32"),
        ({"mixing": {"group": 0}}, "group = 0"),
        ({"mixing": {"size": 8}}, "size.*group"),
        ({"mixing": {"name": "no-peek"}}, "mixing: 'no-peek' adds to the loss .* split learning"),
        ({"optimizer": {"name": "lion"}}, "optimizer.name.*adam"),
        ({"mixing": {"pad": False}, "request": 9}, "9 are no whole groups of 8"),
        ({"min_nodes": 0}, "min_nodes: must be 1 or more"),
    ],
)
def test_settings_that_do_not_hold_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        FaceMix(*stages(), **settings)


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ((nn.Linear(3, 3), *stages()[1:]), {}, r"pre: fails on examples of shape \(1, 4, 4\)"),
        ((*stages()[:2], nn.Linear(3, 3)), {}, r"post: fails on examples of shape \(64,\)"),
        ((*stages()[:2], nn.Unflatten(1, (8, 8))), {}, "post: must give logits of shape"),
        ((*stages()[:2], nn.Linear(64, 1)), {}, r"post: must give logits.*got \(images, 1\)"),
        (stages(), {"train": questions(TRAIN[0])}, "2 attributes, two at least"),
        (stages(), {"optimizer": lambda _: None}, "optimizer: must be a torch.optim.Optimizer"),
    ],
)
def test_stages_that_do_not_fit_are_named(
    parts: Stages, settings: dict[str, Any], message: str
) -> None:
    changes: dict[str, Any] = {"images": IMAGES[0].tensors[0], "train": None}
    with pytest.raises(RequestError, match=message):
        FaceMix(*parts, **settings).start(grid(lambda _: changes), num_rounds=1)


def test_an_owners_images_need_labels() -> None:
    for what in ("train", "validation"):
        with pytest.raises(DataError, match=f"{what}: must yield pairs"):
            FaceMix(*stages(), **{what: TRAIN[0].tensors[0]})


def test_initial_arrays_that_do_not_fit_are_named() -> None:
    arrays = arrays_of(stages())
    fewer = ArrayRecord({key: arrays[key] for key in arrays if key != "post.bias"})
    with pytest.raises(RequestError, match=r"post\.bias is missing or unknown"):
        FaceMix(*stages(), **SETTINGS).start(grid(), fewer, num_rounds=1)
    with pytest.raises(RequestError, match=r"post.weight of shape \(4, 64\).*\(3, 64\)"):
        FaceMix(*stages(), **SETTINGS).serve(grid(), arrays_of(stages(4)))


def test_nobody_with_training_images_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"no edge has training images.*train="):
        train(grid(lambda _: {"train": None}))


def test_flowers_own_start_needs_the_length_of_the_cosine() -> None:
    with pytest.raises(RequestError, match="epochs: Flower's own start does not say"):
        Strategy.start(FaceMix(*stages(), **SETTINGS), grid(), arrays_of(stages()), num_rounds=1)


def second(**changes: Any) -> Callable[[int], dict[str, Any]]:
    """Return what differs at the second edge."""
    return lambda place: changes if place == 1 else {}


def narrow(dataset: TensorDataset) -> TensorDataset:
    x, y = dataset.tensors
    return TensorDataset(x[..., :3], y)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "ada"}, "another node is called ada"),
        ({"mixing": {"group": 4}}, "mixes groups of 4, the model is for groups of 8"),
        ({"attributes": ["age"]}, "its attribute 1 is age, the model's is label"),
        ({"raises": OSError("no such disk")}, "OSError: no such disk"),
        ({"instead": nn.Flatten()}, "returned a Flatten; it must return a InferenceEdge"),
        ({"images": narrow(IMAGES[0]), "train": None}, "images of 1x4x3"),
        ({"images": []}, "images: holds no examples"),
    ],
)
def test_who_does_not_fit_is_left_out_and_named(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    strategy = FaceMix(
        *stages(), **{**SETTINGS, "min_nodes": 1}, attributes=["label"], record=tmp_path / "run"
    )
    strategy.serve(grid(second(**changes)))
    assert why in (tmp_path / "run" / "events.log").read_text()
    assert list(strategy.cohort.nodes) == ["ada"]


def test_an_edge_with_other_stages_than_the_cloud_drops_out(tmp_path: Path) -> None:
    on = grid(second(post=nn.Linear(64, 5)))
    strategy = FaceMix(*stages(), **{**SETTINGS, "min_nodes": 1}, record=tmp_path / "run")
    strategy.serve(on)
    assert "must hold" in (tmp_path / "run" / "events.log").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 3}, "must be a map-style data set"),
        ({"images": []}, "holds no examples"),
        ({"images": [np.zeros(SHAPE)]}, "images must be float tensors.*ToImage"),
        ({"images": [(torch.zeros(SHAPE), 1, 2)]}, "must yield images, or pairs"),
        ({"images": [(torch.zeros(SHAPE), "cat")]}, "the first is a str$"),
        ({"images": [(torch.zeros(SHAPE), -1)]}, "the first is a int$"),
        ({"train": [torch.zeros(SHAPE)]}, "train: must yield pairs"),
        ({"train": narrow(TRAIN[0])}, r"train: images of \(1, 4, 3\)"),
        ({"train": questions(TRAIN[0])}, "train: 2 labels to an image, the others have 1"),
    ],
)
def test_data_sets_that_are_none_are_refused(changes: dict[str, Any], message: str) -> None:
    pre, _, post = stages()
    with pytest.raises(DataError, match=message):
        InferenceEdge(pre, post, **{"images": IMAGES[0], "train": TRAIN[0], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": nn.Linear(3, 3)}, r"pre: fails on examples of shape \(1, 4, 4\)"),
        ({"keys": "none"}, "keys: must be secret or seeded"),
        ({"attributes": ["a", "b"]}, "attributes: 1 different names are needed"),
        ({"mixing": {"group": 0}}, "group = 0"),
        ({"mixing": "eight"}, "mixing: "),
        ({"mixing": NoPeek()}, "mixing: 'no-peek' adds to the loss .* split learning"),
    ],
)
def test_edges_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    pre, _, post = stages()
    usual = {"pre": pre, "post": post, "images": IMAGES[0]}
    with pytest.raises(RequestError, match=message):
        InferenceEdge(**{**usual, **changes})
