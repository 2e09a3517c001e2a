"""Tables of split learning runs, beside the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from pudica.analysis.layout import drop_run_names
from pudica.analysis.privacy import claims, verdict
from pudica.analysis.runs import Run, RunPaths, open_runs_of
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


def split_accuracy(runs: RunPaths) -> pd.DataFrame:
    """Return each case's test accuracy, with and without noise.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`.

    Returns
    -------
    DataFrame
        A row per run and case: ``run, experiment, case``; ``shield``, its ``epsilon`` as set
        (missing: no noise), ``batch_size``, ``front``, ``cut``; accuracies on all test images in
        per cent, ``plain_edge, noisy_edge, plain_cloud, noisy_cloud``, where measured;
        ``claimed`` by the shield's paper for one release, and ``holds``, the guarantee for a
        training record over all releases, as strings; ``published``, if the paper has this
        setting, and the ``difference`` of ``plain_edge`` from it.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`.
    """
    rows = [row for run in open_runs_of("split", runs) for row in _accuracy_rows(run)]
    columns = ["run", "experiment", "case", "shield", "epsilon", "batch_size", "front", "cut"]
    frame = pd.DataFrame(rows, columns=[*columns, *TESTS, "claimed", "holds", "published"])
    frame = frame.astype(dict.fromkeys(("epsilon", *TESTS, "published"), "float64"))
    return frame.assign(difference=frame["plain_edge"] - frame["published"])


def split_costs(runs: RunPaths) -> pd.DataFrame:
    """Return the costs of each device: Figures 8 and 11 of paper 004.

    Returns
    -------
    DataFrame
        A row per run, case and device: ``run, case, node``; mean bytes per epoch, as
        measured and by the paper's formula: ``bytes_up, formula_up, bytes_down,
        formula_down`` (the formula counts only the loss, but a gradient must come down);
        milliseconds per batch: ``forward_ms, backward_ms``.
    """
    rows = [row for run in open_runs_of("split", runs) for row in _cost_rows(run)]
    columns = ["run", "case", "node", *COSTS, "forward_ms", "backward_ms"]
    return pd.DataFrame(rows, columns=columns)


def case_settings(run: Run) -> dict[str, SplitConfig]:
    """Return the settings of each case of a run.

    Raises
    ------
    RequestError
        If another version of Pudica, with other settings, wrote the run.
    """
    return run.section("split", SplitConfig).each_case()


def configured_epsilon(settings: SplitConfig) -> float | None:
    """Return the ε in a shield's settings; None without noise."""
    budget = settings.budget
    return budget.epsilon if budget else getattr(settings.shield, "epsilon", None)


def _accuracy_rows(run: Run) -> Iterator[dict[str, Any]]:
    rows = run.frame
    rows = rows[(rows["stage"] == "test") & (rows["node"] == CLOUD)]
    if rows.empty:  # the run may be in progress, without a ledger
        return
    claimed, verdicts = claims(run.directory), verdict(run.directory)
    for case, settings in case_settings(run).items():
        own = rows[rows["case"] == case]
        if own.empty:
            continue
        yield {
            "run": run.name,
            "experiment": run.info.get("experiment", ""),
            "case": case,
            "shield": settings.shield.name,
            "epsilon": configured_epsilon(settings),
            "batch_size": settings.batch_size,
            "front": settings.front,
            "cut": settings.cut,
            **{name: _accuracy(own, *which) for name, which in TESTS.items()},
            "claimed": str(claimed.get(case, "nothing")),
            "holds": str(verdicts[case]),
            "published": _published_value(run, settings),
        }


def _accuracy(rows: pd.DataFrame, release: str, classified: str) -> float | None:
    found = rows[(rows["release"] == release) & (rows["classified"] == classified)]["value"]
    return 100 * float(found.iloc[-1]) if len(found) else None


@cache
def _load_paper_table() -> pd.DataFrame:
    with (files("pudica.analysis") / "paper" / "split_laplace_mnist.csv").open() as file:
        return pd.read_csv(file)


def _published_value(run: Run, settings: SplitConfig) -> float | None:
    """Return paper 002's accuracy for a setting; it was measured with S = √(N−1)."""
    kind = PUBLISHED.get(settings.shield.name)
    as_measured = getattr(settings.shield, "sensitivity", "experiments") == "experiments"
    epsilon = configured_epsilon(settings)
    if run.settings["data"]["name"] != "mnist" or kind is None:
        return None
    if epsilon is None:
        kind = "centralised without noise"
    elif not as_measured:
        return None
    table = _load_paper_table()
    same = (table["setting"] == kind) & (table["batch_size"] == settings.batch_size)
    same &= table["epsilon"].isna() if epsilon is None else table["epsilon"] == epsilon
    return float(table[same]["test_accuracy"].iloc[0]) if same.any() else None


PUBLISHED: Mapping[str, str] = {
    "batch-norm-laplace": "activation noise",
    "pixel-laplace": "raw pixel noise",
}


def _cost_rows(run: Run) -> Iterator[dict[str, Any]]:
    rows = run.frame
    rows = rows[rows["stage"] == "costs"]
    for case in rows["case"].unique():
        wide = rows[rows["case"] == case].pivot_table(
            index="node", columns="metric", values="value", sort=False
        )
        seconds = _seconds_by_node(run, case)
        for node in [name for name in run.nodes if name in wide.index]:
            found = {key: float(wide.loc[node, key]) for key in COSTS}
            yield {"run": run.name, "case": case, "node": node, **found, **seconds.get(node, {})}


def _seconds_by_node(run: Run, case: str) -> dict[str, dict[str, float]]:
    path = run.directory / case / "costs.csv"
    if not path.is_file():
        return {}
    table = read_csv(path, "node").set_index("node")[["forward_ms", "backward_ms"]]
    rows = table.to_dict("index").items()
    return {str(node): {str(k): float(v) for k, v in row.items()} for node, row in rows}


MAX_ROWS = 8
SETTINGS = ("shield", "epsilon", "batch_size", "front", "cut")


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables that ``pudica show`` prints, by title."""
    found = {"Test accuracy": split_accuracy(runs).drop(columns=[*SETTINGS])}
    if found["Test accuracy"]["published"].isna().all():
        found["Test accuracy"] = found["Test accuracy"].drop(columns=["published", "difference"])
    costs = split_costs(runs)
    found["What a device pays, per epoch and per batch"] = (
        costs if len(costs) <= MAX_ROWS else _average_devices(costs)
    )
    return drop_run_names(found, runs)


def _average_devices(costs: pd.DataFrame) -> pd.DataFrame:
    """Average over a case's devices, if there are too many for a table."""
    groups = costs.groupby(["run", "case"], sort=False)
    mean = groups.mean(numeric_only=True)
    mean.insert(0, "devices", groups.size())
    return mean.reset_index()
