"""The figures of FaceMix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pudica.analysis.drawing import COLOURS, draw_curves, label_points, new_figure, plot_style, save
from pudica.analysis.facemix import case_settings, facemix_accuracy
from pudica.analysis.runs import Run, RunPaths, open_runs_of
from pudica.models.errors import RequestError


def figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure for everything that was measured."""
    drawn = {
        "training": draw_training(run),
        "trade-off": draw_trade_off([run]),
        "attributes": draw_attributes(run),
    }
    for name, figure in drawn.items():
        if figure is not None:
            yield name, figure


def draw_training(run: Run) -> Figure | None:
    """Draw training loss and validation accuracy behind the shield, a line per case."""
    frame = run.frame
    mean = frame[frame["attribute"].isna()] if "attribute" in frame else frame
    validation = mean[(mean["stage"] == "validation") & (mean["metric"] == "accuracy")]
    if not validation.empty:
        validation = validation[validation["shield"] == "on"]
    wide = validation.pivot_table(index="round", columns="case", values="value", sort=False)
    panels = {
        "mean training loss": run.curves("training", "loss"),
        "accuracy on validation\nimages (%)": 100 * wide.sort_index(),
    }
    title = f"Training behind the shield — {run.name}"
    return draw_curves(panels, list(case_settings(run)), "epochs", title)


def facemix_trade_off(runs: RunPaths, path: str | Path) -> Path:
    """Draw the cases of several runs together: Figure 4 of paper 003.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`. Cases of the same name share a colour.
    path : str or Path
        Path of the PNG.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`; or if there are fewer than two cases.
    """
    with plot_style():
        figure = draw_trade_off([*open_runs_of("facemix", runs)])
        if figure is None:
            raise RequestError("a trade-off is drawn of two cases at least")
        return save(figure, Path(path))


def draw_trade_off(runs: Sequence[Run]) -> Figure | None:
    """Draw accuracy against the edge's computation and the success of attacks: Figure 4."""
    table = facemix_accuracy([run.directory for run in runs])
    cases = table["case"].unique().tolist()
    if len(cases) < 2:
        return None
    # A case that occurs in several runs is labelled with its run.
    often = table.groupby("case")["run"].transform("size") > 1
    table["label"] = table["case"].where(~often, table["case"] + " (" + table["run"] + ")")
    paint = {case: COLOURS[i % len(COLOURS)] for i, case in enumerate(cases)}
    colours = dict(zip(table["label"], table["case"].map(paint), strict=True))
    attacks = [str(name) for name in table if str(name).startswith("attack_")]
    attacks = [name for name in attacks if len({*table["case"][table[name].notna()]}) > 1]
    panels = {"edge_share": "share of the multiplications on the edge (%)"}
    panels |= {name: f"{name.replace('_', ' ')}: balanced success (%)" for name in attacks}
    names = [run.name for run in runs] if len(runs) == 1 else table["experiment"].unique()
    title = f"Accuracy, effort and attacks — {', '.join(names)}"
    figure = new_figure(7.5, 0.6 + 2.9 * len(panels), title)
    column = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    points = {name: _collect_points(table, name) for name in panels}
    for axes, (name, what) in zip(column, panels.items(), strict=True):
        for label, place in points[name].items():
            axes.plot(*place, "o", color=colours[label], clip_on=False)
        axes.set_xlabel(what)
        axes.set_ylabel("test accuracy (%)")
        axes.margins(0.12)
        axes.set_xlim(*_axis_limits(name, [x for x, _ in points[name].values()]))
    for axes, name in zip(column, panels, strict=True):
        label_points(figure, axes, points[name], colours)
    return figure


def _axis_limits(name: str, found: Sequence[float]) -> tuple[float, float]:
    """Return the limits of an axis: the full range, so that small differences look small."""
    if name == "edge_share":
        most = max([*found, 1.0])
        return -0.05 * most, 1.15 * most
    return min(45.0, min(found) - 3), 108.0


def _collect_points(table: pd.DataFrame, name: str) -> dict[str, tuple[float, float]]:
    there = table[table[name].notna()]
    places = zip(there[name].astype(float), there["accuracy"].astype(float), strict=True)
    return dict(zip(there["label"], places, strict=True))


def draw_attributes(run: Run) -> Figure | None:
    """Draw the success of inferring each attribute, behind the shield and in the clear."""
    frame = run.frame
    if "attribute" not in frame:
        return None
    measured = frame[(frame["stage"] == "attack attributes") & frame["attribute"].notna()]
    if measured.empty:
        return None
    names, cases = measured["attribute"].unique().tolist(), measured["case"].unique().tolist()
    figure = new_figure(7.5, 1.4 + 0.3 * len(names), f"Attributes that attackers tell — {run.name}")
    axes = figure.subplots()
    for i, case in enumerate(cases):
        own = measured[measured["case"] == case].pivot_table(
            index="attribute", columns="metric", values="value"
        )
        colour = COLOURS[i % len(COLOURS)]
        places = [names.index(name) for name in own.index]
        axes.plot(100 * own["success"], places, "o", color=colour, label=case)
        clear = 100 * own["success_in_the_clear"]
        axes.plot(clear, places, "o", color=colour, markerfacecolor="none", alpha=0.6)
    axes.axvline(50, color="#999999", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("balanced success (%); hollow: without the shield; 50: a guess")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure
