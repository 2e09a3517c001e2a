"""Names of nodes: from the command line and files into the roster, and back onto a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from hostile_names import EMPTY, FORMULAS, HIDDEN, MARKUP, NFC, NFD, QUOTED, SPACED

from pudica.clients.runtime.node import NodeConfig
from pudica.models.errors import RequestError
from pudica.models.printable import escape_hidden
from pudica.simulations.console import exit_on_request_error, print_check_results, print_message
from pudica.simulations.deployment.auditing import verify_leaderboard
from pudica.simulations.deployment.checking import CheckResult
from pudica.simulations.deployment.invitation import Invitation
from pudica.simulations.deployment.kit import SETTINGS, Kit
from pudica.simulations.deployment.organiser import OrganiserServer
from pudica.simulations.programs.calling import LOOPBACK, find_free_port
from pudica.strategies.core.spreadsheets import write_csv

WRONG = [
    *(*HIDDEN.values(), *EMPTY.values(), *FORMULAS.values(), *QUOTED.values(), *SPACED.values()),
    *(*MARKUP, "../x", "a/b", ".x", "-rf", "a;b", "a: b", "x" * 81),
]


@pytest.fixture
def organiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OrganiserServer:
    monkeypatch.setattr(OrganiserServer, "is_up", lambda self: True)
    monkeypatch.setattr(
        OrganiserServer, "_query_flower", lambda self, *_: {"success": True, "node-id": "7"}
    )
    return OrganiserServer.create(tmp_path / "organiser", LOOPBACK, find_free_port())


@pytest.fixture
def invitation(organiser: OrganiserServer) -> Invitation:
    return Invitation.read(organiser.folder / "invitation.yaml")


def test_no_kit_is_made_under_a_wrong_name(tmp_path: Path, invitation: Invitation) -> None:
    for name in WRONG:
        with pytest.raises(RequestError, match="the name '") as caught:
            Kit.create(tmp_path / "kit", name, invitation)
        assert str(caught.value).isprintable()
        assert not (tmp_path / "kit").exists()


def test_no_node_is_registered_under_a_wrong_name(
    organiser: OrganiserServer, invitation: Invitation, tmp_path: Path
) -> None:
    public = Kit.create(tmp_path / "kit", "ann", invitation).public_key
    for name in WRONG:
        with pytest.raises(RequestError, match="the name '") as caught:
            organiser.register(public, name)
        assert str(caught.value).isprintable()
    assert not organiser.nodes


@pytest.mark.parametrize("name", ["007", "true", "null", "1e5", "2026-01-01", "Zoé (2)", "a - b"])
def test_a_node_has_the_name_it_was_given(
    tmp_path: Path, organiser: OrganiserServer, invitation: Invitation, name: str
) -> None:
    kit = Kit.create(tmp_path / "kit", name, invitation)
    assert NodeConfig.read(kit.folder / SETTINGS).name == name
    assert organiser.register(kit.public_key, kit.public_key.stem).name == name


def test_a_node_is_the_same_in_either_spelling(
    tmp_path: Path, organiser: OrganiserServer, invitation: Invitation
) -> None:
    kit = Kit.create(tmp_path / "kit", NFD, invitation)
    assert kit.config.name == kit.public_key.stem == NFC
    assert kit.public_key.read_text().split(" ", 2)[2].strip() == NFC
    organiser.register(kit.public_key, NFD)
    assert json.loads((organiser.folder / "nodes.json").read_text())[0]["name"] == NFC
    with pytest.raises(RequestError, match="is registered already"):
        organiser.register(kit.public_key, NFC)
    assert organiser.remove(NFD).name == NFC


@pytest.mark.parametrize("name", HIDDEN.values(), ids=HIDDEN)
def test_a_terminal_acts_on_nothing_that_comes_from_elsewhere(
    capsys: pytest.CaptureFixture, name: str
) -> None:
    print_message(f"one {name}\ntwo")
    with pytest.raises(typer.Exit):
        print_check_results(
            [CheckResult("server", True, "fine"), CheckResult("data", False, f"no {name}")]
        )
    with pytest.raises(typer.Exit), exit_on_request_error():
        raise RequestError(f"there is no {name}")
    written = capsys.readouterr()
    assert "\nfine" not in written.out
    assert (written.out + written.err).replace("\n", "").isprintable()
    assert escape_hidden(name, keep="\n") in written.out


@pytest.mark.parametrize("name", ["NA", "007", "a;=1+1", "O'Brien"])
def test_an_audit_finds_every_name_on_the_leaderboard(tmp_path: Path, name: str) -> None:
    import pandas as pd

    texts = ("variant", "images", "predictions", "signature", "public_key")
    numbers = {"M": 1.0, "draw": 0, "first": 0, "count": 4, "right": 3}
    what = {"participant": name, "case": "main", "release": "trained"}
    manifest = {
        "format": "pudica-manifest-1",
        "run": "run",
        "published": {},
        "submissions": [dict.fromkeys(texts, "") | numbers | what],
        "test": {"images": 4, "draws": 1},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    board = pd.DataFrame({"rank": [1], "model": [name], "trained_accuracy": [75.0]})
    write_csv(board, tmp_path / "leaderboard.csv")
    found = {finding.name: finding for finding in verify_leaderboard(tmp_path, tmp_path / "ca.crt")}
    assert found["leaderboard"].passed, found["leaderboard"].message
