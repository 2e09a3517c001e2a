"""``pudica competition``: a competition's stages, its leaderboard page, and verifying that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pudica.simulations.console import (
    exit_on_request_error,
    print_check_results,
    print_message,
    shorten_path,
)

# Heavy imports stay inside the commands: `pudica --help` is instant.

competition_app = typer.Typer(
    no_args_is_help=True, help="Control a competition's stages; publish and verify its leaderboard."
)

Run = Annotated[Path, typer.Argument(help="The competition's run.")]
Stage = Annotated[
    str | None,
    typer.Argument(
        help="join, noise or test; by default the one that is next to open, or to close."
    ),
]
POLL_SECONDS = 1.0


@competition_app.command("open")
def open_(run: Run, stage: Stage = None) -> None:
    """Open a stage now, whatever its scheduled time."""
    _send_order(run, "open", stage)


@competition_app.command("close")
def close(run: Run, stage: Stage = None) -> None:
    """Close a stage now; nothing more is accepted in it."""
    _send_order(run, "close", stage)


@competition_app.command("stages")
def stages(run: Run) -> None:
    """Show when each stage opened or opens, and closed or closes."""
    from pudica.strategies.themis.orders import describe_time, read_stages

    with exit_on_request_error():
        settings = _load_stages(run)
        now = read_stages(run)
    for name, stage in settings:
        stand = now.get(name, {})
        opened = stand.get("opened") or f"opens {describe_time(stage.opens)}"
        closed = stand.get("closed") or f"closes {describe_time(stage.closes)}"
        typer.echo(f"{name:6} {opened:32} {closed}")


@competition_app.command("publish")
def publish(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("public"),
) -> None:
    """Write the leaderboard as a page: HTML, CSV, pictures of the released images, a manifest."""
    from pudica import analysis
    from pudica.simulations.deployment.auditing import publish_manifest

    with exit_on_request_error():
        written = analysis.publish(run, out)
        for path in (*written, *publish_manifest(run, out, written)):
            typer.echo(shorten_path(path.absolute()))


@competition_app.command("verify")
def verify(
    folder: Annotated[Path, typer.Argument(help="The folder as it was published.")],
    certificate: Annotated[
        Path,
        typer.Option(help="Certificate of the organiser's authority: ca.crt in a node's folder."),
    ],
    node: Annotated[
        Path | None, typer.Option(help="Your node.yaml, to compare with your submissions.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="The organiser's run, to recount correct predictions.")
    ] = None,
) -> None:
    """Verify a leaderboard: its signature, its files, and the submissions behind it."""
    from pudica.simulations.deployment.auditing import verify_leaderboard

    with exit_on_request_error():
        results = verify_leaderboard(folder, certificate, node, run)
    print_check_results(results)


def _send_order(run: Path, what: str, stage: str | None) -> None:
    from pudica.strategies.themis.orders import give_order

    with exit_on_request_error():
        _load_stages(run)
        chosen = give_order(run, what, stage)  # type: ignore[arg-type]
        status = json.loads((run / "run.json").read_text())["status"]
    typer.echo(f"ordered: {what} '{chosen}'")
    if status != "running":
        print_message(f"the run is {status}; this takes effect once it is resumed")


def _load_stages(run: Path):  # type: ignore[no-untyped-def]  # a pydantic model, imported late
    from pudica.analysis.runs import open_run
    from pudica.analysis.themis import competition_settings

    return competition_settings(open_run(run)).stages


@contextmanager
def publish_drafts(directory: Path) -> Iterator[None]:
    """Update the page in a competition's run directory after each stage."""
    from pudica import analysis
    from pudica.models.errors import RequestError
    from pudica.simulations.progress import call_repeatedly
    from pudica.strategies.themis.orders import STATE

    state, published = directory / STATE, -1.0

    def publish_if_changed() -> None:
        nonlocal published
        changed = state.stat().st_mtime if state.exists() else published
        if changed == published:
            return
        try:
            analysis.publish(directory, directory / "page")
        except (FileNotFoundError, RequestError):  # nothing to show yet
            return
        except Exception as error:  # an error here must not stop the competition
            print_message(f"the page could not be written: {type(error).__name__}: {error}")
        published = changed

    try:
        with call_repeatedly(publish_if_changed, POLL_SECONDS):
            yield
    finally:
        published = -1.0  # publish again: run.json now says how the run ended
        publish_if_changed()
