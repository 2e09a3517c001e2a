"""``pudica show``, ``table``, ``plot`` and ``report``: what was measured, to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pudica.simulations.console import (
    RunPaths,
    exit_on_request_error,
    print_message,
    shorten_path,
)

if TYPE_CHECKING:
    import pandas as pd

# Heavy imports stay inside the commands: `pudica --help` is instant.

results_app = typer.Typer()

Columns = Annotated[
    str | None, typer.Option(metavar="A,B", help="Figures to show, beside what names the rows.")
]


@results_app.command()
def show(
    runs: RunPaths,
    wide: Annotated[
        bool, typer.Option("--wide", help="Show all columns and rows, and what was exchanged.")
    ] = False,
    columns: Columns = None,
) -> None:
    """Print the tables of runs. Those that differ only by their seed are taken together."""
    from pudica import analysis
    from pudica.simulations.display import choose_columns, print_result

    with exit_on_request_error():
        tables = analysis.tables(runs)
        wanted = _validate_columns(columns, tables)
    for title, frame in analysis.brief(tables).items() if not (wide or wanted) else tables.items():
        if wanted and not any(name in frame for name in wanted):
            continue
        chosen = choose_columns(frame, wanted) if wanted else frame
        print_result(chosen, title, wide)


def _validate_columns(columns: str | None, tables: dict[str, pd.DataFrame]) -> list[str]:
    from pudica.models.errors import unknown_name_error

    wanted = [name.strip().replace(" ", "_") for name in (columns or "").split(",") if name.strip()]
    known = dict.fromkeys(str(name) for frame in tables.values() for name in frame)
    for name in wanted:
        if name not in known:
            raise unknown_name_error("column", name, known)
    return wanted


@results_app.command()
def table(
    name: Annotated[
        str, typer.Argument(help="Such as themis-table1; `list` names all, of RUNS if given.")
    ],
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories.")] = None,
    format_: Annotated[str, typer.Option("--format", help="latex, markdown or csv.")] = "markdown",
    rows: Annotated[
        bool, typer.Option("--rows", help="A row per run; by default seeds are taken together.")
    ] = False,
    columns: Columns = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file to write.")] = None,
) -> None:
    """Export one table of runs, for a paper or a spreadsheet."""
    from pudica import analysis
    from pudica.simulations.display import choose_columns

    with exit_on_request_error():
        if name == "list":
            typer.echo("\n".join(analysis.list_tables(runs or [])))
            return
        frame = analysis.build_named_table(name, runs or [], spread=not rows)
        if wanted := _validate_columns(columns, {name: frame}):
            frame = choose_columns(frame, wanted)
        text = analysis.export(frame, format_)
        if out:
            _write(out, text)
    if out:
        typer.echo(shorten_path(out.absolute()))
    else:
        print_message(text.rstrip("\n"), err=False)


def _write(path: Path, text: str) -> None:
    from pudica.models.errors import RequestError
    from pudica.models.files import write_atomically

    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise RequestError(f"--out: can't write {path}: {error.strerror}") from error


@results_app.command()
def plot(runs: RunPaths) -> None:
    """Draw the figures of one or several runs and print their paths."""
    from pudica import analysis

    with exit_on_request_error():
        for run_directory in analysis.find(runs):
            for figure in analysis.plot(run_directory):
                typer.echo(shorten_path(figure.absolute()))


@results_app.command()
def report(
    runs: RunPaths,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "report.html"
    ),
) -> None:
    """Write a page with all tables, figures and guarantees of runs, in one file."""
    from pudica import analysis

    with exit_on_request_error():
        typer.echo(shorten_path(analysis.report(runs, out).absolute()))
