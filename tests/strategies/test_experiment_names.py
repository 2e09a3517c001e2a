"""Names in experiments, and in what nodes say: one spelling, all of it to be seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from competition_helpers import tiny
from hostile_names import EMPTY, FORMULAS, HIDDEN, NFC, NFD, QUOTED, SPACED

from pudica.models.errors import RequestError
from pudica.strategies.core.members import Member
from pudica.strategies.core.recorder import Recorder
from pudica.strategies.loading import load_experiment

SAID = {"shape": "1x8x8", "classes": 2, "train": 1, "validation": 1, "test": 1, "key": ""}
SYSTEMS = {"themis": "epochs", "split": "epochs", "dlmt": "local_epochs", "facemix": "request"}


def refused(text: str, *overrides: str) -> str:
    """Return why an experiment is refused, in a message that can be printed."""
    with pytest.raises(RequestError) as caught:
        load_experiment(text, list(overrides))
    assert str(caught.value).replace("\n", "").isprintable()
    return str(caught.value)


def experiment(**settings: Any) -> str:
    return json.dumps({"participants": [{"model": "mlp"}], **settings})


@pytest.mark.parametrize(
    "name",
    [*HIDDEN.values(), *EMPTY.values(), *FORMULAS.values(), *QUOTED.values(), *SPACED.values()],
)
def test_an_experiment_is_not_called_so(name: str) -> None:
    assert "name" in refused(experiment(name=name))


@pytest.mark.parametrize("name", HIDDEN.values(), ids=HIDDEN)
def test_an_experiment_is_not_described_so(name: str) -> None:
    text = f"two\nlines of {NFD}"
    assert load_experiment(experiment(description=text), []).description.endswith(NFC)
    if name.strip("\n") == name and name not in ("ann\nbob", "a\tb"):
        assert "description" in refused(experiment(description=name))


def test_an_experiment_has_one_name_in_either_spelling(tmp_path: Path) -> None:
    (tmp_path / f"{NFD}.yaml").write_text("participants: [{model: mlp}]")
    assert load_experiment(str(tmp_path / f"{NFD}.yaml"), []).name == NFC
    (tmp_path / "=1+1.yaml").write_text("participants: [{model: mlp}]")
    assert "spreadsheets take for a formula" in refused(str(tmp_path / "=1+1.yaml"))


@pytest.mark.parametrize("name", [*HIDDEN.values(), *FORMULAS.values(), *QUOTED.values()])
def test_a_participant_is_not_called_so(name: str) -> None:
    playing = [{"model": "mlp", "name": name}, {"model": "softmax"}]
    assert "participants.0.name" in refused(experiment(participants=playing))


def test_two_spellings_are_one_participant() -> None:
    playing = [{"model": "mlp", "name": NFC}, {"model": "softmax", "name": NFD}]
    assert f"the name '{NFC}' is there twice" in refused(experiment(participants=playing))


def test_a_participant_is_meant_in_either_spelling() -> None:
    playing = [{"model": "mlp", "name": NFC}, {"model": "softmax"}]
    named = {
        "bystanders": [NFD],
        "late": {NFD: 1},
        "cheaters": [NFD],
        "hostile": {NFD: "nan"},
        "order": [NFD, "Softmax"],
    }
    themis = load_experiment(experiment(participants=playing, themis=named), []).themis  # type: ignore[attr-defined]
    assert themis.bystanders == themis.cheaters == list(themis.late) == list(themis.hostile)
    assert themis.order == [NFC, "Softmax"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_case_is_one_folder_in_either_spelling(system: str) -> None:
    source = f"{system}-digits"
    key = SYSTEMS[system]
    found = load_experiment(source, [f"{system}.cases={{{NFD}: {{{key}: 3}}}}"])
    assert list(getattr(found, system).each_case()) == [NFC]
    both = f"{system}.cases={{{NFC}: {{{key}: 3}}, {NFD}: {{{key}: 2}}}}"
    assert "is there twice" in refused(source, both)
    assert "is there twice" in refused(
        experiment(system="themis", themis={"cases": {NFC: {}, NFD: {}}})
    )


@pytest.mark.parametrize("name", [*HIDDEN.values(), *EMPTY.values(), *FORMULAS.values()])
def test_a_case_is_not_called_so(name: str) -> None:
    message = refused(experiment(themis={"cases": {name: {}}}))
    assert "a case's name is that of a folder: at most 100 letters" in message


def test_the_examiner_is_a_case_in_either_spelling() -> None:
    cases = f"dlmt.cases={{{NFC}: {{shield: null}}}}"
    found = load_experiment("dlmt-digits", [cases, f"dlmt.examiner={NFD}"])
    assert found.dlmt.examining() == NFC  # type: ignore[attr-defined]


def test_a_key_of_yaml_is_there_once_in_either_spelling(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(f"participants: [{{model: mlp}}]\nthemis: {{late: {{{NFC}: 1, {NFD}: 2}}}}")
    assert "is there twice" in refused(str(file))


@pytest.mark.parametrize(
    "key", [*HIDDEN.values(), "x", "0" * 15, "0" * 17, "A" * 16, "0" * 16 + "\n"]
)
def test_what_a_node_calls_its_key_is_a_fingerprint(key: str) -> None:
    assert Member.read({**SAID, "key": "0123456789abcdef"}).key
    with pytest.raises(ValueError, match="is no fingerprint of a key"):
        Member.read({**SAID, "key": key})


@pytest.mark.parametrize("name", HIDDEN.values(), ids=HIDDEN)
def test_what_happened_is_one_line_in_the_log(tmp_path: Path, name: str) -> None:
    recorder = Recorder(tmp_path / "run", tiny(), "test")
    recorder.event(f"{name} joins")
    recorder.close("done")
    log = (tmp_path / "run" / "events.log").read_bytes().decode()
    assert log.count("\n") == len(log.splitlines()) == 1
    assert log.removesuffix("\n").isprintable()
