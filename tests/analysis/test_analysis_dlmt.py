"""The tables of DLMT: what a run measured, beside what paper 001 has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from pudica import analysis
from pudica.models.errors import RequestError

CASES: dict[str, dict[str, Any]] = {
    "original": {},
    "MAT(256)": {"shield": "MAT(256)"},
    "both": {"shield": "MAT(256)+MMT(10)"},
    "rival": {"shield": "Sharma(28, permute=4)"},
    "own": {"shield": "MAT(7)"},
    "federated": {"shield": "MAT(256)", "train": "federated"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Write a run whose numbers are known."""
    folder = tmp_path / "run"
    folder.mkdir()
    rows = []
    for place, case in enumerate(CASES):
        for epoch, value in enumerate((0.90, 0.99, 0.95), 1):
            test = {"stage": "test", "metric": "accuracy", "round": epoch}
            rows.append({**test, "value": value - place / 100, "case": case})
    measures = {
        ("visual_privacy", "disguised", "by-model"): 0.8,
        ("visual_privacy", "disguised", "by-images"): 0.3,
        ("visual_privacy", "standardised", "by-model"): 0.05,
        ("misusability", None, "by-model"): 0.2,
        ("misusability", None, "by-images"): 0.9,
        ("psnr", None, None): 11.0,
        ("search_space", None, None): 138.0,
    }
    for (metric, view, normalised), value in measures.items():
        tags = {"view": view, "normalised": normalised}
        row = {"stage": "measures", "metric": metric, "round": 0, "value": value}
        row |= {name: tag for name, tag in tags.items() if tag}
        rows += [{**row, "case": "MAT(256)"}, {**row, "case": "rival"}]
    for attack, images, value in (
        ("common divisor", 20, 1.0),
        ("minimum", 400, 0.9),
        ("mid-range", 20, 0.1),
        ("one known pair", 1000, 1.0),
    ):
        found = {"stage": "breaks", "metric": "found", "round": 0, "value": value}
        rows.append({**found, "attack": attack, "images": images, "case": "MAT(256)"})
        # Of a single owner: not the mean over all, and in no table.
        rows.append({**rows[-1], "node": "owner-0", "value": 0.0})
    lines = [json.dumps({"node": "cloud", **row}) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"data": {"name": "mnist"}, "dlmt": {"cases": CASES}}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    info = {"system": "dlmt", "experiment": "x", "nodes": ["owner-0"], "status": "done"}
    (folder / "run.json").write_text(json.dumps(info))
    return folder


def test_accuracy_is_of_the_last_epoch_with_the_best_and_the_published_beside(run: Path) -> None:
    table = analysis.dlmt_accuracy(run).set_index("case")
    assert list(table.index) == list(CASES)
    assert table["accuracy"]["original"] == pytest.approx(95)
    assert table["best"]["original"] == pytest.approx(99)
    assert table["published"]["original"] == 99.440
    assert table["published"]["MAT(256)"] == 99.205  # Table II
    assert table["published"]["both"] == 98.944  # of Table III alone
    assert table["published"]["rival"] == 98.800
    assert table["published"][["own", "federated"]].isna().all()
    assert table["difference"]["MAT(256)"] == pytest.approx(94 - 99.205)


def test_measures_are_those_that_the_paper_means_beside_its_own(run: Path) -> None:
    table = analysis.dlmt_measures(run).set_index("case")
    assert list(table.index) == ["MAT(256)", "rival"]
    own = table.loc["MAT(256)"]
    assert own[["VP", "VP_standardised", "MM", "psnr"]].tolist() == pytest.approx([80, 5, 20, 11])
    others = own[["VP_by_images", "VP_plain", "MM_by_images"]]
    assert others.tolist() == pytest.approx([30, 5, 90])
    assert own[["MA_published", "VP_published", "MM_published"]].tolist() == [
        99.205,
        90.259,
        33.843,
    ]
    assert table["VP_published"]["rival"] == 88.398


def test_breaks_have_a_column_for_each_attack_and_number_of_images(run: Path) -> None:
    table = analysis.dlmt_breaks(run)
    assert table["case"].tolist() == ["MAT(256)"]
    row = table.iloc[0]
    wanted = {"m_20": 100, "b_minimum_400": 90, "b_mid_range_20": 10, "known_pair": 100}
    assert row[[*wanted]].tolist() == pytest.approx([*wanted.values()])
    assert row["search_space"] == 138
    assert pd.isna(row["m_5"])


def test_a_person_sees_all_three_tables_and_the_figures(run: Path) -> None:
    titles = list(analysis.tables(run))
    assert titles[:3] == [
        "Accuracy on disguised test images",
        "What disguises cost and hide",
        "How much of the key attacks find (%), by how many images they see",
    ]
    drawn = [path.name for path in analysis.plot(run)]
    assert drawn == ["training.png", "measures.png"]  # nothing was seen: there are no images


def test_a_run_without_a_plain_case_has_no_examiner_and_is_shown_all_the_same(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if "view" not in row and row["metric"] != "misusability"]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, kept)) + "\n")
    table = analysis.dlmt_measures(run)
    assert table[["VP", "VP_standardised", "MM"]].isna().all(axis=None)
    assert "What disguises cost and hide" in analysis.tables(run)
    assert len(analysis.plot(run)) == 2


def test_settings_of_another_version_are_explained(run: Path) -> None:
    (run / "experiment.yaml").write_text("data: {name: mnist}\ndlmt: {shields: 3}\n")
    with pytest.raises(RequestError, match=r"dlmt\.shields"):
        analysis.dlmt_accuracy(run)
