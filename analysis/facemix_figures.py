"""The figures of FaceMix."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from analysis.drawing import COLOURS, draw_curves, label_points, new_figure
from analysis.facemix import facemix_accuracy, settings_of
from analysis.runs import Run


def figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield each figure that there are measurements for, with its name."""
    drawn = {"training": draw_training, "trade-off": draw_trade_off}
    for name, draw in drawn.items():
        figure = draw(run)
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
    return draw_curves(panels, list(settings_of(run)), "epochs", title)


def draw_trade_off(run: Run) -> Figure | None:
    """Draw accuracy against what the edge computes, and against what attacks learn: Figure 4."""
    table = facemix_accuracy([run])
    if len(table) < 2:
        return None
    known = [str(name) for name in table if table[name].notna().any()]
    attacks = [name for name in known if name.startswith("attack_")]
    panels = {"edge_share": "share of the multiplications on the edge (%)"}
    panels |= {name: f"{name.replace('_', ' ')}: balanced success (%)" for name in attacks}
    title = f"Accuracy, effort and attacks — {run.name}"
    figure = new_figure(7.5, 0.6 + 2.9 * len(panels), title)
    column = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    cases = table["case"].tolist()
    colours = {case: COLOURS[i % len(COLOURS)] for i, case in enumerate(cases)}
    for axes, (name, label) in zip(column, panels.items(), strict=True):
        there = table[table[name].notna()]
        for case, x, y in zip(there["case"], there[name], there["accuracy"], strict=True):
            axes.plot(x, y, "o", color=colours[case], clip_on=False)
        axes.set_xlabel(label)
        axes.set_ylabel("test accuracy (%)")
        axes.margins(0.12)
    for axes, name in zip(column, panels, strict=True):
        there = table[table[name].notna()]
        places = zip(there[name].astype(float), there["accuracy"].astype(float), strict=True)
        label_points(figure, axes, dict(zip(there["case"], places, strict=True)), colours)
    return figure
