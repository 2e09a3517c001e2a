"""Nodes of somebody's own app: whose memory is whose, and what a server learns of failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from ray import cloudpickle

from pudica.clients import protocol
from pudica.clients.data import DataError
from pudica.clients.runtime.role import UNUSABLE_DATA, OwnApp, Role
from pudica.models.compute import Compute, ComputeConfig
from pudica.models.errors import RequestError
from pudica.simulations.engines.inprocess import InProcessGrid
from pudica.simulations.engines.local import build_server_context


class Counter(Role):
    """Counts what it was asked, in itself and in its vault; joins on terms above 0."""

    def __init__(self) -> None:
        self.compute = Compute(ComputeConfig())
        self.times, self.terms = 0, 0

    def describe_data(self) -> dict[str, int | str]:
        """Return nothing of interest."""
        return {}

    def accept(self, words: Any) -> None:
        """Take terms above 0."""
        self.terms = words.get("terms", 1)
        if self.terms < 1:
            raise RequestError("terms: must be above 0")

    def count(self, config: Any, arrays: Any) -> RecordDict:
        """Say how often it was asked."""
        self.times += 1
        kept = int(self.vault.read("times") or 0) + 1
        self.vault.write("times", str(kept).encode())
        return protocol.reply({"times": self.times, "kept": kept, "terms": self.terms})


Counter.handlers = {"query.count": Counter.count}


def counting_app() -> ClientApp:
    return Counter.app(lambda _: Counter())


def ask(grid: InProcessGrid, kind: str = "query.count", **words: Any) -> Message:
    content = RecordDict({"config": ConfigRecord({"run": "r", **words})})
    (reply,) = grid.send_and_receive([Message(content, 2, kind)])
    return reply


@pytest.fixture(autouse=True)
def identity() -> None:
    """As a ServerApp's process has it."""
    build_server_context({})


def test_grids_of_one_process_share_no_node() -> None:
    app = counting_app()
    grids = InProcessGrid(app, 1, {}), InProcessGrid(app, 1, {})
    found = [protocol.numbers_of(ask(grid).content) for grid in (*grids, grids[0])]
    assert [numbers["times"] for numbers in found] == [1, 1, 2]
    assert [numbers["kept"] for numbers in found] == [1, 1, 2]


def test_who_is_sent_to_another_process_begins_there(tmp_path: Path) -> None:
    own = OwnApp(Counter, lambda _: Counter())
    context = Context(1, 2, {}, RecordDict(), {"vault": str(tmp_path)})
    role = own.find({"run": "r"}, context)
    assert own.find({"run": "r"}, context) is role
    assert not cloudpickle.loads(cloudpickle.dumps(own))._roles


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("factory", FileNotFoundError(2, "No such file", "/data/ann/hiv-positive.npz")),
        ("factory", RuntimeError("no data set in /data/ann")),
        ("handler", DataError("train: the first label is 7")),
        ("handler", OSError(5, "bad", "/data/ann")),
    ],
)
@pytest.mark.parametrize("kind", ["query.count", protocol.JOIN])
def test_what_is_wrong_with_a_nodes_data_stays_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, kind: str
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    logged: list[Any] = []
    monkeypatch.setattr("pudica.clients.runtime.role.log", lambda *args: logged.append(args))
    if where == "handler":
        monkeypatch.setattr(Counter, "accept", fail)
        monkeypatch.setitem(Counter.handlers, "query.count", fail)
    app = Counter.app(fail if where == "factory" else lambda _: Counter())
    message = Message(protocol.request({"run": "r"}), 2, kind)
    with pytest.raises(RuntimeError) as raised:
        app(message, Context(1, 2, {}, RecordDict(), {"vault": str(tmp_path)}))
    assert str(raised.value) == UNUSABLE_DATA
    assert logged[0][-1] is error
    # On one's own machine it is said at once.
    simulated = InProcessGrid(app, 1, {"vault": str(tmp_path)})
    assert str(error) in ask(simulated, kind).error.reason


def test_refused_terms_are_not_in_force() -> None:
    grid = InProcessGrid(counting_app(), 1, {})
    assert not ask(grid, protocol.JOIN, terms=3).has_error()
    assert ask(grid, protocol.JOIN, terms=0).has_error()
    assert protocol.numbers_of(ask(grid).content)["terms"] == 3
