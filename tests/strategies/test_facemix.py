"""FaceMix: what training behind mixing computes, what is sent, and what requests survive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from competition_helpers import ListeningGrid
from flwr.app import Message
from node_files import node_file
from split_helpers import Interrupted, asked, bytes_of, measured, model_of, run, same

import clients.app
import clients.shields.mixing
import strategies.recorder
from clients import protocol
from clients.assignments import parsed as assignment_of
from clients.inference import InferenceEdge
from clients.inference_training import edge_of
from clients.node import NodeConfig
from clients.vault import Vault
from models.attributes import answered, confusion
from models.errors import RequestError
from strategies.exchange import Exchanges
from strategies.facemix.experiment import FacemixExperiment
from strategies.facemix.serving import Serving
from strategies.facemix.session import Session
from strategies.loading import load_experiment
from strategies.recorder import Recorder

TINY = [
    "data.limit=120",
    "data.attributes=['label=3', 'label:5-9']",
    "facemix.cases={}",
    "facemix.edges=2",
    "facemix.model=cnn-tiny",
    "facemix.pre='1'",
    "facemix.post='4'",
    "facemix.request=7",
    "facemix.training={epochs: 2, batch_size: 16}",
]
SPLIT = ("facemix.train=split", "data.normalize=none")


def tiny(*overrides: str) -> FacemixExperiment:
    experiment = load_experiment("facemix-digits", [*TINY, *overrides])
    assert isinstance(experiment, FacemixExperiment)
    return experiment


def edges_of(grid: ListeningGrid, place: Path) -> list[InferenceEdge]:
    """Return the edges of a run, made anew with the stages that they were given."""
    words = [protocol.words_of(message.content) for message in asked(grid, protocol.JOIN)]
    assignments = [assignment_of(str(each["assignment"])) for each in words]
    edges = [edge_of(Vault(place / str(a.partition)), a) for a in assignments]  # type: ignore[arg-type]
    arrays = protocol.arrays_of(asked(grid, protocol.ADOPT)[-1].content)
    for edge in edges:
        edge.adopt({name: torch.from_numpy(values) for name, values in arrays.items()})
    return edges


def first_of(grid: ListeningGrid, kind: str) -> Message:
    """Return the first request of a kind."""
    return next(m for m in grid.requests if m.metadata.message_type == kind)


def arrays_in(message: Message) -> dict[str, torch.Tensor]:
    """Return what a message carries."""
    arrays = protocol.arrays_of(message.content).items()
    return {name: torch.from_numpy(values.copy()) for name, values in arrays}


def counts_of(grid: ListeningGrid) -> np.ndarray:
    """Return what all edges said in the end of how often they were right."""
    said = [
        protocol.arrays_of(message.content)["counts"]
        for message in grid.replies
        if message.metadata.message_type == protocol.COUNTS
    ]
    return np.sum(said, axis=0)


# ------------------------------------------------------------------- what is computed


def test_in_groups_of_one_it_is_the_plain_model(tmp_path: Path) -> None:
    for name in ("mixing", "none"):
        shield = "{name: mixing, group: 1, shuffle: false}" if name == "mixing" else "{name: none}"
        run(tiny(f"facemix.shield={shield}"), tmp_path / name)
    assert same(model_of(tmp_path / "mixing"), model_of(tmp_path / "none"))
    rates = [measured(tmp_path / name, stage="test") for name in ("mixing", "none")]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_split_training_with_one_edge_is_central_training(tmp_path: Path, weights: str) -> None:
    common = ("facemix.edges=1", "data.normalize=none")
    more = f"facemix.training={{epochs: 2, batch_size: 16, class_weights: {weights}}}"
    run(tiny(*common, more), tmp_path / "central")
    run(tiny(*common, more, "facemix.train=split"), tmp_path / "split")
    assert same(model_of(tmp_path / "central"), model_of(tmp_path / "split"))


def test_edges_that_train_together_use_all_their_images(tmp_path: Path) -> None:
    grid = run(tiny(*SPLIT, "facemix.edges=3"), tmp_path / "run")
    batches = [protocol.words_of(m.content) for m in asked(grid, protocol.MIXTURES)]
    assert len(batches) == 2 * 3 * 3  # two epochs, three edges, 40 images in batches of 16
    shares = [protocol.words_of(m.content)["share"] for m in asked(grid, protocol.ENDS)]
    assert sum(map(float, shares)) == pytest.approx(2 * 3)
    losses = [row["value"] for row in measured(tmp_path / "run", metric="loss")]
    assert losses[-1] < losses[0]


def test_what_edges_count_is_what_the_model_says_of_their_images(tmp_path: Path) -> None:
    """Worked out from the run's model, with the edges' keys, and nothing of the serving."""
    grid = run(tiny("facemix.request=24"), tmp_path / "run")
    experiment = tiny("facemix.request=24")
    data = experiment.load_data()
    model = experiment.built(experiment.facemix, data).eval()
    model.load_state_dict(model_of(tmp_path / "run"))
    total = torch.zeros(2, 2, 2, dtype=torch.int64)
    for edge in edges_of(grid, tmp_path / "again"):
        images = edge.shares["test"]
        for number in range(edge.requests):
            waiting = edge._asked(number)
            with torch.no_grad():
                logits = model.post(edge.shield.restore(model.main(waiting.sent), waiting.secret))
            truth = torch.from_numpy(images.attributes[waiting.rows])
            total += confusion(answered(logits)[waiting.places], truth)
    np.testing.assert_array_equal(counts_of(grid), total.numpy())
    rows = measured(tmp_path / "run", stage="test", metric="accuracy")
    (mean,) = [row["value"] for row in rows if "attribute" not in row]
    right = total.diagonal(dim1=1, dim2=2).sum(1) / total.sum((1, 2))
    assert mean == pytest.approx(float(right.mean()))


def test_it_learns_behind_mixing_and_is_right_without_it_too(tmp_path: Path) -> None:
    settings = (
        "data.limit=1000",
        "facemix.model=cnn-small",
        "facemix.post='5'",
        "facemix.training={epochs: 8, batch_size: 64, optimizer: {name: adam, learning_rate: "
        "0.003}}",
    )
    run(tiny(*settings), tmp_path / "run")
    rows = measured(tmp_path / "run", stage="validation", metric="balanced_accuracy", round=8)
    rates = {row["shield"]: row["value"] for row in rows if "attribute" not in row}
    assert rates["on"] > 0.75
    assert rates["off"] > 0.75


def serving(tmp_path: Path, grid: ListeningGrid, *overrides: str) -> Serving:
    experiment = tiny(*overrides)
    recorder = Recorder(tmp_path / "serving", experiment, "inprocess")
    exchanges = Exchanges(grid, recorder, {})
    session = Session(exchanges, experiment, "main", experiment.facemix, experiment.load_data())
    return Serving(session)


def test_requests_that_are_computed_together_do_not_meet(tmp_path: Path) -> None:
    grid = run(tiny(), tmp_path / "run")
    served = serving(tmp_path, grid, "facemix.batch=20")
    shape = served.session.model.shield.shape
    asked_for = [torch.randn(count, *shape) for count in (8, 16, 24)]
    together = served._computed(asked_for)
    assert served.batches == 3
    for rows, outputs in zip(asked_for, together, strict=True):
        torch.testing.assert_close(served._computed([rows])[0], outputs)


def test_requests_of_several_edges_are_computed_together(tmp_path: Path) -> None:
    """Fifteen test images each, in two requests."""
    for batch, batches in ((64, 2), (8, 4)):
        directory = tmp_path / str(batch)
        run(tiny("facemix.request=8", f"facemix.batch={batch}"), directory)
        served = {row["metric"]: row["value"] for row in measured(directory, stage="serving")}
        assert (served["rows"], served["batches"]) == (32, batches)
    rates = [measured(tmp_path / str(batch), stage="test") for batch in (64, 8)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("settings", [(), SPLIT])
def test_layers_that_draw_draw_from_the_seed(tmp_path: Path, settings: tuple[str, ...]) -> None:
    model = ("facemix.model=cnn-embedding", "facemix.pre=pool1", "facemix.post=norm")
    model = ("data.image_size=16", *model)
    for name in ("a", "b"):
        run(tiny(*settings, *model), tmp_path / name)
        torch.rand(3)  # something else draws between them
    assert same(model_of(tmp_path / "a"), model_of(tmp_path / "b"))


def test_an_anonymiser_fools_the_adversary_that_it_is_trained_against(tmp_path: Path) -> None:
    """A guess among ten digits is right in 0.1 of the cases; 600 of them are within 0.05 of it.

    Who comes later and learns anew may well see more: `pudica attack` tells.
    """
    found = {}
    for weight in (0, 20):
        settings = (
            "data.limit=600",
            "facemix.edges=1",
            "facemix.place=cloud",
            f"facemix.anonymiser={{weight: {weight}, likeness: 0.1}}",
            "facemix.training={epochs: 8, batch_size: 32, optimizer: {name: adam, learning_rate: "
            "0.005}}",
        )
        run(tiny(*settings), tmp_path / str(weight))
        rows = measured(tmp_path / str(weight), metric="adversary_accuracy")
        found[weight] = rows[-1]["value"]
    assert found[0] > 0.8
    assert found[20] < 0.3


def test_a_place_has_its_stages(tmp_path: Path) -> None:
    settings = "facemix.cases={cloud: {place: cloud}, edge: {place: edge}, both: {}}"
    grid = run(tiny(settings), tmp_path / "run")
    sent: dict[str, set[tuple[int, ...]]] = {}
    pairs = zip(grid.requests, grid.replies, strict=True)
    for request, reply in pairs:
        if request.metadata.message_type == protocol.INFER:
            arrays = protocol.arrays_of(reply.content)
            case = str(protocol.words_of(request.content)["case"])
            sent.setdefault(case, set()).update(a.shape[1:] for a in arrays.values())
    assert sent == {"cloud": {(1, 8, 8)}, "edge": set(), "both": {(8, 8, 8)}}
    costs = {
        (row["case"], row["metric"]): row["value"]
        for row in measured(tmp_path / "run", stage="costs")
    }
    assert costs["cloud", "edge_macs"] == costs["edge", "bytes_up"] == 0
    assert costs["edge", "edge_macs"] == costs["cloud", "macs"] < costs["both", "macs"]
    assert 0 < costs["both", "edge_macs"] < costs["both", "macs"]
    assert costs["both", "bytes_up"] == 4 * 8 * 8 * 8 * 8 / 7  # a decoy to seven images


# ------------------------------------------------------------------ what is given away


@pytest.mark.parametrize("keys", ["seeded", "secret"])
def test_no_key_is_in_any_message_or_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    secrets: list[bytes] = []

    def noting(place: Any, name: str, parts: Callable[[Any], list[bytes]]) -> None:
        drawn = getattr(place, name)

        def noted(*arguments: Any) -> Any:
            value = drawn(*arguments)
            secrets.extend(parts(value))
            return value

        monkeypatch.setattr(place, name, noted)

    mixing = clients.shields.mixing
    noting(mixing, "orthogonal", lambda matrices: [m.numpy().tobytes() for m in matrices])
    noting(mixing, "shuffled", lambda order: [order.numpy().tobytes()])
    noting(Vault, "secret", lambda secret: [secret, secret.hex().encode()])
    settings = (f"facemix.keys={keys}", "facemix.request=24")
    grid = run(tiny(*settings), tmp_path / "run")
    payloads = [bytes_of(message) for message in [*grid.requests, *grid.replies]]
    files = [
        path.read_bytes()
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and "vault" not in path.parts
    ]
    sizes = {len(secret) for secret in secrets}  # of the vault's secret, orders, matrices
    assert sizes >= ({32, 128, 256} if keys == "secret" else {128, 256})
    for secret in secrets:
        assert not any(secret in content for content in [*payloads, *files])


@pytest.mark.parametrize("settings", [(), SPLIT])
def test_no_label_and_no_prediction_is_in_any_message(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    grid = run(tiny(*settings), tmp_path / "run")
    arrays = {
        (message.metadata.message_type, name)
        for message in grid.replies
        for name in protocol.arrays_of(message.content)
    }
    allowed = {
        (protocol.INFER, "mixtures"),
        (protocol.COUNTS, "counts"),
        (protocol.MIXTURES, "mixtures"),
        (protocol.OUTPUTS, "gradient"),
        (protocol.ENDS, "weights"),
        (protocol.ENDS, "buffers"),
    }
    assert arrays <= allowed


def test_who_reports_nothing_is_not_asked_and_says_nothing(tmp_path: Path) -> None:
    grid = run(tiny("facemix.report=false"), tmp_path / "run")
    assert not asked(grid, protocol.COUNTS)
    assert not measured(tmp_path / "run", stage="test")
    (edge, _) = edges_of(grid, tmp_path / "again")
    with pytest.raises(RuntimeError, match="keeps to itself"):
        edge.counts()


def test_no_image_crosses_twice(tmp_path: Path) -> None:
    """What two requests have in common, their spans show without a key."""
    grid = run(tiny("facemix.request=3"), tmp_path / "run")
    for edge in edges_of(grid, tmp_path / "again"):
        asked_for = [edge._asked(number) for number in range(2)]
        assert [waiting.rows.tolist() for waiting in asked_for] == [[0, 1, 2], [3, 4, 5]]
        assert [len(waiting.sent) for waiting in asked_for] == [8, 8]
        own = edge._features(edge.shares["test"].batch(np.arange(3))[0]).detach()
        distances = [outside(own, waiting.sent) for waiting in asked_for]
        assert float(distances[0].max()) < 1e-4
        assert float(distances[1].min()) > 1e-2


@pytest.mark.parametrize("settings", [(), ("facemix.pre='0'",), ("facemix.wire=float16",)])
def test_nothing_that_crosses_is_a_combination_of_the_rest(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """In the null space of all rows those of a group would lie on a line: its matrix's column."""
    grid = run(tiny("facemix.request=9", *settings), tmp_path / "run")
    for edge in edges_of(grid, tmp_path / "again"):
        sent = [torch.from_numpy(edge.ask(number)).double() for number in range(edge.requests)]
        assert sum(map(len, sent)) > len(edge.shares["test"])
        values = torch.linalg.svdvals(torch.cat(sent).flatten(1))
        own = edge._features(edge.shares["test"].batch(slice(None))[0]).double().flatten(1)
        assert float(values.min()) > 0.1 * float(torch.linalg.svdvals(own).min()) > 1e-3


def outside(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return how much of each feature map lies outside of the span of some rows, 0 to 1."""
    basis = torch.linalg.qr(rows.flatten(1).T.double())[0]
    flat = features.flatten(1).T.double()
    flat = flat / flat.norm(dim=0)
    return (flat - basis @ (basis.T @ flat)).norm(dim=0)


def test_an_edge_is_served_under_one_set_of_stages(tmp_path: Path) -> None:
    """The same images behind other keys show which mixtures belong together."""
    grid = run(tiny(), tmp_path / "run")
    (edge, _) = edges_of(grid, tmp_path / "again")
    arrays = protocol.arrays_of(asked(grid, protocol.ADOPT)[-1].content)
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    edge.adopt(tensors)
    sent = edge.ask(0)
    for name in ("weights", "normalisation"):
        with pytest.raises(RuntimeError, match="was served under other stages"):
            edge.adopt({**tensors, name: tensors[name] + 1})
        with pytest.raises(ValueError, match=f"{name} with NaN"):
            edge.adopt({**tensors, name: tensors[name] * torch.nan})
    np.testing.assert_array_equal(edge.ask(0), sent)


def test_an_edge_is_not_served_again_on_other_terms(tmp_path: Path) -> None:
    """Spans of requests of one and of two images have the first in common."""
    grid = run(tiny("facemix.keys=secret"), tmp_path / "run")
    (edge, _) = edges_of(grid, tmp_path / "again")
    other = edge.assignment.model_copy(update={"request": 2})
    with pytest.raises(RuntimeError, match="or on other terms"):
        InferenceEdge(edge.vault, other).ask(0)
    same = InferenceEdge(edge.vault, edge.assignment)
    np.testing.assert_array_equal(same.ask(0), edge.ask(0))


def test_images_cross_once_under_the_same_stages(tmp_path: Path) -> None:
    """Another run with them is another key for the same features."""
    grid = run(tiny("facemix.keys=secret"), tmp_path / "run")
    (edge, _) = edges_of(grid, tmp_path / "again" / "first")
    place = tmp_path / "again" / "second" / "0"
    arrays = protocol.arrays_of(asked(grid, protocol.ADOPT)[-1].content)
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    again = InferenceEdge(Vault(place), edge.assignment.model_copy(update={"run": "second"}))
    with pytest.raises(RuntimeError, match="15 of this node's images crossed under these stages"):
        again.adopt(tensors)
    InferenceEdge(Vault(place), again.assignment).adopt(
        {**tensors, "weights": tensors["weights"] + 1}
    )


def test_the_first_answer_stands_and_the_secret_goes_with_the_last(tmp_path: Path) -> None:
    grid = run(tiny("facemix.keys=secret"), tmp_path / "run")
    assert not list((tmp_path / "run" / "vault").rglob("*mixing.key"))
    (edge, _) = edges_of(grid, tmp_path / "again")
    for number in range(edge.requests):
        assert edge.next_request() == number
        sent = torch.from_numpy(edge.ask(number))
        assert edge.vault.read("main-mixing.key") is not None
        edge.answer(number, torch.zeros(len(sent), *edge.returned))
        before = edge.vault.load(edge._answers(number))
        edge.answer(number, torch.ones(len(sent), *edge.returned))
        after = edge.vault.load(edge._answers(number))
        assert before is not None
        assert after is not None
        assert torch.equal(before[0]["answers"], after[0]["answers"])
    assert edge.next_request() is None
    assert edge.vault.read("main-mixing.key") is None


def test_an_edge_trains_with_nobody_unless_it_was_told(tmp_path: Path) -> None:
    grid = run(tiny(), tmp_path / "run")
    served = first_of(grid, protocol.INFER)
    message = Message(served.content, served.metadata.dst_node_id, protocol.MIXTURES)
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error()
    assert "this node is no trainingedge in this run" in str(reply.error.reason)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (("facemix.keys=secret", "facemix.request=64"), True),
        (("facemix.request=64",), False),
        (("facemix.keys=secret", "facemix.request=63"), False),
        (
            (
                "facemix.keys=secret",
                "facemix.request=64",
                "facemix.shield={name: mixing, shuffle: false}",
            ),
            False,
        ),
        (
            (
                "facemix.keys=secret",
                "facemix.request=64",
                "facemix.shield={name: mixing, group: 4}",
            ),
            False,
        ),
        (("facemix.keys=secret", "facemix.request=64", "facemix.place=cloud"), False),
        (("facemix.keys=secret", "facemix.request=64", *SPLIT), False),
    ],
)
def test_a_deployed_edge_insists_on_mixing(
    tmp_path: Path, settings: tuple[str, ...], allowed: bool
) -> None:
    grid = run(tiny(*settings, "facemix.report=true"), tmp_path / "run")
    words = protocol.words_of(asked(grid, protocol.JOIN)[0].content)
    assignment = assignment_of(str(words["assignment"]))
    own = {"systems": ["facemix"], "mixing": 8, "report": False}
    node = NodeConfig.read(node_file(tmp_path / "node.yaml", **own))
    if allowed:
        assert node.agreed(assignment).report is False  # type: ignore[union-attr]
    else:
        with pytest.raises(RuntimeError, match="mixtures of at least 8 under secret keys"):
            node.agreed(assignment)


def test_edges_with_fewer_batches_end_an_epoch_earlier(tmp_path: Path) -> None:
    settings = ("facemix.min_edges=2", "data.limit=33", "data.partition={scheme: linear}")
    run(tiny(*SPLIT, *settings), tmp_path / "run")
    assert measured(tmp_path / "run", stage="test")


def test_a_secret_key_is_never_drawn_twice(tmp_path: Path) -> None:
    grids = [run(tiny("facemix.keys=secret"), tmp_path / name) for name in ("a", "b")]
    sent = [
        [
            protocol.arrays_of(m.content)["mixtures"].tobytes()
            for m in grid.replies
            if m.metadata.message_type == protocol.INFER and m.content.array_records
        ]
        for grid in grids
    ]
    assert sent[0]
    assert not set(sent[0]) & set(sent[1])


def test_the_ledger_promises_nothing(tmp_path: Path) -> None:
    from analysis.privacy import privacy, verdict

    run(tiny(*SPLIT), tmp_path / "split")
    run(tiny(), tmp_path / "central")
    assert verdict(tmp_path / "split")["main"].epsilon is None
    frame = privacy(tmp_path / "central")
    (mixed,) = [row for row in frame.to_dict("records") if row["what"] == "features"]
    assert (mixed["mechanism"], mixed["records"]) == ("mixing", "served")
    assert verdict(tmp_path / "central")["main"].epsilon is None
    assert any("independent component analysis" in reason for reason in mixed["reasons"])


# ---------------------------------------------------------------- stops and wrong answers


@pytest.mark.parametrize(
    ("settings", "stop"),
    [
        ((), (protocol.ADOPT, 1)),
        ((), (protocol.INFER, 3)),
        ((), (protocol.COUNTS, 1)),
        (("facemix.place=cloud", "facemix.anonymiser={}"), (protocol.INFER, 3)),
        (SPLIT, (protocol.OUTPUTS, 5)),
        (SPLIT, (protocol.ENDS, 11)),
    ],
)
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    stop: tuple[str, int],
    seconds: float,
) -> None:
    monkeypatch.setattr(strategies.recorder, "CHECKPOINT_SECONDS", seconds)
    run(tiny(*settings), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tiny(*settings), tmp_path / "stopped", stop=stop)
    run(tiny(*settings), tmp_path / "stopped")
    assert same(model_of(tmp_path / "whole"), model_of(tmp_path / "stopped"))
    rows = [
        [row for row in measured(tmp_path / name) if row["stage"] != "serving"]
        for name in ("whole", "stopped")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("settings", [("facemix.keys=secret",), SPLIT])
def test_an_edge_in_a_fresh_process_for_each_message_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    run(tiny(*settings), tmp_path / "kept")
    node = clients.app._node

    def forgetful(config: Any, context: Any) -> Any:
        clients.app._nodes.clear()
        return node(config, context)

    monkeypatch.setattr(clients.app, "_node", forgetful)
    monkeypatch.setattr("strategies.session.LASTING", ())
    run(tiny(*settings), tmp_path / "fresh")
    assert same(model_of(tmp_path / "kept"), model_of(tmp_path / "fresh"))
    if settings == SPLIT:  # secret keys are others, and so is what is lost by not being linear
        rates = [measured(tmp_path / name, stage="test") for name in ("kept", "fresh")]
        assert rates[0] == rates[1]
    else:
        assert measured(tmp_path / "fresh", stage="test")


def test_an_edge_that_goes_away_is_forgotten_and_the_others_are_served(tmp_path: Path) -> None:
    faults = [(protocol.INFER, 1, 2)]
    grid = run(tiny("facemix.edges=3"), tmp_path / "run", faults=faults)
    (said,) = {len(asked(grid, protocol.COUNTS))}
    assert said == 2
    assert "dropout: edge-1" in (tmp_path / "run" / "events.log").read_text()
    assert measured(tmp_path / "run", stage="test")


@pytest.mark.parametrize(
    ("array", "change", "why"),
    [
        ("gradient", lambda a: a[1:], "gradient of shape"),
        ("gradient", lambda a: a.astype(np.float64), "of float32 were asked for"),
        ("weights", lambda a: a[1:], "weights of shape"),
        ("weights", lambda a: a.astype(np.int32), "of float32 were asked for"),
        ("buffers", lambda a: np.append(a, 1).astype(a.dtype), "buffers of shape"),
    ],
)
def test_what_fits_no_batch_stops_the_training_as_absence_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: str, change: Any, why: str
) -> None:
    reply = protocol.reply

    def hostile(metrics: Any, **arrays: np.ndarray) -> Any:
        return reply(metrics, **{n: change(a) if n == array else a for n, a in arrays.items()})

    monkeypatch.setattr(protocol, "reply", hostile)
    with pytest.raises(RuntimeError, match="training: 0 participants answered"):
        run(tiny(*SPLIT), tmp_path / "run")
    assert why in (tmp_path / "run" / "events.log").read_text()


def test_no_step_is_made_with_half_a_batch(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="training: 1 participants answered"):
        run(tiny(*SPLIT), tmp_path / "run", faults=[(protocol.OUTPUTS, 1, 2)])
    run(tiny(*SPLIT), tmp_path / "run")
    run(tiny(*SPLIT), tmp_path / "whole")
    assert same(model_of(tmp_path / "run"), model_of(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("kind", "array", "change", "why"),
    [
        (protocol.INFER, "mixtures", lambda a: a * np.nan, "mixtures with NaN"),
        (protocol.INFER, "mixtures", lambda a: a[:, 1:], "of shape"),
        (protocol.INFER, "mixtures", lambda a: a[:0], "of shape"),
        (protocol.INFER, "mixtures", lambda a: a.astype(np.float64), "float32 were asked for"),
        (protocol.COUNTS, "counts", lambda a: a + 1, "other numbers of test images"),
        (protocol.COUNTS, "counts", lambda a: a[:1], "counts of shape"),
    ],
)
def test_a_wrong_answer_of_an_edge_is_a_dropout(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    array: str,
    change: Any,
    why: str,
) -> None:
    reply = protocol.reply

    def hostile(metrics: Any, **arrays: np.ndarray) -> Any:
        if array in arrays:
            arrays = {**arrays, array: change(arrays[array])}
        return reply(metrics, **arrays)

    monkeypatch.setattr(protocol, "reply", hostile)
    directory = tmp_path / "run"
    if kind == protocol.INFER:
        with pytest.raises(RuntimeError, match=r"0 participants answered"):
            run(tiny(), directory)
    else:
        run(tiny(), directory)
        assert not measured(directory, stage="test")
    assert why in (directory / "events.log").read_text()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: x[:-1], r"outputs of shape \(7, "),
        (lambda x: x[:, 1:], r"outputs of shape \(8, "),
        (lambda x: x * float("nan"), "NaN or infinity"),
        (lambda x: torch.cat([x, x]), r"outputs of shape \(16, "),
    ],
)
def test_an_edge_refuses_what_is_no_answer_to_its_request(
    tmp_path: Path, change: Any, why: str
) -> None:
    grid = run(tiny(), tmp_path / "run")
    (edge, _) = edges_of(grid, tmp_path / "again")
    model = tiny().built(tiny().facemix, edge.data).eval()
    outputs = model.main(torch.from_numpy(edge.ask(0))).detach()
    with pytest.raises(ValueError, match=why):
        edge.answer(0, change(outputs))
    edge.answer(0, outputs)
    for number in (99, -1):
        with pytest.raises(ValueError, match=f"request {number} of"):
            edge.ask(number)
        with pytest.raises(ValueError, match=f"an answer to request {number}, 1 waits for one"):
            edge.answer(number, outputs)


def test_a_message_that_no_server_takes_is_refused_beforehand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("strategies.facemix.experiment.LARGEST_MESSAGE", 2**16)
    for settings, why in (
        (["facemix.request=64"], r"request: 64 images make a message of"),
        ([*SPLIT, "facemix.training.batch_size=64"], r"training.batch_size: 64 images make a"),
    ):
        with pytest.raises(RequestError, match=why):
            tiny(*settings).check()
    tiny("facemix.place=edge", "facemix.request=64").check()


@pytest.mark.parametrize("change", [lambda x: x * np.nan, lambda x: x[:, 1:], lambda x: x[1:]])
@pytest.mark.parametrize(
    ("kind", "array"), [(protocol.OUTPUTS, "outputs"), (protocol.ENDS, "gradient")]
)
def test_an_edge_learns_nothing_from_what_fits_no_batch(
    tmp_path: Path, change: Any, kind: str, array: str
) -> None:
    grid = run(tiny(*SPLIT), tmp_path / "run")
    (edge, _) = edges_of(grid, tmp_path / "again")
    stages = arrays_in(first_of(grid, protocol.MIXTURES))
    edge.mixtures(0, 0, stages)
    arrays = arrays_in(first_of(grid, kind))
    if kind == protocol.ENDS:
        edge.loss(0, 0, 0.5, arrays_in(first_of(grid, protocol.OUTPUTS)))
    answer = edge.loss if kind == protocol.OUTPUTS else edge.gradients
    with pytest.raises(ValueError, match=f"{array} of shape"):
        answer(0, 0, 0.5, {**arrays, array: change(arrays[array])})
    with pytest.raises(ValueError, match="with NaN or infinity"):
        edge.mixtures(0, 0, {**stages, "weights": stages["weights"] * np.nan})


def test_an_edge_whose_groups_nothing_fills_takes_no_part(tmp_path: Path) -> None:
    settings = ("facemix.shield={name: mixing, pad: false, group: 4}", "facemix.request=8")
    settings = (*settings, "facemix.training={epochs: 1, batch_size: 4}", "data.split='4:1:1'")
    with pytest.raises(RuntimeError, match="0 participants answered"):
        run(tiny(*settings), tmp_path / "run")
    assert "no whole groups of 4" in (tmp_path / "run" / "events.log").read_text()


def test_split_learning_refuses_mixing() -> None:
    """Its cloud trains on rows with labels, and a mixture has none."""
    with pytest.raises(RequestError, match="leaves no label that would be that of a row"):
        load_experiment("split-digits", ["split.shield={name: mixing}"])


def test_an_edge_that_was_given_no_stages_says_so(tmp_path: Path) -> None:
    grid = run(tiny(), tmp_path / "run")
    words = protocol.words_of(asked(grid, protocol.JOIN)[0].content)
    edge = InferenceEdge(Vault(tmp_path / "new"), assignment_of(str(words["assignment"])))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="has not been given its stages"):
        edge.ask(0)


def test_a_model_file_says_all_that_is_needed_to_use_it(tmp_path: Path) -> None:
    from models.files import load_tensors

    run(tiny(), tmp_path / "run")
    kept = load_tensors(tmp_path / "run" / "main" / "model.safetensors")
    assert kept is not None
    assert kept[1]["attributes"] == ["label=3", "label:5-9"]
    assert kept[1]["stages"] == ["1", "4"]
    assert json.dumps(kept[1]["shield"])


# ------------------------------------------------------------------------ bad requests


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["facemix.shield={name: mixing, group: 0}"], "must be at least 1"),
        (["facemix.shield={name: mixing, pad: false}"], "request: 7 are no whole groups of 8"),
        (
            ["facemix.shield={name: mixing, pad: false}", "facemix.request=8"],
            "a batch of the owner's images",
        ),
        (["facemix.shield={name: fog}"], "unknown shield 'fog'"),
        (["facemix.pre='3'", "facemix.post='1'"], "'3' must come before '1'"),
        (["facemix.pre=nowhere"], "unknown cut 'nowhere'"),
        (["facemix.model=resnet-8", "facemix.pre=1.0.0.convolution"], "unknown cut"),
        (["data.attributes=[]"], "data.attributes: there are none"),
        (["data.attributes=['label']"], "does not say yes or no"),
        (["data.attributes=['beard']"], "no column 'beard'"),
        (["facemix.place=edge", "facemix.shield={name: mixing}"], "could hide"),
        (["facemix.train=split", "facemix.place=cloud"], "has stages on both sides"),
        (["facemix.anonymiser={}"], "allowed with place: cloud, and no shield"),
        (["facemix.train=split"], "nobody knows the statistics of all training images"),
        (["facemix.edges=31"], "31, but there are 30 test images"),
        (["facemix.min_edges=3"], "min_edges: 3, but there are 2 edges"),
        (["facemix.cases={'a/b': {}}"], "a case's name is that of a folder"),
    ],
)
def test_wrong_settings_are_explained(settings: list[str], why: str) -> None:
    with pytest.raises(RequestError) as caught:
        tiny(*settings).check()
    assert why in str(caught.value)
