"""``pudica show`` and ``plot``: what was measured in runs, as tables and pictures."""

from __future__ import annotations

import typer

from pudica.simulations.console import RunPaths, exit_on_request_error, shorten_path

# Heavy imports stay inside the commands: `pudica --help` is instant.

results_app = typer.Typer()


@results_app.command()
def show(runs: RunPaths) -> None:
    """Print the tables of one or several runs, side by side."""
    from pudica import analysis
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        for title, frame in analysis.tables(runs).items():
            print_frame(frame, title)


@results_app.command()
def plot(runs: RunPaths) -> None:
    """Draw the figures of one or several runs and print their paths."""
    from pudica import analysis

    with exit_on_request_error():
        for run_directory in runs:
            for figure in analysis.plot(run_directory):
                typer.echo(shorten_path(figure.absolute()))
