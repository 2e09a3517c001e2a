"""What a study is made of: experiments, settings and seeds, and the cells they give."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pudica.analysis.spread import flatten, label_variants
from pudica.models.errors import RequestError
from pudica.models.files import write_atomically
from pudica.models.naming import validate_case_name
from pudica.simulations.console import print_message
from pudica.strategies.core.experiment import Experiment
from pudica.strategies.loading import load_experiment, read_settings

PLAN = "study.yaml"
LONGEST_NAME = 100
MOST_CELLS = 10_000

Grid = dict[str, Any]


def parse_seeds(seeds: object) -> object:
    """Return seeds as a list; text such as ``0-4`` or ``0,2,5-7`` names ranges with their ends."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return [seeds]
    if not isinstance(seeds, str):
        return seeds
    found: list[int] = []
    for part in seeds.split(","):
        if not (match := re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)):
            raise ValueError(f"'{seeds}': write seeds as in 0-4 or 0,2,5-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MOST_CELLS:
            raise ValueError(f"'{part.strip()}': the last of a range comes after the first")
        found += range(first, last + 1)
    return found


def _wrap_grid(grids: object) -> object:
    return [grids] if isinstance(grids, dict) else grids


def _wrap_name(variant: object) -> object:
    return {"experiment": variant} if isinstance(variant, str) else variant


Grids = Annotated[tuple[Grid, ...], BeforeValidator(_wrap_grid), Field(min_length=1)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(parse_seeds)]


class StudiedExperiment(BaseModel):
    """An experiment of a study, with settings of its own.

    Attributes
    ----------
    experiment : str
        A name from ``pudica list``, or a YAML file.
    set : dict or list of dict
        As of :class:`StudyConfig`, for this experiment only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: str
    set: Grids = ({},)


class StudyConfig(BaseModel):
    """A study: every experiment with every combination of settings and every seed.

    Attributes
    ----------
    description : str
    experiments : list of StudiedExperiment or str
    set : dict or list of dict
        Settings by dotted key. A list is a list of alternatives, all of which are combined with
        those of the other keys; a value that is a list itself is written as a list in a list.
        Several mappings are taken one after the other.
    seeds : str, int or list of int
        Such as ``0-4``; none: each experiment's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(validate_case_name)] = "study"
    description: str = ""
    experiments: tuple[Annotated[StudiedExperiment, BeforeValidator(_wrap_name)], ...] = Field(
        min_length=1
    )
    set: Grids = ({},)
    seeds: Seeds = ()


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes
    ----------
    name : str
        Of its folder in the study's directory.
    experiment : str
        A name from ``pudica list``, or a YAML file.
    settings : dict
        What is set otherwise than there, by dotted key; also the seed.
    """

    name: str
    experiment: str
    settings: dict[str, Any]


Config = TypeVar("Config", bound=StudyConfig)


def read_study(path: Path, schema: type[Config]) -> Config:
    """Return the study that a YAML file describes; experiments' files are below its folder.

    Raises
    ------
    RequestError
        Names file, key, value and what is allowed.
    """
    config = read_settings(schema, path)
    experiments = [
        own.model_copy(update={"experiment": _locate(path.parent, own.experiment)})
        for own in config.experiments
    ]
    name = path.stem if config.name == "study" else config.name
    return config.model_copy(update={"experiments": tuple(experiments), "name": name})


def _locate(folder: Path, experiment: str) -> str:
    is_file = experiment.endswith((".yaml", ".yml"))
    return str((folder / Path(experiment).expanduser()).absolute()) if is_file else experiment


def is_study(source: str) -> bool:
    """Return whether a source is a YAML file that describes a study, not a single experiment."""
    path = Path(source)
    if not source.endswith((".yaml", ".yml")) or not path.is_file():
        return False
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False  # reading it as an experiment says what is wrong
    return isinstance(values, dict) and "experiments" in values


def expand(config: StudyConfig) -> tuple[Cell, ...]:
    """Return the cells of a study, in the order of its lists; the last key varies fastest.

    Raises
    ------
    RequestError
        If two cells are the same, or there are too many.
    """
    parts = [part for own in config.experiments for part in _expand_experiment(config, own)]
    if len(parts) > MOST_CELLS:
        raise RequestError(f"the study has {len(parts)} runs; at most {MOST_CELLS} are allowed")
    labels = label_variants(
        [{"": _short_name(source), **_without_seed(settings)} for source, settings in parts]
    )
    cells: dict[str, Cell] = {}
    known: set[str] = set()
    for (source, settings), label in zip(parts, labels, strict=True):
        seed = f" seed={settings['seed']}" if "seed" in settings else ""
        whole = json.dumps([source, settings], sort_keys=True, default=str)
        if whole in known:
            raise RequestError(
                f"two runs of the study are the same: {label}{seed}; name each value and seed once"
            )
        known.add(whole)
        name = _name_folder(f"{label}{seed}")
        if name in cells:  # settings that are the same in short
            name = _mark_name(name, whole)
        cells[name] = Cell(name, source, settings)
    return tuple(cells.values())


def _expand_experiment(
    config: StudyConfig, own: StudiedExperiment
) -> Iterator[tuple[str, dict[str, Any]]]:
    for shared, special in itertools.product(config.set, own.set):
        for settings in expand_grid({**shared, **special}):
            for seed in config.seeds or (None,):
                yield own.experiment, settings | ({} if seed is None else {"seed": seed})


def expand_grid(grid: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the alternatives of all keys."""
    choices = [value if isinstance(value, list) else [value] for value in grid.values()]
    for chosen in itertools.product(*choices):
        yield dict(zip(grid, chosen, strict=True))


def _without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return flatten({key: value for key, value in settings.items() if key != "seed"})


def _short_name(source: str) -> str:
    return Path(source).stem if source.endswith((".yaml", ".yml")) else source


def _name_folder(label: str) -> str:
    """Return a label as a folder's name; what no folder's name may have is replaced."""
    name = re.sub(r"[^\w.,=+()~-]", "_", label.replace(" ", ","))
    if len(name) <= LONGEST_NAME and name == label.replace(" ", ","):
        return name
    return _mark_name(name, label)


def _mark_name(name: str, whole: str) -> str:
    """Return a name that tells from others what it leaves out."""
    mark = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}~{mark}"


def build_experiments(cells: Sequence[Cell]) -> dict[str, Experiment]:
    """Return the validated experiment of each cell, by name, and say what is noted of the data.

    Data are read and models built once for each combination of settings.

    Raises
    ------
    RequestError
        Names the cell, and what is wrong with its settings.
    """
    experiments: dict[str, Experiment] = {}
    checked: set[str] = set()
    notes: dict[str, None] = {}
    for cell in cells:
        overrides = [f"{key}={json.dumps(value)}" for key, value in cell.settings.items()]
        try:
            experiment = load_experiment(cell.experiment, overrides)
            key = experiment.model_dump_json(exclude={"seed"})
            if key not in checked:
                notes |= dict.fromkeys(experiment.check().notes)
            checked.add(key)
        except RequestError as error:
            raise RequestError(f"{cell.name}: {error}") from error
        experiments[cell.name] = experiment
    for note in notes:
        print_message(f"data: {note}")
    return experiments


def write_plan(directory: Path, config: StudyConfig, cells: Sequence[Cell]) -> None:
    """Write the study's plan, and each cell's experiment as resolved, into its directory."""
    values = {
        "name": config.name,
        "description": config.description,
        "cells": [asdict(cell) for cell in cells],
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_atomically(directory / PLAN, text.encode())


def read_plan(directory: Path) -> tuple[Cell, ...]:
    """Return the cells of a study that was begun.

    Raises
    ------
    RequestError
        If the directory holds no study, or its plan is damaged.
    """
    path = directory / PLAN
    if not path.is_file():
        raise RequestError(f"{directory} holds no study (there is no {PLAN} in it)")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        cells = tuple(Cell(**cell) for cell in values["cells"])
        if any(c.name != _name_folder(str(c.name)) or c.name[:1] in (".", "") for c in cells):
            raise ValueError("a cell's name is no folder's")
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path}: can't be read: {error}") from error
    return cells
