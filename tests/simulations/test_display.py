"""Tables in any width: nothing of a frame is lost on the way to the terminal."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hostile_names import HIDDEN, MARKUP

from pudica.models.printable import escape_hidden
from pudica.simulations.cuts import build_cut_table
from pudica.simulations.display import print_brief, print_frame

WORDS = ("accuracy", "edge", "of", "MiB", "differential-privacy", "ε", "batch", "64", "a")
CELLS = ("Conv2d", "16x28x28", "", "a name of three words", "[red]", "a[b]c", ":heart:", "0.13")


def printed(
    frame: pd.DataFrame, width: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    print_frame(frame, "Title")
    return capsys.readouterr().out


def random_frame(seed: int) -> pd.DataFrame:
    """Return a frame with texts, numbers and headings of one to four words."""
    randomness = np.random.default_rng(seed)
    rows = int(randomness.integers(1, 8))
    columns: dict[str, object] = {"name": [f"row-{number}" for number in range(rows)]}
    for number in range(int(randomness.integers(2, 12))):
        words = randomness.choice(WORDS, randomness.integers(1, 5))
        heading = " ".join([*words, str(number)])
        if randomness.random() < 0.5:
            columns[heading] = randomness.normal(0, 10.0 ** randomness.integers(0, 7), rows)
        else:
            columns[heading] = randomness.choice(CELLS, rows)
    return pd.DataFrame(columns)


def shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def assert_whole(frame: pd.DataFrame, output: str, width: int) -> None:
    """Every line fits, and every cell stands in the output, with nothing attached to it."""
    assert max(map(len, output.splitlines())) <= width
    found = [cell for line in output.splitlines() for cell in re.split(r"\s{2,}", line.strip())]
    for heading in frame:
        for value in frame[heading]:
            cell = shown(value)
            assert not cell or cell in found, (width, heading, cell)


def test_no_cell_is_cut_whatever_the_width(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the width of the longest cell beside the rows' names on."""
    for seed in range(10):
        frame = random_frame(seed)
        for width in range(50, 200, 4):
            assert_whole(frame, printed(frame, width, capsys, monkeypatch), width)


def test_the_last_column_of_a_table_with_a_wide_heading_is_whole(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = build_cut_table("resnet-8", (1, 28, 28), 10, 64, 1.0, (1, 1, 1))
    for width in range(60, 130):
        assert_whole(frame, printed(frame, width, capsys, monkeypatch), width)


def test_a_heading_stays_on_one_line_where_there_is_room(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = build_cut_table("resnet-8", (1, 28, 28), 10, 64, 1.0, (1, 1, 1))
    output = printed(frame, 120, capsys, monkeypatch)
    assert "edge parameters   share %   MFLOP   MiB at batch 64   cost" in output


@pytest.mark.parametrize("width", [20, 30, 45])
def test_where_a_cell_does_not_fit_it_goes_on_in_the_next_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    frame = pd.DataFrame({"name": ["n" * 30], "value": ["v" * 30]})
    output = printed(frame, width, capsys, monkeypatch)
    assert output.count("n") - "name".count("n") == 30
    assert output.count("v") - "value".count("v") == 30


@pytest.mark.parametrize("name", [*HIDDEN.values(), *MARKUP])
@pytest.mark.parametrize("width", [40, 160])
def test_a_terminal_acts_on_no_name(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    heading = name.replace("\udc80", "\x9b")  # which pandas takes
    names = pd.Series([name, "mlp"], dtype=object)
    frame = pd.DataFrame({"model": names, "accuracy": [1.0, 2.0], heading: names})
    monkeypatch.setenv("COLUMNS", str(width))
    print_frame(frame, f"Leaderboard of {name}")
    output = capsys.readouterr().out
    assert output.replace("\n", "").isprintable()
    if width > 100:  # else long ones go on in the next line
        assert output.count(escape_hidden(name)) >= 2
        assert output.count(escape_hidden(heading)) >= 1


def test_long_texts_leave_room_for_whole_words(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the texts that identify the rows would fill a line alone."""
    what = "how many images have each attribute, and how often answers were right"
    names = ("records", "mechanism", "randomness", "assumptions", "composed")
    frame = pd.DataFrame(
        {"case": ["low resolution 4"] * 5, "what": [f"{what} {n}" for n in range(5)]}
    )
    for name in names:
        frame[name] = "low-resolution"
    for width in range(80, 140, 5):
        output = printed(frame, width, capsys, monkeypatch)
        words = output.split()
        assert max(map(len, output.splitlines())) <= width
        assert all(name in words for name in names)
        assert words.count("low-resolution") == len(names) * len(frame)


def test_a_brief_table_shows_a_figure(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is the same in all rows makes room for it, and is named below."""
    monkeypatch.setenv("COLUMNS", "80")
    frame = pd.DataFrame({"run": ["a run with settings M=1", "a run with settings M=2"]})
    for name in ("system", "case", "data", "method"):
        frame[name] = f"the {name} that all of them have"
    frame["accuracy"] = [71.25, 72.5]
    print_brief(frame, "Title", "elsewhere")
    output = capsys.readouterr().out
    assert "71.25" in output
    assert "elsewhere: data, method" in " ".join(output.split())
