"""Tables and figures of split learning, from a real run and from written ones."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from matplotlib.image import imread
from written_ledgers import NORMALISED, entry
from written_runs import competition_rows, row, write_run

from pudica import analysis
from pudica.analysis.split import split_accuracy, split_costs
from pudica.models.errors import RequestError
from pudica.simulations.engines import inprocess
from pudica.strategies.loading import load_experiment

RUN = [
    "data.limit=100",
    "split.devices=3",
    "split.model=cnn-tiny",
    "split.batch_size=16",
    "split.epochs=2",
    "split.plain_to_cloud=true",
    "split.shield={name: clip-gaussian, epsilon: 4}",
    "split.cases={strong: {shield.epsilon: 2}, weak: {shield.epsilon: 50}, "
    "none: {shield: {name: none}, classify: [edge]}}",
]
DEVICES = ["device-0", "device-1", "device-2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three devices and three cases."""
    directory = tmp_path_factory.mktemp("split") / "real"
    inprocess.run(load_experiment("split-digits", RUN), directory)
    return directory


def measured(directory: Path, **wanted: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if all(r.get(key) == value for key, value in wanted.items())]


# ----------------------------------------------------------------------------- a real run


def test_accuracies_are_those_over_all_test_images_in_per_cent(run: Path) -> None:
    table = split_accuracy(run)
    assert table["case"].tolist() == ["strong", "weak", "none"]
    assert table["epsilon"].tolist()[:2] == [2, 50]
    assert math.isnan(table["epsilon"][2])
    assert table["shield"].tolist() == ["clip-gaussian", "clip-gaussian", "none"]
    for case, values in table.set_index("case").iterrows():
        for column in ("plain_edge", "noisy_edge", "plain_cloud", "noisy_cloud"):
            release, classified = column.split("_")
            found = measured(
                run, stage="test", node="cloud", case=case, release=release, classified=classified
            )
            if found:
                assert values[column] == pytest.approx(100 * found[0]["value"])
            else:
                assert math.isnan(values[column])
    none = table.set_index("case").loc["none"]
    assert none[["plain_cloud", "noisy_cloud"]].isna().all()
    assert none["plain_edge"] == none["noisy_edge"]


def test_a_tables_row_says_what_was_claimed_and_what_holds(run: Path) -> None:
    table = split_accuracy(run).set_index("case")
    assert table["claimed"].tolist()[2] == "nothing"
    assert table.loc["strong", "claimed"].startswith("ε = 2 (δ = 1e-05)")
    # Fronts that are trained together have no guarantee, whatever the shield.
    assert table["holds"].str.startswith("no finite ε").all()


def test_the_devices_weigh_as_much_as_their_images(run: Path) -> None:
    for case in ("strong", "weak"):
        tags = {"stage": "test", "case": case, "release": "plain", "classified": "edge"}
        rows = {r["node"]: r["value"] for r in measured(run, **tags)}
        sizes = dict(zip(DEVICES, [9, 8, 8], strict=True))
        right = sum(rows[name] * size for name, size in sizes.items())
        assert rows["cloud"] == pytest.approx(right / 25)


def test_costs_are_of_each_device_beside_the_papers_formula(run: Path) -> None:
    table = split_costs(run)
    assert list(zip(table["case"], table["node"], strict=True)) == [
        (case, node) for case in ("strong", "weak", "none") for node in DEVICES
    ]
    for values in table.to_dict("records"):
        images = {"device-0": 34, "device-1": 33, "device-2": 33}[values["node"]]
        assert values["formula_up"] == 4 * images * (8 * 4 * 4 + 1)
        assert values["formula_down"] == 4 * 3
        # Whole numbers of steps travel in two bytes, where a shield has a grid.
        each = 4 if values["case"] == "none" else 2
        content = images * (each * 8 * 4 * 4 + 4)
        # The front's gradients, which are averaged, come up as well.
        assert content < values["bytes_up"] < 1.2 * values["formula_up"]
        # What really comes down is a gradient, as large as what went up.
        assert values["bytes_down"] > 0.9 * values["formula_up"]
        assert 0 < values["forward_ms"] < 10_000
        assert 0 < values["backward_ms"] < 10_000


def test_costs_are_the_means_over_epochs(run: Path) -> None:
    up = [r["value"] for r in measured(run, case="weak", node="device-1", metric="bytes_up")]
    assert len(up) == 2
    table = split_costs(run).set_index(["case", "node"])
    assert table.loc[("weak", "device-1"), "bytes_up"] == pytest.approx(sum(up) / 2)


def test_the_tables_of_a_run_and_their_titles(run: Path) -> None:
    found = analysis.tables(run)
    costs = "What a device pays, per epoch and per batch"
    assert list(found) == ["Test accuracy", costs, "Runs", "Exchanges", "Durations"]
    assert not {"run", "experiment", "published"} & set(found["Test accuracy"])
    # Nine rows are too many to look at: a mean device for each case.
    assert found[costs]["devices"].tolist() == [3, 3, 3]
    assert found["Runs"]["system"].tolist() == ["split"]
    assert not any(frame.isna().all().any() for frame in found.values())


def test_few_devices_are_shown_one_by_one(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "fewer")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"case": "weak"' not in line]
    (tmp_path / "fewer" / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    costs = analysis.tables(tmp_path / "fewer")["What a device pays, per epoch and per batch"]
    assert costs["node"].tolist() == DEVICES * 2


def test_the_figures_of_a_run(run: Path) -> None:
    drawn = analysis.plot(run)
    assert [path.name for path in drawn] == ["training.png", "trade-off.png"]
    for path in drawn:
        assert path.parent == run / "plots"
        image = imread(path)
        assert min(image.shape[:2]) > 300
        assert image.std() > 0.01


def test_one_epsilon_is_no_trade_off(tmp_path: Path) -> None:
    path = written(tmp_path / "run", {"only": {}})
    assert [file.name for file in analysis.plot(path)] == ["training.png"]


def test_the_measurements_are_in_one_frame(run: Path) -> None:
    frame = analysis.load(run)
    assert set(frame["system"]) == {"split"}
    stages = ["training", "validation", "test", "costs"]
    assert list(dict.fromkeys(frame["stage"])) == stages


def test_both_systems_side_by_side(run: Path, tmp_path: Path) -> None:
    plain = {"LeNet": 0.7, "ResNet-56": 0.8}
    rows = competition_rows(plain, plain, {"main": plain})
    themis = write_run(tmp_path / "contest", rows, list(plain))
    found = analysis.tables([run, themis])
    assert {"Leaderboard", "Protection", "Test accuracy", "Runs"} <= set(found)
    assert found["Runs"]["system"].tolist() == ["split", "themis"]
    assert found["Test accuracy"]["case"].tolist() == ["strong", "weak", "none"]
    assert found["Leaderboard"]["model"].tolist() == ["ResNet-56", "LeNet"]
    compared = analysis.compare([run, themis])
    assert compared["system"].tolist() == ["split", "split", "split", "themis"]
    assert compared["accuracy"].notna().all()
    assert set(analysis.load([run, themis])["system"]) == {"split", "themis"}
    assert split_accuracy([run, themis])["run"].unique().tolist() == ["real"]
    assert split_accuracy(themis).empty
    assert split_costs(themis).empty


# ------------------------------------------------------------------- beside the paper


def written(
    directory: Path,
    cases: Mapping[str, Mapping[str, Any]],
    accuracy: float = 0.99,
    data: str = "mnist",
    **split: Any,
) -> Path:
    """Write a run of one device, whose cases change a shield as paper 002 has it."""
    directory.mkdir(parents=True)
    info = {"run": directory.name, "system": "split", "experiment": "written", "status": "done"}
    shared = {"shield": NORMALISED, "batch_size": 64, "devices": 1, "front": "handoff", **split}
    settings = {"data": {"name": data}, "split": {**shared, "cases": dict(cases)}}
    rows = []
    for case in cases:
        tags = {"case": case, "node": "cloud"}
        rows += [row("training", "loss", 2.0 / e, round=e, **tags) for e in (1, 2)]
        for release, value in (("plain", accuracy), ("noisy", accuracy / 2)):
            tags |= {"release": release, "classified": "edge"}
            rows.append(row("validation", "accuracy", value, round=2, **tags))
            rows.append(row("test", "accuracy", value, round=2, **tags))
    (directory / "run.json").write_text(json.dumps({**info, "nodes": ["device-0"]}))
    (directory / "experiment.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    ledger = [entry(case=case, shield=NORMALISED, shape=[1280]) for case in cases]
    (directory / "releases.json").write_text(json.dumps(ledger))
    return directory


def published(table: pd.DataFrame) -> dict[str, float | None]:
    columns = zip(table["case"], table["published"], strict=True)
    return {case: None if math.isnan(value) else value for case, value in columns}


def test_figures_stand_beside_those_of_paper_002(tmp_path: Path) -> None:
    """It measured with S = √(N−1), which is what its experiments use and not its analysis."""
    cases = {
        "as published": {},
        "analysis": {"shield.sensitivity": "analysis"},
        "no noise": {"shield.epsilon": None},
        "no noise analysis": {"shield.epsilon": None, "shield.sensitivity": "analysis"},
        "another epsilon": {"shield.epsilon": 7},
        "N=32": {"batch_size": 32, "shield.epsilon": 2},
        "N=16": {"batch_size": 16, "shield.epsilon": 2},
        "pixels": {"cut": "input", "shield": {"name": "pixel-laplace", "epsilon": 10}},
        "another shield": {"shield": {"name": "clip-laplace", "epsilon": 5}},
    }
    table = split_accuracy(written(tmp_path / "run", cases, model="cnn-iot", cut="4"))
    assert published(table) == {
        "as published": 99.18,
        "analysis": None,
        "no noise": 99.58,
        "no noise analysis": 99.58,
        "another epsilon": None,
        "N=32": 98.1,
        "N=16": None,
        "pixels": 11.35,
        "another shield": None,
    }
    first = table.iloc[0]
    assert first["difference"] == pytest.approx(99.0 - 99.18)
    assert table["difference"].isna().tolist() == table["published"].isna().tolist()


def test_other_data_have_nothing_published(tmp_path: Path) -> None:
    table = split_accuracy(written(tmp_path / "run", {"a": {}}, data="digits"))
    assert published(table) == {"a": None}
    shown = analysis.tables(tmp_path / "run")["Test accuracy"]
    assert not {"published", "difference"} & set(shown)


def test_the_published_column_is_shown_where_there_is_one(tmp_path: Path) -> None:
    path = written(tmp_path / "run", {"a": {}, "b": {"shield.sensitivity": "analysis"}})
    shown = analysis.tables(path)["Test accuracy"]
    assert shown["published"].tolist()[0] == 99.18
    assert math.isnan(shown["published"].tolist()[1])


def test_several_runs_are_told_apart(tmp_path: Path) -> None:
    runs = [written(tmp_path / name, {"a": {}}, value) for name, value in (("x", 0.9), ("y", 0.8))]
    shown = analysis.tables(runs)["Test accuracy"]
    assert shown[["run", "plain_edge"]].to_numpy().tolist() == [["x", 90.0], ["y", 80.0]]


def test_a_case_that_was_not_measured_yet_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "run", {"a": {}, "b": {"shield.epsilon": 2}})
    lines = (path / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"b"' not in line or '"test"' not in line]
    (path / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    assert split_accuracy(path)["case"].tolist() == ["a"]
    assert [file.name for file in analysis.plot(path)] == ["training.png"]


def test_settings_of_another_version_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "run", {"a": {}}, sheild={})
    with pytest.raises(RequestError, match=r"experiment\.yaml: split\.sheild: "):
        split_accuracy(path)
