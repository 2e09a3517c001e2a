"""The command ``pudica``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pudica.simulations.attack_commands import attacks_app
from pudica.simulations.competition import competition_app
from pudica.simulations.console import (
    ENGINE,
    INTERRUPTED,
    RunPaths,
    Settings,
    exit_on_request_error,
    explain_app_failure,
    explain_failures,
    print_message,
    print_results,
    print_study,
    shorten_path,
)
from pudica.simulations.deployment.commands import deploy_app, node_app
from pudica.simulations.key_commands import key_app
from pudica.simulations.result_commands import results_app

# Heavy imports (torch, ray, flwr, pandas) stay inside the commands: `pudica --help` is instant.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(key_app, name="key")
app.add_typer(competition_app, name="competition")
app.add_typer(deploy_app, name="deploy")
app.add_typer(node_app, name="node")
app.add_typer(attacks_app)
app.add_typer(results_app)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        from pudica.clients.protocol import code_fingerprint

        typer.echo(f"pudica {version('pudica')}, code {code_fingerprint()}")
        raise typer.Exit


@app.callback()
def main_(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Train and evaluate together without sharing data or models."""


@app.command("list")
def list_() -> None:
    """List experiments, data sets and models, and which data are available here."""
    import yaml

    from pudica import models
    from pudica.clients.data import catalogue
    from pudica.simulations.studies.shipping import shipped_frontiers
    from pudica.strategies.loading import shipped

    typer.echo("Experiments (pudica run NAME)")
    for name, path in shipped().items():
        typer.echo(f"  {name:24} {yaml.safe_load(path.read_text())['description']}")
    typer.echo("\nFrontiers (pudica frontier NAME)")
    for name, path in shipped_frontiers().items():
        typer.echo(f"  {name:24} {yaml.safe_load(path.read_text())['description']}")
    typer.echo("\nData sets (--set data.name=NAME)")
    with exit_on_request_error():
        for entry in catalogue():
            typer.echo(f"  {'✓' if entry.present else '·'} {entry.name:22} {entry.description}")
            typer.echo(f"    {'':22} {entry.where}")
    typer.echo("\nModels (participants: - model: NAME; parameters for 10 classes, 3x32x32)")
    for name in models.names():
        typer.echo(f"  {name:16} {models.describe(name)}")
    typer.echo("  custom:FILE.py:callable, torchvision:NAME, or an exported program FILE.pt2")


@app.command()
def settings(
    system: Annotated[str, typer.Argument(help="A system, such as themis or split.")],
    prefix: Annotated[
        str | None, typer.Argument(help="A section or a key; by default all.")
    ] = None,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print a JSON Schema, for editors.")
    ] = False,
) -> None:
    """Print every setting of a system: its key, type, default, unit and meaning."""
    from pudica.simulations import settings_text

    with exit_on_request_error():
        if json_schema:
            typer.echo(settings_text.format_json_schema(system, prefix))
        else:
            typer.echo(settings_text.format_settings(system, prefix))


@app.command()
def run(
    experiment: Annotated[
        str | None, typer.Argument(help="A name from `pudica list`, or a YAML file.")
    ] = None,
    set_: Settings = None,
    engine: Annotated[str, typer.Option(help="inprocess, ray or flower.")] = ENGINE,
    out: Annotated[Path, typer.Option(help="Folder for the run's directory.")] = Path("results"),
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Resume a run that was stopped.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the run's directory.")] = False,
) -> None:
    """Run an experiment. Exit code 0: done, 1: the run failed, 2: the request is wrong."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from pudica.simulations import runner

    with exit_on_request_error():
        prepared, directory = runner.prepare(experiment, set_ or [], out, resume, engine)
        if resume and runner.is_done(directory):
            if not quiet:
                print_message(f"{shorten_path(directory)} is done already; these are its results")
        else:
            options = f"--engine {engine}" if engine != ENGINE else ""
            with explain_failures(directory, options=options):
                runner.execute(prepared, directory, engine, quiet)
    with explain_failures(directory, what="the run is done, but can't be shown"):
        print_results(directory, quiet)
    typer.echo(directory)


@app.command()
def study(
    study: Annotated[
        str | None,
        typer.Argument(help="A study's YAML file, or an experiment to run with many settings."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-4, or 0,2,5-7.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=[A, B]", help="Alternatives; all are combined."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default as many as fit.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the study's directory.")] = Path("results"),
    resume: Annotated[
        Path | None, typer.Option(metavar="STUDY", help="Resume a study that was stopped.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only its directory.")] = False,
) -> None:
    """Run many experiments in parallel. Exit code 0: done, 1: some failed, 2: wrong request."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from pudica.simulations.studies import study as studies
    from pudica.strategies.loading import parse_override

    with exit_on_request_error():
        settings = dict(parse_override(text) for text in set_ or [])
        if resume:
            experiments, directory = studies.prepare_resume(resume, study, settings, seeds)
        else:
            config = studies.build_config(study, settings, seeds)
            experiments, directory = studies.prepare(config, out)
        with explain_failures(directory, command="pudica study"):
            failures = studies.execute(experiments, directory, workers, quiet)
    print_study(directory, failures, quiet)


@app.command()
def simulate(
    path: Annotated[Path, typer.Argument(help="The folder of a Flower app.")],
    nodes: Annotated[int, typer.Option(help="Number of simulated nodes.")] = 10,
    engine: Annotated[str, typer.Option(help="inprocess or ray.")] = ENGINE,
    run_config: Annotated[
        list[str] | None,
        typer.Option(metavar="'KEY=VALUE …'", help="Override settings; as of `flwr run`."),
    ] = None,
    num_cpus: Annotated[float, typer.Option(help="CPUs of a worker, threads of a node.")] = 1.0,
    num_gpus: Annotated[float, typer.Option(help="GPUs of a worker; may be a fraction.")] = 0.0,
    workers: Annotated[
        int | None, typer.Option(help="Ray workers; by default as many as fit.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed the global random generators; by default none.")
    ] = None,
) -> None:
    """Run any Flower app on Pudica's engines. Exit code 0: done, 1: it failed, 2: wrong request."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from pudica.simulations import simulate as run_app
    from pudica.simulations.flower_project import import_apps, read_project
    from pudica.simulations.runner import handle_signals

    with exit_on_request_error(), explain_app_failure(), handle_signals():
        project = read_project(path, run_config or [])
        with import_apps(project) as (server_app, client_app):
            run_app(
                server_app,
                client_app,
                nodes=nodes,
                engine=engine,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                workers=workers,
                run_config=project.config,
                seed=seed,
            )


@app.command()
def cuts(
    model: Annotated[str, typer.Argument(help="A model, as in an experiment.")],
    input_: Annotated[str, typer.Option("--input", metavar="CxHxW")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 10,
    batch: Annotated[int, typer.Option(min=2, help="Batch size, for memory.")] = 64,
    epsilon: Annotated[float, typer.Option(min=0.01, max=100, help="ε of one activation.")] = 1.0,
    weights: Annotated[
        str, typer.Option(help="Weights of privacy, resources and accuracy in the cost.")
    ] = "1,1,1",
    post: Annotated[
        str | None,
        typer.Option(
            help="Cut in three, as FaceMix does: the layer after which the last stage begins."
        ),
    ] = None,
) -> None:
    """Show where a model can be cut, and what each cut costs an edge device."""
    from pudica.simulations import arguments
    from pudica.simulations.cuts import build_cut_table, build_stage_table, find_best_cut
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        shape = arguments.parse_image_shape(input_, "--input")
        importance = arguments.parse_weights(weights)
        if post is not None:
            frame = build_stage_table(model, shape, classes, post)
            print_frame(frame, f"Stages of {model}, the last after '{post}'")
            typer.echo(
                "For one image, without mixing. edge MMAC, share: multiplications of convolutions "
                "and matrix products, in millions, and in % of the model's."
            )
            return
        frame = build_cut_table(model, shape, classes, batch, epsilon, importance)
    print_frame(frame, f"Cuts of {model}")
    typer.echo(
        "bytes: of one example's activation. MFLOP: forward, one example, front only. cost: "
        "w1·ε + w2·share - w3·(1 - 2/(exp ε - 1)), section VI of paper 004."
    )
    if cut := find_best_cut(frame):
        typer.echo(f"The best cut by that cost is after '{cut}'; ε is the same at each cut here.")


@app.command()
def audit(
    shield: Annotated[str, typer.Argument(help="A mechanism, such as clip-gaussian.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Its settings, such as epsilon=1."),
    ] = None,
    shape: Annotated[str, typer.Option(metavar="CxHxW", help="Shape of an example.")] = "80x4x4",
    batch: Annotated[int, typer.Option(min=1, help="Examples per batch.")] = 64,
    samples: Annotated[int, typer.Option(min=4, help="Outputs per neighbouring input.")] = 5_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all randomness.")] = 0,
) -> None:
    """Attack a shield: show its claim, what holds, and what privacy loss can be shown."""
    from pudica.simulations import arguments, audits
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        result = audits.audit_shield(
            shield, set_ or [], arguments.parse_shape(shape), batch, samples, seed
        )
    print_frame(audits.build_table(result), f"Audit of {shield}")
    typer.echo("\n".join(audits.describe(result)))


@app.command()
def privacy(
    runs: RunPaths,
    delta: Annotated[float, typer.Option(help="δ of all releases of a record together.")] = 1e-5,
) -> None:
    """Show what was released in a run, and what guarantee a training record has."""
    from pudica.simulations import ledgers
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        reports = ledgers.build_reports(runs, delta)
    for report in reports:
        print_frame(report.table, report.title)
        print_message("\n".join(report.lines) + "\n", err=False)


@app.command()
def disguise(
    images: Annotated[
        Path, typer.Argument(help="Class folders of images, parquet, or a data set's name.")
    ],
    out: Annotated[Path, typer.Argument(help="A new folder, or one to resume.")],
    key: Annotated[Path, typer.Option(help="A key file from `pudica key new`.")],
    undo: Annotated[bool, typer.Option("--undo", help="Restore with the same key.")] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A column to keep; others are left out. May be repeated."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Resize to this side.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 (grey) or 3 (colour).")] = None,
) -> None:
    """Disguise a data set with a key, to share it; or restore it with --undo."""
    from pudica.models.errors import RequestError
    from pudica.simulations import disguising

    with exit_on_request_error():
        if channels not in (None, 1, 3):
            raise RequestError(f"--channels: {channels}; allowed: 1 (grey), 3 (colour)")
        if undo and (label or image_size or channels):
            raise RequestError("--undo: images are restored as they were; leave other options out")
        if undo:
            lines = disguising.restore(images, out, key)
        else:
            lines = disguising.disguise(images, out, key, label or [], image_size, channels)  # type: ignore[arg-type]
    print_message("\n".join(lines), err=False)


def main() -> None:
    """Run the command line; Ctrl-C outside a run exits quietly."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
