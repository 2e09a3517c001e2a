"""The figures of split learning."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis.drawing import label_lines, label_points, new_figure, styles
from analysis.runs import Run
from analysis.split import EVERYONE, settings_of, split_accuracy

RELEASES = {"plain": "without noise", "noisy": "with noise"}


def figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield each figure that there are measurements for, with its name."""
    for name, draw in {"training": draw_training, "trade-off": draw_trade_off}.items():
        figure = draw(run)
        if figure is not None:
            yield name, figure


def draw_training(run: Run) -> Figure | None:
    """Draw loss and validation accuracy over epochs, a line per case (Figures 5 to 7)."""
    cases = list(settings_of(run))
    loss = _over_epochs(run, "training", "loss")
    accuracy = {name: 100 * _over_epochs(run, "validation", "accuracy", name) for name in RELEASES}
    panels = {"mean training loss": loss}
    panels |= {
        f"validation accuracy (%)\n{RELEASES[name]}": table
        for name, table in accuracy.items()
        if not table.empty and (name == "plain" or not table.equals(accuracy["plain"]))
    }
    panels = {label: table for label, table in panels.items() if not table.empty}
    if not panels:
        return None
    figure = new_figure(7.5, 0.8 + 2.6 * len(panels), f"Training across the cut — {run.name}")
    looks = styles(cases)
    column = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, table) in zip(column, panels.items(), strict=True):
        _lines(axes, table, looks)
        axes.set_ylabel(label)
    column[-1].set_xlabel("epochs")
    for axes, table in zip(column, panels.values(), strict=True):
        if len(cases) > 1:
            ends = {str(name): float(table[name].dropna().iloc[-1]) for name in table}
            label_lines(figure, axes, ends, looks)
    return figure


def _lines(axes: Axes, table: pd.DataFrame, looks: dict[str, dict]) -> None:
    for name, values in table.items():
        line = values.dropna()
        axes.plot(line.index, line, **looks[str(name)], markersize=3.5, clip_on=False)
    axes.set_xlim(0, max(table.index.max(), 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _over_epochs(run: Run, stage: str, metric: str, release: str = "") -> pd.DataFrame:
    """Return a metric over all images, with a row per epoch and a column per case."""
    rows = run.frame
    rows = rows[(rows["stage"] == stage) & (rows["metric"] == metric)]
    rows = rows[(rows["node"] == EVERYONE) & (rows["release"] == release)]
    wide = rows.pivot_table(index="round", columns="case", values="value", sort=False)
    return wide.sort_index()


def draw_trade_off(run: Run) -> Figure | None:
    """Draw test accuracy over ε, without noise and with (Figure 3 of paper 002)."""
    table = split_accuracy([run])
    there = table.dropna(subset=["epsilon"])
    if there["epsilon"].nunique() < 2:
        return None
    figure = new_figure(7.0, 4.6, f"Test accuracy and noise — {run.name}")
    axes = figure.subplots()
    for (column, label), colour in zip(WAYS.items(), ("#0072B2", "#D55E00"), strict=True):
        own = there.dropna(subset=[column])
        axes.plot(own["epsilon"], own[column], "o", color=colour, label=label)
    silent = table[table["epsilon"].isna()]["plain_edge"]
    if len(silent):
        axes.axhline(silent.max(), color="#999999", linestyle=(0, (5, 3)), label="trained plain")
    axes.set_xscale("log")
    axes.set_xticks(sorted(there["epsilon"].unique()))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ε as set: what the shield's paper claims, not what holds for a record")
    axes.set_ylabel("accuracy on test images (%)")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    points = {
        str(row["case"]): (row["epsilon"], row["plain_edge"])
        for row in there.dropna(subset=["plain_edge"]).to_dict("records")
    }
    label_points(figure, axes, points, dict.fromkeys(points, "#444444"))
    return figure


WAYS = {"plain_edge": "tested without noise", "noisy_edge": "tested with noise"}
