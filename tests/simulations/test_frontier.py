"""The frontier: all methods attacked in every way that fits, killed or not; no cell without why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import Result

from pudica import analysis
from pudica.analysis.attacks import Outcome, attacks
from pudica.analysis.attacks.labels import LabelInference
from pudica.analysis.attacks.matching import CandidateMatching
from pudica.analysis.frontiers import REASONS, read_reasons
from pudica.analysis.views.releases import NothingCrossed
from pudica.models.errors import RequestError
from pudica.models.files import load_tensors
from pudica.simulations.studies import frontier as frontiers
from pudica.simulations.studies.cells import run_cell
from pudica.simulations.studies.frontier import (
    PLAN,
    Frontier,
    build_config,
    is_attacked,
    list_failures,
    prepare_frontier,
    run_and_attack,
    run_frontier,
)
from pudica.simulations.studies.shipping import shipped_frontiers

Command = Callable[..., Result]

SPLIT = {"data.limit": 300, "split.epochs": 1, "split.cases": {"plain": {}}}
FACEMIX = {
    "data.limit": 300,
    "facemix.training.epochs": 1,
    "facemix.cases": {"edge": {"place": "edge"}, "mixed": {}},
}
SMALL = {
    "description": "small",
    "effort": {"epochs": 1, "images": 40, "requests": 1},
    "attacks": ["matching", "labels", "attributes"],
    "experiments": [
        {"experiment": "split-digits", "set": SPLIT},
        {"experiment": "facemix-digits", "set": FACEMIX},
    ],
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def begin(folder: Path, **changes: object) -> list[Path]:
    """Return the cells' directories of a frontier that nothing has been run of."""
    experiments, directory = prepare_frontier(
        build_config(write(folder, **changes), {}, None), folder
    )
    return [directory / name for name in experiments]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Frontier:
    """Run a small frontier, once for all tests."""
    folder = tmp_path_factory.mktemp("frontier")
    return run_frontier(write(folder), out=folder / "results")


def test_every_method_has_a_row_and_its_best_attack(done: Frontier) -> None:
    table = done.frontier().set_index("case")
    assert list(table.index) == ["plain", "edge", "mixed"]
    assert table.loc["plain", "image_by"] == "matching"
    assert table.loc["plain", "image"] > 10 * table.loc["plain", "image_chance"]
    assert table.loc["mixed", "attribute_by"] in ("labels", "attributes")
    assert table["bytes_per_image"].gt(0).all()
    assert pd.isna(table.loc["edge", "image"])


def test_no_cell_is_empty_without_a_reason(done: Frontier) -> None:
    cells = done.attack_cells()
    every = {(case, kind) for case in ("plain", "edge", "mixed") for kind in SMALL["attacks"]}
    assert set(zip(cells["case"], cells["attack"], strict=True)) == every
    assert (cells["success"].notna() | cells["reason"].str.len().gt(0)).all()
    reasons = cells.set_index(["case", "attack"])["reason"]
    assert reasons["edge", "matching"] == "nothing leaves the nodes"
    assert "secret key" in reasons["mixed", "matching"]
    assert "needs a FacemixView" in reasons["plain", "attributes"]


def test_all_of_it_is_written_and_drawn(done: Frontier) -> None:
    plots = done.save()
    assert {plot.stem for plot in plots} == {
        *("frontier-image", "frontier-attribute", "frontier-attacks", "frontier-images"),
    }
    written = pd.read_csv(done.directory / "frontier.csv")
    assert list(written["case"]) == ["plain", "edge", "mixed"]
    page = analysis.report(str(done.directory / "*" / ""), done.directory / "report.html")
    text = page.read_text()
    assert "All methods, and the best attacks on them" in text
    assert "Attacks that did not begin" in text
    assert "Contains images and what attacks rebuilt of them" in text


def test_a_resumed_one_does_nothing_twice(done: Frontier) -> None:
    files = sorted(done.directory.glob("*/*/attack-*.jsonl"))
    assert files
    before = {path: path.stat().st_mtime_ns for path in files}
    assert all(is_attacked(done.directory / cell.name) for cell in done.cells)
    again = run_frontier(resume=done.directory)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    pd.testing.assert_frame_equal(again.frontier(), done.frontier())


def test_what_is_stopped_between_attacks_goes_on_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Frontier
) -> None:
    cell, _ = begin(tmp_path)
    real = frontiers.attack_targets

    def stop_at_labels(*arguments: object) -> None:
        if arguments[2] == "labels":
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(frontiers, "attack_targets", stop_at_labels)
    with pytest.raises(KeyboardInterrupt):
        run_and_attack(str(cell))
    monkeypatch.undo()
    assert not is_attacked(cell)
    kept = (cell / "plain" / "attack-matching.jsonl").stat().st_mtime_ns
    assert run_and_attack(str(cell)) == ""
    assert is_attacked(cell)
    assert (cell / "plain" / "attack-matching.jsonl").stat().st_mtime_ns == kept
    other = done.directory / cell.name
    for kind in ("matching", "labels"):
        rows = [(place / "plain" / f"attack-{kind}.jsonl").read_text() for place in (cell, other)]
        one, same = ([r for r in each.splitlines() if '"seconds"' not in r] for each in rows)
        assert one == same


def test_a_drawing_that_is_its_own_control_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there is no shield to take away."""
    cell, _ = begin(tmp_path, attacks=["matching"])
    images = np.zeros((2, 1, 4, 4), np.float32)
    pictures = {"original": images + 1, "drawn": images, "drawn, in the clear": images}

    def draw(*_: object) -> Outcome:
        return Outcome({"success": 1.0, "chance": 0.5}, pictures)

    monkeypatch.setattr(CandidateMatching, "run", draw)
    run_and_attack(str(cell))
    assert list_failures(cell.parent) == {}
    kept = load_tensors(cell / "plain" / "attack-matching.safetensors")
    assert kept is not None
    assert set(pictures) <= set(kept[0])


def test_an_attack_that_fails_fails_alone_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, _ = begin(tmp_path)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(LabelInference, "run", fail)
    assert run_and_attack(str(cell)) == ""
    assert not is_attacked(cell)
    assert list_failures(cell.parent) == {
        f"{cell.name}/plain/labels": "ZeroDivisionError: nothing to divide by"
    }
    assert (cell / "plain" / "attack-matching.jsonl").is_file()
    monkeypatch.undo()
    run_and_attack(str(cell))
    assert is_attacked(cell)
    assert list_failures(cell.parent) == {}


def test_more_effort_attacks_anew(tmp_path: Path) -> None:
    cell, _ = begin(tmp_path, attacks=["matching"])
    run_and_attack(str(cell))
    plan = cell.parent / PLAN
    plan.write_text(plan.read_text().replace("images: 40", "images: 60"))
    assert not is_attacked(cell)
    run_and_attack(str(cell))
    table = analysis.attack_cells(cell)
    assert table["chance"].iloc[0] == pytest.approx(100 / 60)


def test_a_run_that_fails_is_not_attacked(tmp_path: Path) -> None:
    cell, _ = begin(tmp_path)
    (cell / "experiment.yaml").write_text("system: nowhere\n")
    assert run_and_attack(str(cell)) != ""
    assert not (cell / "plain").exists()


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [(RequestError("its images are not here"), True), (NothingCrossed("nothing crossed"), False)],
)
def test_a_case_that_cannot_be_opened_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, goes_on: bool
) -> None:
    """It is tried again, unless there is nothing that crossed."""
    cell, _ = begin(tmp_path)
    assert run_cell(str(cell)) == ""

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(frontiers, "open_targets", refuse)
    run_and_attack(str(cell))
    failed = "failed: " if goes_on else ""
    reasons = dict.fromkeys(SMALL["attacks"], f"{failed}{error}")
    assert read_reasons(cell / "plain") == reasons
    assert is_attacked(cell) != goes_on


def test_what_ended_a_worker_is_tried_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, _ = begin(tmp_path)
    real = frontiers.attack_targets

    def die(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(frontiers, "attack_targets", die)
    with pytest.raises(SystemExit):
        run_and_attack(str(cell))
    tried = []

    def note(*arguments: object) -> None:
        tried.append(arguments[2])
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(frontiers, "attack_targets", note)
    run_and_attack(str(cell))
    assert tried == ["labels", "matching"]
    assert is_attacked(cell)


def test_a_measurement_that_is_gone_is_made_again(tmp_path: Path) -> None:
    cell, _ = begin(tmp_path, attacks=["matching"])
    run_and_attack(str(cell))
    file = cell / "plain" / "attack-matching.jsonl"
    before = analysis.attack_cells(cell)["success"]
    for damage in (file.unlink, lambda: file.write_text("{")):
        damage()
        assert not is_attacked(cell)
        run_and_attack(str(cell))
        assert analysis.attack_cells(cell)["success"].equals(before)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "name a frontier: "),
        (("nowhere",), "unknown frontier 'nowhere'"),
        (("mnist", "--resume", "elsewhere"), "holds no frontier"),
    ],
)
def test_wrong_requests_are_explained(pudica: Command, words: tuple[str, ...], why: str) -> None:
    result = pudica("frontier", *words)
    assert result.exit_code == 2
    assert why in result.stderr


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attacks": ["magic"]}, "unknown attack 'magic'"),
        ({"effort": {"images": 1}}, "effort.images"),
        ({"efort": {}}, "efort"),
    ],
)
def test_wrong_files_are_explained(
    tmp_path: Path, pudica: Command, changes: dict[str, object], why: str
) -> None:
    result = pudica("frontier", write(tmp_path, **changes), "--out", tmp_path / "results")
    assert result.exit_code == 2
    assert why in result.stderr
    assert not (tmp_path / "results").exists()


def test_damaged_reasons_are_explained(tmp_path: Path) -> None:
    (tmp_path / REASONS).write_text("{")
    with pytest.raises(RequestError, match="is damaged; delete it"):
        read_reasons(tmp_path)


@pytest.mark.parametrize("name", shipped_frontiers())
def test_shipped_ones_name_rows_and_data(name: str) -> None:
    config = build_config(name, {}, None)
    assert config.description
    assert len(config.seeds) >= 3
    assert set(config.attacks) <= set(attacks())


def test_the_plan_says_the_effort(done: Frontier) -> None:
    kept = yaml.safe_load((done.directory / PLAN).read_text())
    assert kept["effort"] == SMALL["effort"]
    for path in done.directory.glob(f"*/*/{REASONS}"):
        effort = json.loads(path.read_text())["effort"]
        assert effort == {**SMALL["effort"], "seed": 0}
