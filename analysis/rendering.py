"""Tables as a notebook or a terminal shows them."""

from __future__ import annotations

import shutil

import pandas as pd

from pudica.analysis.spread import describe_spread, format_cell, join_intervals
from pudica.models.printable import escape_hidden, escape_html

# Names between two dollar signs are no formulas.
NO_FORMULAS = "tex2jax_ignore mathjax_ignore"


class Tables(dict[str, pd.DataFrame]):
    """Tables by title, which a notebook shows as tables and a terminal as text."""

    def __repr__(self) -> str:
        """Return all tables as text, numbers to two places."""
        return "\n\n".join(f"{build_heading(k, v)}\n{_format_frame(v)}" for k, v in self.items())

    def _repr_html_(self) -> str:
        parts = []
        for title, frame in self.items():
            heading = escape_html(build_heading(title, frame))
            parts.append(f"<h4>{heading}</h4>{render_frame(frame)}")
        return wrap_html("".join(parts))


def build_heading(title: str, frame: pd.DataFrame) -> str:
    """Return a table's title, and what its figures are if they are of several seeds."""
    spread = describe_spread(frame)
    return escape_hidden(f"{title}: {spread}" if spread else title)


def render_frame(frame: pd.DataFrame) -> str:
    """Return a frame as an HTML table, numbers to two places; foreign text in it is escaped."""
    return _format_cells(frame).to_html(index=False, border=0)


def wrap_html(content: str) -> str:
    """Return HTML for a notebook, in which it typesets no formulas."""
    return f'<div class="{NO_FORMULAS}">{content}</div>'


def _format_frame(frame: pd.DataFrame) -> str:
    width = shutil.get_terminal_size().columns
    return _format_cells(frame).to_string(index=False, line_width=width)


def _format_cells(frame: pd.DataFrame) -> pd.DataFrame:
    joined = join_intervals(frame)
    return joined.rename(columns=lambda name: escape_hidden(str(name))).map(format_cell)
