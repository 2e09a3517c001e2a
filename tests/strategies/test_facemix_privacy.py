"""FaceMix: what is given away, and what a node insists on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facemix_runs import SPLIT, edges_of, first_of, tiny
from flwr.app import Message
from node_files import node_file
from split_helpers import asked, bytes_of, measured, names_in, run

import pudica.clients.app
import pudica.clients.shields.mixing
from pudica.clients import protocol
from pudica.clients.assignments import parse_assignment as assignment_of
from pudica.clients.facemix import edge as inference
from pudica.clients.facemix.assigned import AssignedEdge
from pudica.clients.runtime.node import NodeConfig
from pudica.clients.runtime.vault import Vault
from pudica.clients.shields.mixing import Mixing, MixingKey


@pytest.mark.parametrize("training", [(), SPLIT], ids=["central", "split"])
@pytest.mark.parametrize("keys", ["seeded", "secret"])
def test_no_key_is_in_any_message_or_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str, training: tuple[str, ...]
) -> None:
    secrets: list[bytes] = []

    def noting(place: Any, name: str, parts: Callable[[Any], list[bytes]]) -> None:
        drawn = getattr(place, name)

        def noted(*arguments: Any) -> Any:
            value = drawn(*arguments)
            secrets.extend(parts(value))
            return value

        monkeypatch.setattr(place, name, noted)

    mixing = pudica.clients.shields.mixing
    noting(mixing, "draw_orthogonal", lambda matrices: [w for m in matrices for w in ways(m, m.mT)])
    noting(mixing, "draw_permutations", lambda order: ways(order, order.argsort()))
    noting(inference, "draw_permutations", lambda order: ways(order, order.argsort()))
    noting(Vault, "secret", lambda secret: [secret, secret.hex().encode()])
    settings = (f"facemix.keys={keys}", "facemix.request=22", "data.limit=180")
    grid = run(tiny(*settings, *training), tmp_path / "run")
    payloads = [bytes_of(message) for message in [*grid.requests, *grid.replies]]
    files = [
        path.read_bytes()
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and "vault" not in path.parts
    ]
    # An order of 24 and a matrix, of 4 bytes each; the vault's secret.
    assert {len(secret) for secret in secrets} >= {
        4 * 24,
        4 * 64,
        32 if keys == "secret" else 4 * 24,
    }
    # What is shorter may be found by chance.
    for secret in [secret for secret in secrets if len(secret) >= 32]:
        assert not any(secret in content for content in [*payloads, *files])


def ways(*tensors: torch.Tensor) -> list[bytes]:
    """Return how tensors may be written down."""
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64)
    whole = kinds if tensors[0].dtype == torch.int64 else kinds[:3]
    return [tensor.numpy().astype(kind).tobytes() for tensor in tensors for kind in whole]


SAID = {
    protocol.HELLO: {"code", "partition"},
    protocol.JOIN: {
        *("attributes", "classes", "key", "reports", "shape"),
        *("train", "validation", "test"),
    },
    protocol.ADOPT: {"requests"},
    protocol.INFER: {"done", "number", "mixtures"},
    protocol.COUNTS: {"counts"},
    protocol.MIXTURES: {"mixtures"},
    protocol.OUTPUTS: {"gradient", "loss", "num-examples"},
    protocol.ENDS: {"weights", "buffers"},
}
"""What an edge says in answer to each message: no label, no prediction; no value is a list."""


@pytest.mark.parametrize("settings", [(), SPLIT])
def test_no_label_and_no_prediction_is_in_any_message(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    grid = run(tiny(*settings), tmp_path / "run")
    for message in grid.replies:
        assert names_in(message) <= SAID[message.metadata.message_type]


def test_every_request_edge_and_case_has_keys_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also batches and epochs; drawn by the edge itself, as it is asked."""
    drawn = keys_drawn(monkeypatch)
    cases = "facemix.cases={a: {}, b: {}, together: {train: split}}"
    # The cloud's own validation images are behind the same keys each time: here only once.
    settings = ("facemix.request=8", "data.limit=240", "data.normalize=none")
    run(tiny(*settings, "facemix.evaluate_every=2", cases), tmp_path / "run")
    requests, batches, epochs = 3 * 2 * 3, 2 * 5, 2
    assert len(drawn) >= requests + epochs * batches
    matrices = torch.cat([key.matrices for key in drawn])
    apart = (matrices[:, None] - matrices[None]).abs().amax((2, 3))
    assert float((apart + torch.eye(len(matrices))).min()) > 0.01
    orders = [tuple(key.order.tolist()) for key in drawn]
    assert len(set(orders)) == len(orders)


def keys_drawn(monkeypatch: pytest.MonkeyPatch) -> list[MixingKey]:
    """Return where every key goes that is drawn from now on."""
    drawn: list[MixingKey] = []
    protect = Mixing.protect

    def noted(self: Mixing, *arguments: Any) -> tuple[torch.Tensor, MixingKey]:
        sent, key = protect(self, *arguments)
        drawn.append(key)
        return sent, key

    monkeypatch.setattr(Mixing, "protect", noted)
    return drawn


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
        asked_for = [edge._make_request(number) for number in range(2)]
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
        AssignedEdge(edge.vault, other).ask(0)
    same = AssignedEdge(edge.vault, edge.assignment)
    np.testing.assert_array_equal(same.ask(0), edge.ask(0))


def test_images_cross_once_under_the_same_stages(tmp_path: Path) -> None:
    """Another run with them is another key for the same features."""
    grid = run(tiny("facemix.keys=secret"), tmp_path / "run")
    (edge, _) = edges_of(grid, tmp_path / "again" / "first")
    place = tmp_path / "again" / "second" / "0"
    arrays = protocol.arrays_of(asked(grid, protocol.ADOPT)[-1].content)
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    again = AssignedEdge(Vault(place), edge.assignment.model_copy(update={"run": "second"}))
    with pytest.raises(RuntimeError, match="15 of this node's images crossed under these stages"):
        again.adopt(tensors)
    AssignedEdge(Vault(place), again.assignment).adopt(
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
        before = edge.vault.load(edge._answer_name(number))
        edge.answer(number, torch.ones(len(sent), *edge.returned))
        after = edge.vault.load(edge._answer_name(number))
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
    assert "this edge trains with nobody in this run" in str(reply.error.reason)


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
    own = {"systems": ["facemix"], "mixing": 8, "report": "none"}
    node = NodeConfig.read(node_file(tmp_path / "node.yaml", **own))
    if allowed:
        assert node.agree_to(assignment).report is False  # type: ignore[union-attr]
    else:
        with pytest.raises(RuntimeError, match="mixtures of at least 8 under secret keys"):
            node.agree_to(assignment)


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
    from pudica.analysis.privacy import privacy, verdict

    run(tiny(*SPLIT), tmp_path / "split")
    run(tiny(), tmp_path / "central")
    assert verdict(tmp_path / "split")["main"].epsilon is None
    frame = privacy(tmp_path / "central")
    (mixed,) = [row for row in frame.to_dict("records") if row["what"] == "features"]
    assert (mixed["mechanism"], mixed["records"]) == ("mixing", "served")
    assert verdict(tmp_path / "central")["main"].epsilon is None
    assert any("independent component analysis" in reason for reason in mixed["reasons"])
