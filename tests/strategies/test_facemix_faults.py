"""FaceMix: stops, wrong answers and bad requests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facemix_runs import SPLIT, arrays_in, counted, edges_of, first_of, tiny
from flwr.app import Message
from split_helpers import (
    FaultyGrid,
    Interrupted,
    asked,
    forget_nodes,
    measured,
    model_of,
    run,
    same,
)

import pudica.strategies.core.recorder
from pudica.clients import protocol
from pudica.clients.assignments import parse_assignment as assignment_of
from pudica.clients.data import Splits
from pudica.clients.facemix import assigned
from pudica.clients.facemix.assigned import AssignedEdge
from pudica.clients.runtime.vault import Vault
from pudica.models.errors import RequestError
from pudica.strategies.facemix.serving import Serving
from pudica.strategies.loading import load_experiment


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
    monkeypatch.setattr(pudica.strategies.core.recorder, "CHECKPOINT_SECONDS", seconds)
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
    forget_nodes(monkeypatch)
    monkeypatch.setattr("pudica.strategies.core.session.LASTING", ())
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


def test_an_edge_that_falls_silent_changes_nothing_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first request was computed together with theirs; the answer never reaches it."""
    settings = ("facemix.edges=3", "facemix.request=4", "client.timeout=2")
    whole = counted(run(tiny(*settings), tmp_path / "whole"))
    hand, silent = FaultyGrid._dispatch, 3

    def lost(self: FaultyGrid, message: Message, identifier: str) -> None:
        about = message.metadata.message_type, message.metadata.dst_node_id
        if about != (protocol.INFER, silent) or not protocol.arrays_of(message.content):
            hand(self, message, identifier)

    monkeypatch.setattr(FaultyGrid, "_dispatch", lost)
    monkeypatch.setattr("pudica.strategies.core.reliable_grid.GIVE_UP_AFTER", 1)
    rest = counted(run(tiny(*settings), tmp_path / "run"))
    assert whole.keys() == {2, 3, 4}
    assert rest.keys() == {2, 4}
    for node, counts in rest.items():
        np.testing.assert_array_equal(counts, whole[node])
    assert "no answer within 2 s" in (tmp_path / "run" / "events.log").read_text()


def test_a_cloud_that_computes_no_numbers_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = Serving._compute

    def broken(self: Serving, asked: Any) -> Any:
        return [rows * np.nan for rows in computed(self, asked)]

    monkeypatch.setattr(Serving, "_compute", broken)
    with pytest.raises(RuntimeError, match="0 participants answered"):
        run(tiny(), tmp_path / "run")
    told = (tmp_path / "run" / "events.log").read_text()
    for edge in ("edge-0", "edge-1"):
        assert f"dropout: {edge}: ValueError: outputs with NaN or infinity" in told


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
    monkeypatch.setattr("pudica.strategies.facemix.experiment.LARGEST_MESSAGE", 2**16)
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
    batch = {"epoch": 0, "number": 0, "share": 0.5}
    edge.training.send_mixtures(batch, stages)
    arrays = arrays_in(first_of(grid, kind))
    if kind == protocol.ENDS:
        edge.training.send_loss(batch, arrays_in(first_of(grid, protocol.OUTPUTS)))
    answer = edge.training.send_loss if kind == protocol.OUTPUTS else edge.training.send_gradients
    with pytest.raises(ValueError, match=f"{array} (of shape|with NaN)"):
        answer(batch, {**arrays, array: change(arrays[array])})
    with pytest.raises(ValueError, match="with NaN or infinity"):
        edge.training.send_mixtures(batch, {**stages, "weights": stages["weights"] * np.nan})


def test_an_edge_whose_groups_nothing_fills_takes_no_part(tmp_path: Path) -> None:
    settings = ("facemix.shield={name: mixing, pad: false, group: 4}", "facemix.request=8")
    settings = (*settings, "facemix.training={epochs: 1, batch_size: 4}", "data.split='4:1:1'")
    with pytest.raises(RuntimeError, match="0 participants answered"):
        run(tiny(*settings), tmp_path / "run")
    assert "whole groups of 4" in (tmp_path / "run" / "events.log").read_text()


def test_an_edge_whose_attributes_stand_in_another_order_takes_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = assigned.load_once

    def turned(*what: Any) -> Splits:
        data = load(*what)
        return replace(data, attributes=data.attributes[::-1])

    monkeypatch.setattr(assigned, "load_once", turned)
    with pytest.raises(RuntimeError, match="0 participants answered"):
        run(tiny(), tmp_path / "run")
    why = "its attribute 1 is label:5-9, the model's is label=3"
    assert why in (tmp_path / "run" / "events.log").read_text()


def test_split_learning_refuses_mixing() -> None:
    """Its cloud trains on rows with labels, and a mixture has none."""
    with pytest.raises(RequestError, match="leaves no label that would be that of a row"):
        load_experiment("split-digits", ["split.shield={name: mixing}"])


def test_an_edge_that_was_given_no_stages_says_so(tmp_path: Path) -> None:
    grid = run(tiny(), tmp_path / "run")
    words = protocol.words_of(asked(grid, protocol.JOIN)[0].content)
    edge = AssignedEdge(Vault(tmp_path / "new"), assignment_of(str(words["assignment"])))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="has not been given its stages"):
        edge.ask(0)


def test_a_model_file_says_all_that_is_needed_to_use_it(tmp_path: Path) -> None:
    from pudica.models.files import load_tensors

    run(tiny(), tmp_path / "run")
    kept = load_tensors(tmp_path / "run" / "main" / "model.safetensors")
    assert kept is not None
    assert kept[1]["attributes"] == ["label=3", "label:5-9"]
    assert kept[1]["stages"] == ["1", "4"]
    assert json.dumps(kept[1]["shield"])


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
