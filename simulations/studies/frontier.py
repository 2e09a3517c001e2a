"""The frontier: a study whose runs are attacked in every way that fits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pudica import analysis
from pudica.analysis.attacks import Effort, attacks
from pudica.analysis.drawing import Figures, plot_style, save
from pudica.analysis.frontier_figures import draw_frontier
from pudica.analysis.frontiers import REASONS, attack_cells, frontier, read_reasons
from pudica.analysis.runs import Run, open_run
from pudica.analysis.views.releases import NothingCrossed
from pudica.clients.runtime.systems import systems
from pudica.models.compute import Compute
from pudica.models.errors import RequestError, unknown_name_error
from pudica.models.files import write_atomically
from pudica.simulations.attacking import attack_targets, list_targets, open_targets, validate_kinds
from pudica.simulations.runner import is_done
from pudica.simulations.studies.cells import Work, run_cell
from pudica.simulations.studies.plan import StudyConfig, read_plan, read_study
from pudica.simulations.studies.shipping import shipped_frontiers
from pudica.simulations.studies.study import Study, execute, override, prepare, prepare_resume
from pudica.strategies.core.experiment import ClientConfig, Experiment
from pudica.strategies.core.spreadsheets import write_csv

PLAN = "frontier.yaml"
NOTHING = "nothing leaves the nodes"
FAILED = "failed: "
DIED = f"{FAILED}its process ended before it did"


class EffortConfig(BaseModel):
    """How much effort each attack spends.

    Attributes
    ----------
    epochs : int
        Of training; each attack says what an epoch is.
    images : int, in images
        How many are attacked at most: an image is picked out of so many.
    requests : int, in requests
        How many requests to FaceMix's cloud are unmixed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=8, ge=1)
    images: int = Field(default=1000, ge=2)
    requests: int = Field(default=4, ge=1)


class FrontierConfig(StudyConfig):
    """A study, and how its runs are attacked.

    Attributes
    ----------
    effort : EffortConfig
    attacks : list of str
        Kinds of attacks; none: all.
    """

    effort: EffortConfig = EffortConfig()
    attacks: tuple[str, ...] = ()

    @field_validator("attacks")
    @classmethod
    def _validate_kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        validate_kinds(kinds)
        return kinds


class Plan(BaseModel):
    """What of a frontier's settings its directory keeps beside the study's plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    effort: EffortConfig
    attacks: tuple[str, ...]


class Frontier(Study):
    """A study whose runs were attacked."""

    @cached_property
    def runs(self) -> list[Run]:
        """The runs that have begun."""
        return self._runs()

    def frontier(self, spread: bool = True) -> pd.DataFrame:
        """Return methods, costs and the best attacks; see :func:`pudica.analysis.frontier`."""
        return frontier(self.runs, spread)

    def attack_cells(self, spread: bool = True) -> pd.DataFrame:
        """Return every attack on every method; see :func:`pudica.analysis.attack_cells`."""
        return attack_cells(self.runs, spread)

    def figures(self) -> Figures:
        """Draw the frontier."""
        return self._draw(self.frontier(), self.attack_cells())

    def save(self) -> list[Path]:
        """Write ``frontier.csv``, ``attacks.csv`` and the figures; return the figures' paths."""
        table, cells = self.frontier(), self.attack_cells()
        write_csv(table, self.directory / "frontier.csv")
        write_csv(cells, self.directory / "attacks.csv")
        folder = self.directory / "plots"
        with plot_style():
            drawn = self._draw(table, cells).items()
            return [save(figure, folder / f"{name}.png") for name, figure in drawn]

    def _draw(self, table: pd.DataFrame, cells: pd.DataFrame) -> Figures:
        with plot_style():
            drawn = draw_frontier(self.runs, table, cells)
            return Figures((name, figure) for name, figure in drawn if figure is not None)


def build_config(
    source: str | Path, settings: Mapping[str, Any], seeds: str | int | Sequence[int] | None
) -> FrontierConfig:
    """Return a frontier by its name or YAML file, with other settings or seeds.

    Raises
    ------
    RequestError
        Names file, key, value and what is allowed.
    """
    name = str(source)
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
    elif name in shipped_frontiers():
        path = shipped_frontiers()[name]
    else:
        raise unknown_name_error("frontier", name, shipped_frontiers())
    given: dict[str, Any] = {"set": dict(settings)} if settings else {}
    given |= {} if seeds is None else {"seeds": seeds}
    return override(read_study(path, FrontierConfig), given)


def prepare_frontier(config: FrontierConfig, out: Path) -> tuple[dict[str, Experiment], Path]:
    """Validate all runs, and make the directory; errors as of :func:`.prepare`."""
    experiments, directory = prepare(config, out)
    plan = Plan(effort=config.effort, attacks=config.attacks)
    text = yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False)
    write_atomically(directory / PLAN, text.encode())
    return experiments, directory


def resume_frontier(directory: Path, given: Sequence[object]) -> tuple[dict[str, Experiment], Path]:
    """Return the experiments and the directory of a frontier that was stopped.

    Raises
    ------
    RequestError
        There is none, or it is to be resumed with other settings.
    """
    read_frontier_plan(directory)
    return prepare_resume(directory, any(given), None, None)


def read_frontier_plan(directory: Path) -> Plan:
    """Return how the runs of a frontier's directory are attacked; else RequestError."""
    path = directory / PLAN
    if not path.is_file():
        raise RequestError(f"{directory} holds no frontier (there is no {PLAN} in it)")
    try:
        plan = Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        validate_kinds(plan.attacks)
        return plan
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RequestError(f"{path}: can't be read: {error}") from error


def run_frontier(
    source: str | Path | None = None,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002
    seeds: str | int | Sequence[int] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    workers: int | None = None,
) -> Frontier:
    """Run and attack all methods of a frontier: what ``pudica frontier`` does.

    Parameters
    ----------
    source : str or Path, optional
        A name of ``pudica list``, or a YAML file. Not needed to resume.
    set : mapping, optional
        Settings of all runs, by dotted key.
    seeds, out, resume, workers
        As of :func:`pudica.simulations.study`.

    Raises
    ------
    RequestError
        If the request is wrong; nothing was started then.
    """
    if resume is not None:
        prepared, directory = resume_frontier(Path(resume), [source, set, seeds])
    elif source is None:
        raise RequestError(f"name a frontier: {', '.join(shipped_frontiers())}, or a YAML file")
    else:
        config = build_config(source, set or {}, seeds)
        prepared, directory = prepare_frontier(config, Path(out or "results"))
    execute(prepared, directory, workers, quiet=True, work=ATTACKING)
    return Frontier(directory)


# ------------------------------------------------------------------------- in a worker


def run_and_attack(directory: str) -> str:
    """Run a cell, then attack it in every way that fits; return why the run failed, or "".

    An attack that fails, fails alone: its reason is kept with those that do not fit.
    """
    if reason := run_cell(directory):
        return reason
    path = Path(directory)
    attack_run(path, read_frontier_plan(path.parent))
    return ""


def is_attacked(directory: Path) -> bool:
    """Return whether a run is done and no attack on it is left to try."""
    if not is_done(directory):
        return False
    run, plan = open_run(directory), read_frontier_plan(directory.parent)
    kinds, effort = list_kinds(plan), build_effort(plan, run)
    return not any(_list_left(directory / case, kinds, effort) for case in list_cases(run))


ATTACKING = Work(run_and_attack, is_attacked)


def list_kinds(plan: Plan) -> list[str]:
    """Return the attacks of a frontier."""
    return list(plan.attacks or attacks())


def build_effort(plan: Plan, run: Run) -> Effort:
    """Return a run's effort; attacks draw from the run's seed."""
    effort = plan.effort
    return Effort(effort.epochs, effort.images, effort.requests, int(run.info["seed"]))


def list_cases(run: Run) -> list[str]:
    """Return the cases of a run that have a row in the frontier."""
    return list(analysis.compare([run], spread=False)["case"])


def attack_run(directory: Path, plan: Plan) -> None:
    """Attack all cases of a run, but for what was done before with the same effort."""
    run = open_run(directory)
    kinds, effort = list_kinds(plan), build_effort(plan, run)
    system = systems().get(str(run.info.get("system")))
    able = bool(system and system.targets)
    openers = list_targets(run) if able else {}
    reason = NOTHING if able else "the system names no targets"
    with Compute(run.section("client", ClientConfig)).use_threads():
        for case in list_cases(run):
            notes = Notes(directory / case, effort)
            left = _list_left(directory / case, kinds, effort)
            if left and case in openers:
                _attack_case(run, case, openers[case], left, notes)
            else:
                notes.add(dict.fromkeys(left, reason))


class Notes:
    """Why attacks on a case measured nothing, kept in a file.

    Parameters
    ----------
    place : Path
        The case's folder.
    effort : Effort
        Reasons that were found with another are forgotten.
    """

    def __init__(self, place: Path, effort: Effort) -> None:
        self.place, self.effort = place, effort
        self.reasons = _read_notes(place, effort)

    def add(self, reasons: Mapping[str, str]) -> None:
        """Note reasons by attack, in place of what was noted before."""
        self.reasons |= reasons
        self._write()

    def remove(self, kind: str) -> None:
        """Forget why an attack measured nothing: it did."""
        self.reasons.pop(kind, None)
        self._write()

    def _write(self) -> None:
        values = {"effort": self.effort._asdict(), "reasons": self.reasons}
        text = json.dumps(values, indent=2, ensure_ascii=False)
        write_atomically(self.place / REASONS, text.encode())


def _attack_case(run: Run, case: str, opener: Any, kinds: Sequence[str], notes: Notes) -> None:
    """Attack a case, and note why attacks did not begin, or failed."""

    def show(done: int, stage: str) -> None:
        state = {"stage": f"{case}: {stage}", "done": done, "total": len(kinds), "unit": "attack"}
        write_atomically(run.directory / "progress.json", json.dumps(state).encode())

    try:
        targets = open_targets(run, case, opener, notes.effort, lambda _: show(0, "replay"))
    except NothingCrossed as error:
        notes.add(dict.fromkeys(kinds, str(error)))
        return
    except Exception as error:
        notes.add(dict.fromkeys(kinds, _describe(error)))
        return
    for done, kind in enumerate(kinds):
        show(done, kind)
        # Should the worker die of it, the next one tries the others first.
        notes.add({kind: DIED})
        try:
            if why := attacks()[kind].explain_unfit(targets):
                notes.add({kind: why})
                continue
            attack_targets(run, case, kind, targets, notes.effort, lambda _: None)
        except Exception as error:
            notes.add({kind: _describe(error)})
        else:
            notes.remove(kind)


def _describe(error: Exception) -> str:
    named = "" if isinstance(error, RequestError) else f"{type(error).__name__}: "
    return f"{FAILED}{named}{error}"


def _list_left(place: Path, kinds: Sequence[str], effort: Effort) -> list[str]:
    """Return the attacks that are left to try on a case, last those that ended a worker."""
    reasons = _read_notes(place, effort)
    left = [
        kind
        for kind in kinds
        if not _is_known(place, kind, effort) and reasons.get(kind, FAILED).startswith(FAILED)
    ]
    return sorted(left, key=lambda kind: reasons.get(kind) == DIED)


def _is_known(place: Path, kind: str, effort: Effort) -> bool:
    """Return whether an attack with this effort has been measured."""
    try:
        text = (place / f"attack-{kind}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        found = {row["metric"]: row["value"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return False  # it is not there, or damaged
    return all(found.get(name) == value for name, value in effort._asdict().items())


def _read_notes(place: Path, effort: Effort) -> dict[str, str]:
    """Return reasons that were found with this effort; none if the file is damaged."""
    try:
        kept = json.loads((place / REASONS).read_text(encoding="utf-8"))
        return dict(kept["reasons"]) if kept["effort"] == effort._asdict() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def list_failures(directory: Path) -> dict[str, str]:
    """Return which attacks failed, and why, by run, case and kind."""
    return {
        f"{cell.name}/{place.parent.name}/{kind}": reason.removeprefix(FAILED)
        for cell in read_plan(directory)
        for place in sorted((directory / cell.name).glob(f"*/{REASONS}"))
        for kind, reason in read_reasons(place.parent).items()
        if reason.startswith(FAILED)
    }
