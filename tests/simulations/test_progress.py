"""Progress: bars in a terminal, lines elsewhere, nothing when quiet; tables that fit."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from forking import fork, wait_for
from hostile_names import HIDDEN, MARKUP

from pudica.models.files import write_atomically
from pudica.models.printable import escape_hidden
from pudica.simulations.display import print_frame
from pudica.simulations.progress import LINE_SECONDS, LineDisplay, Rate, watch


@pytest.fixture(autouse=True)
def _polled_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pudica.simulations.progress.POLL_SECONDS", 0.05)


def work(
    folder: Path,
    stages: tuple[str, ...] = ("first", "second"),
    nodes: dict[str, Any] | None = None,
    quiet: bool = False,
) -> None:
    """Do nothing much, and write down how far it is."""
    with watch(folder, quiet):
        for stage, done in itertools.product(stages, (1, 2, 4)):
            if nodes:
                write_atomically(folder / "nodes.json", json.dumps(nodes).encode())
            report = {"stage": stage, "done": done, "total": 4, "unit": "epoch"}
            write_atomically(folder / "progress.json", json.dumps(report).encode())
            time.sleep(0.1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until the test moves it."""
    now = [100.0]
    monkeypatch.setattr("pudica.simulations.progress.time.monotonic", lambda: now[0])
    return now


def state(stage: str, done: int, total: int = 10) -> dict:
    return {"stage": stage, "done": done, "total": total, "unit": "step"}


def test_a_line_when_a_stage_begins_at_times_and_when_it_ends(clock, capsys) -> None:
    lines = LineDisplay()
    for stage, done, seconds in [
        ("a", 1, 1),
        ("a", 2, 1),  # too soon
        ("a", 3, LINE_SECONDS),
        ("a", 3, LINE_SECONDS),  # nothing new
        ("a", 10, 1),
        ("a", 10, LINE_SECONDS),
        ("b", 1, 1),
        ("c", 1, 1),  # the end of b was missed
    ]:
        clock[0] += seconds
        lines.update(state(stage, done))
    said = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    expected = ["a: 1/10", "a: 3/10", "a: 10/10", "b: 1/10", "b: 10/10", "c: 1/10"]
    assert said == [f"{line} steps" for line in expected]


def test_a_line_per_node_when_there_is_something_new_of_it(clock, capsys) -> None:
    lines = LineDisplay()
    work = {"state": "at work (train.visit)", "since": time.time() - 7.2}
    done = {"state": "answered", "since": time.time()}
    for ann, bob, seconds in [
        (work, work, 1),
        (done, work, 1),  # too soon
        (done, work, LINE_SECONDS),
        (done, work, LINE_SECONDS),  # nothing new
    ]:
        clock[0] += seconds
        lines.update_nodes({"ann": ann, "bob": bob})
    assert capsys.readouterr().err.splitlines() == [
        "  ann: at work (train.visit) for 7 s",
        "  bob: at work (train.visit) for 7 s",
        "  ann: answered",
    ]


def test_nodes_in_a_terminal(tmp_path: Path) -> None:
    away = {"ann [x]": {"state": "away", "since": time.time()}}
    written = in_terminal(lambda: work(tmp_path, nodes=away))
    assert re.search(r"ann \[x\]: away for \d+ s", written)
    assert "4/4" in written


def test_rate_and_time_left(clock) -> None:
    rate = Rate(2)
    assert rate.format(2, "step", 12) == ""
    clock[0] += 2
    assert rate.format(6, "step", 12) == "2 steps/s, 3 s left"
    assert rate.format(12, "step", 12) == "5 steps/s"
    clock[0] += 18
    assert rate.format(6, "step", 8) == "5 s per step, 10 s left"


def in_terminal(command: Callable[[], None]) -> str:
    """Return what a process writes to a terminal."""
    ours, its = pty.openpty()
    return read_child(fork(command, its, its), ours, its)


def read_child(child: int, ours: int, its: int) -> str:
    """Return all that a child writes to the other side of a pipe or a terminal."""
    os.close(its)
    written = b""
    with suppress(OSError):  # Linux's way to say that a terminal's other side is closed
        while part := os.read(ours, 4096):
            written += part
    os.close(ours)
    assert wait_for(child) == 0, written
    return written.decode()


def test_bars_in_a_terminal(tmp_path: Path) -> None:
    written = in_terminal(lambda: work(tmp_path))
    assert "first" in written
    assert "second" in written
    assert "4/4" in written
    assert "epochs/s" in written or "s per epoch" in written


def test_lines_in_a_pipe(tmp_path: Path) -> None:
    ours, its = os.pipe()
    said = read_child(fork(lambda: work(tmp_path), errors=its), ours, its)
    lines = [line.split(",")[0] for line in said.splitlines()]
    # How many reports are seen depends on the machine's load; a stage's end is never missed.
    ends = [line for line in lines if line.endswith("4/4 epochs")]
    assert ends == ["first: 4/4 epochs", "second: 4/4 epochs"]
    assert all(re.fullmatch(r"(first|second): [124]/4 epochs", line) for line in lines)
    assert lines == sorted(lines)


def test_nothing_when_quiet(tmp_path: Path) -> None:
    assert in_terminal(lambda: work(tmp_path, quiet=True)) == ""


def test_what_an_earlier_process_left_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(json.dumps(state("stale", 3)))
    assert "stale" not in in_terminal(lambda: work(tmp_path))


# ------------------------------------------------------------------------- tables


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("columns", [1, 4, 14])
def test_a_table_fits_and_loses_nothing(width, rows, columns, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    frame = pd.DataFrame({"model": [f"model-{row}" for row in range(rows)]})
    for column in range(columns):
        frame[f"figure_{column}_accuracy"] = [1000.0 + 20 * row + column for row in range(rows)]
    print_frame(frame, "Title")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    words = printed.split()
    for column in range(1, columns + 1):
        assert all(f"{value:.2f}" in words for value in frame.iloc[:, column])
    assert set(frame["model"]) <= set(words)


def test_missing_cells_are_empty(capsys) -> None:
    print_frame(pd.DataFrame({"a": [1.0, float("nan")], "b": ["x", None]}), "Title")
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert "None" not in printed


def test_a_file_gets_whole_lines(capsys, monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    frame = pd.DataFrame({f"column_{i}": [i] for i in range(12)})
    print_frame(frame, "Title")
    assert any(
        "column 0" in line and "column 11" in line for line in capsys.readouterr().out.split("\n")
    )


@pytest.mark.parametrize("name", [*HIDDEN.values(), *MARKUP])
def test_lines_show_every_name_as_it_is_and_act_on_none(clock, capsys, name: str) -> None:
    lines = LineDisplay()
    clock[0] += LINE_SECONDS
    lines.update_nodes({name: {"state": f"dropped out ({name})", "since": time.time()}})
    lines.update(state(f"training ({name})", 1))
    output = capsys.readouterr().err
    assert output.count("\n") == len(output.splitlines()) == 2
    assert output.replace("\n", "").isprintable()
    assert output.count(escape_hidden(name)) == 3


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07\x1b[2Jx", "a\r\u202eb", "[red]x[/red] [/]"])
def test_bars_show_every_name_as_it_is_and_act_on_none(tmp_path: Path, name: str) -> None:
    nodes = {name: {"state": "away", "since": time.time()}}
    stages = (f"training ({name})", "second")
    written = in_terminal(lambda: work(tmp_path, stages, nodes))
    assert f"{escape_hidden(name)}: away for" in written
    assert f"training ({escape_hidden(name)})" in written
    assert not any(part in written for part in ("\x1b]0;owned", "\x1b[2Jx", "\u202e"))
