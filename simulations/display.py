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
# Texts longer than this are broken into lines where a table, or a brief one, is too wide.
TEXT, BRIEF_TEXT = 24, 18
GAP = 3
LONGEST_WORD = 12
MAX_TRANSPOSED_ROWS = 4


class Column(NamedTuple):
    """A heading and the cells under it, broken between words if longer than ``limit``, if any."""

    heading: str
    cells: list[str]
    numeric: bool
    limit: int | None = None

    @property
    def width(self) -> int:
        """Minimum width in which no cell, or no word, is broken and the heading is readable."""
        words = self.heading.split()
        return max(
            [*map(self._measure, self.cells), *(min(len(w), LONGEST_WORD) for w in words), 1]
        )

    def _measure(self, cell: str) -> int:
        if self.limit is None or len(cell) <= self.limit:
            return len(cell)
        return max(self.limit, *map(len, cell.split()))


def print_frame(frame: pd.DataFrame, title: str) -> None:
    """Print a frame as a table on standard output, numbers to two places.

    A table too wide for the terminal is transposed if it has few rows; otherwise long texts are
    broken into lines, and if that is not enough it is split into parts, each with the columns that
    identify the rows. Control characters are escaped.
    """
    console = _open_console(FILE_WIDTH)
    columns = [_build_column(frame, name) for name in frame.columns]
    for number, part in enumerate(_split_to_width(columns, len(frame), console.width)):
        heading = escape_hidden(title if number == 0 else f"{title} (continued)")
        console.print(_build_table(part, heading, console.width))


def print_result(
    table: pd.DataFrame, title: str, wide: bool = False, rest: str = "with --wide"
) -> None:
    """Print a table of runs, figures with their intervals; briefly, unless it is to be wide."""
    from pudica.analysis.rendering import build_heading
    from pudica.analysis.spread import join_intervals

    joined, heading = join_intervals(table), build_heading(title, table)
    if wide:
        print_frame(joined, heading)
    else:
        print_brief(joined, heading, rest)


def print_brief(frame: pd.DataFrame, title: str, rest: str = "with --wide") -> None:
    """Print as many of a frame's first columns as fit, its first rows, and what is left out.

    Long texts are broken into lines, and texts that are the same in all rows make room if no figure
    would fit. ``rest`` says where to find what is left out. Control characters are escaped.
    """
    console = _open_console(BRIEF_WIDTH)
    columns = [_build_column(frame[:BRIEF_ROWS], name) for name in frame.columns]
    columns = _put_constants_last(columns, console.width)
    shown = _fit_columns(columns, console.width)
    console.print(_build_table(shown, escape_hidden(title), console.width), end="")
    left = [column.heading.replace(" ", "_") for column in columns[len(shown) :]]
    more = [f"{len(frame) - BRIEF_ROWS} more rows"] if len(frame) > BRIEF_ROWS else []
    if left or more:
        text = f"{rest}: {', '.join([*more, *left])}"
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
    broken = _break_texts(columns, BRIEF_TEXT)
    counts = range(len(broken), 1, -1)
    return next((broken[:n] for n in counts if _compute_width(broken[:n]) <= width), broken[:1])


def _break_texts(columns: list[Column], limit: int) -> list[Column]:
    return [column if column.numeric else column._replace(limit=limit) for column in columns]


def _put_constants_last(columns: list[Column], width: int) -> list[Column]:
    """Return the columns; if no figure would fit, with texts that say the same in all rows last."""
    if any(column.numeric for column in _fit_columns(columns, width)):
        return columns
    first, *others = columns
    others.sort(key=lambda column: not column.numeric and len(set(column.cells)) == 1)
    return [first, *others]


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
    columns = _break_texts(columns, TEXT)
    if _compute_width(columns) <= width:
        yield columns
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

    What is left then goes to broken texts.

    By default, rich narrows the widest columns first, even below what their cells need, and then
    cuts off the last columns.
    """
    widths = [column.width for column in columns]
    left = max(0, width - _compute_width(columns))
    for wanted in ([len(c.heading) for c in columns], [max(map(len, c.cells)) for c in columns]):
        for number, size in enumerate(wanted):
            more = min(left, max(0, size - widths[number]))
            widths[number] += more
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
