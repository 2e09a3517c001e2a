"""A notebook shows tables and figures; names in them are shown as they are, and act on nothing."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
import pytest
from hostile_names import HIDDEN, MARKUP
from matplotlib.figure import Figure

from pudica.analysis.drawing import Figures, new_figure
from pudica.analysis.rendering import Tables
from pudica.models.printable import escape_hidden

PNG = b"\x89PNG"
# pandas refuses half a letter.
NAMES = [*(name for kind, name in HIDDEN.items() if kind != "surrogate"), *MARKUP]


@pytest.fixture
def board() -> pd.DataFrame:
    return pd.DataFrame({"model": ["ann", "bob"], "accuracy": [91.234, None], "rank": [1, 2]})


def test_tables_are_the_frames_by_title(board: pd.DataFrame) -> None:
    tables = Tables({"Board": board})
    assert dict(tables) == {"Board": board}
    assert tables["Board"] is board


@pytest.mark.parametrize("show", [repr, Tables._repr_html_])
def test_all_tables_are_shown_with_titles_and_two_places(board: pd.DataFrame, show: Any) -> None:
    shown = show(Tables({"Board": board, "Other": board.rename(columns={"rank": "place"})}))
    words = ("Board", "Other", "model", "accuracy", "rank", "place", "ann", "bob", "91.23")
    assert all(word in shown for word in words)
    assert not any(word in shown for word in ("91.234", "nan", "NaN", "None"))


@pytest.mark.parametrize("show", [repr, Tables._repr_html_])
def test_figures_of_several_seeds_are_shown_with_their_interval(show: Any) -> None:
    shown = show(
        Tables({"Board": pd.DataFrame({"accuracy": [91.0], "accuracy_ci": [1.5], "n": [3]})})
    )
    assert "Board: mean and 95% interval of 3 seeds" in shown
    assert "91.00 ± 1.50" in shown
    assert "accuracy_ci" not in shown


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    tables = Tables({name: pd.DataFrame({name: [name]})})
    text, page = repr(tables), tables._repr_html_()
    assert text.replace("\n", "").isprintable()
    assert page.replace("\n", "").isprintable()
    assert text.count(escape_hidden(name)) == 3
    shown = html.unescape(page)
    assert shown.count(escape_hidden(name)) == 3
    assert "<b>" not in page


def test_dollar_signs_make_no_formula() -> None:
    page = Tables({"Board": pd.DataFrame({"model": ["$a$"]})})._repr_html_()
    assert page.startswith('<div class="tex2jax_ignore mathjax_ignore">')
    assert page.endswith("</div>")


def test_a_notebook_shows_all_figures_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    own = new_figure(2, 1, "ours")
    Figures({"ours": own, "theirs": Figure()})._ipython_display_()
    assert [image.alt for image in shown] == ["ours", "theirs"]
    assert all(image.data.startswith(PNG) for image in shown)
    assert own._repr_png_().startswith(PNG)
