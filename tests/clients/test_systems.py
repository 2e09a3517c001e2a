"""Systems that other packages bring: of what roles, and what becomes of broken ones."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

import pudica.clients.app
from pudica.clients import protocol
from pudica.clients.app import register_roles
from pudica.clients.runtime import systems as module
from pudica.clients.runtime.systems import GROUP, OURS, System
from pudica.clients.themis.assigned import AssignedParticipant
from pudica.models import plugins
from pudica.models.compute import Compute, ComputeConfig
from pudica.simulations.engines.local import build_server_context


class Mine(AssignedParticipant):
    """Answers one kind of message in its own way, the others as its base."""

    def __init__(self) -> None:
        self.compute = Compute(ComputeConfig())


Mine.handlers = {
    **AssignedParticipant.handlers,
    protocol.PREDICT: lambda *_: protocol.reply({"mine": 1}),
}


def system(name: str, roles: Any) -> System:
    return System(name, experiment=None, run=None, assignment=None, role=None, roles=roles)


@pytest.fixture
def clear() -> Iterator[None]:
    module.systems.cache_clear()
    yield
    module.systems.cache_clear()


def test_a_role_derived_from_ours_answers_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    build_server_context({})
    app = ClientApp()
    register_roles(app, [*OURS, system("mine", (Mine,)), system("broken", "no_such_module:ROLES")])
    monkeypatch.setattr(pudica.clients.app, "_node", lambda *_: Mine())
    context = Context(1, 2, {}, RecordDict(), {})
    predict, right = (
        Message(protocol.request({"run": "r"}), 2, kind)
        for kind in (protocol.PREDICT, protocol.RIGHT)
    )
    assert protocol.numbers_of(app(predict, context).content) == {"mine": 1}
    with pytest.raises(RuntimeError, match="this node is no owner in this run"):
        app(right, context)


def test_broken_packages_are_left_out(clear: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "log", lambda _, text, *values: said.append(text % values))
    points = [
        EntryPoint("gone", "no_such_module:SYSTEM", GROUP),
        EntryPoint("none", "pudica.clients.runtime.systems:GROUP", GROUP),
        EntryPoint("taken", "pudica.clients.runtime.systems:OURS", GROUP),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == GROUP else [])
    assert list(module.systems()) == [each.name for each in OURS]
    assert "entry point gone = no_such_module:SYSTEM" in said[0]
    assert "can't be loaded: ModuleNotFoundError" in said[0]
    assert all("is no System; left out" in text for text in said[1:])
