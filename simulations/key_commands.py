"""``pudica key``: create, show and attack keys of image disguises."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pudica.simulations.console import DataSettings, exit_on_request_error

# Heavy imports stay inside the commands: `pudica --help` is instant.

key_app = typer.Typer(no_args_is_help=True, help="Create and inspect keys of image disguises.")


@key_app.command("new")
def new_key(
    shield: Annotated[str, typer.Option(help="The disguise, such as MAT(256)+MMT(10).")],
    shape: Annotated[str, typer.Option(metavar="CxHxW", help="Shape of an image.")],
    out: Annotated[Path, typer.Option(help="A new file; only you may read it.")],
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="For experiments only: whoever knows it has the key. Default: the system's.",
        ),
    ] = None,
) -> None:
    """Create a key in a file that only its owner can read, and show its fingerprint."""
    from pudica.simulations import arguments, keys

    with exit_on_request_error():
        key = keys.create_key(shield, arguments.parse_image_shape(shape, "--shape"), out, seed)
    typer.echo("\n".join(keys.describe_key(key)))


@key_app.command("show")
def show_key(key: Annotated[Path, typer.Argument(help="A key file.")]) -> None:
    """Show what a key is for and its fingerprint, but never the key."""
    from pudica.clients.shields.disguises import Key
    from pudica.simulations import keys

    with exit_on_request_error():
        loaded = Key.load(key)
    typer.echo("\n".join(keys.describe_key(loaded)))


@key_app.command("attack")
def attack_key(
    key: Annotated[Path, typer.Argument(help="A key file.")],
    data: Annotated[str, typer.Option(help="A data set of `pudica list`.")],
    set_: DataSettings = None,
    count: Annotated[
        int,
        typer.Option("--images", min=2, help="Number of disguised images that the attack sees."),
    ] = 1_000,
    picture: Annotated[Path | None, typer.Option(help="A PNG file to draw.")] = None,
) -> None:
    """Undo a matrix transformation without its key, from disguised images alone."""
    from pudica.clients.shields.disguises import Key
    from pudica.models.errors import RequestError
    from pudica.simulations import keys
    from pudica.simulations.display import print_frame

    with exit_on_request_error():
        if picture and picture.suffix != ".png":
            raise RequestError(f"--picture: {picture} must end in .png")
        loaded = Key.load(key)
        plain = keys.load_images(data, set_ or [], count)
        frame, remark = keys.run_attack(loaded, plain)
    print_frame(frame, f"{loaded.notation}, key {loaded.fingerprint}, without it")
    typer.echo(remark)
    if picture:
        with exit_on_request_error():
            typer.echo(keys.draw_attack(loaded, plain, picture))
