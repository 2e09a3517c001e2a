"""The tables of split learning from runs, beside the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from pudica.analysis.privacy import claims, verdict
from pudica.analysis.runs import Run, RunPaths, runs_of
from pudica.strategies.core.session import CLOUD
from pudica.strategies.core.spreadsheets import read_csv
from pudica.strategies.split.config import SplitConfig

# What is measured in the end: with noise or without, classified by the devices or the cloud.
TESTS = {
    "plain_edge": ("plain", "edge"),
    "noisy_edge": ("noisy", "edge"),
    "plain_cloud": ("plain", "cloud"),
    "noisy_cloud": ("noisy", "cloud"),
}
COSTS = ("bytes_up", "formula_up", "bytes_down", "formula_down")


def split_accuracy(runs: RunPaths) -> pd.DataFrame:
    """Return how good each case's model is, with noise and without.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        As of :func:`pudica.analysis.load`.

    Returns
    -------
    DataFrame
        A row per run and case: ``run, experiment, case``; ``shield``, its ``epsilon`` as set
        (missing: no noise), ``batch_size``, ``front``, ``cut``; accuracies on all test images in
        per cent, ``plain_edge, noisy_edge, plain_cloud, noisy_cloud``, as far as they were
        measured; ``claimed`` of one release by the shield's paper and ``holds`` for a training
        record in all releases, as texts; ``published``, where the paper has this setting, and
        ``difference``, that of ``plain_edge`` from it.

    Raises
    ------
    RequestError
        As of :func:`pudica.analysis.load`.
    """
    rows = [row for run in runs_of("split", runs) for row in _accuracies(run)]
    columns = ["run", "experiment", "case", "shield", "epsilon", "batch_size", "front", "cut"]
    frame = pd.DataFrame(rows, columns=[*columns, *TESTS, "claimed", "holds", "published"])
    frame = frame.astype(dict.fromkeys(("epsilon", *TESTS, "published"), "float64"))
    return frame.assign(difference=frame["plain_edge"] - frame["published"])


def split_costs(runs: RunPaths) -> pd.DataFrame:
    """Return what each device pays: Figures 8 and 11 of paper 004.

    Returns
    -------
    DataFrame
        A row per run, case and device: ``run, case, node``; bytes an epoch, means over epochs,
        as measured and by the paper's formula: ``bytes_up, formula_up, bytes_down,
        formula_down`` (the formula counts the loss alone; what has to come down is a gradient);
        milliseconds a batch: ``forward_ms, backward_ms``.
    """
    rows = [row for run in runs_of("split", runs) for row in _costs(run)]
    columns = ["run", "case", "node", *COSTS, "forward_ms", "backward_ms"]
    return pd.DataFrame(rows, columns=columns)


def settings_of(run: Run) -> dict[str, SplitConfig]:
    """Return the settings of each case of a run.

    Raises
    ------
    RequestError
        It was written by a version of Pudica that had other settings.
    """
    return run.section("split", SplitConfig).each_case()


def epsilon_of(settings: SplitConfig) -> float | None:
    """Return the ε that a shield is set to; None without noise."""
    budget = settings.budget
    return budget.epsilon if budget else getattr(settings.shield, "epsilon", None)


def _accuracies(run: Run) -> Iterator[dict[str, Any]]:
    rows = run.frame
    rows = rows[(rows["stage"] == "test") & (rows["node"] == CLOUD)]
    if rows.empty:  # it may be going on, and have no ledger yet
        return
    said, verdicts = claims(run.directory), verdict(run.directory)
    for case, settings in settings_of(run).items():
        own = rows[rows["case"] == case]
        if own.empty:
            continue
        yield {
            "run": run.name,
            "experiment": run.info.get("experiment", ""),
            "case": case,
            "shield": settings.shield.name,
            "epsilon": epsilon_of(settings),
            "batch_size": settings.batch_size,
            "front": settings.front,
            "cut": settings.cut,
            **{name: _accuracy(own, *which) for name, which in TESTS.items()},
            "claimed": str(said.get(case, "nothing")),
            "holds": str(verdicts[case]),
            "published": _published(run, settings),
        }


def _accuracy(rows: pd.DataFrame, release: str, classified: str) -> float | None:
    found = rows[(rows["release"] == release) & (rows["classified"] == classified)]["value"]
    return 100 * float(found.iloc[-1]) if len(found) else None


@cache
def _paper() -> pd.DataFrame:
    with (files("pudica.analysis") / "paper" / "split_laplace_mnist.csv").open() as file:
        return pd.read_csv(file)


def _published(run: Run, settings: SplitConfig) -> float | None:
    """Return the accuracy that paper 002 has for a setting; it measured with S = √(N−1)."""
    kind = PUBLISHED.get(settings.shield.name)
    as_measured = getattr(settings.shield, "sensitivity", "experiments") == "experiments"
    epsilon = epsilon_of(settings)
    if run.settings["data"]["name"] != "mnist" or kind is None:
        return None
    if epsilon is None:
        kind = "centralised without noise"
    elif not as_measured:
        return None
    table = _paper()
    same = (table["setting"] == kind) & (table["batch_size"] == settings.batch_size)
    same &= table["epsilon"].isna() if epsilon is None else table["epsilon"] == epsilon
    return float(table[same]["test_accuracy"].iloc[0]) if same.any() else None


PUBLISHED: Mapping[str, str] = {
    "batch-norm-laplace": "activation noise",
    "pixel-laplace": "raw pixel noise",
}


def _costs(run: Run) -> Iterator[dict[str, Any]]:
    rows = run.frame
    rows = rows[rows["stage"] == "costs"]
    for case in rows["case"].unique():
        wide = rows[rows["case"] == case].pivot_table(
            index="node", columns="metric", values="value", sort=False
        )
        seconds = _seconds(run, case)
        for node in [name for name in run.nodes if name in wide.index]:
            found = {key: float(wide.loc[node, key]) for key in COSTS}
            yield {"run": run.name, "case": case, "node": node, **found, **seconds.get(node, {})}


def _seconds(run: Run, case: str) -> dict[str, dict[str, float]]:
    path = run.directory / case / "costs.csv"
    if not path.is_file():
        return {}
    table = read_csv(path, "node").set_index("node")[["forward_ms", "backward_ms"]]
    rows = table.to_dict("index").items()
    return {str(node): {str(k): float(v) for k, v in row.items()} for node, row in rows}
