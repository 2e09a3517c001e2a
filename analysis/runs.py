"""Runs on disk as tidy frames.

A frame has a row per measurement. The order of its rows depends only on the measurements, never on
which node answered first, so two runs of the same experiment and seed give the same frame.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob, has_magic
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml
from pydantic import BaseModel, ValidationError

from pudica.clients.data.registry import DISGUISED
from pudica.models.errors import RequestError

FILES = ("run.json", "experiment.yaml", "metrics.jsonl")
COLUMNS = {
    **dict.fromkeys(("run", "system", "experiment", "case", "stage"), "str"),
    "round": "int64",
    **dict.fromkeys(("node", "metric"), "str"),
    "value": "float64",
    "release": "str",
    **dict.fromkeys(("M", "draw"), "float64"),
}
"""The columns of every frame, and their types."""
REQUIRED = {"stage", "round", "node", "metric", "value"}
STAGES = (
    *("local", "generator", "density", "evaluation", "protection", "leaderboard"),
    *("pretraining", "training", "validation", "test", "costs", "measures", "breaks"),
    *("serving", "attack attributes", "attack identity"),
    *("attack separation", "attack reconstruction"),
    *("attack inversion", "attack matching", "attack labels"),
    *("attack gradient-inversion", "attack label-inference"),
    *("attack hijacking", "attack audit"),
)
SERVERS = ("organiser", "cloud")
ATTACKS = "*/attack-*.jsonl"
"""Measurements of ``pudica attack``, by case."""

Section = TypeVar("Section", bound=BaseModel)


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes
    ----------
    name : str
        The directory's name, preceded by as much of its path as distinguishes runs opened
        together.
    directory : Path
    info : dict
        ``run.json``.
    settings : dict
        ``experiment.yaml``, as resolved.
    """

    name: str
    directory: Path
    info: dict[str, Any]
    settings: dict[str, Any]

    @property
    def nodes(self) -> list[str]:
        """The nodes' names, in the experiment's order."""
        return list(self.info.get("nodes", []))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Measurements of the run and of attacks on it; columns as in :func:`load`."""
        files = [self.directory / "metrics.jsonl", *sorted(self.directory.glob(ATTACKS))]
        rows = sorted((row for file in files for row in _read_rows(file)), key=self._sort_key)
        texts = (name for name, kind in COLUMNS.items() if kind == "str")
        own = {
            **dict.fromkeys(texts, ""),
            "run": self.name,
            "system": self.info.get("system", ""),
            "experiment": self.info.get("experiment", ""),
        }
        frame = pd.DataFrame([{**own, **row} for row in rows])
        further = sorted(set(frame.columns) - set(COLUMNS))
        return frame.reindex(columns=[*COLUMNS, *further]).astype(COLUMNS)

    @property
    def disguise(self) -> str:
        """How images were disguised before the system saw them, empty if they were not."""
        data = self.settings.get("data", {})
        by = data.get("shield") or ("on disk" if data.get("name") == DISGUISED else "")
        keys = dict.fromkeys(key for key in self.info.get("keys", {}).values() if key)
        return f"{by}, key {', '.join(keys)}" if by and keys else by

    def curves(self, stage: str, metric: str, release: str = "") -> pd.DataFrame:
        """Return the server's measurements over all nodes: a row per round, a column per case."""
        rows = select(self.frame, stage=stage, metric=metric, release=release)
        rows = rows[rows["node"].isin(SERVERS)]
        wide = rows.pivot_table(index="round", columns="case", values="value", sort=False)
        return wide.sort_index()

    def section(self, key: str, schema: type[Section]) -> Section:
        """Return a section of the experiment's settings.

        Raises
        ------
        RequestError
            If another version of Pudica, with other settings, wrote the run.
        """
        try:
            return schema.model_validate(self.settings.get(key, {}))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RequestError(
                f"{self.directory / 'experiment.yaml'}: {key}.{where}: {first['msg']}"
            ) from error

    def _sort_key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        cases = list(self.settings.get(self.info.get("system", ""), {}).get("cases") or {})
        return (
            _position(STAGES, str(row["stage"])),
            _position(["", *cases], str(row.get("case", ""))),
            str(row.get("release", "")),
            row.get("M", -1),
            row.get("draw", -1),
            row["round"],
            _position([*SERVERS, *self.nodes], str(row["node"])),
            str(row["metric"]),
            # Rows may still differ in tags unknown here.
            json.dumps(row, sort_keys=True),
        )


RunPaths = str | Path | Sequence[str | Path] | Sequence[Run]


def load(runs: RunPaths) -> pd.DataFrame:
    """Return all measurements of any number of runs.

    Parameters
    ----------
    runs : str, Path, or a sequence of these
        Run directories, folders that hold runs, or globs.

    Returns
    -------
    DataFrame
        ``run, system, experiment, case, stage, round, node, metric, value, release, M, draw``,
        then all other tags of the measurements. Accuracies are in [0, 1]. Strings that do not
        apply are empty, numbers NaN; measurements shared by all cases have the case ``""``.

    Raises
    ------
    RequestError
        If nothing is found, a directory is not a run, or one of its files is damaged.
    """
    return pd.concat([run.frame for run in open_runs(runs)], ignore_index=True)


def describe(run: str | Path) -> dict[str, Any]:
    """Return everything about a run except its measurements.

    Returns
    -------
    dict
        ``run.json`` (status, seed, versions, hardware; once it ended, seconds per stage and
        bytes per exchange), with ``directory`` and the resolved experiment as ``settings``.

    Raises
    ------
    RequestError
        As :func:`load`; or if there is more than one run.
    """
    opened = open_run(run)
    own = {"run": opened.name, "directory": opened.directory, "settings": opened.settings}
    return opened.info | own


def select(rows: pd.DataFrame, **tags: Any) -> pd.DataFrame:
    """Return the measurements with these tags; none if they have no such tag at all."""
    for name, tag in tags.items():
        rows = rows[rows[name] == tag] if name in rows else rows[:0]
    return rows


def find_value(rows: pd.DataFrame, scale: float = 1.0, **tags: Any) -> float | None:
    """Return the last of the measurements with these tags, times ``scale``; None without any."""
    found = select(rows, **tags)["value"]
    return scale * float(found.iloc[-1]) if len(found) else None


def find(runs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the matching run directories, without duplicates; arguments as in :func:`load`."""
    places = [runs] if isinstance(runs, str | Path) else runs
    found = [path.resolve() for place in places for path in _resolve(place)]
    if not found:
        raise RequestError("no run was named")
    return list(dict.fromkeys(found))


def open_runs(runs: RunPaths) -> list[Run]:
    """Open the matching runs under distinct names; runs that are open are returned unchanged."""
    places = [runs] if isinstance(runs, str | Path) else list(runs)
    opened = [place for place in places if isinstance(place, Run)]
    if opened:
        return opened
    directories = find([place for place in places if not isinstance(place, Run)])
    return [
        Run(
            name,
            path,
            _read_mapping(path / "run.json", json.loads),
            _read_mapping(path / "experiment.yaml", yaml.safe_load),
        )
        for path, name in zip(directories, _distinct_names(directories), strict=True)
    ]


def open_runs_of(system: str, runs: RunPaths) -> list[Run]:
    """Open the matching runs of one system."""
    return [run for run in open_runs(runs) if run.info.get("system") == system]


def open_run(run: str | Path) -> Run:
    """Open the single matching run."""
    found = open_runs(run)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise RequestError(f"{run}: holds {len(found)} runs, name one of them: {names}")
    return found[0]


def _read_mapping(path: Path, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise RequestError(f"{path}: can't be read: {error}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path}: must hold a mapping")
    return content


# ------------------------------------------------------------------------ finding runs


def _resolve(place: str | Path) -> list[Path]:
    path = Path(place)
    if path.is_dir():
        if found := _find_below(path):
            return found
        lacking = [name for name in FILES if not (path / name).is_file()]
        raise RequestError(f"{path} is no run, and holds none: it lacks {', '.join(lacking)}")
    if path.exists():
        raise RequestError(f"{path} is a file; name the run's directory")
    matches = map(Path, sorted(glob(str(place), recursive=True))) if has_magic(str(place)) else ()
    found = [run for match in matches if match.is_dir() for run in _find_below(match)]
    if not found:
        raise RequestError(f"nothing found at {path}")
    return found


def _find_below(path: Path) -> list[Path]:
    if _is_run(path):
        return [path]
    return [file.parent for file in sorted(path.rglob("run.json")) if _is_run(file.parent)]


def _is_run(path: Path) -> bool:
    return all((path / name).is_file() for name in FILES)


def _distinct_names(directories: Sequence[Path]) -> list[str]:
    """Return each directory's name, preceded by parent names where needed to be distinct."""
    depths = dict.fromkeys(directories, 1)
    while True:
        names = ["/".join(path.parts[-depth:]) for path, depth in depths.items()]
        clashing = [p for p, name in zip(directories, names, strict=True) if names.count(name) > 1]
        if not clashing:
            return names
        for path in clashing:
            depths[path] += 1


# --------------------------------------------------------------------- reading metrics


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows; an incomplete last line, left by a killed or running process, is dropped."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            complete = isinstance(row, dict) and row.keys() >= REQUIRED
        except ValueError:
            complete = False
        if complete:
            yield row
        elif number == len(lines):
            warnings.warn(f"{path}: the last line is cut off and left out", stacklevel=2)
        else:
            text = line.decode(errors="replace")
            shown = text if len(text) <= 60 else f"{text[:60]}…"
            raise RequestError(f"{path}, line {number}: not a measurement: {shown}")


def _position(order: Sequence[str], item: str) -> tuple[int, str]:
    """Return an item's position in an order; unknown items come last, by name."""
    return (order.index(item) if item in order else len(order), item)
