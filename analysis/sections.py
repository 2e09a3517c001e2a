"""What a report shows of each system: its runs, tables, figures, guarantees and commands."""

from __future__ import annotations

import base64
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from pudica.analysis.drawing import draw_figures, plot_style
from pudica.analysis.frontier_figures import draw_frontier
from pudica.analysis.frontiers import attack_cells, frontier
from pudica.analysis.guarantees import LedgerReport, build_ledger_report, describe_competition
from pudica.analysis.rendering import build_heading
from pudica.analysis.reproducing import FILE, build_command, is_simulation, join_command, to_yaml
from pudica.analysis.runs import ATTACKS, Run, open_runs_of
from pudica.analysis.spread import (
    format_cell,
    group_by_seed,
    is_figure,
    join_intervals,
)
from pudica.analysis.summary import tables
from pudica.analysis.themis import competition_settings
from pudica.analysis.vectors import render_svg, take_title
from pudica.strategies.core.releases import FILE as LEDGER

TITLES = {"themis": "THEMIS", "split": "Split learning", "dlmt": "DLMT", "facemix": "FaceMix"}
REBUILT = "images and what attacks rebuilt of them"
MAX_NODES = 12
NO_LEDGER = f"There is no ledger of what was released ({LEDGER}), so nothing is known to hold."

Item = TypeVar("Item")


class Cell(NamedTuple):
    """A cell as people read it, and the number in it, if it is one."""

    text: str
    value: float | int | None


class Column(NamedTuple):
    """The head of a column."""

    heading: str
    numeric: bool


class Table(NamedTuple):
    """A frame, cell by cell; ``key`` is unique in the page, here and below."""

    key: str
    title: str
    columns: list[Column]
    rows: list[tuple[Cell, ...]]


class Picture(NamedTuple):
    """A figure: an ``<svg>`` element, or a PNG as a ``data:`` address.

    ``private`` says what it shows that must not be published, which mostly is nothing.
    """

    key: str
    run: str
    title: str
    svg: Markup | None = None
    png: str = ""
    private: str = ""


class Promise(NamedTuple):
    """What runs promise for a record: in sentences, or by the ledger that they keep."""

    runs: list[str]
    sentences: list[str]
    ledger: LedgerReport | None = None
    releases: Table | None = None


class Group(NamedTuple):
    """Runs that differ by their seed at most.

    ``commands`` run them again, with ``settings`` in a file unless ``is_exact``.
    """

    label: str
    description: str
    facts: list[tuple[str, str]]
    notes: list[str]
    commands: list[str]
    is_exact: bool
    settings: str


class Section(NamedTuple):
    """All there is to show of one system; ``pictures`` are by run."""

    key: str
    title: str
    groups: list[Group]
    tables: list[Table]
    pictures: dict[str, list[Picture]]
    promises: list[Promise]


def build_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section for each system."""
    names = sorted({str(run.info.get("system", "")) for run in runs})
    each = [
        _build_section(f"s{number}", name, open_runs_of(name, runs))
        for number, name in enumerate(names)
    ]
    return [*_build_frontier("f", runs), *each]


def _build_frontier(key: str, runs: Sequence[Run]) -> Iterator[Section]:
    """Yield a section on all methods together, if they were attacked."""
    if not any(any(run.directory.glob(ATTACKS)) for run in runs):
        return
    table, cells = frontier(runs), attack_cells(runs)
    unmeasured = cells.query("success.isna()")
    frames = {
        "Frontier: the best attack of each kind, in per cent": table.dropna(
            axis="columns", how="all"
        ),
        "Attacks that did not begin": unmeasured[["run", "case", "attack", "reason"]],
    }
    shown = [(title, frame) for title, frame in frames.items() if len(frame)]
    tables = [build_table(f"{key}-t{n}", *each) for n, each in enumerate(shown)]
    pictures = {"": list(_draw_frontier(f"{key}-f", draw_frontier(runs, table, cells)))}
    yield Section(key, "All methods, and the best attacks on them", [], tables, pictures, [])


def _draw_frontier(key: str, figures: Iterator[tuple[str, Figure | None]]) -> Iterator[Picture]:
    with plot_style():
        for number, (name, figure) in enumerate(figures):
            if figure is not None:
                title = take_title(figure)
                svg = Markup(render_svg(figure, f"{key}-{number}"))
                private = REBUILT if name.endswith("images") else ""
                yield Picture(f"{key}-{number}", "all methods", title, svg, private=private)


def _build_section(key: str, system: str, runs: list[Run]) -> Section:
    found = tables(runs).items()
    labels = group_by_seed(runs)
    return Section(
        key=key,
        title=TITLES.get(system, system),
        groups=[
            _build_group(labels[own[0].name], own)
            for own in group_by(runs, lambda run: labels[run.name])
        ],
        tables=[build_table(f"{key}-t{n}", title, frame) for n, (title, frame) in enumerate(found)],
        pictures=dict(_draw_pictures(key, runs)),
        promises=_build_promises(key, runs),
    )


def group_by(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Return items of equal key together, in order of appearance."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


# ----------------------------------------------------------------------------- tables


def build_table(key: str, title: str, frame: pd.DataFrame) -> Table:
    """Return a frame as people read it: a figure and its interval are in one cell."""
    joined = join_intervals(frame)
    columns, cells = [], []
    for name in joined:
        values = [_to_number(value) for value in frame[name].tolist()]
        numeric = is_figure(joined[name]) or any(value is not None for value in values)
        columns.append(Column(str(name).replace("_", " "), numeric))
        texts = map(format_cell, joined[name].tolist())
        cells.append([Cell(*both) for both in zip(texts, values, strict=True)])
    return Table(key, build_heading(title, frame), columns, list(zip(*cells, strict=True)))


def _to_number(value: Any) -> float | int | None:
    is_number = isinstance(value, float | int) and not isinstance(value, bool)
    return value if is_number and not pd.isna(value) else None


# ------------------------------------------------------------------------------- runs


def _build_group(label: str, runs: list[Run]) -> Group:
    first = runs[0]
    found = [build_command(run) for run in runs]
    exact = [command for command in found if command]
    is_exact = len(exact) == len(runs)
    seeds = [[f"seed={run.info.get('seed')}"] if run is not first else [] for run in runs]
    from_file = [
        join_command(run, FILE, own)
        for run, own in zip(runs, seeds, strict=True)
        if is_simulation(run)
    ]
    notes = dict.fromkeys(
        str(note) for run in runs for key in ("data", "remarks") for note in run.info.get(key, [])
    )
    return Group(
        label=label,
        description=str(first.settings.get("description", "")),
        facts=list(_list_facts(runs)),
        notes=list(notes),
        commands=exact if is_exact else from_file,
        is_exact=is_exact,
        settings=to_yaml(first),
    )


def _list_facts(runs: list[Run]) -> Iterator[tuple[str, str]]:
    """Yield what to know of runs with the same settings, by name."""
    first = runs[0]
    more = len(first.nodes) - MAX_NODES
    yield "experiment", str(first.info.get("experiment", ""))
    yield "data", str(first.settings.get("data", {}).get("name", "own"))
    yield "nodes", _join(first.nodes[:MAX_NODES]) + (f" and {more} more" if more > 0 else "")
    yield ("seed" if len(runs) == 1 else "seeds"), _join(run.info.get("seed") for run in runs)
    yield "status", _join(dict.fromkeys(run.info.get("status") for run in runs))
    yield "started", _join(_format_time(str(run.info.get("started", ""))) for run in runs)
    if len(runs) > 1:
        yield "runs", _join(run.name for run in runs)


def _format_time(timestamp: str) -> str:
    return timestamp.replace("T", " ").replace("+00:00", " UTC")


def _join(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


# --------------------------------------------------------------------------- promises


def _build_promises(key: str, runs: list[Run]) -> list[Promise]:
    """Return what runs promise, together for those that promise the same."""
    found = [_build_promise(f"{key}-p{number}", run) for number, run in enumerate(runs)]
    alike = group_by(found, _get_words)
    return [own[0]._replace(runs=[name for each in own for name in each.runs]) for own in alike]


def _build_promise(key: str, run: Run) -> Promise:
    if run.info.get("system") == "themis":
        return Promise([run.name], list(describe_competition(run)))
    if not (run.directory / LEDGER).is_file():
        return Promise([run.name], [NO_LEDGER])
    ledger = build_ledger_report(run)
    title = f"Releases, all of a record at δ = {ledger.delta:g}"
    return Promise([run.name], [], ledger, build_table(key, title, ledger.table))


def _get_words(promise: Promise) -> Hashable:
    ledger, releases = promise.ledger, promise.releases
    words = repr((ledger.remarks, ledger.cases, ledger.together)) if ledger else ""
    return (*promise.sentences, words, repr(releases.rows if releases else []))


# ---------------------------------------------------------------------------- figures


def _draw_pictures(key: str, runs: list[Run]) -> Iterator[tuple[str, list[Picture]]]:
    """Yield the figures of each run that has any, by its name."""
    for number, run in enumerate(runs):
        figures = _draw_figures(f"{key}-f{number}", run)
        if drawn := [*figures, *_load_attack_pictures(f"{key}-a{number}", run)]:
            yield run.name, drawn


def _draw_figures(key: str, run: Run) -> Iterator[Picture]:
    with plot_style():
        for number, (name, figure) in enumerate(draw_figures(run)):
            title = take_title(figure).replace(f" — {run.name}", "") or name
            svg = Markup(render_svg(figure, f"{key}-{number}"))
            private = _describe_private(run, name)
            yield Picture(f"{key}-{number}", run.name, title, svg, private=private)


def _describe_private(run: Run, name: str) -> str:
    """Return what a figure shows that is not for the public, or ""."""
    match run.info.get("system"):
        case "themis" if name.endswith("-images") and competition_settings(run).release.compare:
            return "plain test images"
        case "dlmt" if name == "seen":
            return "owners' images, disguised and undone"
    return ""


def _load_attack_pictures(key: str, run: Run) -> Iterator[Picture]:
    """Yield the pictures that ``pudica attack`` left."""
    measured = sorted(run.directory.glob(ATTACKS))
    wanted = [(p.parent.name, p.stem.removeprefix("attack-")) for p in measured]
    for number, (case, attack) in enumerate(wanted):
        path = run.directory / "plots" / f"{case}-{attack}.png"
        if path.is_file():
            png = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            yield Picture(f"{key}-{number}", run.name, f"{attack}: {case}", None, png, REBUILT)
