"""A device's process is lost in the middle of training, and another takes its place.

So it may happen on a cluster, whose machines come and go.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from competition_helpers import rows_of
from flwr.app import Message
from split_helpers import model_of, same, tiny

import pudica.clients.app
from pudica.clients import protocol
from pudica.clients.app import app as client_app
from pudica.clients.runtime.odometer import ACTIVATIONS, Odometer
from pudica.clients.runtime.snapshots import Snapshots
from pudica.clients.split.edge import Edge
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_run_config, build_server_context
from pudica.strategies.app import app as server_app
from pudica.strategies.split.experiment import SplitExperiment

SETTINGS = [
    "split.shield={name: batch-norm-laplace, epsilon: 5}",
    "split.optimizer={learning_rate: 0.1, momentum: 0.9}",
    "split.validate_every=1",
    # Nobody is asked there: it says that processes may be lost.
    "ray.address=127.0.0.1:1",
]
BUDGET = "split.budget={epsilon: 3}"
RELEASING = {
    "stored": ["split.front=frozen", "split.noise=secret", BUDGET],
    "counted": ["split.front=frozen", "split.noise=seeded", BUDGET],
    "drawn again": ["split.front=private", "split.noise=secret"],
}


class Lost(Exception):
    """The process is gone."""


@contextmanager
def die(owner: type, name: str, after: bool) -> Iterator[None]:
    """Lose the process before, or after, a method is called."""
    original = getattr(owner, name)

    def dying(*arguments: Any, **keywords: Any) -> None:
        if after:
            original(*arguments, **keywords)
        raise Lost

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying)
        yield


DEATHS: dict[str, Callable[[], Any] | None] = {
    "idle": None,
    "learnt": lambda: die(Edge, "smash", after=False),
    "released": lambda: die(Edge, "smash", after=True),
    "keeping": lambda: die(Snapshots, "keep", after=False),
    "kept": lambda: die(Snapshots, "keep", after=True),
}


class LossyGrid(InProcessGrid):
    """A grid on which devices lose their processes, and are sent again what they did not answer.

    Attributes
    ----------
    kind, losses : str, dict of (int, int) to str
        Of messages; by partition and the how manieth such message (from 1), when its process dies.
    """

    kind = protocol.SMASH
    losses: ClassVar[dict[tuple[int, int], str]] = {}
    happened: int

    def _answer(self, message: Message) -> Message:
        if message.metadata.message_type != self.kind:
            return super()._answer(message)
        self.counts: dict[int, int] = getattr(self, "counts", {})
        partition = self.partition[message.metadata.dst_node_id]
        self.counts[partition] = self.counts.get(partition, 0) + 1
        if (when := self.losses.get((partition, self.counts[partition]))) is not None:
            if death := DEATHS[when]:
                with death():
                    super()._answer(copy.deepcopy(message))
            pudica.clients.app._nodes.clear()
            self.happened = getattr(self, "happened", 0) + 1
        return super()._answer(message)


def run(
    experiment: SplitExperiment,
    directory: Path,
    losses: dict[tuple[int, int], str] | None = None,
    kind: str = protocol.SMASH,
) -> None:
    config = build_run_config(experiment, directory, "ray")
    grid = LossyGrid(client_app, len(experiment.names()), config)
    grid.kind, grid.losses = kind, losses or {}  # type: ignore[misc]
    server_app(grid, build_server_context(config))
    assert getattr(grid, "happened", 0) == len(grid.losses)


@pytest.mark.parametrize("front", ["average", "handoff", "private", "frozen"])
@pytest.mark.parametrize("each", [1, 2])
def test_a_device_whose_process_is_lost_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, front: str, each: int
) -> None:
    """At the first turn of all, in the middle of an epoch, and at its end."""
    experiment = tiny(*SETTINGS, f"split.front={front}", f"split.batches_per_message={each}")
    run(experiment, tmp_path / "whole" / "run")
    numbers = [1, 2, 4, 5] if each == 1 else [1, 2, 3]
    for death in DEATHS:
        directory = tmp_path / death / "run"
        run(experiment, directory, {(1, number): death for number in numbers})
        assert rows_of(directory) == rows_of(tmp_path / "whole" / "run"), death
        assert same(model_of(directory), model_of(tmp_path / "whole" / "run")), death


@pytest.mark.parametrize(
    ("front", "kind"),
    [
        ("average", protocol.FRONT_GRADIENT),
        ("handoff", protocol.FRONT),
        ("private", protocol.WHOLE),
    ],
)
@pytest.mark.parametrize("death", ["idle", "kept"])
def test_so_it_does_if_it_is_asked_for_something_else(
    tmp_path: Path, front: str, kind: str, death: str
) -> None:
    if death == "kept" and kind != protocol.FRONT:
        pytest.skip("nothing is kept")
    experiment = tiny(*SETTINGS, f"split.front={front}")
    run(experiment, tmp_path / "whole" / "run")
    run(experiment, tmp_path / "lost" / "run", {(0, 1): death, (0, 2): death}, kind)
    assert rows_of(tmp_path / "lost" / "run") == rows_of(tmp_path / "whole" / "run")
    assert same(model_of(tmp_path / "lost" / "run"), model_of(tmp_path / "whole" / "run"))


@pytest.mark.parametrize("validate_every", [0, 1])
def test_a_gradient_that_was_flushed_is_not_lost_with_a_later_flush(
    tmp_path: Path, validate_every: int
) -> None:
    """Private fronts are flushed before they are measured, at the end of training, and after it."""
    each = f"split.validate_every={validate_every}"
    experiment = tiny(*SETTINGS, "split.front=private", each)
    run(experiment, tmp_path / "whole" / "run")
    flushes = [4, 8, 9, 10] if validate_every else [7, 8]
    for death in ("idle", "kept"):
        directory = tmp_path / death / "run"
        run(experiment, directory, {(1, number): death for number in flushes})
        assert rows_of(directory) == rows_of(tmp_path / "whole" / "run")


# ------------------------------------------------------------------------------- privacy


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, bytes]]:
    """What devices computed to be sent: by device, epoch, and step."""
    found, smash = [], Edge.smash

    def smashed(self: Edge, epoch: int, step: int, count: int, turn: int) -> Any:
        answer = smash(self, epoch, step, count, turn)
        if count:
            found.append((self.label, epoch, step, np.asarray(answer[0]).tobytes()))
        return answer

    monkeypatch.setattr(Edge, "smash", smashed)
    return found


def paid(experiment: SplitExperiment, directory: Path) -> list[int]:
    """Return how often each device has paid for training activations."""
    nodes = [pudica.clients.app._nodes[path] for path in sorted(pudica.clients.app._nodes)]
    own = [node for node in nodes if directory in node.vault.root.parents]
    assert len(own) == len(experiment.names())
    entries = [Odometer(node.vault).entries() for node in own]
    return [sum(e.release.what == ACTIVATIONS for e in each) for each in entries]


@pytest.mark.parametrize("death", ["released", "keeping", "kept"])
@pytest.mark.parametrize("noise", RELEASING)
def test_what_was_released_before_the_process_was_lost_is_released_again_and_nothing_else(
    tmp_path: Path, released: list[tuple[str, int, int, bytes]], noise: str, death: str
) -> None:
    """The same bytes, noise and all, whether they are stored or drawn again: nothing is paid."""
    shield = "split.shield={name: clip-gaussian, epsilon: 1}"
    experiment = tiny(*SETTINGS, shield, *RELEASING[noise], "split.epochs=3")
    run(experiment, tmp_path / "run", {(0, 2): death, (1, 3): death, (1, 5): death})
    batches = [what[:3] for what in released]
    assert len(batches) == len(set(batches)) + 3
    assert len(set(released)) == len(set(batches))
    if BUDGET in RELEASING[noise]:
        assert paid(experiment, tmp_path / "run") == [3, 3]
