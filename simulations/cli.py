"""The command ``pudica``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pudica.simulations.competition import competition_app
from pudica.simulations.console import (
    ENGINE,
    INTERRUPTED,
    exit_on_request_error,
    explain_failures,
    print_message,
    print_results,
    shorten_path,
)
from pudica.simulations.deployment.commands import deploy_app, node_app

# Heavy imports (torch, ray, flwr, pandas) stay inside the commands: `pudica --help` is instant.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

key_app = typer.Typer(no_args_is_help=True, help="Make and look at keys of image disguises.")
app.add_typer(key_app, name="key")
app.add_typer(competition_app, name="competition")
app.add_typer(deploy_app, name="deploy")
app.add_typer(node_app, name="node")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from pudica.clients.protocol import code_fingerprint

        typer.echo(f"pudica {version('pudica')}, code {code_fingerprint()}")
        raise typer.Exit


@app.callback()
def main_(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Say which version this is."
        ),
    ] = False,
) -> None:
    """Learning together without giving data or models away."""


RunPaths = Annotated[list[Path], typer.Argument(help="Run directories.")]


@app.command("list")
def list_() -> None:
    """Show the experiments, data sets and models, and which data are here."""
    import yaml

    from pudica import models
    from pudica.clients.data import catalogue
    from pudica.strategies.loading import shipped

    typer.echo("Experiments (pudica run NAME)")
    for name, path in shipped().items():
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
def run(
    experiment: Annotated[
        str | None, typer.Argument(help="A name from `pudica list`, or a YAML file.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    engine: Annotated[str, typer.Option(help="inprocess, ray or flower.")] = ENGINE,
    out: Annotated[Path, typer.Option(help="The run's directory is made in here.")] = Path(
        "results"
    ),
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the run's directory.")] = False,
) -> None:
    """Run an experiment. Exit code 0: done, 1: the run failed, 2: the request is wrong."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from pudica.models.errors import unknown_name_error
    from pudica.simulations import runner

    with exit_on_request_error():
        if engine not in runner.ENGINES:
            raise unknown_name_error("engine", engine, runner.ENGINES)
        prepared, directory = runner.prepare(experiment, set_ or [], out, resume)
        if resume and runner.is_done(directory):
            if not quiet:
                print_message(f"{shorten_path(directory)} is done already; these are its results")
        else:
            with explain_failures(
                directory, options=f"--engine {engine}" if engine != ENGINE else ""
            ):
                runner.execute(prepared, directory, engine, quiet)
    with explain_failures(directory, what="the run is done, but can't be shown"):
        print_results(directory, quiet)
    typer.echo(directory)


@app.command()
def show(runs: RunPaths) -> None:
    """Print the tables of one or several runs, side by side."""
    from pudica import analysis
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        for title, frame in analysis.tables(runs).items():
            print_frame(frame, title)


@app.command()
def plot(runs: RunPaths) -> None:
    """Draw the figures of one or several runs and print their paths."""
    from pudica import analysis

    with exit_on_request_error():
        for one in runs:
            for figure in analysis.plot(one):
                typer.echo(shorten_path(figure.absolute()))


@app.command()
def cuts(
    model: Annotated[str, typer.Argument(help="A model, as in an experiment.")],
    input_: Annotated[str, typer.Option("--input", metavar="CxHxW")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=2, help="Classes to tell apart.")] = 10,
    batch: Annotated[int, typer.Option(min=2, help="Examples of a batch, for memory.")] = 64,
    epsilon: Annotated[float, typer.Option(min=0.01, max=100, help="Of one activation.")] = 1.0,
    weights: Annotated[str, typer.Option(help="Of privacy, resources, accuracy.")] = "1,1,1",
    post: Annotated[
        str | None,
        typer.Option(help="In three, as FaceMix: after which layer the last begins."),
    ] = None,
) -> None:
    """Show where a model can be cut, and what each cut costs an edge device."""
    from pudica.simulations import arguments
    from pudica.simulations.cuts import build_cut_table, build_stage_table, find_best_cut
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        shape, importance = (
            arguments.parse_image_shape(input_, "--input"),
            arguments.parse_weights(weights),
        )
        if post is not None:
            frame = build_stage_table(model, shape, classes, post)
            print_frame(frame, f"Stages of {model}, the last after '{post}'")
            typer.echo(
                "Of one image, without mixing. edge MMAC, share: multiplications of convolutions "
                "and matrix products, in millions, and in % of the model's."
            )
            return
        frame = build_cut_table(model, shape, classes, batch, epsilon, importance)
    print_frame(frame, f"Cuts of {model}")
    typer.echo(
        "bytes: of one example's activation. MFLOP: forward, one example, front only. cost: "
        "w1·ε + w2·share - w3·(1 - 2/(exp ε - 1)), section VI of paper 004."
    )
    if found := find_best_cut(frame):
        typer.echo(f"The best cut by that cost is after '{found}': ε is the same at each here.")


@app.command()
def audit(
    shield: Annotated[str, typer.Argument(help="A mechanism, such as batch-norm-laplace.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of the shield; may be repeated."),
    ] = None,
    shape: Annotated[str, typer.Option(metavar="CxHxW", help="One example's.")] = "80x4x4",
    batch: Annotated[int, typer.Option(min=1, help="Examples protected together.")] = 64,
    samples: Annotated[int, typer.Option(min=4, help="Outputs of each neighbour.")] = 5_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Attack a shield: what it claims, what holds, and what can be shown to be lost."""
    from pudica.simulations import arguments, audits
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        result = audits.audit_shield(
            shield, set_ or [], arguments.parse_shape(shape), batch, samples, seed
        )
    print_frame(audits.build_table(result), f"Audit of {shield}")
    typer.echo("\n".join(audits.describe_reasons(result)) + "\n")
    typer.echo("\n".join(audits.describe_verdicts(result)))


@app.command()
def privacy(
    runs: RunPaths,
    delta: Annotated[float, typer.Option(help="Of all releases of a record together.")] = 1e-5,
) -> None:
    """Show what left its owner in a run, and what is promised to a training record."""
    from pudica.simulations import ledgers
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        reports = ledgers.build_reports(runs, delta)
    for one in reports:
        print_frame(one.table, one.title)
        print_message("\n".join(one.lines) + "\n", err=False)


@app.command()
def attack(
    run: Annotated[Path, typer.Argument(help="A run of facemix that is done.")],
    case: Annotated[list[str] | None, typer.Option(help="By default all; may be repeated.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="attributes, identity, separation or reconstruction; by default all that fit."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of networks that are trained.")] = 5,
    images: Annotated[int, typer.Option(min=1, help="That are rebuilt.")] = 256,
    requests: Annotated[int, typer.Option(min=1, help="That are taken apart.")] = 4,
    data: Annotated[
        str | None, typer.Option(help="Images of known people, for identity: a data set's name.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of these data; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Attack what the cloud saw in a run, as the cloud could; and show what it learns."""
    from pudica import analysis
    from pudica.models.errors import RequestError
    from pudica.simulations import attacking
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        if set_ and not data:
            raise RequestError("--set: is of --data, which is missing")
        people = attacking.load_known_people(data, set_ or [], run) if data else None
        effort = attacking.Effort(epochs, images, requests, seed)
        attacking.attack(run, case or [], kind or [], effort, people, print_message)
        for title, frame in analysis.tables(run).items():
            if "attack" in title:
                print_frame(frame, title)
    analysis.plot(run)
    for picture in sorted((run / "plots").glob("*.png")):
        typer.echo(shorten_path(picture.absolute()))


@app.command()
def disguise(
    images: Annotated[
        Path, typer.Argument(help="Class folders of images, parquet, or a data set's name.")
    ],
    out: Annotated[Path, typer.Argument(help="A new folder, or one to go on with.")],
    key: Annotated[Path, typer.Option(help="A key file, of `pudica key new`.")],
    undo: Annotated[bool, typer.Option("--undo", help="Back, with the same key.")] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A column to keep; others stay here. May be repeated."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="Resize to this side.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 (grey) or 3 (colour).")] = None,
) -> None:
    """Disguise a data set under a key, to give it away; or undo that with --undo."""
    from pudica.models.errors import RequestError
    from pudica.simulations import disguising

    with exit_on_request_error():
        if channels not in (None, 1, 3):
            raise RequestError(f"--channels: {channels}; allowed: 1 (grey), 3 (colour)")
        if undo and (label or image_size or channels):
            raise RequestError("--undo: images come back as they were; leave other options out")
        if undo:
            told = disguising.restore(images, out, key)
        else:
            told = disguising.disguise(images, out, key, label or [], image_size, channels)  # type: ignore[arg-type]
    print_message("\n".join(told), err=False)


@key_app.command("new")
def new_key(
    shield: Annotated[str, typer.Option(help="The disguise, as MAT(256)+MMT(10).")],
    shape: Annotated[str, typer.Option(metavar="CxHxW", help="An image's.")],
    out: Annotated[Path, typer.Option(help="A new file; only you may read it.")],
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="For experiments: who knows it has the key. Else the system's."),
    ] = None,
) -> None:
    """Draw a key into a file that only its owner reads, and show its fingerprint."""
    from pudica.simulations import arguments, keys

    with exit_on_request_error():
        key = keys.create_key(shield, arguments.parse_image_shape(shape, "--shape"), out, seed)
    typer.echo("\n".join(keys.describe_key(key)))


@key_app.command("show")
def show_key(key: Annotated[Path, typer.Argument(help="A key file.")]) -> None:
    """Show what a key is for, and its fingerprint; never the key."""
    from pudica.clients.shields.disguises import Key
    from pudica.simulations import keys

    with exit_on_request_error():
        found = Key.load(key)
    typer.echo("\n".join(keys.describe_key(found)))


@key_app.command("attack")
def attack_key(
    key: Annotated[Path, typer.Argument(help="A key file.")],
    data: Annotated[str, typer.Option(help="A data set of `pudica list`.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of the data; may be repeated."),
    ] = None,
    count: Annotated[int, typer.Option("--images", min=2, help="That are seen disguised.")] = 1_000,
    picture: Annotated[Path | None, typer.Option(help="A PNG to draw.")] = None,
) -> None:
    """Undo a matrix transformation without its key, from disguised images alone."""
    from pudica.clients.shields.disguises import Key
    from pudica.models.errors import RequestError
    from pudica.simulations import keys
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        if picture and picture.suffix != ".png":
            raise RequestError(f"--picture: {picture} must end in .png")
        found = Key.load(key)
        plain = keys.load_images(data, set_ or [], count)
        frame, told = keys.run_attack(found, plain)
    print_frame(frame, f"{found.notation}, key {found.fingerprint}, without it")
    typer.echo(told)
    if picture:
        with exit_on_request_error():
            typer.echo(keys.draw_attack(found, plain, picture))


def main() -> None:
    """Run the command line; Ctrl-C outside a run ends it quietly."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
