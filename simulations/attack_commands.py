"""``pudica attack`` and ``pudica frontier``: how far attacks come, on a run and on all methods."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from pudica.simulations.console import (
    FAILED,
    DataSettings,
    exit_on_request_error,
    explain_failures,
    print_message,
    shorten_path,
)

# Heavy imports stay inside the commands: `pudica --help` is instant.

attacks_app = typer.Typer()


@attacks_app.command()
def attack(
    run: Annotated[Path, typer.Argument(help="A run that is done.")],
    case: Annotated[
        list[str] | None, typer.Option(help="Cases; by default all. May be repeated.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Attacks; by default all that fit. May be repeated; `list` names all."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Effort: epochs of what is trained.")] = 5,
    images: Annotated[int, typer.Option(min=1, help="Images to attack at most.")] = 256,
    requests: Annotated[int, typer.Option(min=1, help="Requests to unmix.")] = 4,
    data: Annotated[
        str | None, typer.Option(help="Images of known people, for identity: a data set's name.")
    ] = None,
    set_: DataSettings = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all randomness.")] = 0,
) -> None:
    """Attack what an adversary saw in a run, and show what it could learn.

    A case is run once more, to see what crosses.
    """
    from pudica import analysis
    from pudica.analysis.attacks import Effort
    from pudica.models.errors import RequestError
    from pudica.simulations import attacking
    from pudica.simulations.display import print_result

    with exit_on_request_error():
        if set_ and not data:
            raise RequestError("--set: only with --data, which is missing")
        people = attacking.load_known_people(data, set_ or [], run) if data else None
        effort = Effort(epochs, images, requests, seed)
        attacking.attack(run, case or [], kind or [], effort, people, print_message)
        for title, frame in analysis.tables(run).items():
            if "attack" in title:
                print_result(frame, title, wide=True)
    analysis.plot(run)
    for picture in sorted((run / "plots").glob("*.png")):
        typer.echo(shorten_path(picture.absolute()))


@attacks_app.command()
def frontier(
    name: Annotated[
        str | None, typer.Argument(help="A name from `pudica list`, or a frontier's YAML file.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-2, or 0,2,5-7.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Settings of all runs.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default as many as fit.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for its directory.")] = Path("results"),
    resume: Annotated[
        Path | None, typer.Option(metavar="FRONTIER", help="Resume one that was stopped.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only its directory.")] = False,
) -> None:
    """Run all methods on the same data, attack them in every way that fits, and compare.

    Exit code 0: done, 1: a run or an attack failed, 2: wrong request.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from pudica.models.errors import RequestError
    from pudica.simulations.studies import frontier as frontiers
    from pudica.simulations.studies.shipping import shipped_frontiers
    from pudica.simulations.studies.study import execute
    from pudica.strategies.loading import parse_override

    with exit_on_request_error():
        settings = dict(parse_override(text) for text in set_ or [])
        if resume:
            prepared, directory = frontiers.resume_frontier(resume, [name, settings, seeds])
        elif name is None:
            known = ", ".join(shipped_frontiers())
            raise RequestError(f"name a frontier: {known}, or a YAML file")
        else:
            config = frontiers.build_config(name, settings, seeds)
            prepared, directory = frontiers.prepare_frontier(config, out)
        with explain_failures(directory, command="pudica frontier"):
            failures = execute(prepared, directory, workers, quiet, frontiers.ATTACKING)
        failures |= frontiers.list_failures(directory)
    _print_frontier(directory, failures, quiet)


def _print_frontier(directory: Path, failures: dict[str, str], quiet: bool) -> None:
    """Print what a frontier came to; exit with code 1 if something failed."""
    from pudica.simulations.display import print_result
    from pudica.simulations.studies.frontier import Frontier

    named, done = shlex.quote(str(shorten_path(directory))), Frontier(directory)
    with exit_on_request_error():
        begun = any(done.status()["status"] != "not begun")
        plots = done.save() if begun else []
        if begun and not quiet:
            table = done.frontier().dropna(axis="columns", how="all")
            print_result(table, "Frontier", rest=f"in {named}/frontier.csv")
            typer.echo("Plots")
            for plot in plots:
                typer.echo(f"  {shorten_path(plot)}")
            typer.echo(f"More: {named}/attacks.csv\n      pudica report {named}/*/\n\nFrontier")
    typer.echo(directory)
    for what, reason in failures.items():
        print_message(f"error: {what} failed: {reason}")
    if failures:
        print_message(f"resume with: pudica frontier --resume {named}")
        raise typer.Exit(FAILED)
