"""The figures of split learning."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pudica.analysis.drawing import draw_curves, label_points, new_figure
from pudica.analysis.runs import Run
from pudica.analysis.split import case_settings, split_accuracy

RELEASES = {"plain": "without noise", "noisy": "with noise"}


def figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure for everything that was measured."""
    for name, draw in {"training": draw_training, "trade-off": draw_trade_off}.items():
        figure = draw(run)
        if figure is not None:
            yield name, figure


def draw_training(run: Run) -> Figure | None:
    """Draw loss and validation accuracy over epochs, a line per case (Figures 5 to 7)."""
    cases = list(case_settings(run))
    loss = run.curves("training", "loss")
    accuracy = {name: 100 * run.curves("validation", "accuracy", name) for name in RELEASES}
    panels = {"mean training loss": loss}
    panels |= {
        f"validation accuracy (%)\n{RELEASES[name]}": table
        for name, table in accuracy.items()
        if not table.empty and (name == "plain" or not table.equals(accuracy["plain"]))
    }
    return draw_curves(panels, cases, "epochs", f"Training across the cut — {run.name}")


def draw_trade_off(run: Run) -> Figure | None:
    """Draw test accuracy over ε, without noise and with (Figure 3 of paper 002)."""
    table = split_accuracy([run])
    there = table.dropna(subset=["epsilon"])
    if there["epsilon"].nunique() < 2:
        return None
    figure = new_figure(7.0, 4.6, f"Test accuracy and noise — {run.name}")
    axes = figure.subplots()
    for (column, label), colour in zip(TEST_LABELS.items(), ("#0072B2", "#D55E00"), strict=True):
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


TEST_LABELS = {"plain_edge": "tested without noise", "noisy_edge": "tested with noise"}
