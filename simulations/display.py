"""Printing data frames as tables that fit the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from pudica.models.printable import escape_hidden

if TYPE_CHECKING:
    import pandas as pd

# Widths used for output that does not go to a terminal: of whole tables, and of brief ones.
FILE_WIDTH, BRIEF_WIDTH = 200, 80
BRIEF_ROWS = 20
# Texts longer than this are broken into lines where a table is too wide.
BRIEF_TEXT = 18
GAP = 3
LONGEST_WORD = 12
MAX_TRANSPOSED_ROWS = 4


class Column(NamedTuple):
    """A heading and the cells under it, which may be broken between words if ``wrapped``."""

    heading: str
    cells: list[str]
    numeric: bool
    wrapped: bool = False

    @property
    def width(self) -> int:
        """Minimum width in which no cell, or no word, is broken and the heading is readable."""
        words = self.heading.split()
        return max(
            [*map(self._measure, self.cells), *(min(len(w), LONGEST_WORD) for w in words), 1]
        )

    def _measure(self, cell: str) -> int:
        if not self.wrapped or len(cell) <= BRIEF_TEXT:
            return len(cell)
        return max(BRIEF_TEXT, *map(len, cell.split()))


def print_frame(frame: pd.DataFrame, title: str) -> None:
    """Print a frame as a table on standard output, numbers to two places.

    A table too wide for the terminal is transposed if it has few rows, and otherwise split into
    parts, each with the columns that identify the rows. Control characters are escaped.
    """
    console = _open_console(FILE_WIDTH)
    columns = [_build_column(frame, name) for name in frame.columns]
    for number, part in enumerate(_split_to_width(columns, len(frame), console.width)):
        heading = escape_hidden(title if number == 0 else f"{title} (continued)")
        console.print(_build_table(part, heading, console.width))


def print_result(table: pd.DataFrame, title: str, wide: bool = False) -> None:
    """Print a table of runs, figures with their intervals; briefly, unless it is to be wide."""
    from pudica.analysis.rendering import build_heading
    from pudica.analysis.spread import join_intervals

    show = print_frame if wide else print_brief
    show(join_intervals(table), build_heading(title, table))


def print_brief(frame: pd.DataFrame, title: str) -> None:
    """Print as many of a frame's first columns as fit, its first rows, and what is left out.

    Long texts are broken into lines. Control characters are escaped.
    """
    console = _open_console(BRIEF_WIDTH)
    columns = [_build_column(frame[:BRIEF_ROWS], name) for name in frame.columns]
    shown = _fit_columns(columns, console.width)
    console.print(_build_table(shown, escape_hidden(title), console.width), end="")
    left = [column.heading.replace(" ", "_") for column in columns[len(shown) :]]
    more = [f"{len(frame) - BRIEF_ROWS} more rows"] if len(frame) > BRIEF_ROWS else []
    if left or more:
        text = f"with --wide: {', '.join([*more, *left])}"
        console.print(Padding(text, (0, 2), style="dim"))
    console.print()


def _open_console(file_width: int) -> Console:
    # Cells such as "[a]" or ":x:" are shown literally.
    console = Console(soft_wrap=False, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = file_width
    return console


def _fit_columns(columns: list[Column], width: int) -> list[Column]:
    """Return the first columns that fit, texts broken if need be; at least one."""
    if _compute_width(columns) <= width:
        return columns
    broken = [column._replace(wrapped=not column.numeric) for column in columns]
    counts = range(len(broken), 1, -1)
    return next((broken[:n] for n in counts if _compute_width(broken[:n]) <= width), broken[:1])


def choose_columns(frame: pd.DataFrame, wanted: Sequence[str]) -> pd.DataFrame:
    """Return the columns that identify the rows, and those of the wanted ones that are there."""
    from pudica.analysis.spread import keep_columns

    columns = [_build_column(frame, name) for name in frame.columns]
    keys = list(frame.columns[: len(_find_key_columns(columns))])
    return keep_columns(frame, [*keys, *(n for n in wanted if n in frame and n not in keys)])


def _build_column(frame: pd.DataFrame, name: str) -> Column:
    from pudica.analysis.spread import format_cell, is_figure

    values = frame[name]
    heading = escape_hidden(str(name)).replace("_", " ")
    return Column(heading, [format_cell(value) for value in values], is_figure(values))


def _split_to_width(columns: list[Column], rows: int, width: int) -> Iterator[list[Column]]:
    """Yield the columns of each table to print."""
    if _compute_width(columns) <= width:
        yield columns
        return
    upright = _transpose(columns, rows)
    if rows <= MAX_TRANSPOSED_ROWS and _compute_width(upright) <= width:
        yield upright
        return
    keys = _find_key_columns(columns)
    part: list[Column] = []
    for column in columns[len(keys) :]:
        if part and _compute_width([*keys, *part, column]) > width:
            yield [*keys, *part]
            part = []
        part.append(column)
    yield [*keys, *part]


def _compute_width(columns: list[Column]) -> int:
    return sum(column.width + GAP for column in columns) + 1


def _transpose(columns: list[Column], rows: int) -> list[Column]:
    """Return a column of headings and a column for each row."""
    cells = [[column.cells[row] for column in columns] for row in range(rows)]
    return [Column("", [c.heading for c in columns], False), *(Column("", c, False) for c in cells)]


def _find_key_columns(columns: list[Column]) -> list[Column]:
    """Return the leading columns that identify the rows, ending with a text column."""
    for count in range(1, len(columns)):
        rows = list(zip(*(column.cells for column in columns[:count]), strict=True))
        if not columns[count - 1].numeric and len(set(rows)) == len(rows):
            return columns[:count]
    return columns[:1]


def _compute_widths(columns: list[Column], width: int) -> list[int]:
    """Return each column's width: what its cells need, plus room for its heading if available.

    By default, rich narrows the widest columns first, even below what their cells need, and then
    cuts off the last columns.
    """
    widths, left = [], max(0, width - _compute_width(columns))
    for column in columns:
        more = min(left, max(0, len(column.heading) - column.width))
        widths.append(column.width + more)
        left -= more
    return widths


def _build_table(columns: list[Column], title: str, width: int) -> Table:
    headed = any(column.heading for column in columns)
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD if headed else box.SIMPLE,
        title_justify="left",
        title_style="bold",
        show_header=headed,
    )
    for column, needed in zip(columns, _compute_widths(columns, width), strict=True):
        table.add_column(
            column.heading,
            justify="right" if column.numeric else "left",
            width=needed,
            overflow="fold",
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table
