"""Tables by name, and as LaTeX, Markdown or CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from pylatexenc.latexencode import unicode_to_latex

from pudica.analysis.comparison import compare
from pudica.analysis.dlmt import dlmt_accuracy, dlmt_breaks, dlmt_measures
from pudica.analysis.facemix import (
    facemix_accuracy,
    facemix_attacks,
    facemix_attributes,
    facemix_reconstructions,
    facemix_transmission,
)
from pudica.analysis.frontiers import attack_cells, frontier
from pudica.analysis.runs import RunPaths, open_runs
from pudica.analysis.split import split_accuracy, split_costs
from pudica.analysis.spread import format_cell, is_figure, join_intervals
from pudica.analysis.summary import tables
from pudica.analysis.themis import (
    themis_leaderboard,
    themis_protection,
    themis_table1,
    themis_table2,
)
from pudica.models.errors import RequestError, unknown_name_error
from pudica.strategies.core.spreadsheets import to_csv

NAMED: dict[str, Callable[..., pd.DataFrame]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(attack_cells, compare, frontier),
        *(dlmt_accuracy, dlmt_breaks, dlmt_measures),
        *(facemix_accuracy, facemix_attacks, facemix_attributes),
        *(facemix_reconstructions, facemix_transmission),
        *(split_accuracy, split_costs),
        *(themis_leaderboard, themis_protection, themis_table1, themis_table2),
    )
}
"""The functions that return a table of runs, by the name that ``pudica table`` takes."""
FORMATS = ("latex", "markdown", "csv")


def list_tables(runs: RunPaths = ()) -> list[str]:
    """Return the names of tables that :func:`build_named_table` knows, whatever the runs.

    With runs, those of which they have something, and their titles.
    """
    if isinstance(runs, Sequence) and not runs:
        return sorted(NAMED)
    opened = open_runs(runs)
    named = [name for name in sorted(NAMED) if not NAMED[name](opened).empty]
    return [*named, *tables(opened)]


def build_named_table(name: str, runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return a table by its name, or by its title in :func:`pudica.analysis.tables`.

    Raises
    ------
    RequestError
        If there is no such table of these runs; or as :func:`pudica.analysis.load`.
    """
    if function := NAMED.get(name.replace("_", "-")):
        frame = function(runs, spread=spread)
        if frame.empty:
            raise RequestError(f"these runs have no table '{name}'")
        return frame
    titled = tables(runs)
    if name not in titled:
        raise unknown_name_error("table", name, [*NAMED, *titled])
    if not spread:
        raise RequestError(f"--rows: the table '{name}' is there for all seeds together only")
    return titled[name]


def export(frame: pd.DataFrame, format_: str) -> str:
    """Return a table as text.

    Parameters
    ----------
    frame : DataFrame
        As the functions of :mod:`pudica.analysis` return it.
    format_ : {"latex", "markdown", "csv"}
        LaTeX (package booktabs) and Markdown are for people: to two places, a figure and its
        interval in one cell. CSV is for programs: every column, in full.

    Raises
    ------
    RequestError
        If there is no such format.
    """
    if format_ == "csv":
        return to_csv(frame)
    if format_ not in FORMATS:
        raise unknown_name_error("format", format_, FORMATS)
    escape = unicode_to_latex if format_ == "latex" else _escape_markdown
    joined = join_intervals(frame.dropna(axis="columns", how="all"))
    aligned = ["right" if is_figure(joined[name]) else "left" for name in joined]
    cells = joined.map(lambda value: escape(format_cell(value)))
    cells.columns = pd.Index([escape(str(name).replace("_", " ")) for name in joined])
    if format_ == "markdown":
        text = cells.to_markdown(index=False, colalign=aligned, disable_numparse=True)
    else:
        letters = "".join(side[0] for side in aligned)
        text = cells.to_latex(index=False, escape=False, column_format=letters)
    return f"{text.rstrip()}\n"


def _escape_markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")
