"""Tables and figures of split learning runs, the tables beside the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pudica.analysis.drawing import COLOURS, draw_curves, label_points, new_figure
from pudica.analysis.privacy import claims, verdict
from pudica.analysis.published import load_paper_table
from pudica.analysis.runs import Run, RunPaths, find_value, open_runs_of, select
from pudica.analysis.spread import average_seeds, drop_columns
from pudica.analysis.summary import build_table
from pudica.strategies.core.session import CLOUD
from pudica.strategies.core.spreadsheets import read_csv
from pudica.strategies.split.config import SplitConfig

# Final tests: with or without noise, classified by the devices or the cloud.
TESTS = {
    "plain_edge": ("plain", "edge"),
    "noisy_edge": ("noisy", "edge"),
    "plain_cloud": ("plain", "cloud"),
    "noisy_cloud": ("noisy", "cloud"),
}
COSTS = ("bytes_up", "formula_up", "bytes_down", "formula_down")
SETTINGS = ("shield", "epsilon", "batch_size", "front", "cut")
PUBLISHED = {"batch-norm-laplace": "activation noise", "pixel-laplace": "raw pixel noise"}
"""The paper's name of a setting, by the shield."""
MAX_ROWS = 8


def split_accuracy(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return each case's test accuracy, with and without noise.

    Runs are named, and errors raised, as by :func:`pudica.analysis.load`.
    Runs that differ only by their seed are taken together, unless ``spread`` is False; see
    :func:`pudica.analysis.spread.average_seeds` for the intervals ``…_ci`` and for ``n``.

    Returns
    -------
    DataFrame
        A row per run and case: ``run, experiment, case``; ``shield``, its ``epsilon`` as set
        (missing: no noise), ``batch_size``, ``front``, ``cut``; accuracies on all test images in
        per cent, ``plain_edge, noisy_edge, plain_cloud, noisy_cloud``, where measured;
        ``claimed`` by the shield's paper for one release, and ``holds``, the guarantee for a
        training record over all releases, as strings; ``published``, if the paper has this
        setting, and the ``difference`` of ``plain_edge`` from it.
    """
    opened = open_runs_of("split", runs)
    rows = [row for run in opened for row in _accuracy_rows(run)]
    columns = ["run", "experiment", "case", *SETTINGS, *TESTS, "claimed", "holds", "published"]
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.astype(dict.fromkeys(("epsilon", *TESTS, "published"), "float64"))
    frame = frame.assign(difference=frame["plain_edge"] - frame["published"])
    return average_seeds(frame, opened, ["case"], spread)


def split_costs(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return the costs of each device: Figures 8 and 11 of paper 004.

    Seeds are taken together as by :func:`split_accuracy`.

    Returns
    -------
    DataFrame
        A row per run, case and device: ``run, case, node``; mean bytes per epoch, as
        measured and by the paper's formula: ``bytes_up, formula_up, bytes_down,
        formula_down`` (the formula counts only the loss, but a gradient must come down);
        milliseconds per batch: ``forward_ms, backward_ms``.
    """
    opened = open_runs_of("split", runs)
    rows = [row for run in opened for row in _cost_rows(run)]
    frame = build_table(rows, ["run", "case", "node"], [*COSTS, "forward_ms", "backward_ms"])
    return average_seeds(frame, opened, ["case", "node"], spread)


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables that ``pudica show`` prints, by title."""
    accuracy = drop_columns(split_accuracy(runs), SETTINGS)
    if accuracy["published"].isna().all():
        accuracy = drop_columns(accuracy, ["published", "difference"])
    accuracy.insert(list(accuracy).index("noisy_edge") + 1, "holds", accuracy.pop("holds"))
    costs = split_costs(runs)
    if len(costs) > MAX_ROWS:
        costs = average_seeds(_average_devices(split_costs(runs, spread=False)), runs, ["case"])
    return {
        "Test accuracy": accuracy,
        "What a device pays, per epoch and per batch": costs,
    }


def _average_devices(costs: pd.DataFrame) -> pd.DataFrame:
    """Return the costs of a mean device of each run and case, and the number of devices."""
    devices = costs.groupby(["run", "case"], sort=False)
    found = devices.mean(numeric_only=True)
    found.insert(0, "devices", devices.size())
    return found.reset_index()


def methods(run: Run) -> Iterator[dict[str, Any]]:
    """Yield each case's row of :func:`pudica.analysis.compare`."""
    for row in split_accuracy([run]).to_dict("records"):
        epsilon = "" if pd.isna(row["epsilon"]) else f", ε = {row['epsilon']:g} as set"
        macs = find_value(run.frame, 1e-6, stage="costs", metric="edge_macs", case=row["case"])
        yield {
            "case": row["case"],
            "method": f"split at {row['cut']}, {row['shield']}{epsilon}",
            "accuracy": row["plain_edge"],
            "edge_mmacs": macs,
        }


def _case_settings(run: Run) -> dict[str, SplitConfig]:
    return run.section("split", SplitConfig).each_case()


def _accuracy_rows(run: Run) -> Iterator[dict[str, Any]]:
    rows = select(run.frame, stage="test", node=CLOUD)
    if rows.empty:  # the run may be in progress, without a ledger
        return
    claimed, verdicts = claims(run.directory), verdict(run.directory)
    for case, settings in _case_settings(run).items():
        own = select(rows, case=case)
        if own.empty:
            continue
        yield {
            "run": run.name,
            "experiment": run.info.get("experiment", ""),
            "case": case,
            "shield": settings.shield.name,
            "epsilon": _configured_epsilon(settings),
            "batch_size": settings.batch_size,
            "front": settings.front,
            "cut": settings.cut,
            **{
                name: find_value(own, 100, release=release, classified=place)
                for name, (release, place) in TESTS.items()
            },
            "claimed": str(claimed.get(case, "nothing")),
            "holds": str(verdicts[case]),
            "published": _find_published(run, settings),
        }


def _configured_epsilon(settings: SplitConfig) -> float | None:
    """Return the ε in a shield's settings; None without noise."""
    budget = settings.budget
    return budget.epsilon if budget else getattr(settings.shield, "epsilon", None)


def _find_published(run: Run, settings: SplitConfig) -> float | None:
    """Return paper 002's accuracy for a setting; it was measured with S = √(N−1)."""
    name = PUBLISHED.get(settings.shield.name)
    epsilon = _configured_epsilon(settings)
    as_measured = getattr(settings.shield, "sensitivity", "experiments") == "experiments"
    if run.settings["data"]["name"] != "mnist" or name is None:
        return None
    if epsilon is not None and not as_measured:
        return None
    table = select(load_paper_table("split_laplace_mnist"), batch_size=settings.batch_size)
    if epsilon is None:
        name, same = "centralised without noise", table["epsilon"].isna()
    else:
        same = table["epsilon"] == epsilon
    found = select(table[same], setting=name)["test_accuracy"]
    return float(found.iloc[0]) if len(found) else None


def _cost_rows(run: Run) -> Iterator[dict[str, Any]]:
    rows = select(run.frame, stage="costs")
    for case in rows["case"].unique():
        wide = select(rows, case=case).pivot_table(
            index="node", columns="metric", values="value", sort=False
        )
        timings: Any = {}
        path = run.directory / case / "costs.csv"
        if path.is_file():
            timed = read_csv(path, "node").set_index("node")[["forward_ms", "backward_ms"]]
            timings = timed.astype(float).to_dict("index")
        for node in [name for name in run.nodes if name in wide.index]:
            costs = {key: float(wide[key][node]) for key in COSTS}
            yield {"run": run.name, "case": case, "node": node, **costs, **timings.get(node, {})}


# ---------------------------------------------------------------------------- figures


def figures(run: Run) -> Iterator[tuple[str, Figure | None]]:
    """Yield name and figure for everything that was measured."""
    yield "training", _draw_training(run)
    yield "trade-off", _draw_trade_off(run)


def _draw_training(run: Run) -> Figure | None:
    """Draw loss and validation accuracy over epochs, a line per case (Figures 5 to 7)."""
    plain, noisy = (100 * run.curves("validation", "accuracy", r) for r in ("plain", "noisy"))
    panels = {
        "mean training loss": run.curves("training", "loss"),
        "validation accuracy (%)\nwithout noise": plain,
    }
    if not noisy.equals(plain):
        panels["validation accuracy (%)\nwith noise"] = noisy
    title = f"Training across the cut — {run.name}"
    return draw_curves(panels, list(_case_settings(run)), "epochs", title)


def _draw_trade_off(run: Run) -> Figure | None:
    """Draw test accuracy over ε, without noise and with (Figure 3 of paper 002)."""
    table = split_accuracy([run])
    there = table.dropna(subset=["epsilon"])
    if there["epsilon"].nunique() < 2:
        return None
    figure = new_figure(7.0, 4.6, f"Test accuracy and noise — {run.name}")
    axes = figure.subplots()
    labels = {"plain_edge": "tested without noise", "noisy_edge": "tested with noise"}
    for (column, label), colour in zip(labels.items(), COLOURS, strict=False):
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
    measured = there.dropna(subset=["plain_edge"])
    places = zip(measured["epsilon"], measured["plain_edge"], strict=True)
    points = dict(zip(measured["case"], places, strict=True))
    label_points(figure, axes, points, dict.fromkeys(points, "#444444"))
    return figure
