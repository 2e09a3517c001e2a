"""The frontier: what each protection costs, and what the best attack on it still gets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from pudica.analysis.attacks.base import CLEAR, GOALS
from pudica.analysis.attacks.registry import attacks
from pudica.analysis.comparison import compare
from pudica.analysis.runs import Run, RunPaths, find_value, open_runs, select
from pudica.analysis.spread import average_seeds, group_by_seed
from pudica.clients.data import DataConfig, load
from pudica.clients.data.errors import DataError
from pudica.clients.runtime.systems import systems
from pudica.models.errors import RequestError
from pudica.models.randomness import derive

REASONS = "attacks.json"
"""In a case's folder: why attacks measured nothing."""
STAGE = "attack "
ONCE = "_once"
"""How names of measurements of the last release alone end."""
CELL_LABELS = ("run", "system", "case", "attack", "goal")
RATES = ("success", "low", "high", "chance", "in_the_clear")
CELL_NUMBERS = ("releases", *RATES, "psnr", "psnr_of_the_mean", "seconds")
CELL_KEYS = ("case", "attack", "goal", "releases")
BEST = ("", "_low", "_high", "_chance")
COSTS = ("edge_parameters", "bytes_per_image")


def attack_cells(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return every attack on every case: how far it came, or why it did not begin.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        Of any systems; errors as of :func:`pudica.analysis.load`.
    spread : bool
        Whether seeds are taken together as by :func:`pudica.analysis.compare`.

    Returns
    -------
    DataFrame
        A row per run, case, attack, ``goal`` (one of :data:`.GOALS`) and number of ``releases`` of
        an image that it saw. In per cent ``success`` with its 95 % interval over images ``low`` to
        ``high``, ``chance``, what a blind guess reaches, and ``in_the_clear``, the same where
        nothing protects, of all releases; ``psnr`` in dB of images that were drawn, and of the mean
        image, which needs no attack; ``seconds``, with the control.
        ``assumes`` is what the attack needs beyond the view of an honest but curious adversary.
        Where nothing was measured, ``reason`` says why.
    """
    opened = open_runs(runs)
    rows = [row for run in opened for row in _iterate_cells(run)]
    frame = pd.DataFrame(rows, columns=[*CELL_LABELS, *CELL_NUMBERS, "assumes", "reason"])
    frame = frame.astype(dict.fromkeys(CELL_NUMBERS, "float64"))
    return average_seeds(frame, opened, CELL_KEYS, spread)


def frontier(runs: RunPaths, spread: bool = True) -> pd.DataFrame:
    """Return all methods of all systems, what they cost, and what attacks still get.

    Parameters
    ----------
    runs, spread
        As of :func:`attack_cells`.

    Returns
    -------
    DataFrame
        The columns of :func:`pudica.analysis.compare`, with ``edge_parameters`` and
        ``bytes_per_image``, the case's traffic per image of the data. Then for each goal of
        attacks, in per cent, the success of the best one that assumes nothing more than the view,
        with the ends of its interval over images and chance (``image``, ``image_low``,
        ``image_high``, ``image_chance``), and which it was (``image_by``); the best is that whose
        interval begins furthest above chance, on average over seeds. ``psnr`` in dB of the best
        drawings, beside that of the mean image, and what drew them (``psnr_by``).
    """
    opened = open_runs(runs)
    table, cells = compare(opened, spread=False), attack_cells(opened, spread=False)
    groups = group_by_seed(opened)
    by_name = {run.name: run for run in opened}
    rows = [
        {
            **row,
            **_describe_costs(by_name[row["run"]], row["case"], row["bytes"]),
            **_find_best(cells, groups, row["run"], row["case"]),
        }
        for row in table.to_dict("records")
    ]
    numbers = [*COSTS, *(f"{goal}{end}" for goal in GOALS for end in BEST)]
    numbers += ["psnr", "psnr_of_the_mean"]
    labels = [*(f"{goal}_by" for goal in GOALS), "psnr_by"]
    frame = pd.DataFrame(rows, columns=[*table.columns, *numbers, *labels])
    frame = frame.astype(dict.fromkeys(numbers, "float64"))
    return average_seeds(frame, opened, ["case"], spread)


def of_all_releases(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells that saw most releases of each image, where attacks tried several.

    Where some seeds say only why nothing was measured, those that measured something.
    """
    keys = ["run", "case", "attack", "goal"]
    ordered = cells.assign(measured=cells["success"].notna(), seen=cells["releases"].fillna(0))
    ordered = ordered.sort_values(["measured", "seen"], kind="stable")
    return ordered.drop_duplicates(keys, keep="last")[list(cells)]


def attack_tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return what was measured of :func:`attack_cells` by its title, if anything was attacked."""
    cells = attack_cells(runs).dropna(subset=["success"])
    found = cells.drop(columns=["reason", "seconds", "system"]).dropna(axis="columns", how="all")
    return {"How far attacks come (%)": found} if len(found) else {}


def read_reasons(directory: Path) -> dict[str, str]:
    """Return why attacks on a case measured nothing, by their kind."""
    path = directory / REASONS
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["reasons"]
        return {str(kind): str(reason) for kind, reason in values.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is damaged; delete it, and attack again") from error


def _iterate_cells(run: Run) -> Iterator[dict[str, Any]]:
    system = systems().get(str(run.info.get("system")))
    own = select(run.frame, node="cloud")
    measured = own[own["stage"].str.startswith(STAGE)]
    if "attribute" in measured:
        measured = measured[measured["attribute"].isna()]
    listed = dict.fromkeys([*_list_cases(run), *measured["case"]])
    for case in listed:
        labels = {"run": run.name, "system": system.name if system else "", "case": case}
        frame = measured[measured["case"] == case]
        for stage in frame["stage"].drop_duplicates():
            kind = stage.removeprefix(STAGE)
            yield from _describe_cells(labels, kind, frame[frame["stage"] == stage])
        known = {stage.removeprefix(STAGE) for stage in frame["stage"]}
        for kind, reason in read_reasons(run.directory / case).items():
            if kind in known:
                continue
            yield {**labels, **_describe_attack(kind), "reason": reason}


def _list_cases(run: Run) -> list[str]:
    """Return the cases that were attacked, in the experiment's order."""
    found = [path.parent.name for path in sorted(run.directory.glob(f"*/{REASONS}"))]
    listed = list(run.settings.get(str(run.info.get("system")), {}).get("cases") or {})
    return sorted(found, key=lambda case: listed.index(case) if case in listed else len(listed))


def _describe_attack(kind: str) -> dict[str, str]:
    attack = attacks().get(kind)  # one that was installed then may not be now
    goal, assumes = (attack.goal, attack.assumes) if attack else ("", "")
    return {"attack": kind, "goal": goal, "assumes": assumes}


def _describe_cells(
    labels: Mapping[str, str], kind: str, frame: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Yield what an attack reached of its own goal, and of each further one."""
    common: dict[str, Any] = {**labels, **_describe_attack(kind), "reason": ""}
    common["seconds"] = find_value(frame, metric="seconds")
    rates = {"success": "success", "low": "success_low", "high": "success_high"}
    rates |= {"chance": "chance", "in_the_clear": f"success{CLEAR}"}
    others = ("releases", "psnr", "psnr_of_the_mean")
    measured = {name: find_value(frame, 100, metric=metric) for name, metric in rates.items()}
    measured |= {name: find_value(frame, metric=name) for name in others}
    if find_value(frame, metric=f"success{ONCE}") is not None:
        ends = {name: rates[name] + ONCE for name in ("success", "low", "high")}
        one = {name: find_value(frame, 100, metric=metric) for name, metric in ends.items()}
        one["psnr"] = find_value(frame, metric=f"psnr{ONCE}")
        yield {**common, **measured, **one, "releases": 1.0}
    yield {**common, **measured}
    attack = attacks().get(kind)
    for goal, metric in attack.further.items() if attack else ():
        success = find_value(frame, 100, metric=metric)
        yield {**common, "goal": goal, "success": success, "chance": 0.0, "seconds": None}


def _find_best(
    cells: pd.DataFrame, groups: Mapping[str, str], run: str, case: str
) -> dict[str, Any]:
    """Return the best attack of each goal that needs nothing but the view."""
    alike = cells["run"].map(groups) == groups[run]
    own = cells[alike & (cells["case"] == case) & (cells["assumes"] == "")]
    own = of_all_releases(own)
    found: dict[str, Any] = {}
    for goal in GOALS:
        tried = own[own["goal"] == goal].dropna(subset=["success"])
        if tried.empty:
            continue
        best = _choose_best(tried)
        mine = own[(own["run"] == run) & (own["attack"] == best) & (own["goal"] == goal)]
        if len(mine):
            row = mine.iloc[0]
            ends = {f"{goal}_{end}": row[end] for end in ("low", "high", "chance")}
            found |= {goal: row["success"], **ends, f"{goal}_by": best}
    drawn = own.dropna(subset=["psnr"])
    if len(drawn):
        best = str(drawn.groupby("attack", sort=False)["psnr"].mean().idxmax())
        found["psnr_by"] = best
        drawn = drawn[(drawn["run"] == run) & (drawn["attack"] == best)]
    if len(drawn):
        row = drawn.iloc[0]
        found |= {"psnr": row["psnr"], "psnr_of_the_mean": row["psnr_of_the_mean"]}
    return found


def _choose_best(cells: pd.DataFrame) -> str:
    """Return the attack whose interval begins furthest above chance, on average over seeds.

    Of those that were measured for most seeds; a lucky hit among few images makes no best attack.
    """
    grouped = _above_chance(cells).groupby(cells["attack"], sort=False)
    counts = grouped.count()
    return str(grouped.mean()[counts == counts.max()].idxmax())


def _above_chance(cells: pd.DataFrame) -> pd.Series:
    """Return how far an interval begins above chance, as a share of what there is above it."""
    chance, least = cells["chance"].fillna(0), cells["low"].fillna(cells["success"])
    return (least - chance) / (100 - chance).clip(lower=1e-9)


def _describe_costs(run: Run, case: str, traffic: float | None) -> dict[str, Any]:
    parameters = find_value(run.frame, stage="costs", metric="edge_parameters", case=case)
    images = _count_images(run)
    return {
        "edge_parameters": parameters,
        "bytes_per_image": math.nan if traffic is None or not images else traffic / images,
    }


def _count_images(run: Run) -> int:
    """Return how many images the run's data have; 0 where they are not here."""
    data = json.dumps(run.settings.get("data", {}), sort_keys=True)
    return _count_images_of(data, int(run.info.get("seed", 0)))


@lru_cache(maxsize=64)
def _count_images_of(data: str, seed: int) -> int:
    try:
        splits = load(DataConfig.model_validate_json(data), derive(seed, "data"))
    except (DataError, RequestError, ValueError):
        return 0
    return sum(len(part) for part in (splits.train, splits.validation, splits.test))


def order_attacks(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the attacks of a table with their goals, those of a goal together."""
    places = {kind: place for place, kind in enumerate(attacks())}
    pairs = dict.fromkeys(zip(cells["goal"], cells["attack"], strict=True))
    goals: Sequence[str] = [*GOALS, ""]
    return sorted(pairs, key=lambda pair: (goals.index(pair[0]), places.get(pair[1], len(places))))
