"""CSV: whatever stands in a cell, a spreadsheet takes it for data, and we read it as it was."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hostile_names import FORMULAS, NFC, QUOTED
from hypothesis import given, settings
from hypothesis import strategies as st

from pudica.simulations.engines import inprocess
from pudica.strategies.core.spreadsheets import (
    escape_cell,
    read_csv,
    to_csv,
    unescape_cell,
    write_csv,
)
from pudica.strategies.loading import load_experiment

SIGNS = "=+-@"
HIDDEN_SIGNS = {
    "behind a space": " =1+1",
    "behind spaces of other kinds": "\u00a0\u3000=1",
    "behind a tab": "\t=1+1",
    "behind a line break": "\r\n=1+1",
    "behind a byte order mark": "\ufeff=1",
    "behind what is not seen": "\u200b\u200e=1",
    "behind a null": "\0=1",
    "in the next cell, by semicolons": "x;=1+1",
    "in the next cell, by tabs": "x\t@SUM(1)",
    "in the next row": "x\n-1+cmd",
    "in the next row, behind a quotation mark": 'x\r"=1',
    "far away": "x; '\u200b＝1",
}
RUN = [*FORMULAS.values(), *QUOTED.values(), *HIDDEN_SIGNS.values(), "\tx", "\rx", "\nx", "-", "="]
DATA = ["", "x", "a=b", "N(0,4)", "S_G = 8", "1-2", "O'Brien", "a, -b", "'x'", NFC, "a;b", "[red]"]
texts = st.text(
    st.sampled_from([*"=+-@'\" ;,\t\r\nax1＝−\u200b\ufeff"]) | st.characters(codec="utf-8")
)


def cells(text: str, separator: str) -> list[str]:
    """Return the cells that a spreadsheet makes of lines; quotes hold only where a cell begins."""
    return [cell for row in csv.reader(text.splitlines(), delimiter=separator) for cell in row]


def is_run(cell: str) -> bool:
    """Tell whether a spreadsheet that passes over much would run a cell."""
    seen = next((c for c in cell if c.isprintable() and c not in ' "'), " ")
    return unicodedata.normalize("NFKC", seen)[0] in f"{SIGNS}−"


@pytest.mark.parametrize("text", RUN)
def test_what_would_be_run_begins_with_an_apostrophe(text: str) -> None:
    escaped = escape_cell(text)
    assert escaped != text
    assert not is_run(escaped)
    assert not is_run(escaped.replace("\t", ""))
    assert unescape_cell(escaped) == text
    if text[0] != "x":
        assert escaped[0] == "'"


@pytest.mark.parametrize("text", DATA)
def test_what_is_data_stays(text: str) -> None:
    assert escape_cell(text) == unescape_cell(text) == text


@settings(derandomize=True)
@given(texts)
def test_every_text_comes_back(text: str) -> None:
    assert unescape_cell(escape_cell(text)) == text


@settings(derandomize=True)
@given(texts.filter(lambda text: "\0" not in text))
def test_no_cell_is_run_whatever_separates_cells(text: str) -> None:
    frame = pd.DataFrame({"rank": [1, 2], "model": [text, "x"], text: ["y", text]})
    for separator in ",;\t":
        assert not any(map(is_run, cells(to_csv(frame), separator)))


@pytest.mark.parametrize("text", [*RUN, *DATA])
def test_headings_are_cells_too(text: str) -> None:
    frame = pd.DataFrame({text: [text], "other": [text]})
    assert cells(to_csv(frame), ",")[0] == cells(escape_cell(text) + ",", ",")[0] or any(
        letter in text for letter in '\r\n",\u2028\x85'
    )
    assert not any(map(is_run, cells(to_csv(frame), ",")))


def test_numbers_stay_numbers() -> None:
    frame = pd.DataFrame(
        {
            "whole": [-1, 2],
            "number": [-1.5, np.nan],
            "missing": pd.array([-3, None], "Int64"),
            "mixed": [-4, "=1"],
            "truth": [True, False],
            "text": ["-5", None],
        }
    )
    before = frame.copy()
    lines = to_csv(frame).splitlines()
    assert lines[1:] == ['-1,-1.5,-3,-4,True,"\'-5"', '2,"","","\'=1",False,""']
    pd.testing.assert_frame_equal(frame, before)
    assert to_csv(pd.DataFrame({"a": [1], "b": [0.1]})) == '"a","b"\n1,0.1\n'
    assert to_csv(pd.DataFrame(columns=["-a"])) == '"\'-a"\n'


def test_what_is_written_is_read(tmp_path: Path) -> None:
    names = ["NA", "007", "null", "true", "1e5", "", "a;=1", "O'Brien", "-1", "'=1", NFC, "a, b"]
    frame = pd.DataFrame({"model": names, "@accuracy": np.linspace(-1, 1, len(names))})
    write_csv(frame, tmp_path / "board.csv")
    found = read_csv(tmp_path / "board.csv", "model")
    assert found["model"].tolist() == names
    np.testing.assert_array_equal(found["@accuracy"], frame["@accuracy"])


def test_a_leaderboard_of_a_run_is_data_in_any_spreadsheet(tmp_path: Path) -> None:
    names = ["NA", "a;=cmd|' c'!A0"]
    playing = "participants=" + json.dumps([{"model": "softmax", "name": n} for n in names])
    settings = ["data.limit=120", "training.epochs=1", "themis.epochs=1", "themis.examiner=null"]
    experiment = load_experiment("themis-digits", [*settings, "themis.release.draws=1", playing])
    inprocess.run(experiment, tmp_path / "run")
    for table in ("leaderboard", "rank_condition"):
        text = (tmp_path / "run" / "main" / f"{table}.csv").read_text()
        assert "cmd" in text
        assert not any(
            is_run(cell)
            for separator in ",;\t"
            for cell in cells(text, separator)
            if not _is_number(cell)
        )
    board = read_csv(tmp_path / "run" / "main" / "leaderboard.csv", "model")
    assert sorted(board["model"]) == sorted(names)


def _is_number(cell: str) -> bool:
    try:
        return bool(float(cell) or True)
    except ValueError:
        # Cut by other separators than commas, a line of numbers is text.
        return all(map(_is_number, cell.split(","))) if "," in cell else False
