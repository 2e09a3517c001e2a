"""Names where participants, nodes and runs get theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hostile_names import EMPTY, FORMULAS, HIDDEN, MARKUP, NFC, NFD, QUOTED, SPACED
from node_files import node_file
from pydantic import TypeAdapter, ValidationError

from pudica.clients.assignments import Assignment, ParticipantConfig
from pudica.clients.data import DataConfig
from pudica.clients.runtime.node import NodeConfig
from pudica.models.compute import ComputeConfig
from pudica.models.errors import RequestError
from pudica.models.naming import CaseName

WRONG = [*HIDDEN.values(), *FORMULAS.values(), *QUOTED.values(), *SPACED.values(), "x" * 81]
IDS = [*HIDDEN, *FORMULAS, *QUOTED, *SPACED, "long"]


@pytest.mark.parametrize("name", [*WRONG, EMPTY["spaces"]], ids=[*IDS, "spaces"])
def test_a_participant_is_not_called_so(name: str) -> None:
    # pydantic, and the rule for names of files, know some of them too.
    known = "/" in name or "\udc80" in name
    with pytest.raises(ValidationError, match=None if known else "; allowed: 1 to 80 printable"):
        ParticipantConfig(model="mlp", name=name)


@pytest.mark.parametrize("name", WRONG, ids=IDS)
def test_nor_after_a_model(name: str) -> None:
    if "/" not in name:
        with pytest.raises(ValidationError):
            ParticipantConfig(model=f"models/{name}.pt2")
    with pytest.raises(ValidationError):
        ParticipantConfig(model=f"custom:{name}")


@pytest.mark.parametrize("name", [*MARKUP, "a;b", "O'Brien", "S_G = 8"])
def test_a_participant_may_be_called_otherwise(name: str) -> None:
    if "/" in name:
        with pytest.raises(ValidationError):
            ParticipantConfig(model="mlp", name=name)
    else:
        assert ParticipantConfig(model="mlp", name=name).name == name


def test_a_participant_is_called_the_same_in_either_spelling() -> None:
    assert ParticipantConfig(model="mlp", name=NFD).name == NFC
    assert ParticipantConfig(model=f"{NFD}.pt2").name == NFC
    assert ParticipantConfig(model="resnet-20").name == "ResNet-20"


@pytest.mark.parametrize("name", [*WRONG, *EMPTY.values(), *MARKUP, "../x", "a/b", "a;b"])
def test_a_node_is_not_called_so(tmp_path: Path, name: str) -> None:
    settings = node_file(tmp_path / "node.yaml", name=name.replace("\udc80", "\u202e"))
    with pytest.raises(RequestError, match=r"node\.yaml: name: the name '") as caught:
        NodeConfig.read(settings)
    assert str(caught.value).isprintable()


def test_a_node_is_called_the_same_in_either_spelling(tmp_path: Path) -> None:
    assert NodeConfig.read(node_file(tmp_path / "node.yaml", name=NFD)).name == NFC


@pytest.mark.parametrize("name", [*WRONG, *EMPTY.values(), *MARKUP, "../x"])
def test_nothing_is_sent_for_a_case_that_is_called_so(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(CaseName).validate_python(f"{name}{'x' * 20 if len(name) > 80 else ''}")
    assert TypeAdapter(CaseName).validate_python(NFD) == NFC


def assignment(run: str) -> Assignment:
    common: dict[str, Any] = {"data_seed": 0, "partition": 0, "partitions": 1}
    return Assignment(run=run, data=DataConfig(), compute=ComputeConfig(), **common)


@pytest.mark.parametrize("name", [*HIDDEN.values(), *EMPTY.values()])
def test_a_node_takes_no_run_that_is_called_so(name: str) -> None:
    with pytest.raises(ValidationError):
        assignment(name)
    assert assignment(NFD).run == NFD, "a folder, which is found by this name alone"
