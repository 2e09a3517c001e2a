"""Tables for papers and spreadsheets: what stands in them, and that nothing breaks their format."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from hostile_names import HIDDEN
from written_runs import competition_rows, write_run

from pudica import analysis
from pudica.models.errors import RequestError

FRAME = pd.DataFrame(
    {
        "run": ["a_b & 50 %", "c|d"],
        "holds": ["ε = 3 (δ = 1e-05)", None],
        "accuracy": [1.23456, 2.0],
        "accuracy_ci": [0.25, float("nan")],
        "rank": [1, 2],
        "n": [3, 3],
    }
)


def test_latex_is_escaped_and_has_figures_with_intervals() -> None:
    text = analysis.export(FRAME, "latex")
    assert r"a\_b \& 50 \%" in text
    assert r"1.23 \ensuremath{\pm} 0.25" in text
    assert r"\ensuremath{\varepsilon} = 3" in text
    assert r"\begin{tabular}{llrr}" in text
    assert text.count(r"\\") == 3
    assert all(ord(letter) < 128 for letter in text)


def test_markdown_has_a_cell_for_each_value() -> None:
    lines = analysis.export(FRAME, "markdown").splitlines()
    assert len(lines) == 4
    assert all(line.replace(r"\|", "").count("|") == 5 for line in lines)
    assert "1.23 ± 0.25" in lines[2]
    assert lines[1].split("|")[3].endswith(":")


def test_csv_holds_every_column_in_full() -> None:
    read = pd.read_csv(io.StringIO(analysis.export(FRAME, "csv")))
    pd.testing.assert_frame_equal(read, FRAME, check_dtype=False)


@pytest.mark.parametrize("format_", ["latex", "markdown"])
@pytest.mark.parametrize("kind", sorted(HIDDEN.keys() - {"surrogate"}))  # a frame holds none
def test_control_characters_are_escaped(kind: str, format_: str) -> None:
    text = analysis.export(pd.DataFrame({"run": [HIDDEN[kind]]}), format_)
    assert all(letter.isprintable() for letter in text.replace("\n", ""))


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    values = {"A": 0.5, "B": 0.6}
    path = write_run(
        tmp_path / "run", competition_rows(values, values, {"main": values}), ["A", "B"]
    )
    with pytest.raises(RequestError, match=r"unknown format 'html'.*csv, latex, markdown"):
        analysis.export(FRAME, "html")
    with pytest.raises(RequestError, match=r"unknown table 'themis-tabel1'.*'themis-table1'"):
        analysis.build_named_table("themis-tabel1", path)
    with pytest.raises(RequestError, match="no table 'split-accuracy'"):
        analysis.build_named_table("split-accuracy", path)
    with pytest.raises(RequestError, match="--rows"):
        analysis.build_named_table("Leaderboard", path, spread=False)


def test_tables_have_names_and_titles(tmp_path: Path) -> None:
    values = {"A": 0.5, "B": 0.6}
    path = write_run(
        tmp_path / "run", competition_rows(values, values, {"main": values}), ["A", "B"]
    )
    by_name = analysis.build_named_table("themis_leaderboard", path)
    pd.testing.assert_frame_equal(by_name, analysis.themis_leaderboard(path))
    assert analysis.build_named_table("Leaderboard", path)["model"].tolist() == ["B", "A"]
    assert {"compare", "split-accuracy", "themis-table2"} <= set(analysis.list_tables())


def test_the_listed_tables_of_runs_can_all_be_had(tmp_path: Path) -> None:
    values = {"A": 0.5, "B": 0.6}
    path = write_run(
        tmp_path / "run", competition_rows(values, values, {"main": values}), ["A", "B"]
    )
    listed = analysis.list_tables(path)
    assert {"themis-table1", "Leaderboard"} <= set(listed)
    assert not any(name.startswith(("split", "dlmt", "facemix")) for name in listed)
    assert not any(analysis.build_named_table(name, path).empty for name in listed)
